package queue_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
)

// breakerRow is a breaker as people see it.
type breakerRow struct {
	step  int
	wait  time.Duration // from when it tripped
	probe bool
	trips int
}

func (b *bundle) breaker(t *testing.T, key string) (r breakerRow) {
	t.Helper()
	var seconds float64
	err := b.owner.QueryRow(t.Context(), `
		SELECT step, extract(epoch FROM open_until - tripped_at)::float8, probe_job IS NOT NULL, trips
		FROM medianest.breaker WHERE key = $1`, key).Scan(&r.step, &seconds, &r.probe, &r.trips)
	require.NoError(t, err)
	r.wait = time.Duration(seconds * float64(time.Second)).Round(time.Second)
	return r
}

// A host that answers "too many requests" is asked once for each step of the ladder, and then all of its jobs succeed,
// none with an attempt spent.
func TestBreaker(t *testing.T) {
	t.Parallel()

	const refusals, jobs, atATime, elsewhere = 12, 6, 3, 1 // more refusals than the ladder has steps
	var asked atomic.Int64
	ready := make(chan *queue.Client, 1)
	requests := make(chan int64, 100)
	b := assemble(t, func(ctx context.Context, job *river.Job[synthetic]) error {
		if job.Args.N == elsewhere {
			return nil
		}
		client := <-ready
		ready <- client
		n := asked.Add(1)
		requests <- job.ID
		if n <= atATime+refusals-1 { // those that run when it begins are refused as well
			if err := client.Trip(ctx, "host:a", 0); err != nil {
				return err
			}
			return river.JobSnooze(time.Millisecond)
		}
		return nil
	}, quick)
	y := newYard(t, b)
	y.limit(t, "host:a", atATime)
	ids := y.add(t, jobs, "host:a", "user:1")
	other := b.insert(t, river.InsertOpts{Metadata: keyed("host:b", "user:1")}, synthetic{N: elsewhere})[0]
	ready <- b.Client
	b.start(t)

	d, err := y.admission.Round(t.Context())
	require.NoError(t, err)
	require.Equal(t, atATime+1, d.Admitted)
	for range atATime {
		<-requests
	}
	b.waitState(t, other, rivertype.JobStateCompleted) // what has to do with another host
	settle := func() {
		t.Helper()
		require.Eventually(t, func() bool {
			return b.count(t, `
				SELECT count(*) FROM medianest.admission
				WHERE admitted_at IS NOT NULL AND 'host:a' = ANY (keys)`) == 0
		}, 10*time.Second, 10*time.Millisecond)
		b.exec(t, `UPDATE river.river_job SET scheduled_at = least(scheduled_at, now()) WHERE state = 'pending'`)
	}
	settle()
	require.Equal(t, 0, b.breaker(t, "host:a").step, "those that ran when it tripped lead it up no further")

	for step := 1; step < refusals; step++ {
		// Nothing starts while it is open.
		if step > 1 {
			require.Empty(t, y.roundOf(t, "host:a"))
			b.exec(t, `UPDATE medianest.breaker SET open_until = now()`)
		}
		require.Len(t, y.roundOf(t, "host:a"), 1, "one probe")
		require.Empty(t, y.roundOf(t, "host:a"))
		<-requests
		settle()
		r := b.breaker(t, "host:a")
		want := min(step, len(queue.BreakerLadder)-1)
		require.Equal(t, breakerRow{want, queue.BreakerLadder[want], false, r.trips}, r, step)
	}

	// The next one is let through.
	asked.Store(1000)
	b.exec(t, `UPDATE medianest.breaker SET open_until = now()`)
	probe := y.roundOf(t, "host:a")
	require.Len(t, probe, 1)
	require.Equal(t, probe[0], <-requests)
	b.waitState(t, probe[0], rivertype.JobStateCompleted)
	require.Eventually(t, func() bool {
		return b.count(t, `SELECT count(*) FROM medianest.breaker WHERE key = 'host:a'`) == 0
	}, 10*time.Second, 10*time.Millisecond)
	require.Len(t, y.roundOf(t, "host:a"), atATime)
	for range atATime {
		<-requests
	}
	for left := jobs - 1 - atATime; left > 0; {
		n := len(y.roundOf(t, "host:a"))
		for range n {
			<-requests
		}
		left -= n
	}
	for _, id := range ids {
		require.Equal(t, 1, b.waitState(t, id, rivertype.JobStateCompleted).Attempt)
	}
}

// roundOf decides once and returns the rows with the key that it made available, of which some may run already.
func (y *yard) roundOf(t *testing.T, key string) (ids []int64) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), y.pool, func(tx pgx.Tx) error {
		if _, err := queue.DecideIn(t.Context(), tx); err != nil {
			return err
		}
		// What this transaction made available, before anybody can fetch it.
		rows, err := tx.Query(t.Context(), `
			SELECT job_id FROM medianest.event WHERE xid = pg_current_xact_id_if_assigned() AND state = 'available' ORDER BY id`)
		if err != nil {
			return err
		}
		all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		for _, id := range all {
			var has bool
			err := tx.QueryRow(t.Context(), `
				SELECT $2 = ANY (keys) FROM medianest.admission WHERE row_id = $1`, id, key).Scan(&has)
			if err != nil {
				return err
			}
			if has {
				ids = append(ids, id)
			}
		}
		return nil
	})
	require.NoError(t, err)
	return ids
}

// A wait that the host names is kept, and a breaker may be reset by hand. What was admitted and has not begun when it
// trips waits again.
func TestBreakerByHand(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 3)
	jobs := y.add(t, 5, "host:a")
	require.Equal(t, jobs[:3], y.round(t))
	y.fetch(t, jobs[0])
	require.NoError(t, y.Trip(t.Context(), "host:a", 90*time.Second))
	require.Empty(t, y.round(t))
	require.Empty(t, y.rows(t, "available"))
	require.Len(t, y.rows(t, "running"), 1)
	require.Equal(t, breakerRow{0, 90 * time.Second, false, 1}, y.breaker(t, "host:a"))
	require.NoError(t, y.Trip(t.Context(), "host:a", time.Second))
	require.Equal(t, 0, y.breaker(t, "host:a").step)
	d, err := y.admission.Round(t.Context())
	require.NoError(t, err)
	require.Positive(t, d.Again)
	require.LessOrEqual(t, d.Again, 90*time.Second, "it knows when to look again")

	was, err := y.Reset(t.Context(), "host:a")
	require.NoError(t, err)
	require.True(t, was)
	require.Equal(t, jobs[1:3], y.round(t))
	was, err = y.Reset(t.Context(), "host:a")
	require.NoError(t, err)
	require.False(t, was)

	// A probe that loses its worker stays the probe, as the row that stands for its job then.
	y.exec(t, `DELETE FROM river.river_job`)
	jobs = y.add(t, 2, "host:a")
	require.NoError(t, y.Trip(t.Context(), "host:a", 0))
	require.Equal(t, jobs[:1], y.round(t))
	require.Empty(t, y.round(t))
	y.run(t, jobs[0], 1, t.Name())
	_, err = y.TakeBack(t.Context())
	require.NoError(t, err)
	require.Empty(t, y.round(t))
	next := y.current(t, jobs[0]).ID
	// One that ends otherwise than well makes room for the next probe.
	y.fetch(t, next)
	y.set(t, next, "running", `state = 'cancelled', finalized_at = now()`)
	require.Equal(t, jobs[1:], y.round(t))
}
