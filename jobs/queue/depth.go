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

// depth is a collector of what waits in the queues of the whole fleet, and of the processes that it is made of. Every
// process that exposes it shows the same numbers, so aggregate them by max, not by sum.
type depth struct {
	pool *pgxpool.Pool
	log  *slog.Logger

	jobs    *prometheus.Desc
	age     *prometheus.Desc
	workers *prometheus.Desc
	waiting *prometheus.Desc
	slots   *prometheus.Desc
	needed  *prometheus.Desc
	tripped *prometheus.Desc
	up      *prometheus.Desc

	mu    sync.Mutex
	asked time.Time
	last  fleet
	err   error
}

// fleet is one answer of the database.
type fleet struct {
	queues  []queueDepth
	workers []workersInState
	waiting []waitingOn
	tripped int64 // breakers
	slots   map[string]int
	able    map[string]startable
}

// waitingOn counts the jobs of a queue that wait for admission, by what they wait for.
type waitingOn struct {
	Queue string
	On    string // the form of the key that has no room (host, user, kind, ...), or "slot"
	Jobs  int64
}

// workersInState counts the processes of a mode in a state.
type workersInState struct {
	Mode    string
	State   string
	Workers int64
}

// queueDepth is one queue in one state.
type queueDepth struct {
	Queue string
	State string
	Jobs  int64
	// AgeS is how long the oldest job has been due, in seconds. Only of available and pending jobs.
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
		age: prometheus.NewDesc("medianest_queue_oldest_age_seconds",
			"How long the oldest job has been due that waits for a worker or, as pending, for a limit; 0 if none waits.",
			[]string{"queue"}, nil),
		workers: prometheus.NewDesc("medianest_workers",
			"Processes of the fleet, by mode (up, serve, work) and state (running, draining, drained, lost).",
			[]string{"mode", "state"}, nil),
		waiting: prometheus.NewDesc("medianest_admission_waiting_jobs",
			fmt.Sprintf("Jobs that wait for admission, by queue and by what they wait for: the form of a key without room (host, user, "+
				"kind, ...) or a free slot. Counting stops above %d for each form.", depthBound),
			[]string{"queue", "on"}, nil),
		slots: prometheus.NewDesc("medianest_queue_slots",
			"How many jobs of the queue the fleet's workers can run at a time, those not counted that drain or are lost.",
			[]string{"queue"}, nil),
		needed: prometheus.NewDesc("medianest_queue_needed_slots",
			fmt.Sprintf("How many jobs of the queue run or could begin now within limits, paces, breakers and pauses, were there slots "+
				"for all: how many slots are of use. Counting stops above %d.", depthBound),
			[]string{"queue"}, nil),
		tripped: prometheus.NewDesc("medianest_breakers_open",
			"Keys, such as hosts, whose breaker has tripped and not closed yet.", nil, nil),
		up: prometheus.NewDesc("medianest_queue_depth_up",
			"Whether the numbers of jobs in the queues could be read.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (d *depth) Describe(ch chan<- *prometheus.Desc) {
	ch <- d.jobs
	ch <- d.age
	ch <- d.workers
	ch <- d.waiting
	ch <- d.slots
	ch <- d.needed
	ch <- d.tripped
	ch <- d.up
}

// Collect implements prometheus.Collector. Without an answer from the database there are no numbers but "up 0": old
// ones would look like a queue at rest.
func (d *depth) Collect(ch chan<- prometheus.Metric) {
	found, err := d.read()
	if err != nil {
		ch <- prometheus.MustNewConstMetric(d.up, prometheus.GaugeValue, 0)
		return
	}
	ch <- prometheus.MustNewConstMetric(d.up, prometheus.GaugeValue, 1)
	for _, q := range found.queues {
		ch <- prometheus.MustNewConstMetric(d.jobs, prometheus.GaugeValue, float64(q.Jobs), q.Queue, q.State)
	}
	for _, q := range found.statistics() {
		ch <- prometheus.MustNewConstMetric(d.age, prometheus.GaugeValue, q.OldestAge.Seconds(), q.Queue)
		ch <- prometheus.MustNewConstMetric(d.slots, prometheus.GaugeValue, float64(q.Slots), q.Queue)
		ch <- prometheus.MustNewConstMetric(d.needed, prometheus.GaugeValue, float64(q.NeededSlots), q.Queue)
	}
	for _, w := range found.workers {
		ch <- prometheus.MustNewConstMetric(d.workers, prometheus.GaugeValue, float64(w.Workers), w.Mode, w.State)
	}
	for _, w := range found.waiting {
		ch <- prometheus.MustNewConstMetric(d.waiting, prometheus.GaugeValue, float64(w.Jobs), w.Queue, w.On)
	}
	ch <- prometheus.MustNewConstMetric(d.tripped, prometheus.GaugeValue, float64(found.tripped))
}

// read asks the database, or answers what it said a moment ago. Scrapes at once wait for one query.
func (d *depth) read() (fleet, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.asked.IsZero() && time.Since(d.asked) < depthMaxAge {
		return d.last, d.err
	}
	// A collector is given no context.
	ctx, cancel := context.WithTimeout(context.Background(), depthTimeout)
	defer cancel()
	d.last, d.err = queryFleet(ctx, d.pool)
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
		UNION
		SELECT q.key
		FROM medianest.worker AS w
		CROSS JOIN jsonb_each_text(w.queues) AS q
		WHERE w.gone_at IS NULL
	)
	SELECT q.queue, s.state::text AS state,
		(
			SELECT count(*) FROM (
				SELECT FROM river.river_job j
				WHERE j.state = s.state AND j.queue = q.queue
				LIMIT $1
			) bounded
		) AS jobs,
		CASE WHEN s.state IN ('available', 'pending') THEN greatest(0, coalesce((
			SELECT extract(epoch FROM now() - min(oldest.scheduled_at))
			FROM generate_series(1, 4) p
			CROSS JOIN LATERAL (
				SELECT j.scheduled_at FROM river.river_job j
				WHERE j.state = s.state AND j.queue = q.queue AND j.priority = p
				ORDER BY j.scheduled_at LIMIT 1
			) oldest
		), 0))::float8 END AS age_s
	FROM queues q
	CROSS JOIN states s
	ORDER BY q.queue, s.state`

const workersSQL = `
	SELECT mode, state, count(*) AS workers
	FROM (
		SELECT mode, CASE
			WHEN expires_at <= now() THEN 'lost'
			WHEN drained_at IS NOT NULL THEN 'drained'
			WHEN drain_asked_at IS NOT NULL THEN 'draining'
			ELSE 'running'
		END AS state
		FROM medianest.worker
		WHERE gone_at IS NULL
	) AS w
	GROUP BY mode, state`

// waitingSQL reads index entries only: one for each key that jobs wait for, and at most $1 per queue and form of keys.
const waitingSQL = `
	SELECT g.queue, g."on", (
			SELECT count(*)
			FROM (
				SELECT
				FROM unnest(g.keys) AS k (key)
				CROSS JOIN LATERAL (
					SELECT
					FROM medianest.admission AS a
					WHERE a.admitted_at IS NULL AND a.queue = g.queue AND a.blocked_on = k.key
					ORDER BY a.priority, a.user_key -- by the index
					LIMIT $1
				) AS w
				LIMIT $1
			) AS bounded
		) AS jobs
	FROM (
		SELECT s.queue, coalesce(nullif(split_part(s.blocked_on, ':', 1), ''), 'slot') AS "on", array_agg(s.blocked_on) AS keys
		FROM (` + sourcesSQL + `
		) AS s
		GROUP BY 1, 2
	) AS g
	ORDER BY 1, 2`

func queryFleet(ctx context.Context, pool *pgxpool.Pool) (found fleet, err error) {
	rows, err := pool.Query(ctx, depthSQL, depthBound+1)
	if err != nil {
		return found, err
	}
	if found.queues, err = pgx.CollectRows(rows, pgx.RowToStructByName[queueDepth]); err != nil {
		return found, err
	}
	if rows, err = pool.Query(ctx, workersSQL); err != nil {
		return found, err
	}
	if found.workers, err = pgx.CollectRows(rows, pgx.RowToStructByName[workersInState]); err != nil {
		return found, err
	}
	if rows, err = pool.Query(ctx, waitingSQL, depthBound+1); err != nil {
		return found, err
	}
	if found.waiting, err = pgx.CollectRows(rows, pgx.RowToStructByName[waitingOn]); err != nil {
		return found, err
	}
	if err = pool.QueryRow(ctx, `SELECT count(*) FROM medianest.breaker`).Scan(&found.tripped); err != nil {
		return found, err
	}
	if err = pool.QueryRow(ctx, slotsSQL).Scan(&found.slots); err != nil {
		return found, err
	}
	found.able, err = countStartable(ctx, pool)
	return found, err
}

const slotsSQL = `
	SELECT coalesce(jsonb_object_agg(s.queue, s.slots), '{}')
	FROM (
		SELECT q.key AS queue, sum(q.value::integer) AS slots
		` + offeredSQL + `
		GROUP BY q.key
	) AS s`

// Statistics is what is known of a queue of the fleet.
type Statistics struct {
	Queue       string
	Jobs        map[string]int64 // that have not ended, by state
	AtLeast     bool             // there were too many to count: numbers are at least so high
	OldestAge   time.Duration    // of the available and pending jobs: for how long one has been due
	Slots       int              // how many jobs its workers can run at a time
	NeededSlots int64            // how many would be of use now: jobs that run or could begin
}

func (f fleet) statistics() (list []Statistics) {
	for _, q := range f.queues {
		if len(list) == 0 || list[len(list)-1].Queue != q.Queue {
			able := f.able[q.Queue]
			list = append(list, Statistics{
				Queue: q.Queue, Jobs: map[string]int64{}, Slots: f.slots[q.Queue], NeededSlots: int64(able.jobs), AtLeast: able.isCut,
			})
		}
		s := &list[len(list)-1]
		s.Jobs[q.State] = min(q.Jobs, depthBound)
		s.AtLeast = s.AtLeast || q.Jobs > depthBound
		if q.State == "running" || q.State == "available" {
			s.NeededSlots += q.Jobs
		}
		if q.AgeS != nil {
			s.OldestAge = max(s.OldestAge, time.Duration(*q.AgeS*float64(time.Second)))
		}
	}
	return list
}

// Statistics returns what is known of the queues that jobs are in or workers work, by name. It is at most a few seconds old,
// and costs little however many jobs there are.
func (c *Client) Statistics(context.Context) ([]Statistics, error) {
	found, err := c.depth.read()
	if err != nil {
		return nil, fmt.Errorf("read queues: %w", err)
	}
	return found.statistics(), nil
}
