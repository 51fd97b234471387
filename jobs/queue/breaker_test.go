package queue_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
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
	requests := make(chan int64, 100)
	registry := prometheus.NewRegistry()
	b := assemble(t, func(ctx context.Context, job *river.Job[synthetic]) error {
		if job.Args.N == elsewhere {
			return nil
		}
		n := asked.Add(1)
		requests <- job.ID
		if n <= atATime+refusals-1 { // those that run when it begins are refused as well
			if err := queue.Trip(ctx, "host:a", &reason.Error{Reason: reason.RateLimited}); err != nil {
				return err
			}
			return river.JobSnooze(time.Millisecond)
		}
		return nil
	}, func(o *queue.Options) {
		quick(o)
		o.Registerer = registry
	})
	y := newYard(t, b)
	y.limit(t, "host:a", atATime)
	ids := y.add(t, jobs, "host:a", "user:1")
	other := b.insert(t, river.InsertOpts{Metadata: keyed("host:b", "user:1")}, synthetic{N: elsewhere})[0]
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
		require.Equal(t, breakerRow{want, queue.BreakerLadder[want], false, 1 + step}, r, step)
	}
	require.Len(t, b.logs.find("breaker tripped"), refusals)
	require.Equal(t, map[string]float64{"rate_limited": refusals}, gather(t, registry, "medianest_breaker_trips_total"))
	require.Equal(t, map[string]float64{"": 1}, gather(t, registry, "medianest_breakers_open"))

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
	require.Len(t, b.logs.find("breaker closed"), 1)
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
	trip := func(wait time.Duration) {
		t.Helper()
		failure := &reason.Error{Reason: reason.BotCheck, RetryAt: time.Now().Add(wait)}
		require.NoError(t, y.TripAs(t.Context(), 0, "host:a", failure))
	}
	trip(90 * time.Second)
	require.Empty(t, y.round(t))
	require.Empty(t, y.rows(t, "available"))
	require.Len(t, y.rows(t, "running"), 1)
	require.Equal(t, breakerRow{0, 90 * time.Second, false, 1}, y.breaker(t, "host:a"))
	trip(time.Second)
	require.Equal(t, breakerRow{0, 90 * time.Second, false, 1}, y.breaker(t, "host:a"))
	d, err := y.admission.Round(t.Context())
	require.NoError(t, err)
	require.Positive(t, d.Again)
	require.LessOrEqual(t, d.Again, 90*time.Second, "it knows when to look again")

	trip(365 * 24 * time.Hour)
	require.Equal(t, 24*time.Hour, y.breaker(t, "host:a").wait, "no host is believed more")
	y.exec(t, `DELETE FROM medianest.breaker`) // as a reset does
	require.Equal(t, jobs[1:3], y.round(t))

	// A probe that loses its worker stays the probe, as the row that stands for its job then.
	y.exec(t, `DELETE FROM river.river_job`)
	jobs = y.add(t, 3, "host:a")
	trip(-time.Hour)
	require.Equal(t, breakerRow{0, 0, false, 1}, y.breaker(t, "host:a"))
	require.Equal(t, jobs[:1], y.round(t))
	require.Empty(t, y.round(t))
	y.run(t, jobs[0], 1, t.Name())
	_, err = y.TakeBack(t.Context())
	require.NoError(t, err)
	require.Empty(t, y.round(t))
	next := y.current(t, jobs[0]).ID
	require.Equal(t, []int64{next}, y.rows(t, "available"))
	require.NoError(t, y.TripAs(t.Context(), jobs[0], "host:a", &reason.Error{Reason: reason.RateLimited}))
	require.Equal(t, breakerRow{1, time.Minute, false, 2}, y.breaker(t, "host:a"), "it leads up under the job's id")
	require.Empty(t, y.round(t))
	y.exec(t, `UPDATE medianest.breaker SET open_until = now()`)
	require.Equal(t, []int64{jobs[1]}, y.round(t), "it came later than the row that is new")
	// One that is set aside, since it took its workers down, makes room for the next probe.
	y.run(t, jobs[1], 1, t.Name())
	y.note(t, jobs[1], fmt.Sprintf(`{"losses": 4, "lost_attempt": 1, "lost_at": %d}`, time.Now().Unix()))
	_, err = y.TakeBack(t.Context())
	require.NoError(t, err)
	require.Equal(t, rivertype.JobStateDiscarded, y.job(t, jobs[1]).State)
	require.Len(t, y.round(t), 1)
	require.True(t, y.breaker(t, "host:a").probe)
}

// However a probe ends, the breaker closes, waits again, or has another job for its probe. It never waits for a probe
// that is none any more.
func TestEndsOfAProbe(t *testing.T) {
	t.Parallel()

	fails := func(r reason.Reason) work {
		return func(context.Context, *river.Job[synthetic]) error { return &reason.Error{Reason: r} }
	}
	ends := func(r reason.Reason) work {
		return func(context.Context, *river.Job[synthetic]) error { return river.JobCancel(&reason.Error{Reason: r}) }
	}
	rests := func(r reason.Reason) work {
		return func(context.Context, *river.Job[synthetic]) error {
			return errors.Join(river.JobSnooze(time.Hour), &reason.Error{Reason: r})
		}
	}
	untilAsked := func(ctx context.Context, _ *river.Job[synthetic]) error {
		<-ctx.Done()
		return ctx.Err()
	}
	const closed, again, next = "closes", "waits again", "next"
	for name, test := range map[string]struct {
		do   work
		meet func(t *testing.T, y *yard, probe int64) // what happens to it while it runs
		want string
	}{
		"Succeeds":     {do: func(context.Context, *river.Job[synthetic]) error { return nil }, want: closed},
		"Gone":         {do: ends(reason.Gone), want: closed},
		"NotFound":     {do: ends(reason.NotFound), want: closed},
		"DRM":          {do: ends(reason.DRM), want: closed},
		"NotYet":       {do: rests(reason.Upcoming), want: closed},
		"Network":      {do: fails(reason.Network), want: again},
		"Timeout":      {do: fails(reason.Timeout), want: again},
		"SignIn":       {do: ends(reason.AuthRequired), want: again},
		"Unrecognised": {do: fails(reason.Unknown), want: again},
		"Stranger":     {do: fails("of_a_newer_build"), want: next},
		"OurFault":     {do: fails(reason.Internal), want: next},
		"NoSpace":      {do: rests(reason.DiskFull), want: next},
		"Panic":        {do: func(context.Context, *river.Job[synthetic]) error { panic("oh") }, want: next},
		"HandedBack":   {do: func(context.Context, *river.Job[synthetic]) error { return river.JobSnooze(time.Hour) }, want: next},
		"Cancelled": {do: untilAsked, want: next, meet: func(t *testing.T, y *yard, probe int64) {
			_, err := y.River().JobCancel(t.Context(), probe)
			require.NoError(t, err)
		}},
		"Deleted": {do: untilAsked, want: next, meet: func(t *testing.T, y *yard, probe int64) {
			y.exec(t, `DELETE FROM river.river_job WHERE id = $1`, probe)
		}},
		"DiscardedByHand": {do: untilAsked, want: next, meet: func(t *testing.T, y *yard, probe int64) {
			y.set(t, probe, "running", `state = 'discarded', finalized_at = now()`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := make(chan int64, 10)
			b := assemble(t, func(ctx context.Context, job *river.Job[synthetic]) error {
				began <- job.ID
				if job.Args.N != 1 {
					return nil
				}
				return test.do(ctx, job)
			}, func(o *queue.Options) { o.StopTimeout = -1 })
			y := newYard(t, b)
			probe := b.insert(t, river.InsertOpts{Metadata: keyed("host:a")}, synthetic{N: 1})[0]
			other := b.insert(t, river.InsertOpts{Metadata: keyed("host:a")}, synthetic{N: 2})[0]
			b.exec(t, `INSERT INTO medianest.breaker (key, step, open_until, trips) VALUES ('host:a', 2, now(), 3)`)
			b.start(t)
			require.Equal(t, []int64{probe}, y.roundOf(t, "host:a"))
			require.Equal(t, probe, <-began)
			if test.meet != nil {
				test.meet(t, y, probe)
			}
			require.Eventually(t, func() bool {
				return b.count(t, `SELECT count(*) FROM medianest.admission WHERE admitted_at IS NOT NULL`) == 0
			}, 10*time.Second, 10*time.Millisecond)

			switch test.want {
			case closed:
				require.Eventually(t, func() bool { return b.count(t, `SELECT count(*) FROM medianest.breaker`) == 0 }, 10*time.Second, 10*time.Millisecond)
			case again:
				var step int
				var wait float64
				require.NoError(t, b.owner.QueryRow(t.Context(), `
					SELECT step, extract(epoch FROM open_until - now())::float8
					FROM medianest.breaker
					WHERE probe_job IS NULL`).Scan(&step, &wait))
				require.Equal(t, 2, step)
				require.InDelta(t, queue.BreakerLadder[2].Seconds(), wait, 30)
				require.Empty(t, y.roundOf(t, "host:a"))
				b.exec(t, `UPDATE medianest.breaker SET open_until = now()`)
			case next:
				require.Equal(t, breakerRow{2, 0, true, 3}, b.breaker(t, "host:a"))
			}
			require.Equal(t, []int64{other}, y.roundOf(t, "host:a"))
			require.Equal(t, other, <-began)
			require.Eventually(t, func() bool { return b.count(t, `SELECT count(*) FROM medianest.breaker`) == 0 }, 10*time.Second, 10*time.Millisecond)
		})
	}
}
