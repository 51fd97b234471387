package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

func TestInterpretKnowsTheServersErrors(t *testing.T) {
	t.Parallel()
	pool := storetest.Pool(t, "")
	_, err := pool.Exec(t.Context(), `
		CREATE TABLE parent (id integer PRIMARY KEY CHECK (id > 0), name text NOT NULL DEFAULT '');
		CREATE TABLE child (id integer REFERENCES parent);
		INSERT INTO parent VALUES (1);
		INSERT INTO child VALUES (1)`)
	require.NoError(t, err)

	for sql, want := range map[string]error{
		`SELECT 1 WHERE false`:                            store.ErrNotFound,
		`INSERT INTO parent VALUES (1) RETURNING 1`:       store.ErrConflict,
		`INSERT INTO child VALUES (7) RETURNING 1`:        store.ErrConflict,
		`DELETE FROM parent RETURNING 1`:                  store.ErrConflict,
		`INSERT INTO parent VALUES (-1) RETURNING 1`:      store.ErrInvalid,
		`INSERT INTO parent VALUES (2, NULL) RETURNING 1`: store.ErrInvalid,
		`SELECT 1 / 0`:             store.ErrInvalid,
		`SELECT 'x'::uuid IS NULL`: store.ErrInvalid,
	} {
		var n any
		err := pool.QueryRow(t.Context(), sql).Scan(&n)
		require.Error(t, err, sql)
		interpreted := store.Interpret(err)
		require.ErrorIs(t, interpreted, want, sql)
		require.ErrorIs(t, interpreted, err, "the cause stays for the log")
		require.Equal(t, interpreted, store.Interpret(interpreted), "once is enough")
	}

	// What is a fault of the code stays what it is.
	_, err = pool.Exec(t.Context(), `SELECT nonsense`)
	require.Equal(t, err, store.Interpret(err))
	require.NoError(t, store.Interpret(nil))
	require.Equal(t, store.ErrNotFound, store.Interpret(store.ErrNotFound))
}

func TestInterpretTellsTheServersTimeoutsFromTheCallers(t *testing.T) {
	t.Parallel()
	pool := storetest.Pool(t, "")
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), `SET statement_timeout = '20ms'`)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `SELECT pg_sleep(5)`)
	require.ErrorIs(t, store.Interpret(err), store.ErrUnavailable)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = pool.Exec(ctx, `SELECT pg_sleep(5)`)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, store.Interpret(err), store.ErrUnavailable)

	left, leave := context.WithCancel(t.Context())
	leave()
	err = store.New(pool).Ping(left)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, store.ErrUnavailable, "a client that left says nothing of the database")
}

func TestServerAwayIsUnavailableUntilItIsBack(t *testing.T) {
	t.Parallel()
	own := storetest.OwnServer(t, false)
	pool := storetest.OpenPool(t, own.URL(), store.RoleAPI)
	s := store.New(pool)
	require.NoError(t, s.Ping(t.Context()))
	owner := storetest.OpenPool(t, own.URL(), "")

	// Killed under a statement.
	running := make(chan error, 1)
	go func() {
		running <- s.InTx(t.Context(), func(tx pgx.Tx) error {
			_, err := tx.Exec(t.Context(), `SELECT pg_sleep(60)`)
			return err
		})
	}()
	require.Eventually(t, func() bool {
		var n int
		err := owner.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND wait_event = 'PgSleep'`).Scan(&n)
		return err == nil && n == 1
	}, 10*time.Second, 5*time.Millisecond)
	own.Kill()
	require.ErrorIs(t, <-running, store.ErrUnavailable)

	// Away.
	own.Stop()
	require.ErrorIs(t, s.Ping(t.Context()), store.ErrUnavailable)
	err := s.InTx(t.Context(), func(pgx.Tx) error { return nil })
	require.ErrorIs(t, err, store.ErrUnavailable)

	own.Start()
	require.Eventually(t, func() bool { return s.Ping(t.Context()) == nil }, 10*time.Second, 5*time.Millisecond)
}

// Waiting does not help, and no value of the caller's is at fault.
func TestRefusalAtTheDoorIsNoSentinels(t *testing.T) {
	t.Parallel()
	for _, o := range []store.PoolOptions{
		{URL: storetest.DB(t), Role: "nobody_made_it"},
		{URL: strings.Replace(storetest.DB(t), "medianest@", "stranger@", 1)},
		{URL: storetest.DB(t) + "&dbname=nowhere"},
	} {
		pool, err := store.OpenPool(t.Context(), o)
		require.NoError(t, err)
		defer pool.Close()
		err = store.New(pool).Ping(t.Context())
		_, refused := errors.AsType[*pgconn.PgError](err)
		require.True(t, refused, err)
		require.NotErrorIs(t, err, store.ErrUnavailable)
		require.NotErrorIs(t, err, store.ErrInvalid)
	}
}

func TestInterpretKnowsBrokenConnections(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		fmt.Errorf("receive message: %w", syscall.ECONNRESET),
		fmt.Errorf("receive message: %w", errors.Join(syscall.EPIPE)),
	} {
		require.ErrorIs(t, store.Interpret(err), store.ErrUnavailable)
	}
	require.NotErrorIs(t, store.Interpret(errors.New("bug")), store.ErrUnavailable)
}
