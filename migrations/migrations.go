// Package migrations brings a database to the schema that this build works with: ours and River's, under one lock.
//
// Ours are NNNN_name.up.sql and .down.sql, numbered from 1 without gaps, each run in a transaction of its own with the row
// that records it. River's come from its module and live in schema river. The triggers on River's job table, which feed
// the outbox, are dropped and made again in the same transaction as each of River's migrations: River never meets
// them, and no change of a job's state goes by unseen.
package migrations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// minSchema is the oldest schema that this build's serve and work run on. It trails the newest by one release, so that
// a fleet is upgraded by migrating first and replacing processes after.
const minSchema = 17

// ErrSchemaOld says that the database has to be migrated before this build can work with it.
var ErrSchemaOld = errors.New("database schema is older than this build needs: run `medianest migrate up`")

// Up applies what is missing. The pool's user becomes the owner; it must be allowed to create schemas in the database
// and roles, or find the roles made and granted to it. A database that is up to date is only looked at: no lock is
// taken. Else one process at a time migrates and the others wait for it, so any number may call Up at once. The pool
// only says how to connect: it may be of any size.
//
// A migration that fails is rolled back, those before it stay, and the error names its file and line.
func Up(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	r, err := newRunner(files, pool, log)
	if err != nil {
		return err
	}
	return r.up(ctx)
}

// Down takes back our last n migrations, newest first, with the data they hold. River's stay.
func Down(ctx context.Context, pool *pgxpool.Pool, n int, log *slog.Logger) error {
	r, err := newRunner(files, pool, log)
	if err != nil {
		return err
	}
	return r.down(ctx, n)
}

// Status returns how far the database is.
func Status(ctx context.Context, pool *pgxpool.Pool) (State, error) {
	r, err := newRunner(files, pool, nil)
	if err != nil {
		return State{}, err
	}
	return r.state(ctx, pool)
}

// Check returns ErrSchemaOld if this build cannot work on the database as it is: tables too old, or no triggers to
// feed the outbox. It tolerates a newer schema. Any of the roles may ask.
func Check(ctx context.Context, pool *pgxpool.Pool) error {
	st, err := Status(ctx, pool)
	switch {
	case isMissing(err):
		return fmt.Errorf("%w (%w)", ErrSchemaOld, err)
	case err != nil:
		return err
	case st.schema() < minSchema:
		return fmt.Errorf("%w (it is at %d, needed is %d)", ErrSchemaOld, st.schema(), minSchema)
	case st.RiverVersion < st.RiverLatest:
		return fmt.Errorf("%w (River's is at %d, needed is %d)", ErrSchemaOld, st.RiverVersion, st.RiverLatest)
	case !st.TriggersPresent:
		return fmt.Errorf("%w (the triggers on river_job are missing)", ErrSchemaOld)
	}
	return nil
}

// isMissing reports whether err is of a role that does not exist yet, or may not look yet.
func isMissing(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	switch pgErr.Code {
	case "22023", "42704", // the role that the connection asks for
		"42501", // a schema without grants
		"3F000", "42P01", "42703":
		return true
	}
	return false
}

// runner applies one set of migrations to one database.
type runner struct {
	migrations []migration
	triggers   string // the file that is run after River's migrations
	pool       *pgxpool.Pool
	log        *slog.Logger
}

func (r *runner) up(ctx context.Context) error {
	st, err := r.state(ctx, r.pool)
	if err != nil {
		return err
	}
	if st.UpToDate() {
		return nil
	}
	return r.locked(ctx, func(s *session) error {
		// Another process may have migrated while this one waited.
		st, err := r.state(ctx, s.conn)
		if err != nil || st.UpToDate() {
			return err
		}
		if err := r.prepare(ctx, s.conn); err != nil {
			return err
		}
		if err := r.upRiver(ctx, s); err != nil {
			return err
		}
		for _, m := range r.migrations {
			if err := r.upOne(ctx, s, m); err != nil {
				return err
			}
		}
		return r.installTriggers(ctx, s)
	})
}

// upOne applies m unless it is applied.
func (r *runner) upOne(ctx context.Context, s *session, m migration) error {
	start := time.Now()
	applied := false
	err := s.step(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			INSERT INTO medianest.migration (number, name, checksum)
			VALUES ($1, $2, $3)
			ON CONFLICT (number) DO NOTHING`, m.number, m.name, checksum(m.up))
		if err != nil {
			return fmt.Errorf("record migration %s: %w", m.name, err)
		}
		if applied = tag.RowsAffected() == 1; !applied {
			return nil
		}
		return runScript(ctx, tx, m.name, m.up)
	})
	if err != nil {
		return err
	}
	if applied {
		r.log.InfoContext(ctx, "migration applied", "migration", m.name, "duration_ms", time.Since(start).Milliseconds())
	}
	return nil
}

func (r *runner) down(ctx context.Context, n int) error {
	if n < 1 {
		return fmt.Errorf("migrate down %d: want a positive number of migrations", n)
	}
	return r.locked(ctx, func(s *session) error {
		for range n {
			more, err := r.downOne(ctx, s)
			if err != nil || !more {
				return err
			}
		}
		return nil
	})
}

// downOne takes back the newest migration; more is false when there is none.
func (r *runner) downOne(ctx context.Context, s *session) (more bool, err error) {
	st, err := r.state(ctx, s.conn)
	if err != nil {
		return false, err
	}
	newest := st.schema()
	if newest == 0 {
		return false, nil
	}
	if newest > len(r.migrations) {
		return false, fmt.Errorf("migrate down: migration %04d was applied by a newer build, which has to take it back", newest)
	}
	m := r.migrations[newest-1]
	start := time.Now()
	err = s.step(ctx, func(tx pgx.Tx) error {
		if err := runScript(ctx, tx, m.downName(), m.down); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM medianest.migration WHERE number = $1`, m.number); err != nil {
			return fmt.Errorf("forget migration %s: %w", m.name, err)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	r.log.InfoContext(ctx, "migration taken back", "migration", m.downName(), "duration_ms", time.Since(start).Milliseconds())
	return true, nil
}
