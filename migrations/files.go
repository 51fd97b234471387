package migrations

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed *.sql river/*.sql
var files embed.FS

const triggersFile = "river/triggers.up.sql"

// migration is one of ours.
type migration struct {
	number   int
	name     string // of the up file, which errors and logs show
	up, down string
}

func (m migration) downName() string {
	return downName(m.name)
}

func downName(upName string) string {
	return strings.TrimSuffix(upName, ".up.sql") + ".down.sql"
}

// newRunner reads the migrations from fsys. What is wrong there is a build's fault.
func newRunner(fsys fs.FS, pool *pgxpool.Pool, log *slog.Logger) (*runner, error) {
	r := &runner{pool: pool, log: log}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	names, err := fs.Glob(fsys, "*.up.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	for i, name := range names {
		digits, _, _ := strings.Cut(name, "_")
		if number, err := strconv.Atoi(digits); err != nil || len(digits) != 4 || number != i+1 {
			return nil, fmt.Errorf("migration %s: want number %04d", name, i+1)
		}
		m := migration{number: i + 1, name: name}
		if m.up, err = readFile(fsys, name); err != nil {
			return nil, err
		}
		if m.down, err = readFile(fsys, m.downName()); err != nil {
			return nil, err
		}
		r.migrations = append(r.migrations, m)
	}
	if r.triggers, err = readFile(fsys, triggersFile); err != nil {
		return nil, err
	}
	return r, nil
}

func readFile(fsys fs.FS, name string) (string, error) {
	b, err := fs.ReadFile(fsys, name)
	if err != nil {
		return "", fmt.Errorf("read migration: %w", err)
	}
	return string(b), nil
}

// checksum names a file's content.
func checksum(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:8])
}

// runScript runs a file of statements. Its error names the file, and the line where the server gives a position.
func runScript(ctx context.Context, tx pgx.Tx, name, script string) error {
	_, err := tx.Conn().PgConn().Exec(ctx, script).ReadAll()
	if err == nil {
		return nil
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Position > 0 {
		return fmt.Errorf("migration %s, line %d: %w", name, lineAt(script, int(pgErr.Position)), err)
	}
	return fmt.Errorf("migration %s: %w", name, err)
}

// lineAt returns the line of the position-th character, both counted from 1.
func lineAt(script string, position int) int {
	line := 1
	for i, r := range script {
		if position--; position < 1 || i+utf8.RuneLen(r) >= len(script) {
			break
		}
		if r == '\n' {
			line++
		}
	}
	return line
}
