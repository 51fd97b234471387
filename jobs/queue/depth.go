package queue

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// depthBound is where counting stops: beyond it a gauge says "at least so many" and a scrape stays cheap.
	depthBound = 10_000
	// depthMaxAge is how old an answer may be: scrapes by several servers do not each ask the database.
	depthMaxAge  = 5 * time.Second
	depthTimeout = 3 * time.Second
)

// depth is a collector of what waits in the queues of the whole fleet. Every process that exposes it shows the same
// numbers, so aggregate them by max, not by sum.
type depth struct {
	pool *pgxpool.Pool
	log  *slog.Logger

	jobs *prometheus.Desc
	age  *prometheus.Desc
	up   *prometheus.Desc

	mu    sync.Mutex
	asked time.Time
	last  []queueDepth
	err   error
}

// queueDepth is one queue in one state.
type queueDepth struct {
	Queue string
	State string
	Jobs  int64
	// AgeS is how long the oldest job has been due, in seconds. Only of available jobs.
	AgeS *float64
}

var _ prometheus.Collector = (*depth)(nil)

func newDepth(pool *pgxpool.Pool, log *slog.Logger) *depth {
	return &depth{
		pool: pool,
		log:  log,
		jobs: prometheus.NewDesc("medianest_queue_jobs",
			fmt.Sprintf("Jobs of the fleet that have not ended, by queue and state. Counting stops above %d.", depthBound),
			[]string{"queue", "state"}, nil),
		age: prometheus.NewDesc("medianest_queue_oldest_available_age_seconds",
			"How long the oldest job that waits for a worker has been due; 0 if none waits.",
			[]string{"queue"}, nil),
		up: prometheus.NewDesc("medianest_queue_depth_up",
			"Whether the numbers of jobs in the queues could be read.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (d *depth) Describe(ch chan<- *prometheus.Desc) {
	ch <- d.jobs
	ch <- d.age
	ch <- d.up
}

// Collect implements prometheus.Collector. Without an answer from the database there are no numbers but "up 0": old
// ones would look like a queue at rest.
func (d *depth) Collect(ch chan<- prometheus.Metric) {
	depths, err := d.read()
	if err != nil {
		ch <- prometheus.MustNewConstMetric(d.up, prometheus.GaugeValue, 0)
		return
	}
	ch <- prometheus.MustNewConstMetric(d.up, prometheus.GaugeValue, 1)
	for _, q := range depths {
		ch <- prometheus.MustNewConstMetric(d.jobs, prometheus.GaugeValue, float64(q.Jobs), q.Queue, q.State)
		if q.AgeS != nil {
			ch <- prometheus.MustNewConstMetric(d.age, prometheus.GaugeValue, *q.AgeS, q.Queue)
		}
	}
}

// read asks the database, or answers what it said a moment ago. Scrapes at once wait for one query.
func (d *depth) read() ([]queueDepth, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.asked.IsZero() && time.Since(d.asked) < depthMaxAge {
		return d.last, d.err
	}
	// A collector is given no context.
	ctx, cancel := context.WithTimeout(context.TODO(), depthTimeout)
	defer cancel()
	d.last, d.err = queryDepths(ctx, d.pool)
	d.asked = time.Now()
	if d.err != nil {
		d.log.WarnContext(ctx, "queue depths not read", "err", d.err)
	}
	return d.last, d.err
}

// depthSQL reads index entries only, and at most $1 of them per queue and state, however many jobs there are. Queues are
// those that a worker has announced and, by a skip scan, those that jobs are in.
const depthSQL = `
	WITH RECURSIVE states AS (
		SELECT unnest('{available,pending,retryable,running,scheduled}'::river.river_job_state[]) AS state
	), filled AS (
		SELECT s.state, (
			SELECT j.queue FROM river.river_job j
			WHERE j.state = s.state
			ORDER BY j.queue LIMIT 1
		) AS queue
		FROM states s
		UNION ALL
		SELECT f.state, (
			SELECT j.queue FROM river.river_job j
			WHERE j.state = f.state AND j.queue > f.queue
			ORDER BY j.queue LIMIT 1
		)
		FROM filled f
		WHERE f.queue IS NOT NULL
	), queues AS (
		SELECT queue FROM filled WHERE queue IS NOT NULL
		UNION
		SELECT name FROM river.river_queue
	)
	SELECT q.queue, s.state::text AS state,
		(
			SELECT count(*) FROM (
				SELECT FROM river.river_job j
				WHERE j.state = s.state AND j.queue = q.queue
				LIMIT $1
			) bounded
		) AS jobs,
		CASE WHEN s.state = 'available' THEN greatest(0, coalesce((
			SELECT extract(epoch FROM now() - min(oldest.scheduled_at))
			FROM generate_series(1, 4) p
			CROSS JOIN LATERAL (
				SELECT j.scheduled_at FROM river.river_job j
				WHERE j.state = 'available' AND j.queue = q.queue AND j.priority = p
				ORDER BY j.scheduled_at LIMIT 1
			) oldest
		), 0))::float8 END AS age_s
	FROM queues q
	CROSS JOIN states s
	ORDER BY q.queue, s.state`

func queryDepths(ctx context.Context, pool *pgxpool.Pool) ([]queueDepth, error) {
	rows, err := pool.Query(ctx, depthSQL, depthBound+1)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[queueDepth])
}
