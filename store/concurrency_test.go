package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

// Every operation on few contents by few users, at once, against the outbox's consumer and a River that locks many jobs
// in one statement in an order of its own: nobody waits in a circle, nothing else than what callers are told to expect
// goes wrong, and when all is quiet each wish that is not over has a job that is to come.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // only a seed
	t.Logf("seed %d", seed)
	b := setup(t)
	c := &chaos{bundle: b}
	for i := range 4 {
		c.users = append(c.users, b.user(fmt.Sprintf("user-%d", i)))
	}
	for i := range 6 {
		c.urls = append(c.urls, fmt.Sprintf("https://site.test/%d", i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	actors := uint64(0)
	start := func(n int, pause time.Duration, step func(context.Context, *rand.Rand) error) {
		for range n {
			actors++
			r := rand.New(rand.NewPCG(seed, actors)) //nolint:gosec // repeatable on purpose
			wg.Go(func() { c.run(ctx, r, pause, step) })
		}
	}
	start(16, 0, c.act)
	start(4, 2*time.Millisecond, c.work)
	// One: two of them with the same jobs in different orders would run into each other.
	start(1, 60*time.Millisecond, c.river)
	start(1, 80*time.Millisecond, c.lose)
	start(1, 20*time.Millisecond, c.consumer)
	start(1, 50*time.Millisecond, c.retention)
	start(1, 200*time.Millisecond, c.watch)
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for name, n := range c.counts {
			t.Logf("%-16s %d", name, n)
		}
	})
	// A while, and on a busy machine until each has happened.
	begun := time.Now()
	require.Eventually(t, func() bool {
		return time.Since(begun) > 1500*time.Millisecond && c.happened(2)
	}, 30*time.Second, 50*time.Millisecond)
	cancel()
	wg.Wait()

	require.Empty(t, c.unexpected, "long waits:\n%s", strings.Join(c.waits, "\n"))
	require.Zero(t, b.deadlocks())
	// What was cut off at the end may hold its locks for a moment.
	require.Eventually(t, func() bool {
		return c.consumer(t.Context(), nil) == nil && b.holds(`
			SELECT EXISTS (
				SELECT
				FROM medianest.consumer AS c
				WHERE c.tick > (SELECT max(k.id) FROM medianest.tick AS k) AND cardinality(c.behind) = 0
			) AND NOT EXISTS (
				SELECT
				FROM pg_stat_activity AS a
				WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.state <> 'idle'
					AND a.backend_type = 'client backend'
			)`)
	}, 20*time.Second, 20*time.Millisecond)
	require.Zero(t, b.count(`
		SELECT count(*)
		FROM medianest.downloads AS d
		WHERE d.cancelled_at IS NULL AND NOT d.is_collection AND d.state IN ('queued', 'waiting', 'running')
			AND NOT EXISTS (
				SELECT
				FROM river.river_job AS j
				WHERE medianest.public_id(j.id, j.metadata) = d.job_id AND j.finalized_at IS NULL)`),
		"a wish waits for a job that is over")
	require.Zero(t, b.count(`
		SELECT count(*)
		FROM river.river_job AS j
		WHERE j.kind = 'download' AND j.finalized_at IS NULL AND NOT j.metadata ? 'cancel_attempted_at'
			AND NOT EXISTS (
				SELECT
				FROM medianest.downloads AS d
				WHERE d.job_id = medianest.public_id(j.id, j.metadata) AND d.cancelled_at IS NULL)`),
		"a job is to come that nobody wishes for")
	require.Zero(t, b.count(`
		SELECT count(*)
		FROM (
			SELECT j.args ->> 'content_id'
			FROM river.river_job AS j
			WHERE j.kind = 'download' AND j.finalized_at IS NULL AND NOT j.metadata ? 'cancel_attempted_at'
			GROUP BY 1
			HAVING count(*) > 1
		) AS twice`), "a content is fetched twice")
	require.Zero(t, b.count(`
		SELECT count(*)
		FROM (
			SELECT d.user_id, d.content_id
			FROM medianest.downloads AS d
			WHERE d.parent_id IS NULL AND NOT d.is_collection AND d.state IN ('queued', 'waiting', 'running')
			GROUP BY d.user_id, d.content_id
			HAVING count(*) > 1
		) AS twice`), "a user has the same wish twice")
	require.Zero(t, b.count(`
		SELECT count(*)
		FROM medianest.downloads AS p
		WHERE p.is_collection AND p.cancelled_at IS NULL
			AND EXISTS (SELECT FROM medianest.downloads AS k WHERE k.parent_id = p.id)
			AND EXISTS (
				SELECT
				FROM river.river_job AS j
				WHERE medianest.public_id(j.id, j.metadata) = p.job_id AND j.state = 'completed')
			AND (p.state = 'running') <> EXISTS (
				SELECT
				FROM medianest.downloads AS k
				WHERE k.parent_id = p.id AND k.state IN ('queued', 'waiting', 'running'))`),
		"a collection is not where its children are")
}

type chaos struct {
	*bundle
	users []store.User
	urls  []string

	mu         sync.Mutex
	counts     map[string]int
	unexpected []string
	waits      []string
}

// run repeats step, with a pause between, until ctx ends. Conflicts and rows that are gone are what callers are told to expect.
func (c *chaos) run(ctx context.Context, r *rand.Rand, pause time.Duration, step func(context.Context, *rand.Rand) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		err := step(ctx, r)
		if err == nil || ctx.Err() != nil ||
			errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrSuperseded) {
			continue
		}
		c.mu.Lock()
		c.unexpected = append(c.unexpected, err.Error())
		c.mu.Unlock()
	}
}

func (c *chaos) retention(ctx context.Context, _ *rand.Rand) error {
	_, err := c.worker.TrimDomain(ctx, 0)
	return err
}

// watch notes who waits for whom for longer than work takes, which says where a circle is.
func (c *chaos) watch(ctx context.Context, _ *rand.Rand) error {
	rows, err := c.pool.Query(ctx, `
		SELECT format('%s: %s waits for %s in %s', now()::time(3), a.pid, pg_blocking_pids(a.pid), regexp_replace(a.query, '\s+', ' ', 'g'))
		FROM pg_stat_activity AS a
		WHERE a.datname = current_database() AND a.wait_event_type = 'Lock' AND now() - a.query_start > interval '600 ms'`)
	if err != nil {
		return err
	}
	waits, err := pgx.CollectRows(rows, pgx.RowTo[string])
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = append(c.waits, waits...)
	return err
}

// happened reports whether each operation has succeeded n times.
func (c *chaos) happened(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range []string{"created", "cancelled", "retried", "deleted", "published", "expanded", "job cancelled", "job retried", "lost"} {
		if c.counts[name] < n {
			return false
		}
	}
	return true
}

func (c *chaos) note(what string, err error) error {
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.counts == nil {
			c.counts = make(map[string]int)
		}
		c.counts[what]++
	}
	return err
}

// act is a user.
func (c *chaos) act(ctx context.Context, r *rand.Rand) error {
	u := c.users[r.IntN(len(c.users))]
	roll := r.IntN(10)
	if roll < 3 {
		n := wish(u, c.urls[r.IntN(len(c.urls))])
		if r.IntN(2) == 0 {
			n.IdempotencyKey = strconv.Itoa(r.IntN(1000))
			n.Fingerprint = [32]byte{byte(len(n.URL)), n.URL[len(n.URL)-1]}
		}
		_, created, err := c.api.CreateDownload(ctx, n)
		if errors.Is(err, store.ErrIdempotencyMismatch) {
			return nil
		}
		if created {
			return c.note("created", err)
		}
		return c.note("found", err)
	}
	var (
		id    uuid.UUID
		jobID int64
	)
	err := c.pool.QueryRow(ctx, `
		SELECT d.id, coalesce(d.job_id, 0)
		FROM medianest.downloads AS d
		WHERE d.user_id = $1
		ORDER BY random()
		LIMIT 1`, u.ID).Scan(&id, &jobID)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case roll < 5:
		_, err = c.api.CancelDownload(ctx, id, u.Viewer())
		return c.note("cancelled", err)
	case roll < 7:
		_, err = c.api.RetryDownload(ctx, id, u.Viewer())
		return c.note("retried", err)
	case roll < 8:
		return c.note("deleted", c.api.DeleteDownload(ctx, id, u.Viewer()))
	case roll < 9:
		_, err = c.api.CancelJob(ctx, jobID, store.Viewer{UserID: u.ID, Admin: r.IntN(2) == 0})
		return c.note("job cancelled", err)
	default:
		_, err = c.api.RetryJob(ctx, jobID, u.Viewer())
		return c.note("job retried", err)
	}
}

// work fetches one job, admitted or not, as River does, and ends it by publishing or expanding: the first two addresses are pages of the
// others, and of each other.
func (c *chaos) work(ctx context.Context, r *rand.Rand) error {
	var (
		row       int64
		contentID uuid.UUID
	)
	err := c.pool.QueryRow(ctx, `
		UPDATE river.river_job
		SET state = 'running', attempt = attempt + 1, attempted_at = now()
		WHERE id = (
			SELECT j.id
			FROM river.river_job AS j
			WHERE j.kind = 'download' AND j.state IN ('pending', 'available')
			ORDER BY random()
			LIMIT 1
			FOR UPDATE SKIP LOCKED
		)
		RETURNING id, (args ->> 'content_id')::uuid`).Scan(&row, &contentID)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := c.worker.BeginFetch(ctx, begin(contentID, row))
	if errors.Is(err, store.ErrOtherJob) {
		_, err := c.pool.Exec(ctx, `UPDATE river.river_job SET state = 'cancelled', finalized_at = now() WHERE id = $1 AND state = 'running'`, row)
		return err
	}
	if err != nil {
		return err
	}
	if i := slices.Index(c.urls, f.Content.URL); i == 0 || i == 1 {
		var entries []store.NewEntry
		for _, k := range r.Perm(len(c.urls)) {
			entries = append(entries, entry(c.urls[k]))
		}
		err := c.worker.Expand(ctx, contentID, store.JobRow(row), entries, "", completeJob(row))
		if errors.Is(err, store.ErrInvalid) {
			err = nil // too deep
		}
		return c.note("expanded", err)
	}
	return c.note("published", c.worker.Publish(ctx, contentID, store.JobRow(row), linkFor(contentID.String()+".mp4"), completeJob(row)))
}

// lose lets the workers of some jobs be lost, and those go on at whatever point they are.
func (c *chaos) lose(ctx context.Context, _ *rand.Rand) error {
	var row int64
	err := c.pool.QueryRow(ctx, `
		SELECT j.id
		FROM river.river_job AS j
		WHERE j.state = 'running'
		ORDER BY random()
		LIMIT 1`).Scan(&row)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	lost, err := reclaim(ctx, c.bundle.river, row)
	if !lost {
		return err
	}
	return c.note("lost", err)
}

// river ends and promotes many jobs in one statement, in any order.
func (c *chaos) river(ctx context.Context, _ *rand.Rand) error {
	_, err := c.pool.Exec(ctx, `
		WITH shuffled AS (
			SELECT j.id, random() AS roll
			FROM river.river_job AS j
			WHERE j.finalized_at IS NULL AND j.state NOT IN ('pending', 'available')
			ORDER BY random()
			LIMIT 50
		), locked AS (
			SELECT j.id, s.roll
			FROM shuffled AS s
			JOIN river.river_job AS j ON j.id = s.id
			WHERE j.finalized_at IS NULL
			ORDER BY s.roll
			FOR UPDATE OF j
		)
		UPDATE river.river_job AS j
		SET state = CASE
				WHEN j.metadata ? 'cancel_attempted_at' THEN 'cancelled'
				WHEN l.roll < 0.2 THEN 'discarded'
				WHEN l.roll < 0.4 AND j.state = 'running' THEN 'retryable'
				WHEN j.state = 'running' THEN 'running'
				ELSE 'available'
			END::river.river_job_state,
			finalized_at = CASE WHEN j.metadata ? 'cancel_attempted_at' OR l.roll < 0.2 THEN now() END
		FROM locked AS l
		WHERE j.id = l.id`)
	return c.note("river's rounds", err)
}

// consumer is the outbox's.
func (c *chaos) consumer(ctx context.Context, _ *rand.Rand) error {
	if _, _, err := c.worker.AdvanceTick(ctx); err != nil {
		return err
	}
	_, err := c.worker.FollowJobs(ctx, 1000)
	return c.note("consumed", err)
}
