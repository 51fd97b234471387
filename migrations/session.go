package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// lockKey is what migrating processes agree on. Arbitrary; must never change.
	lockKey = 7239610442300

	lockPoll = 200 * time.Millisecond

	// stepLockTimeout bounds how long a step queues for a table that is in use: whoever comes later queues behind it,
	// so a step that waits for a long transaction stops the whole platform. It is tried again stepAttempts times.
	stepLockTimeout = "2s"
	stepAttempts    = 30
	stepPause       = 500 * time.Millisecond

	closeTimeout = 5 * time.Second
)

// session is a run of migrations under the lock.
//
// The lock is transaction-level, held by an idle transaction on a connection of its own, while the migrations commit one
// by one on another. A session-level lock would outlive a client that vanished without a word, and behind a pooler in
// transaction mode belong to nobody.
type session struct {
	conn *pgx.Conn
	lock *pgx.Conn
}

// locked runs fn with the lock held, waiting for it as long as ctx allows.
func (r *runner) locked(ctx context.Context, fn func(*session) error) (err error) {
	lock, err := r.connect(ctx, "medianest-migrate-lock")
	if err != nil {
		return err
	}
	defer closeConn(ctx, lock)
	if err := r.acquire(ctx, lock); err != nil {
		return fmt.Errorf("lock migrations: %w", err)
	}
	conn, err := r.connect(ctx, "medianest-migrate")
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return fn(&session{conn: conn, lock: lock})
}

// acquire takes the lock in a transaction that it leaves open. It polls instead of blocking: a statement that waits holds
// a snapshot, and a CREATE INDEX CONCURRENTLY of the lock's holder waits for snapshots.
func (r *runner) acquire(ctx context.Context, lock *pgx.Conn) error {
	for waited := false; ; waited = true {
		if _, err := lock.Exec(ctx, `BEGIN`); err != nil {
			return err
		}
		var held bool
		if err := lock.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, int64(lockKey)).Scan(&held); err != nil {
			return err
		}
		if held {
			return nil
		}
		if _, err := lock.Exec(ctx, `ROLLBACK`); err != nil {
			return err
		}
		if !waited {
			r.log.InfoContext(ctx, "waiting for another process that migrates")
		}
		if err := sleep(ctx, lockPoll); err != nil {
			return err
		}
	}
}

// connect opens a connection beside the pool, as the pool would, but for the time-outs: building an index takes as long
// as it takes, and the lock's transaction idles meanwhile.
func (r *runner) connect(ctx context.Context, name string) (*pgx.Conn, error) {
	cfg := r.pool.Config().ConnConfig
	cfg.RuntimeParams["application_name"] = name
	cfg.RuntimeParams["statement_timeout"] = "0"
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	cfg.RuntimeParams["lock_timeout"] = stepLockTimeout
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to migrate: %w", err)
	}
	// Known from 17 on; a server, database or user may have one set.
	_, err = conn.Exec(ctx, `
		SELECT set_config(name, '0', false)
		FROM pg_settings
		WHERE name = 'transaction_timeout'`)
	if err != nil {
		closeConn(ctx, conn)
		return nil, fmt.Errorf("connect to migrate: %w", err)
	}
	return conn, nil
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // its transaction ends with it, one way or the other
}

// step runs fn in a transaction, again if it could not get a lock on a table in time or lost a deadlock.
func (s *session) step(ctx context.Context, fn func(pgx.Tx) error) error {
	for attempt := 1; ; attempt++ {
		// The lock goes with its connection; whoever got it then must not meet us.
		if _, err := s.lock.Exec(ctx, `SELECT`); err != nil {
			return fmt.Errorf("migration lock lost: %w", err)
		}
		err := pgx.BeginFunc(ctx, s.conn, fn)
		if err == nil || attempt == stepAttempts || !isContended(err) {
			return err
		}
		if err := sleep(ctx, stepPause); err != nil {
			return err
		}
	}
}

func isContended(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "55P03" || pgErr.Code == "40P01")
}

// sleep waits for d unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
