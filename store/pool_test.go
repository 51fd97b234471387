package store_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

func setting(t *testing.T, pool *pgxpool.Pool, name string) string {
	t.Helper()
	var v string
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT current_setting($1)`, name).Scan(&v))
	return v
}

func TestPoolTakesItsRoleAndTimeouts(t *testing.T) {
	t.Parallel()
	url := storetest.DB(t)
	for _, role := range []string{store.RoleAPI, store.RoleWorker, store.RoleRiver} {
		pool, err := store.OpenPool(t.Context(), store.PoolOptions{URL: url, Role: role})
		require.NoError(t, err)
		defer pool.Close()
		var user string
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT current_user`).Scan(&user))
		require.Equal(t, "medianest_"+role, user)
		require.Equal(t, "medianest-"+role, setting(t, pool, "application_name"))
		require.Equal(t, "30s", setting(t, pool, "statement_timeout"))
		require.Equal(t, "10s", setting(t, pool, "lock_timeout"))
		require.NotEqual(t, "0", setting(t, pool, "idle_in_transaction_session_timeout"))
		require.Equal(t, int32(10), pool.Config().MaxConns)
	}

	// What the URL says wins, except over the role.
	pool, err := store.OpenPool(t.Context(), store.PoolOptions{
		URL:  url + "&statement_timeout=5s&pool_max_conns=3&connect_timeout=1&role=pg_monitor",
		Role: store.RoleAPI, AppName: "mine",
	})
	require.NoError(t, err)
	defer pool.Close()
	require.Equal(t, "5s", setting(t, pool, "statement_timeout"))
	require.Equal(t, "mine", setting(t, pool, "application_name"))
	require.Equal(t, "medianest_api", setting(t, pool, "role"))
	require.Equal(t, int32(3), pool.Config().MaxConns)
	require.Equal(t, time.Second, pool.Config().ConnConfig.ConnectTimeout)

	pool, err = store.OpenPool(t.Context(), store.PoolOptions{URL: url + "&pool_max_conns=3", MaxConns: 7})
	require.NoError(t, err)
	defer pool.Close()
	require.Equal(t, int32(7), pool.Config().MaxConns)
}

func TestPoolHidesTheURL(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "postgres://u:hunter2@[", "postgres://u:hunter2@h/db?sslmode=hunter2", "host=h password='hunter2"} {
		_, err := store.OpenPool(t.Context(), store.PoolOptions{URL: url})
		require.Error(t, err)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestPoolOpensWithoutAServerAndGivesUpInTime(t *testing.T) {
	t.Parallel()
	// A listener that never answers, as a database behind a broken network.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })

	pool, err := store.OpenPool(t.Context(), store.PoolOptions{URL: "postgres://u@" + l.Addr().String() + "/db?sslmode=disable&connect_timeout=1"})
	require.NoError(t, err)
	defer pool.Close()
	require.ErrorIs(t, store.New(pool).Ping(t.Context()), store.ErrUnavailable)

	pool, err = store.OpenPool(t.Context(), store.PoolOptions{URL: "postgres://u@127.0.0.1/db"})
	require.NoError(t, err)
	defer pool.Close()
	require.Equal(t, 5*time.Second, pool.Config().ConnConfig.ConnectTimeout)
}

func TestPoolReadsTimesAsUTC(t *testing.T) {
	t.Parallel()
	pool := storetest.Pool(t, "")
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("east", 3600))
	var one time.Time
	var many []time.Time
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT $1::timestamptz, ARRAY[$1::timestamptz]`, at).Scan(&one, &many))
	require.Equal(t, at.UTC(), one)
	require.Equal(t, []time.Time{at.UTC()}, many)
}

func TestPoolKnowsUUIDs(t *testing.T) {
	t.Parallel()
	pool := storetest.Pool(t, "")
	ctx := t.Context()
	a, b := uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())

	type row struct {
		ID       uuid.UUID
		ParentID *uuid.UUID
		Others   []uuid.UUID
	}
	for _, parent := range []*uuid.UUID{nil, &b} {
		rows, err := pool.Query(ctx, `SELECT @id::uuid AS id, @parent::uuid AS parent_id, @others::uuid[] AS others`,
			pgx.StrictNamedArgs{"id": a, "parent": parent, "others": []uuid.UUID{a, b}})
		require.NoError(t, err)
		got, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[row])
		require.NoError(t, err)
		require.Equal(t, row{ID: a, ParentID: parent, Others: []uuid.UUID{a, b}}, got)
	}

	var in bool
	require.NoError(t, pool.QueryRow(ctx, `SELECT $1::uuid = ANY ($2::uuid[])`, a, []uuid.UUID{b, a}).Scan(&in))
	require.True(t, in)
	rows, err := pool.Query(ctx, `SELECT unnest($1::uuid[])`, []uuid.UUID{a, b})
	require.NoError(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	require.NoError(t, err)
	require.Equal(t, []uuid.UUID{a, b}, list)

	// The text protocol, COPY and batches go other ways through the driver.
	var text uuid.UUID
	require.NoError(t, pool.QueryRow(ctx, `SELECT $1::uuid`, pgx.QueryExecModeSimpleProtocol, a).Scan(&text))
	require.Equal(t, a, text)
	_, err = pool.Exec(ctx, `CREATE TABLE ids (id uuid, parent_id uuid)`)
	require.NoError(t, err)
	n, err := pool.CopyFrom(ctx, pgx.Identifier{"ids"}, []string{"id", "parent_id"}, pgx.CopyFromRows([][]any{{a, &b}, {b, (*uuid.UUID)(nil)}}))
	require.NoError(t, err)
	require.Equal(t, int64(2), n)
	batch := &pgx.Batch{}
	batch.Queue(`SELECT parent_id FROM ids WHERE id = $1`, a)
	var parent *uuid.UUID
	results := pool.SendBatch(ctx, batch)
	require.NoError(t, results.QueryRow().Scan(&parent))
	require.NoError(t, results.Close())
	require.Equal(t, &b, parent)
}

func TestInTxRollsBack(t *testing.T) {
	t.Parallel()
	pool := storetest.Pool(t, "")
	s := store.New(pool)
	_, err := pool.Exec(t.Context(), `CREATE TABLE n (n integer)`)
	require.NoError(t, err)
	insert := func(ctx context.Context, tx pgx.Tx) {
		_, err := tx.Exec(ctx, `INSERT INTO n VALUES (1)`)
		require.NoError(t, err)
	}
	count := func() (n int) {
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM n`).Scan(&n))
		return n
	}

	boom := errors.New("boom")
	require.ErrorIs(t, s.InTx(t.Context(), func(tx pgx.Tx) error {
		insert(t.Context(), tx)
		return boom
	}), boom)
	require.PanicsWithValue(t, "boom", func() {
		_ = s.InTx(t.Context(), func(tx pgx.Tx) error {
			insert(t.Context(), tx)
			panic("boom")
		})
	})
	ctx, cancel := context.WithCancel(t.Context())
	require.ErrorIs(t, s.InTx(ctx, func(tx pgx.Tx) error {
		insert(ctx, tx)
		cancel()
		return nil
	}), context.Canceled)
	require.Zero(t, count())
	// One whose statement was cut off is closed in the background.
	require.Eventually(t, func() bool { return pool.Stat().AcquiredConns() == 0 }, 10*time.Second, time.Millisecond, "every connection is back")

	require.NoError(t, s.InTx(t.Context(), func(tx pgx.Tx) error {
		insert(t.Context(), tx)
		return nil
	}))
	require.Equal(t, 1, count())
}

func TestRetryTxOutlivesADeadlock(t *testing.T) {
	t.Parallel()
	pool := storetest.Pool(t, "")
	s := store.New(pool)
	_, err := pool.Exec(t.Context(), `CREATE TABLE n AS SELECT id, 0 AS n FROM generate_series(1, 2) id`)
	require.NoError(t, err)

	bothHoldOne := make(chan struct{})
	holding := make(chan struct{}, 2)
	go func() {
		<-holding
		<-holding
		close(bothHoldOne)
	}()
	done := make(chan error, 2)
	for _, order := range [][2]int{{1, 2}, {2, 1}} {
		go func() {
			first := true
			done <- s.RetryTx(t.Context(), func(tx pgx.Tx) error {
				for i, id := range order {
					if _, err := tx.Exec(t.Context(), `UPDATE n SET n = n + 1 WHERE id = $1`, id); err != nil {
						return err
					}
					if i == 0 && first {
						first = false
						holding <- struct{}{}
						<-bothHoldOne
					}
				}
				return nil
			})
		}()
	}
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	var sum int
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT sum(n) FROM n`).Scan(&sum))
	require.Equal(t, 4, sum)
}

func TestPoolRefusesWhoIsNotFit(t *testing.T) {
	t.Parallel()
	asleep := errors.New("asleep")
	var fit atomic.Pointer[error]
	pool, err := store.OpenPool(t.Context(), store.PoolOptions{URL: storetest.DB(t), MaxConns: 1, Fit: func() error {
		if err := fit.Load(); err != nil {
			return *err
		}
		return nil
	}})
	require.NoError(t, err)
	defer pool.Close()
	_, err = pool.Exec(t.Context(), `CREATE TABLE medianest.fit ()`)
	require.NoError(t, err)
	fit.Store(&asleep)
	_, err = pool.Exec(t.Context(), `DROP TABLE medianest.fit`)
	require.ErrorIs(t, err, asleep)
	_, err = pool.Begin(t.Context())
	require.ErrorIs(t, err, asleep)
	fit.Store(nil)
	_, err = pool.Exec(t.Context(), `DROP TABLE medianest.fit`)
	require.NoError(t, err, "and the connection is still there")
}
