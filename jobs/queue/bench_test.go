package queue_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/store"
	"medianest/store/storetest"
)

// The benchmarks compare this platform's client, on a database with the triggers of outbox and admission, with bare River,
// on one without, with the same number of workers and the same intervals. Each round measures both, one after the other, in
// changing order; what counts is the median of the rounds' ratios:
//
//	go test -run '^$' -bench . -benchtime 1x ./jobs/queue
//
// The server has fsync off: the difference between the two would otherwise drown in the disk's noise. So the ratios
// show the costs in CPU and statements, and the rates are no promise for a disk.

const (
	benchRounds  = 9
	benchWorkers = 200
)

// contender is one of the two.
type contender struct {
	name    string
	admin   *pgxpool.Pool
	pool    *pgxpool.Pool // as role river
	workers *river.Workers
	worked  *atomic.Int64
	keyed   bool // its jobs name keys and go through admission
	connect func(b *testing.B, queues map[string]int) (start, stop func(context.Context) error, client *river.Client[pgx.Tx])
}

func contenders(b *testing.B) []*contender {
	b.Helper()
	quiet := slog.New(slog.DiscardHandler)
	ours := &contender{name: "ours"}
	ours.connect = func(b *testing.B, queues map[string]int) (start, stop func(context.Context) error, _ *river.Client[pgx.Tx]) {
		admission := queue.NewAdmission(ours.pool, quiet)
		c, err := queue.New(queue.Options{Pool: ours.pool, Logger: quiet, Queues: queues, Workers: ours.workers, OnFree: admission.Ring})
		require.NoError(b, err)
		if !ours.keyed {
			return c.Start, c.Stop, c.River()
		}
		ctx, cancel := context.WithCancel(b.Context())
		var running sync.WaitGroup
		return func(ctxStart context.Context) error {
				err := c.Start(ctxStart)
				running.Go(func() { _ = admission.Run(ctx) })
				return err
			}, func(ctxStop context.Context) error {
				cancel()
				running.Wait()
				return c.Stop(ctxStop)
			}, c.River()
	}
	bare := &contender{name: "bare"}
	bare.connect = func(b *testing.B, queues map[string]int) (start, stop func(context.Context) error, _ *river.Client[pgx.Tx]) {
		config := &river.Config{
			Schema: queue.Schema, Logger: quiet, Workers: bare.workers, FetchCooldown: queue.NotifyWindow,
			ReindexerSchedule: river.NeverSchedule(),
		}
		for name, n := range queues {
			config.Queues = map[string]river.QueueConfig{
				name: {MaxWorkers: n, FetchCooldown: queue.FetchCooldown, FetchPollInterval: queue.FetchPoll},
			}
		}
		c, err := river.NewClient(riverpgxv5.New(bare.pool), config)
		require.NoError(b, err)
		return c.Start, c.Stop, c
	}
	for _, c := range []*contender{ours, bare} {
		url := storetest.DB(b)
		c.admin = storetest.OpenPool(b, url, "")
		c.pool = benchPool(b, url)
		c.worked = new(atomic.Int64)
		c.workers = river.NewWorkers()
		river.AddWorker(c.workers, river.WorkFunc(func(context.Context, *river.Job[synthetic]) error {
			c.worked.Add(1)
			return nil
		}))
	}
	rows, err := bare.admin.Query(b.Context(), `
		SELECT tgname FROM pg_trigger WHERE tgrelid = 'river.river_job'::regclass AND starts_with(tgname, 'medianest_')`)
	require.NoError(b, err)
	triggers, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(b, err)
	require.NotEmpty(b, triggers)
	for _, name := range triggers {
		_, err := bare.admin.Exec(b.Context(), `DROP TRIGGER `+name+` ON river.river_job`)
		require.NoError(b, err)
	}
	return []*contender{ours, bare}
}

func benchPool(b *testing.B, url string) *pgxpool.Pool {
	b.Helper()
	pool, err := store.OpenPool(b.Context(), store.PoolOptions{URL: url, Role: store.RoleRiver, MaxConns: 20})
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	return pool
}

func (c *contender) empty(b *testing.B) {
	b.Helper()
	_, err := c.admin.Exec(b.Context(), `TRUNCATE river.river_job, medianest.event, medianest.admission, medianest.limit_use; CHECKPOINT`)
	require.NoError(b, err)
	c.worked.Store(0)
}

// opts are of the n-th job: without keys, or with those of one of ten hosts and ten users, all without limits.
func (c *contender) opts(n int) *river.InsertOpts {
	opts := &river.InsertOpts{Queue: "bench"}
	if c.keyed {
		opts.Metadata = keyed(keysOf(n)...)
	}
	return opts
}

// compare runs measure, which returns a rate, for both in each round, and reports both medians and that of the ratios.
func compare(b *testing.B, withKeys bool, measure func(b *testing.B, c *contender) (perSecond float64)) {
	b.Helper()
	both := contenders(b)
	both[0].keyed = withKeys
	rates := make(map[string][]float64)
	var ratios []float64
	for _, c := range both { // connections made, caches filled
		measure(b, c)
	}
	for b.Loop() {
		for round := range benchRounds {
			of := make(map[string]float64)
			for i := range both {
				c := both[(round+i)%len(both)]
				c.empty(b)
				of[c.name] = measure(b, c)
				rates[c.name] = append(rates[c.name], of[c.name])
			}
			ratios = append(ratios, of["ours"]/of["bare"])
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(percentile(rates["ours"], 50), "ours/s")
	b.ReportMetric(percentile(rates["bare"], 50), "bare/s")
	b.ReportMetric(percentile(ratios, 50), "ratio")
}

func percentile(values []float64, p int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// BenchmarkInsert inserts jobs one by one from 16 goroutines.
func BenchmarkInsert(b *testing.B) { benchInsert(b, false) }

// BenchmarkInsertWithKeys does so with jobs that name keys.
func BenchmarkInsertWithKeys(b *testing.B) { benchInsert(b, true) }

func benchInsert(b *testing.B, withKeys bool) {
	const inserters, each = 16, 200
	compare(b, withKeys, func(b *testing.B, c *contender) float64 {
		_, _, client := c.connect(b, nil)
		begun := time.Now()
		var all sync.WaitGroup
		for range inserters {
			all.Go(func() {
				for n := range each {
					if _, err := client.Insert(b.Context(), synthetic{N: n}, c.opts(n)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		return inserters * each / time.Since(begun).Seconds()
	})
}

// BenchmarkWork works off a queue that was filled before, until the last job's row is final.
func BenchmarkWork(b *testing.B) { benchWork(b, false) }

// BenchmarkWorkWithKeys does so with jobs that name keys, each of which admission makes available first.
func BenchmarkWorkWithKeys(b *testing.B) { benchWork(b, true) }

func benchWork(b *testing.B, withKeys bool) {
	const jobs = 10_000
	compare(b, withKeys, func(b *testing.B, c *contender) float64 {
		start, stop, client := c.connect(b, map[string]int{"bench": benchWorkers})
		params := make([]river.InsertManyParams, jobs)
		for i := range params {
			params[i] = river.InsertManyParams{Args: synthetic{N: i}, InsertOpts: c.opts(i)}
		}
		_, err := client.InsertMany(b.Context(), params)
		require.NoError(b, err)

		begun := time.Now()
		require.NoError(b, start(b.Context()))
		var took time.Duration
		require.Eventually(b, func() bool {
			if c.worked.Load() < jobs {
				return false
			}
			var left bool
			err := c.admin.QueryRow(b.Context(), `SELECT EXISTS (SELECT FROM river.river_job WHERE state IN ('pending', 'available', 'running'))`).Scan(&left)
			took = time.Since(begun)
			return err == nil && !left
		}, 2*time.Minute, 5*time.Millisecond)
		require.NoError(b, stop(b.Context()))
		return jobs / took.Seconds()
	})
}

// BenchmarkPickup measures the time from the commit of an insert by one client to the entry into Work at another, with
// pauses between inserts that are no multiple of any interval.
func BenchmarkPickup(b *testing.B) {
	const each = 300
	for _, c := range contenders(b) {
		b.Run(c.name, func(b *testing.B) {
			entered := make(chan time.Time, 1)
			c.workers = river.NewWorkers()
			river.AddWorker(c.workers, river.WorkFunc(func(context.Context, *river.Job[synthetic]) error {
				entered <- time.Now()
				return nil
			}))
			start, stop, _ := c.connect(b, map[string]int{"bench": 10})
			_, _, inserter := c.connect(b, nil)
			require.NoError(b, start(b.Context()))
			var waits []float64
			for b.Loop() {
				for n := range each {
					_, err := inserter.Insert(b.Context(), synthetic{N: n}, &river.InsertOpts{Queue: "bench"})
					require.NoError(b, err)
					committed := time.Now()
					waits = append(waits, max(0, (<-entered).Sub(committed).Seconds()*1000))
					pause := time.NewTimer(time.Duration(7+n%13) * time.Millisecond)
					<-pause.C
				}
			}
			require.NoError(b, stop(b.Context()))
			b.ReportMetric(0, "ns/op")
			for _, p := range []int{50, 99, 100} {
				b.ReportMetric(percentile(waits, p), fmt.Sprintf("p%d-ms", p))
			}
		})
	}
}

// BenchmarkRound measures a decision with 100,000 jobs waiting over 1,000 keys when one slot has freed, as in a fleet of
// 80 that is busy, and when nothing has.
func BenchmarkRound(b *testing.B) {
	const slots = 80
	y := newYard(b, assembleBench(b))
	y.slots(b, "test", slots)
	y.limit(b, "host:*", 1)
	y.limit(b, "user:*", 1)
	y.fill(b, 100_000, 500)
	_, err := y.admission.Round(b.Context())
	require.NoError(b, err)
	y.vacuum(b)
	for name, free := range map[string]int{"idle": 0, "one slot": 1} {
		b.Run(name, func(b *testing.B) {
			var took []float64
			for range 200 {
				if free > 0 {
					y.exec(b, `UPDATE river.river_job SET state = 'cancelled', finalized_at = now()
						WHERE id = (SELECT row_id FROM medianest.admission WHERE admitted_at IS NOT NULL ORDER BY row_id LIMIT 1)`)
				}
				begun := time.Now()
				d, err := y.admission.Round(b.Context())
				took = append(took, float64(time.Since(begun).Microseconds())/1000)
				require.NoError(b, err)
				require.Equal(b, free, d.Admitted)
			}
			b.ReportMetric(0, "ns/op")
			for _, p := range []int{50, 99, 100} {
				b.ReportMetric(percentile(took, p), fmt.Sprintf("p%d-ms", p))
			}
		})
	}
}

func assembleBench(b *testing.B) *bundle {
	url := storetest.DB(b)
	return &bundle{url: url, owner: storetest.OpenPool(b, url, "")}
}
