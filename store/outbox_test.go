package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

// runOutbox runs an outbox until the test's end, or until stop is called.
func runOutbox(t testing.TB, o store.OutboxOptions) (stop func()) {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.NewOutbox(o).Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("outbox: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// named opens a pool whose connections can be told from others'.
func named(t testing.TB, url, name string) *pgxpool.Pool {
	t.Helper()
	pool, err := store.OpenPool(context.Background(), store.PoolOptions{URL: url, Role: store.RoleWorker, AppName: name, MaxConns: 5})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func (b *bundle) holder() string {
	b.t.Helper()
	var holder string
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), `SELECT coalesce(max(holder), '') FROM medianest.duty WHERE name = 'outbox'`).Scan(&holder))
	return holder
}

func (b *bundle) terminate(name string) {
	b.t.Helper()
	b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1`, name)
}

// changeJobs changes jobs' states until stop is called, and returns how often it did.
func (b *bundle) changeJobs(writers int) (stop func() int) {
	b.t.Helper()
	var jobs []int64
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), `
		WITH made AS (
			INSERT INTO river.river_job (args, kind, max_attempts) SELECT '{}', 'download', 1 FROM generate_series(1, 50) RETURNING id
		)
		SELECT array_agg(id) FROM made`).Scan(&jobs))
	var (
		group   sync.WaitGroup
		changes atomic.Int64
		over    = make(chan struct{})
	)
	for w := range writers {
		group.Go(func() {
			for n := w; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				_, err := b.pool.Exec(context.Background(), `
					UPDATE river.river_job
					SET state = CASE state WHEN 'available' THEN 'running' ELSE 'available' END::river.river_job_state
					WHERE id = $1`, jobs[n%len(jobs)])
				if err != nil {
					b.t.Errorf("change job: %v", err)
					return
				}
				changes.Add(1)
			}
		})
	}
	return func() int {
		close(over)
		group.Wait()
		return int(changes.Load())
	}
}

// requireWhole waits until a tick has everything, and checks that the stream after the cursor is n changes, each from the
// state that the one before led to.
func (b *bundle) requireWhole(after store.Cursor, n int) {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		left := -1
		err := b.pool.QueryRow(context.Background(), `
			SELECT count(*) FROM medianest.event
			WHERE NOT pg_visible_in_snapshot(xid, (SELECT snapshot FROM medianest.tick ORDER BY id DESC LIMIT 1))`).Scan(&left)
		return err == nil && left == 0
	}, 20*time.Second, 10*time.Millisecond)
	last := make(map[int64]string)
	changes := 0
	for _, e := range b.events(store.EventQuery{After: after, ToTick: b.head().Newest, Limit: 10_000_000}) {
		if e.Topic != store.TopicJobState {
			continue
		}
		if before, ok := last[e.JobID]; ok {
			require.Equal(b.t, before, e.PreviousState)
		}
		last[e.JobID] = e.State
		if e.PreviousState != "" {
			changes++
		}
	}
	require.Equal(b.t, n, changes)
}

func TestOutboxLetsDownloadsFollow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.create(b.user("ada"), "https://example.com/a")
	var ticks atomic.Int64
	stop := runOutbox(t, store.OutboxOptions{
		Store: b.worker, Holder: "a", TickInterval: 5 * time.Millisecond, TrimInterval: 20 * time.Millisecond, DomainTrimInterval: time.Millisecond,
		Retention: time.Millisecond, OnTick: func() { ticks.Add(1) },
	})
	b.fetch(d, "a.mp4")
	require.Eventually(t, func() bool { return b.find(d).State == store.StateCompleted }, 10*time.Second, 5*time.Millisecond)
	require.Positive(t, ticks.Load())
	require.Eventually(t, func() bool { return b.count(`SELECT count(*) FROM medianest.event`) == 0 }, 10*time.Second, 10*time.Millisecond)
	require.Equal(t, "a", b.holder())
	stop()
	require.Empty(t, b.holder(), "the duty is given up")
}

// The process that ticks is cut off in the middle of a tick and vanishes: another takes over, and nothing is lost.
func TestAnotherTakesOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	url := b.pool.Config().ConnString()
	first := named(t, url, "first")
	runOutbox(t, store.OutboxOptions{Store: store.New(first), Holder: "first"})
	require.Eventually(t, func() bool { return b.holder() == "first" }, 10*time.Second, 5*time.Millisecond)
	runOutbox(t, store.OutboxOptions{Store: store.New(named(t, url, "second")), Holder: "second"})
	require.Eventually(t, func() bool { h, err := b.api.Head(t.Context()); return err == nil && h.Newest > 0 }, 10*time.Second, 5*time.Millisecond)
	start := b.head()
	stop := b.changeJobs(4)
	require.Eventually(t, func() bool { return b.head().Newest > start.Newest+5 }, 20*time.Second, 5*time.Millisecond)

	// Nobody can store a tick now: the first is caught while it holds the tickers' lock.
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `LOCK TABLE medianest.tick IN SHARE MODE`)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return b.count(`
			SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
			WHERE a.application_name = 'first' AND a.datname = current_database() AND l.locktype = 'advisory' AND l.granted
				AND a.wait_event_type = 'Lock'`) == 1
	}, 10*time.Second, time.Millisecond)
	b.terminate("first")
	closed := make(chan struct{})
	go func() { // it never comes back
		first.Close()
		close(closed)
	}()
	require.Eventually(t, func() bool {
		b.terminate("first")
		select {
		case <-closed:
			return true
		default:
			return false
		}
	}, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, tx.Rollback(t.Context()))
	gone, at := time.Now(), b.head().Newest
	require.Eventually(t, func() bool { return b.head().Newest > at }, 15*time.Second, 5*time.Millisecond)
	took := time.Since(gone)
	t.Logf("the second ticked after %s", took)
	require.Less(t, took, 6*time.Second) // 3 s on a machine that does nothing else
	require.Equal(t, "second", b.holder())
	b.requireWhole(start.End(), stop())
}

// A process that only lost its connections goes on with new ones.
func TestOutboxSurvivesLostConnections(t *testing.T) {
	t.Parallel()
	b := setup(t)
	pool := named(t, b.pool.Config().ConnString(), "lossy")
	runOutbox(t, store.OutboxOptions{Store: store.New(pool), Holder: "lossy", TickInterval: 2 * time.Millisecond})
	require.Eventually(t, func() bool { h, err := b.api.Head(t.Context()); return err == nil && h.Newest > 0 }, 10*time.Second, 5*time.Millisecond)
	start := b.head()
	stop := b.changeJobs(2)
	for range 20 {
		at := b.head().Newest
		b.terminate("lossy")
		require.Eventually(t, func() bool { return b.head().Newest > at }, 10*time.Second, 2*time.Millisecond)
	}
	b.requireWhole(start.End(), stop())
}

// Postgres is killed under load and comes back: what was committed is in the stream, once.
func TestOutboxSurvivesPostgres(t *testing.T) {
	t.Parallel()
	server := storetest.OwnServer(t, true)
	pools := []*pgxpool.Pool{storetest.OpenPool(t, server.URL(), ""), storetest.OpenPool(t, server.URL(), store.RoleAPI)}
	b := &bundle{t: t, pool: pools[0], api: store.New(pools[1])}
	runOutbox(t, store.OutboxOptions{
		Store: store.New(storetest.OpenPool(t, server.URL(), store.RoleWorker)), Holder: "a", TickInterval: 2 * time.Millisecond,
	})
	require.Eventually(t, func() bool { h, err := b.api.Head(t.Context()); return err == nil && h.Newest > 0 }, 10*time.Second, 5*time.Millisecond)
	start := b.head()
	const jobs = 50
	b.exec(`INSERT INTO river.river_job (args, kind, max_attempts) SELECT '{}', 'download', 1 FROM generate_series(1, $1::int)`, jobs)
	b.exec(`UPDATE river.river_job SET state = 'running'`)

	pid := server.Server().PID()
	server.Kill()
	require.Eventually(t, func() bool { now := server.Server().PID(); return now != 0 && now != pid }, 60*time.Second, 10*time.Millisecond)
	for _, pool := range pools {
		pool.Reset()
	}
	require.Eventually(t, func() bool {
		_, err := b.pool.Exec(t.Context(), `UPDATE river.river_job SET state = 'retryable' WHERE state = 'running'`)
		return err == nil
	}, 60*time.Second, 20*time.Millisecond)
	b.requireWhole(start.End(), 2*jobs)
	require.Equal(t, start.Epoch, b.head().Epoch, "a crash is no new history")
}

// Any number of tickers at a time make one sequence without gaps.
func TestManyTickersMakeOneSequence(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	start := b.head()
	stop := b.changeJobs(4)
	together(t, 6, func(int) error {
		for range 100 {
			if _, _, err := b.worker.AdvanceTick(t.Context()); err != nil {
				return err
			}
		}
		return nil
	})
	changes := stop()
	_, _, err := b.worker.AdvanceTick(t.Context())
	require.NoError(t, err)
	b.requireWhole(start.End(), changes)
	require.Zero(t, b.count(`SELECT max(id) - min(id) + 1 - count(*) FROM medianest.tick`))
}

// BenchmarkOutbox measures what the triggers cost the queue's own statements, as pairs with and without them in turn: the
// test server writes without syncing, so that the share of the triggers is larger than on a real disk.
func BenchmarkOutbox(b *testing.B) {
	pool, err := store.OpenPool(b.Context(), store.PoolOptions{URL: storetest.DB(b), MaxConns: 40})
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	exec := func(sql string, args ...any) {
		_, err := pool.Exec(context.Background(), sql, args...)
		require.NoError(b, err)
	}
	insert := func(int) {
		exec(`INSERT INTO river.river_job (args, kind, max_attempts) VALUES ('{}', 'download', 8)`)
	}
	update := func(i int) {
		exec(`UPDATE river.river_job SET state = CASE state WHEN 'available' THEN 'running' ELSE 'available' END::river.river_job_state WHERE id = $1`, i+1)
	}
	for _, bench := range []struct {
		name    string
		clients int
		calls   int // of each client and round
		rows    int // of each call
		call    func(i int)
	}{
		{"insert", 1, 200, 1, insert},
		{"insert-32-clients", 32, 30, 1, insert},
		{"update", 1, 200, 1, update},
		{"update-32-clients", 32, 30, 1, update},
		{"complete-10000", 1, 1, 10_000, func(int) {
			exec(`UPDATE river.river_job SET state = CASE state WHEN 'available' THEN 'running' ELSE 'available' END::river.river_job_state WHERE id <= 10000`)
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			exec(`TRUNCATE river.river_job RESTART IDENTITY`)
			exec(`TRUNCATE medianest.event`)
			if bench.rows > 1 || bench.call != nil {
				exec(`INSERT INTO river.river_job (args, kind, max_attempts) SELECT '{}', 'download', 8 FROM generate_series(1, 10000)`)
			}
			round := func() time.Duration {
				start := time.Now()
				var group sync.WaitGroup
				for client := range bench.clients {
					group.Go(func() {
						for i := range bench.calls {
							bench.call(client*bench.calls + i)
						}
					})
				}
				group.Wait()
				return time.Since(start)
			}
			round()
			var with, without []time.Duration
			for range b.N * 7 {
				exec(`ALTER TABLE river.river_job DISABLE TRIGGER USER`)
				without = append(without, round())
				exec(`ALTER TABLE river.river_job ENABLE TRIGGER USER`)
				with = append(with, round())
			}
			rows := float64(bench.clients * bench.calls * bench.rows)
			b.ReportMetric(rows/median(with).Seconds(), "with/s")
			b.ReportMetric(rows/median(without).Seconds(), "without/s")
			b.ReportMetric(median(without).Seconds()/median(with).Seconds(), "speed-ratio")
		})
	}
}

// BenchmarkFollow measures the consumer: ten thousand downloads whose jobs change at once.
func BenchmarkFollow(b *testing.B) {
	const jobs = 10_000
	pool := storetest.Pool(b, "")
	s := store.New(pool)
	exec := func(sql string, args ...any) {
		_, err := pool.Exec(context.Background(), sql, args...)
		require.NoError(b, err)
	}
	follow := func() {
		_, _, err := s.AdvanceTick(context.Background())
		require.NoError(b, err)
		for n := 5000; n == 5000; {
			n, err = s.FollowJobs(context.Background(), 5000)
			require.NoError(b, err)
		}
	}
	follow()
	user := uuid.Must(uuid.NewV7())
	exec(`INSERT INTO medianest.users (id, name, role) VALUES ($1, 'ada', 'member')`, user)
	exec(`INSERT INTO river.river_job (args, kind, max_attempts) SELECT '{}', 'download', 8 FROM generate_series(1, $1::int)`, jobs)
	exec(`INSERT INTO medianest.content (id, key, url, profile, job_id) SELECT gen_random_uuid(), id::text, 'https://example.com/', 'best', id FROM river.river_job`)
	exec(`
		INSERT INTO medianest.downloads (id, user_id, content_id, url, profile, state, job_id)
		SELECT gen_random_uuid(), $1, id, url, profile, 'queued', job_id FROM medianest.content`, user)
	exec(`ANALYZE`)
	follow()
	var changed, followed time.Duration
	for i := range b.N {
		start := time.Now()
		exec(`UPDATE river.river_job SET state = $1::river.river_job_state`, []string{"running", "available"}[i%2])
		changed += time.Since(start)
		start = time.Now()
		follow()
		followed += time.Since(start)
	}
	b.ReportMetric(float64(changed.Milliseconds())/float64(b.N), "change-ms")
	b.ReportMetric(float64(followed.Milliseconds())/float64(b.N), "follow-ms")
}

// BenchmarkTick measures a look that finds no news, and one that stores a tick, amid many events.
func BenchmarkTick(b *testing.B) {
	pool := storetest.Pool(b, "")
	s := store.New(pool)
	_, err := pool.Exec(b.Context(), `INSERT INTO medianest.event (topic, state, previous_state) SELECT 'job.state', 'running', '' FROM generate_series(1, 200000)`)
	require.NoError(b, err)
	for _, news := range []bool{false, true} {
		b.Run(fmt.Sprintf("news=%t", news), func(b *testing.B) {
			for range b.N {
				if news {
					b.StopTimer()
					_, err := pool.Exec(b.Context(), `INSERT INTO medianest.event (topic, state, previous_state) VALUES ('job.state', 'running', '')`)
					require.NoError(b, err)
					b.StartTimer()
				}
				_, _, err := s.AdvanceTick(b.Context())
				require.NoError(b, err)
			}
		})
	}
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Clone(d)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
