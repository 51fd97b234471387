package migrations

import (
	"context"
	"io/fs"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/rivermigrate"
)

// What tests use from outside the package, where storetest can be imported.

// LockKey is the key of the migration lock.
const LockKey = lockKey

// Files are the embedded migrations.
var Files fs.FS = files

// LineAt is lineAt.
var LineAt = lineAt

// UpFrom is Up with other files.
func UpFrom(ctx context.Context, fsys fs.FS, pool *pgxpool.Pool, log *slog.Logger) error {
	r, err := newRunner(fsys, pool, log)
	if err != nil {
		return err
	}
	return r.up(ctx)
}

// StatusFrom is Status with other files.
func StatusFrom(ctx context.Context, fsys fs.FS, pool *pgxpool.Pool) (State, error) {
	r, err := newRunner(fsys, pool, nil)
	if err != nil {
		return State{}, err
	}
	return r.state(ctx, pool)
}

// RiverDownTo takes River's migrations back to a version, as an older release left them, our triggers and all.
func RiverDownTo(ctx context.Context, pool *pgxpool.Pool, version int) error {
	migrator, err := newRiverMigrator()
	if err != nil {
		return err
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	//nolint:staticcheck // see upRiverOne
	if _, err := migrator.MigrateTx(ctx, tx, rivermigrate.DirectionDown, &rivermigrate.MigrateOpts{TargetVersion: version}); err != nil {
		return err
	}
	return tx.Commit(ctx)
}
