package queue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/store"
	"medianest/store/storetest"
)

// yard is a database in which rounds are called one by one, and workers are rows that fetch nothing.
type yard struct {
	*bundle
	admission *queue.Admission
	pool      *pgxpool.Pool // as role river
}

func setupYard(t *testing.T) *yard {
	t.Helper()
	return newYard(t, assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers = nil, nil }))
}

func newYard(t testing.TB, b *bundle) *yard {
	t.Helper()
	y := &yard{bundle: b, pool: storetest.OpenPool(t, b.url, store.RoleRiver)}
	y.admission = queue.NewAdmission(y.pool, slog.New(slog.DiscardHandler))
	return y
}

// slots has the fleet work a queue with so many slots.
func (y *yard) slots(t testing.TB, name string, n int) {
	t.Helper()
	y.exec(t, `
		INSERT INTO medianest.worker (id, mode, host, version, queues, expires_at)
		VALUES ('worker of ' || $1, 'work', 'h', 'v', jsonb_build_object($1::text, $2::int), now() + interval '1 hour')
		ON CONFLICT (id) DO UPDATE SET queues = excluded.queues, expires_at = excluded.expires_at`, name, n)
}

// limit sets a key's limit; a negative one removes it.
func (y *yard) limit(t testing.TB, key string, maxRunning int) {
	t.Helper()
	if maxRunning < 0 {
		y.exec(t, `DELETE FROM medianest.limits WHERE key = $1`, key)
		return
	}
	y.exec(t, `INSERT INTO medianest.limits (key, max_running) VALUES ($1, $2)
		ON CONFLICT (key) DO UPDATE SET max_running = excluded.max_running`, key, maxRunning)
}

// add inserts n jobs with the keys, in the order of their ids.
func (y *yard) add(t *testing.T, n int, keys ...string) []int64 {
	t.Helper()
	return y.insert(t, river.InsertOpts{Metadata: keyed(keys...)}, make([]synthetic, n)...)
}

// keyed is the metadata of a job with the keys.
func keyed(keys ...string) []byte {
	metadata, _ := json.Marshal(map[string]any{"keys": keys})
	return metadata
}

// round decides once, and returns the rows that became available, in the order in which they are fetched.
func (y *yard) round(t *testing.T) []int64 {
	t.Helper()
	before := y.rows(t, "available")
	d, err := y.admission.Round(t.Context())
	require.NoError(t, err)
	require.True(t, d.Ours)
	var fresh []int64
	for _, id := range y.rows(t, "available") {
		if !slices.Contains(before, id) {
			fresh = append(fresh, id)
		}
	}
	return fresh
}

// rows are those in the state, in the order of a fetch.
func (y *yard) rows(t *testing.T, state string) []int64 {
	t.Helper()
	rows, err := y.owner.Query(t.Context(), `
		SELECT id
		FROM river.river_job
		WHERE state = $1::text::river.river_job_state
		ORDER BY priority, scheduled_at, id`, state)
	require.NoError(t, err)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	return ids
}

// fetch begins available jobs, end ends running ones.
func (y *yard) fetch(t *testing.T, ids ...int64) {
	t.Helper()
	for _, id := range ids {
		y.set(t, id, "available",
			`state = 'running', attempt = attempt + 1, attempted_at = now(), attempted_by = '{somebody}'`)
	}
}

func (y *yard) end(t *testing.T, ids ...int64) {
	t.Helper()
	for _, id := range ids {
		y.set(t, id, "running", `state = 'completed', finalized_at = now()`)
	}
}

func (y *yard) set(t *testing.T, id int64, from, set string) {
	t.Helper()
	tag, err := y.owner.Exec(t.Context(), `
		UPDATE river.river_job SET `+set+`
		WHERE id = $1 AND state = $2::text::river.river_job_state`, id, from)
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected(), "job %d is not %s", id, from)
}

func (y *yard) blockedOn(t *testing.T, id int64) (key string) {
	t.Helper()
	require.NoError(t, y.owner.QueryRow(t.Context(),
		`SELECT blocked_on FROM medianest.admission WHERE row_id = $1 AND admitted_at IS NULL`, id).Scan(&key))
	return key
}

// What a limit allows is counted over all of a job's keys, its queue among them; what has no limit flows with the
// slots.
func TestAdmissionKeepsLimits(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 10)
	y.limit(t, "host:a", 2)
	y.limit(t, "host:*", 1)
	y.limit(t, "user:*", 3)
	a := y.add(t, 4, "host:a", "user:1")
	b := y.add(t, 2, "host:b", "user:1")
	c := y.add(t, 1, "host:b", "user:2")
	free := y.add(t, 20, "service:plex")
	require.Empty(t, y.rows(t, "available"))

	admitted := y.round(t)
	require.Len(t, admitted, 10)
	require.Subset(t, admitted, a[:2])
	// Nobody's jobs take turns with those of users: after two each of user 1's are all blocked.
	require.Contains(t, admitted, c[0])
	require.NotContains(t, admitted, a[2])
	require.NotContains(t, admitted, b[0], "user 2, who has least running, took the host's one")
	require.Equal(t, "host:a", y.blockedOn(t, a[2]))
	require.Equal(t, "host:b", y.blockedOn(t, b[0]))
	require.Equal(t, "", y.blockedOn(t, free[19]), "waits for a slot only")
	require.Empty(t, y.round(t))

	y.fetch(t, admitted...)
	require.Empty(t, y.round(t), "running as much as available")
	y.end(t, a[0])
	require.Equal(t, []int64{a[2]}, y.round(t))
	y.limit(t, "queue:test", 3)
	y.end(t, c[0])
	require.Empty(t, y.round(t))
	y.limit(t, "queue:test", -1)
	require.NotEmpty(t, y.round(t))
}

// The user with one job behind a user with a thousand is next when a slot frees; with more users it goes in turn.
func TestFairOrder(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 2)
	many := y.add(t, 1000, "user:many", "kind:x")
	first := y.round(t)
	require.Equal(t, many[:2], first)
	y.fetch(t, first...)
	one := y.add(t, 1, "user:one", "kind:x")[0]
	nobodys := y.add(t, 500, "kind:x")
	require.Empty(t, y.round(t))
	y.end(t, many[0])
	require.Equal(t, []int64{one}, y.round(t))
	y.fetch(t, one)
	y.end(t, one)
	require.Equal(t, nobodys[:1], y.round(t))
	y.fetch(t, nobodys[0])
	second := y.add(t, 100, "user:second", "kind:x")

	// Each in turn now, with two slots: many, nobody, second. Each gets every third.
	turns := map[string]int{}
	var order []string
	running := []int64{many[1], nobodys[0]}
	for range 30 {
		y.end(t, running[0])
		next := y.round(t)
		require.Len(t, next, 1)
		y.fetch(t, next[0])
		running = append(running[1:], next[0])
		switch id := next[0]; {
		case slices.Contains(many, id):
			order = append(order, "many")
		case slices.Contains(nobodys, id):
			order = append(order, "nobody")
		case slices.Contains(second, id):
			order = append(order, "second")
		}
		turns[order[len(order)-1]]++
	}
	require.Equal(t, map[string]int{"many": 10, "nobody": 10, "second": 10}, turns, order)
	for i := 3; i < len(order); i++ {
		require.Equal(t, order[i-3], order[i], order)
	}
}

func TestPriorityGoesFirstAndMayChangeWhileWaiting(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 1)
	low := y.insert(t, river.InsertOpts{Priority: 3, Metadata: keyed("user:1")}, make([]synthetic, 3)...)
	high := y.insert(t, river.InsertOpts{Priority: 2, Metadata: keyed("user:2")}, make([]synthetic, 3)...)
	next := func() int64 {
		ids := y.round(t)
		require.Len(t, ids, 1)
		y.fetch(t, ids[0])
		y.end(t, ids[0])
		return ids[0]
	}
	require.Equal(t, high[0], next())
	y.exec(t, `UPDATE river.river_job SET priority = 1 WHERE id = $1`, low[2])
	require.Equal(t, low[2], next(), "now")
	y.exec(t, `UPDATE river.river_job SET scheduled_at = now() - interval '1 hour' WHERE id = $1`, high[2])
	require.Equal(t, high[2], next(), "the oldest of its user and priority")
	y.exec(t, `UPDATE river.river_job SET scheduled_at = now() + interval '1 hour' WHERE id = $1`, high[1])
	require.Equal(t, low[0], next(), "not due")
	y.exec(t, `UPDATE river.river_job SET scheduled_at = now() WHERE id = $1`, high[1])
	require.Equal(t, high[1], next())
	// Of a job that moves to other keys, or to none.
	y.exec(t, `UPDATE river.river_job SET metadata = '{"keys": ["host:stopped"]}' WHERE id = $1`, low[1])
	y.limit(t, "host:stopped", 0)
	require.Empty(t, y.round(t))
	require.Equal(t, "host:stopped", y.blockedOn(t, low[1]))
	y.exec(t, `UPDATE river.river_job SET metadata = '{}' WHERE id = $1`, low[1])
	require.Zero(t, y.count(t, `SELECT count(*) FROM medianest.admission WHERE row_id = $1`, low[1]))
}

// A limit that is lowered, raised, added or removed binds at once: those that have not begun wait again, and those that
// wait go on. What runs goes on.
func TestLimitsChangeWhileJobsRunAndWait(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 10)
	y.limit(t, "host:a", 6)
	jobs := y.add(t, 20, "host:a", "user:1")
	admitted := y.round(t)
	require.Equal(t, jobs[:6], admitted)
	y.fetch(t, jobs[:3]...)

	y.limit(t, "host:a", 4)
	require.Empty(t, y.round(t))
	require.Equal(t, jobs[3:4], y.rows(t, "available"), "the last ones wait again")
	require.Len(t, y.rows(t, "running"), 3)
	require.Equal(t, event{"pending", 0, ""}, y.events(t, jobs[5])[2])

	y.limit(t, "host:a", 0)
	require.Empty(t, y.round(t))
	require.Empty(t, y.rows(t, "available"), "none: the key is paused")
	require.Len(t, y.rows(t, "running"), 3)

	y.limit(t, "host:a", 5)
	require.Equal(t, jobs[3:5], y.round(t))

	y.limit(t, "user:*", 4)
	require.Empty(t, y.round(t))
	require.Equal(t, jobs[3:4], y.rows(t, "available"), "an added one binds what is admitted")

	y.limit(t, "user:*", -1)
	require.Equal(t, jobs[4:5], y.round(t))
	y.limit(t, "host:a", -1)
	require.Equal(t, jobs[5:10], y.round(t), "as many as there are slots")

	y.slots(t, "test", 7)
	require.Empty(t, y.round(t))
	require.Len(t, y.rows(t, "available"), 4, "the queue is worked by fewer")
}

// What is paused does not begin, also where it was about to, and holds nothing that others wait for. It goes on in its order.
func TestPausesBindAtOnce(t *testing.T) {
	t.Parallel()

	for key, also := range map[string]bool{"host:a": false, "host:*": true, "queue:test": true, "queue:*": true, "kind:k": true, "user:1": false} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			y := setupYard(t)
			y.slots(t, "test", 6)
			y.limit(t, "host:a", 3)
			jobs := y.add(t, 6, "kind:k", "host:a", "user:1")
			require.Equal(t, jobs[:3], y.round(t))
			y.fetch(t, jobs[0])
			y.exec(t, `INSERT INTO medianest.pause (key) VALUES ($1)`, key)
			others := y.add(t, 1, "kind:k", "host:b", "user:2")
			if also {
				require.Empty(t, y.round(t))
				require.Empty(t, y.rows(t, "available"))
			} else {
				require.Equal(t, others, y.round(t))
				require.Equal(t, others, y.rows(t, "available"), "what was about to begin waits again")
			}
			require.Equal(t, jobs[:1], y.rows(t, "running"), "what runs goes on")
			y.end(t, jobs[0])
			if also {
				require.Empty(t, y.round(t))
			}

			y.exec(t, `DELETE FROM medianest.pause`)
			y.round(t)
			for _, id := range jobs[1:4] {
				require.Contains(t, y.rows(t, "available"), id)
			}
		})
	}
}

// Nothing begins outside of a limit's windows, and what was about to waits again; a round comes when one opens.
func TestWindowsBindAtOnce(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 6)
	window := func(from, to string) { // around now, in seconds
		t.Helper()
		y.exec(t, `
			INSERT INTO medianest.limits (key, max_running, windows)
			SELECT 'host:a', 2, jsonb_build_array(jsonb_build_object('from', to_char(now() AT TIME ZONE 'UTC' + $1::interval, 'HH24:MI:SS'),
				'to', to_char(now() AT TIME ZONE 'UTC' + $2::interval, 'HH24:MI:SS')))
			ON CONFLICT (key) DO UPDATE SET windows = excluded.windows`, from, to)
	}
	jobs := y.add(t, 4, "host:a", "user:1")
	window("1 hour", "2 hours")
	require.Empty(t, y.round(t))
	require.Equal(t, "host:a", y.blockedOn(t, jobs[0]))
	window("-1 hour", "1 hour")
	require.Equal(t, jobs[:2], y.round(t), "and not more than the limit allows")
	y.fetch(t, jobs[0])
	window("-2 hours", "-1 hour")
	require.Empty(t, y.round(t))
	require.Empty(t, y.rows(t, "available"), "what was about to begin waits again")
	require.Equal(t, jobs[:1], y.rows(t, "running"), "what runs goes on")
	y.end(t, jobs[0])

	window("3 seconds", "1 hour")
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	done := make(chan struct{})
	go func() { defer close(done); _ = y.admission.Run(ctx) }()
	require.Eventually(t, func() bool { return len(y.rows(t, "available")) == 2 }, 20*time.Second, 20*time.Millisecond)
	stop()
	<-done
}

// What nobody can work holds no keys.
func TestIdleQueueHoldsNoKeys(t *testing.T) {
	t.Parallel()

	for name, stop := range map[string]string{
		"worker lost":     `UPDATE medianest.worker SET expires_at = now() WHERE queues ? 'test'`,
		"worker left":     `DELETE FROM medianest.worker WHERE queues ? 'test'`,
		"worker drains":   `UPDATE medianest.worker SET drain_asked_at = now() WHERE queues ? 'test'`,
		"queue is paused": `INSERT INTO river.river_queue (name, paused_at, updated_at) VALUES ('test', now(), now())`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			y := setupYard(t)
			y.slots(t, "test", 4)
			y.slots(t, "other", 4)
			y.limit(t, "host:a", 2)
			here := y.add(t, 3, "host:a")
			require.Equal(t, here[:2], y.round(t))
			opts := &river.InsertOpts{Queue: "other", Metadata: keyed("host:a")}
			there, err := y.River().Insert(t.Context(), synthetic{}, opts)
			require.NoError(t, err)
			require.Empty(t, y.round(t))
			y.exec(t, stop)
			require.Equal(t, []int64{there.Job.ID}, y.round(t))
			require.Len(t, y.rows(t, "pending"), 3)
		})
	}
}

// Spacing, jitter and starts per period, in time.
func TestPaceInTime(t *testing.T) {
	t.Parallel()

	const spacing, jitter, period, starts = 0.15, 0.1, 2, 5
	y := setupYard(t)
	y.slots(t, "test", 100)
	y.exec(t, `INSERT INTO medianest.limits (key, spacing_s, jitter_s) VALUES ('host:*', $1, $2)`, spacing, jitter)
	y.exec(t, `INSERT INTO medianest.limits (key, max_starts, period_s) VALUES ('user:*', $1, $2)`, starts, period)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = y.admission.Run(ctx)
	}()
	spaced := y.add(t, 10, "host:a")
	bounded := y.add(t, 12, "user:1")
	require.Eventually(t, func() bool { return len(y.rows(t, "pending")) == 0 }, 20*time.Second, 10*time.Millisecond)
	stop()
	<-done

	at := func(ids []int64) (times []time.Time) {
		rows, err := y.owner.Query(t.Context(), `
			SELECT e.at FROM medianest.event AS e WHERE e.state = 'available' AND e.job_id = ANY ($1) ORDER BY e.at`, ids)
		require.NoError(t, err)
		times, err = pgx.CollectRows(rows, pgx.RowTo[time.Time])
		require.NoError(t, err)
		require.Len(t, times, len(ids))
		return times
	}
	const blur = 5 * time.Millisecond // between the processes' clocks
	times := at(spaced)
	for i, next := range times[1:] {
		require.GreaterOrEqual(t, next.Sub(times[i])+blur, time.Duration(spacing*float64(time.Second)), i)
	}
	longest := 9 * time.Duration((spacing+jitter)*float64(time.Second))
	require.Less(t, times[9].Sub(times[0]), longest+3*time.Second, "it wakes in time")
	times = at(bounded)
	for i := starts; i < len(times); i++ {
		require.GreaterOrEqual(t, times[i].Sub(times[i-starts])+blur, period*time.Second, i)
	}
	require.Less(t, times[11].Sub(times[0]), 2*period*time.Second+3*time.Second)
}

// A round that dies, or stalls, leaves nothing behind, and others decide.
func TestRoundOfALostProcess(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 2)
	jobs := y.add(t, 3, "host:a")

	conn, err := y.pool.Acquire(t.Context())
	require.NoError(t, err)
	t.Cleanup(conn.Release)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	d, err := queue.DecideIn(t.Context(), tx)
	require.NoError(t, err)
	require.Equal(t, 2, d.Admitted)
	other, err := y.admission.Round(t.Context())
	require.NoError(t, err)
	require.False(t, other.Ours, "one at a time")
	// Stopped here, in the midst of its transaction: the server ends it.
	require.Eventually(t, func() bool {
		other, err = y.admission.Round(t.Context())
		require.NoError(t, err)
		return other.Ours
	}, 20*time.Second, 50*time.Millisecond)
	require.Equal(t, 2, other.Admitted)
	require.Equal(t, jobs[:2], y.rows(t, "available"))
	require.Error(t, tx.Commit(t.Context()))
	require.Equal(t, jobs[:2], y.rows(t, "available"))
}

// A row that somebody holds is left for later, and holds up nobody.
func TestHeldRowsAreNotWaitedFor(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 2)
	jobs := y.add(t, 5, "user:1")
	err := pgx.BeginFunc(t.Context(), y.owner, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `SELECT FROM river.river_job WHERE id = $1 FOR UPDATE`, jobs[0])
		if err != nil {
			return err
		}
		require.Equal(t, jobs[1:3], y.round(t))
		return nil
	})
	require.NoError(t, err)
	y.fetch(t, jobs[1:3]...)
	y.end(t, jobs[1])
	require.Equal(t, jobs[:1], y.round(t))
}

// Whatever is in a row's metadata, River's writes succeed, and what has keys waits.
func TestOddKeysStopNothing(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 100)
	y.limit(t, "host:*", 0)
	long := strings.Repeat("ß€x", 4000)
	many := make([]string, 500)
	for i := range many {
		many[i] = fmt.Sprintf("host:%03d%s", i, strings.Repeat("k", 280))
	}
	manyKeys, err := json.Marshal(many)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		metadata string
		waits    string // the key it waits for; "-": admitted
	}{
		"null":             {`{"keys": null}`, "-"},
		"a string":         {`{"keys": "host:a"}`, "-"},
		"a number":         {`{"keys": 7}`, "-"},
		"an object":        {`{"keys": {"host:a": 1}}`, "-"},
		"empty":            {`{"keys": []}`, "-"},
		"empty key":        {`{"keys": [""]}`, "-"},
		"nothing in it":    {`{"keys": [null, null]}`, "-"},
		"an array":         {`["keys"]`, "-"},
		"mixed":            {`{"keys": [1, null, {"a": [2]}, ["host:x"], "host:a", "host:a"]}`, "host:a"},
		"no form":          {`{"keys": ["host", ":", "::", "user:"]}`, "-"},
		"a form's default": {`{"keys": ["host:*"]}`, "host:*"},
		"long":             {`{"keys": ["host:` + long + `"]}`, "host:"},
		"many":             {`{"keys": ` + string(manyKeys) + `}`, "host:000"},
		"long user":        {`{"keys": ["user:` + long + `", "user:b"]}`, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			var id int64
			err := y.pool.QueryRow(t.Context(), `
				INSERT INTO river.river_job (kind, args, queue, metadata)
				VALUES ('synthetic', '{}', 'test', $1::jsonb)
				RETURNING id`, c.metadata).Scan(&id)
			require.NoError(t, err)
			require.Equal(t, rivertype.JobStatePending, y.state(t, id))
			y.round(t)
			if c.waits == "-" {
				require.Equal(t, rivertype.JobStateAvailable, y.state(t, id))
				y.fetch(t, id)
				y.set(t, id, "running", `state = 'retryable', scheduled_at = now()`)
				y.set(t, id, "retryable", `state = 'available'`)
				require.Equal(t, rivertype.JobStatePending, y.state(t, id))
			} else {
				require.True(t, strings.HasPrefix(y.blockedOn(t, id), c.waits), y.blockedOn(t, id))
			}
			y.set(t, id, "pending", `state = 'cancelled', finalized_at = now()`)
			require.Zero(t, y.count(t, `SELECT count(*) FROM medianest.admission WHERE row_id = $1`, id))
			_, err = y.pool.Exec(t.Context(), `DELETE FROM river.river_job WHERE id = $1`, id)
			require.NoError(t, err)
		})
	}
}

func (b *bundle) state(t *testing.T, id int64) (state rivertype.JobState) {
	t.Helper()
	err := b.owner.QueryRow(t.Context(), `SELECT state::text FROM river.river_job WHERE id = $1`, id).Scan(&state)
	require.NoError(t, err)
	return state
}

// A job that goes on after its worker was lost keeps the keys that it holds: nobody overtakes it.
func TestSuccessorStaysAdmitted(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 4)
	y.limit(t, "host:a", 1)
	jobs := y.add(t, 2, "host:a", "user:1")
	require.Equal(t, jobs[:1], y.round(t))
	y.run(t, jobs[0], 1, t.Name())
	n, err := y.TakeBack(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	next := y.current(t, jobs[0])
	require.Equal(t, rivertype.JobStateAvailable, next.State)
	require.Equal(t, []event{
		{"pending", 0, ""}, {"available", 0, ""}, {"running", 1, ""}, {"available", 0, ""},
	}, y.events(t, jobs[0]))
	require.Equal(t, 1, y.count(t, `SELECT count(*) FROM medianest.admission WHERE admitted_at IS NOT NULL`))
	require.Empty(t, y.round(t))
	y.run(t, next.ID, 1, "another")
	y.end(t, next.ID)
	require.Equal(t, jobs[1:], y.round(t))
	require.Zero(t, y.count(t, `SELECT count(*) FROM medianest.admission WHERE row_id <> $1`, jobs[1]))
}

// A worker that is killed with a limit's only slot, or stopped, loses it to the row that its job goes on as, and to
// nobody else.
func TestKeysOfALostWorker(t *testing.T) {
	t.Parallel()

	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			worked := make(chan int64, 10)
			b := assemble(t, func(_ context.Context, job *river.Job[synthetic]) error {
				worked <- queue.PublicID(job.JobRow)
				return nil
			}, named("rescuer"))
			y := newYard(t, b)
			y.limit(t, "host:a", 1)
			jobs := b.insert(t, river.InsertOpts{Metadata: keyed("host:a")}, synthetic{N: waits}, synthetic{N: waits})
			c := startChild(t, b.url, "victim", false)
			require.Eventually(t, func() bool {
				d, err := y.admission.Round(t.Context())
				require.NoError(t, err)
				return d.Admitted == 1
			}, 20*time.Second, 20*time.Millisecond)
			c.wait(t, "begun")
			b.start(t)
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = y.admission.Run(ctx)
			}()
			b.holds(t, "victim", jobs[0])
			c.signal(t, signal)
			for _, id := range jobs {
				require.Equal(t, id, <-worked, "one after the other, the lost one first")
				b.waitCurrent(t, id, rivertype.JobStateCompleted)
			}
			stop()
			<-done
			require.Zero(t, y.count(t, `SELECT count(*) FROM medianest.admission`))
		})
	}
}

// What is known of users and hosts that were not served for long is forgotten.
func TestUsesAreForgotten(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.exec(t, `INSERT INTO medianest.limits (key, max_starts, period_s) VALUES ('host:slow', 1, 86400)`)
	y.exec(t, `
		INSERT INTO medianest.limit_use (key, last_at, next_at)
		VALUES ('user:old', now() - interval '2 hours', now()), ('user:new', now(), now()),
			('host:slow', now() - interval '2 hours', now()),
			('host:later', now() - interval '2 hours', now() + interval '1 hour')`)
	y.round(t)
	rows, err := y.owner.Query(t.Context(), `SELECT key FROM medianest.limit_use ORDER BY key`)
	require.NoError(t, err)
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, []string{"host:later", "host:slow", "user:new"}, keys)
}

func TestMetricsOfAdmission(t *testing.T) {
	t.Parallel()

	registry := prometheus.NewRegistry()
	b := assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers, o.Registerer = nil, nil, registry })
	y := newYard(t, b)
	require.NoError(t, y.admission.Register(registry))
	y.slots(t, "test", 3)
	y.limit(t, "host:a", 1)
	y.limit(t, "user:*", 2)
	y.add(t, 3, "host:a")
	y.add(t, 4, "user:1")
	y.round(t)
	y.round(t)
	y.add(t, 1, "user:2")
	require.Equal(t, map[string]float64{"test/host": 2, "test/slot": 3},
		gather2(t, registry, "medianest_admission_waiting_jobs", "queue", "on"))

	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = y.admission.Run(ctx)
	}()
	y.slots(t, "test", 4)
	y.admission.Ring()
	require.Eventually(t, func() bool {
		return gather2(t, registry, "medianest_admission_jobs_total", "action")["admitted"] == 1 &&
			gather2(t, registry, "medianest_admission_rounds_total", "outcome")["decided"] >= 1
	}, 10*time.Second, 10*time.Millisecond)
	stop()
	<-done
}

// gather2 reads a metric's values, by the labels named.
func gather2(t *testing.T, registry *prometheus.Registry, name string, labels ...string) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			of := make([]string, len(labels))
			for i, label := range labels {
				for _, pair := range m.GetLabel() {
					if pair.GetName() == label {
						of[i] = pair.GetValue()
					}
				}
			}
			values[strings.Join(of, "/")] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// gauge counts, outside the platform, what runs under each key, and remembers the most at a time.
type gauge struct {
	mu      sync.Mutex
	running map[string]int
	most    map[string]int
	busy    time.Duration // of all slots together
}

func newGauge() *gauge { return &gauge{running: map[string]int{}, most: map[string]int{}} }

func (g *gauge) enter(keys []string) (leave func()) {
	begun := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, key := range keys {
		g.running[key]++
		g.most[key] = max(g.most[key], g.running[key])
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, key := range keys {
			g.running[key]--
		}
		g.busy += time.Since(begun)
	}
}

// crew is several clients on one database, with admission on each and one outbox whose ticks ring it.
type crew struct {
	owner   *pgxpool.Pool
	clients []*queue.Client
}

func startCrew(t *testing.T, clients, slots int, do work) *crew {
	t.Helper()
	url := storetest.DB(t)
	f := &crew{owner: storetest.OpenPool(t, url, "")}
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		for _, c := range f.clients {
			<-c.Stopped()
		}
		all.Wait()
	})
	var admissions []*queue.Admission
	for n := range clients {
		workers := river.NewWorkers()
		river.AddWorker(workers, river.WorkFunc(do))
		pool := storetest.OpenPool(t, url, store.RoleRiver)
		a := queue.NewAdmission(pool, log)
		c, err := queue.New(queue.Options{
			Pool: pool, Logger: log, ID: fmt.Sprintf("%s-%d", t.Name(), n), OnFree: a.Ring,
			Queues: map[string]int{"test": slots}, Workers: workers, StopTimeout: -1,
		})
		require.NoError(t, err)
		require.NoError(t, c.Start(ctx))
		f.clients = append(f.clients, c)
		admissions = append(admissions, a)
		all.Go(func() { _ = a.Run(ctx) })
	}
	outbox := store.NewOutbox(store.OutboxOptions{
		Store: store.New(storetest.OpenPool(t, url, store.RoleWorker)), Logger: log, Holder: t.Name(),
		OnTick: func() { admissions[0].Ring() },
	})
	all.Go(func() { _ = outbox.Run(ctx) })
	return f
}

func keysOf(n int) []string {
	return []string{fmt.Sprintf("host:%d", n%10), fmt.Sprintf("user:%d", n/10%10), "kind:synthetic"}
}

// Clients that decide and work at once, with jobs that fail and are tried again: never over a limit, none lost.
func TestLimitsHoldAcrossTheFleet(t *testing.T) {
	t.Parallel()

	const jobs, clients, slots = 300, 4, 20
	g := newGauge()
	f := startCrew(t, clients, slots, func(ctx context.Context, job *river.Job[synthetic]) error {
		defer g.enter(keysOf(job.Args.N))()
		pause := time.NewTimer(100 * time.Millisecond)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		if job.Args.N%10 == 3 && job.Attempt == 1 {
			return errors.New("once")
		}
		return nil
	})
	for n := range 10 {
		for _, key := range []string{"host", "user"} {
			_, err := f.owner.Exec(t.Context(), `INSERT INTO medianest.limits (key, max_running) VALUES ($1, $2)`,
				fmt.Sprintf("%s:%d", key, n), 1+n%3)
			require.NoError(t, err)
		}
	}
	params := make([]river.InsertManyParams, jobs)
	for n := range jobs {
		params[n] = river.InsertManyParams{Args: synthetic{N: n}, InsertOpts: &river.InsertOpts{
			Queue: "test", Metadata: keyed(keysOf(n)...), MaxAttempts: 3,
		}}
	}
	begun := time.Now()
	_, err := f.clients[0].River().InsertMany(t.Context(), params)
	require.NoError(t, err)
	var done int
	require.Eventually(t, func() bool {
		err := f.owner.QueryRow(t.Context(), `
			SELECT count(*) FROM river.river_job WHERE state = 'completed'`).Scan(&done)
		require.NoError(t, err)
		return done == jobs
	}, 3*time.Minute, 100*time.Millisecond)
	took := time.Since(begun)
	g.mu.Lock()
	defer g.mu.Unlock()
	for n := range 10 {
		require.LessOrEqual(t, g.most[fmt.Sprintf("host:%d", n)], 1+n%3)
		require.LessOrEqual(t, g.most[fmt.Sprintf("user:%d", n)], 1+n%3)
	}
	t.Logf("done in %s, busy %s: %.1f jobs at a time; most %v", took, g.busy, g.busy.Seconds()/took.Seconds(), g.most)
}

// How long a key's slot stays empty between two jobs, with a client that has nothing else to do.
func TestHandOffIsQuick(t *testing.T) {
	t.Parallel()

	const jobs, each = 20, 100 * time.Millisecond
	var (
		mu   sync.Mutex
		gaps []time.Duration
		last time.Time
	)
	f := startCrew(t, 2, 4, func(context.Context, *river.Job[synthetic]) error {
		mu.Lock()
		if !last.IsZero() {
			gaps = append(gaps, time.Since(last))
		}
		mu.Unlock()
		pause := time.NewTimer(each)
		<-pause.C
		mu.Lock()
		defer mu.Unlock()
		last = time.Now()
		return nil
	})
	_, err := f.owner.Exec(t.Context(), `INSERT INTO medianest.limits (key, max_running) VALUES ('host:a', 1)`)
	require.NoError(t, err)
	params := make([]river.InsertManyParams, jobs)
	for n := range jobs {
		params[n] = river.InsertManyParams{
			Args: synthetic{N: n}, InsertOpts: &river.InsertOpts{Queue: "test", Metadata: keyed("host:a")},
		}
	}
	_, err = f.clients[0].River().InsertMany(t.Context(), params)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(gaps) == jobs-1
	}, time.Minute, 10*time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	var sum time.Duration
	for _, gap := range gaps {
		sum += gap
	}
	t.Logf("gaps: mean %s, %v", sum/time.Duration(len(gaps)), gaps)
	require.Less(t, sum/time.Duration(len(gaps)), 500*time.Millisecond,
		"by the completion itself, not by the round that comes anyway")
}
