package queue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/store"
	"medianest/store/storetest"
)

// quickTTL is short enough for tests, and long enough for a busy machine to renew in time.
const quickTTL = 2 * time.Second

func quick(o *queue.Options) {
	o.Presence.TTL, o.Presence.Beat = quickTTL, quickTTL/6
	o.StopTimeout = 50 * time.Millisecond // of jobs that would go on for ever
}

// named gives a client an ID, and quick times.
func named(id string) func(*queue.Options) {
	return func(o *queue.Options) {
		quick(o)
		o.ID = id
	}
}

// started tells of each attempt that begins, and waits for its context's end.
type started struct {
	row   int64
	ended <-chan struct{}
	cause func() error
}

// observed is a worker's function that lets the test see its attempts, which last as long as they may.
func observed(begun chan<- started) work {
	return func(ctx context.Context, job *river.Job[synthetic]) error {
		begun <- started{job.ID, ctx.Done(), func() error { return context.Cause(ctx) }}
		<-ctx.Done()
		return ctx.Err()
	}
}

// count runs a query for one number.
func (b *bundle) count(t *testing.T, sql string, args ...any) (n int) {
	t.Helper()
	require.NoError(t, b.owner.QueryRow(t.Context(), sql, args...).Scan(&n))
	return n
}

// holds waits until a worker names the row.
func (b *bundle) holds(t *testing.T, worker string, row int64) {
	t.Helper()
	require.Eventually(t, func() bool {
		return b.count(t, `SELECT count(*) FROM medianest.worker WHERE id = $1 AND $2 = ANY (held)`, worker, row) == 1
	}, 30*time.Second, 10*time.Millisecond, "%s never named row %d", worker, row)
}

func TestWorkerJoinsAndLeaves(t *testing.T) {
	t.Parallel()

	b := assemble(t, func(context.Context, *river.Job[synthetic]) error { return nil }, func(o *queue.Options) {
		o.Presence = queue.Presence{Host: "box", Version: "v9", Volume: "volume", TTL: time.Minute}
	})
	serve := assembleAt(t, b.url, nil, func(o *queue.Options) {
		o.Queues, o.Workers, o.ID = nil, nil, "replica"
	})
	// What an earlier process of the same ID said does not hold, nor what was asked of it.
	b.exec(t, `
		INSERT INTO medianest.worker (id, mode, host, version, held, started_at, expires_at, drain_asked_at, drained_at, gone_at)
		VALUES
			($1, 'work', 'box', 'v8', '{1}', now() - interval '1 h', now() + interval '1 h', now(), now(), NULL),
			('replica', 'work', 'box', 'v8', '{1}', now() - interval '1 h', now(), now(), now(), now())`, t.Name())
	require.NoError(t, b.Start(t.Context()))
	require.NoError(t, serve.Start(t.Context()))

	workers, err := store.New(b.owner).ListWorkers(t.Context())
	require.NoError(t, err)
	require.Len(t, workers, 2)
	w := workers[0]
	require.InDelta(t, 60, w.ExpiresAt.Sub(w.RenewedAt).Seconds(), 0.001)
	require.Equal(t, []any{t.Name(), "work", "box", "v9", "volume", map[string]int{"test": 4}, "running"},
		[]any{w.ID, w.Mode, w.Host, w.Version, w.Volume, w.Queues, w.State})
	require.Equal(t, []any{"replica", "serve", "running"}, []any{workers[1].ID, workers[1].Mode, workers[1].State})
	require.Zero(t, b.count(t, `SELECT count(*) FROM medianest.worker WHERE held <> '{}' OR started_at < now() - interval '30 min'`))
	require.InDelta(t, 25, workers[1].ExpiresAt.Sub(workers[1].RenewedAt).Seconds(), 0.001)

	require.NoError(t, serve.Stop(t.Context()))
	<-serve.Stopped()
	require.NoError(t, b.Stop(t.Context()))
	require.Equal(t, 2, b.count(t, `SELECT count(*) FROM medianest.worker WHERE gone_at IS NOT NULL`))
	require.Equal(t, []string{
		"worker.joined " + t.Name(), "worker.left " + t.Name(), "worker.joined " + t.Name(), "worker.joined replica",
		"worker.left replica", "worker.left " + t.Name(),
	}, b.topics(t))
}

func TestPresenceOptions(t *testing.T) {
	t.Parallel()

	pool, err := store.OpenPool(t.Context(), store.PoolOptions{URL: "postgres://nowhere.invalid/", Role: "river"})
	require.NoError(t, err)
	defer pool.Close()
	for name, p := range map[string]queue.Presence{
		"less than 3 beats": {TTL: 10 * time.Second, Beat: 4 * time.Second},
		"negative":          {TTL: -time.Second},
	} {
		_, err := queue.New(queue.Options{Pool: pool, Logger: slog.New(slog.DiscardHandler), Presence: p})
		require.ErrorContains(t, err, name)
	}
	_, err = queue.New(queue.Options{Pool: pool, Logger: slog.New(slog.DiscardHandler), Presence: queue.Presence{TTL: time.Second}})
	require.NoError(t, err, "the beat follows a short TTL")
}

// The killed worker's jobs go on elsewhere, within its TTL and a moment, with the attempt that they were at.
func TestJobsOfAKilledWorkerGoOn(t *testing.T) {
	t.Parallel()

	b := assemble(t, func(context.Context, *river.Job[synthetic]) error { return nil }, named("rescuer"))
	ids := b.insert(t, river.InsertOpts{MaxAttempts: 1}, synthetic{N: waits}, synthetic{N: waits})
	c := startChild(t, b.url, "victim", false)
	c.wait(t, "begun")
	c.wait(t, "begun")
	b.start(t)
	b.holds(t, "victim", ids[0])
	c.signal(t, syscall.SIGKILL)
	killed := time.Now()
	require.Equal(t, -1, <-c.ended)
	for _, id := range ids {
		row := b.waitCurrent(t, id, rivertype.JobStateCompleted)
		require.NotEqual(t, id, row.ID)
		require.Equal(t, 1, row.Attempt)
		require.Equal(t, []event{
			{"available", 0, ""}, {"running", 1, ""}, {"available", 0, ""}, {"running", 1, ""}, {"completed", 1, ""},
		}, b.events(t, id))
	}
	t.Logf("done elsewhere %s after the kill", time.Since(killed))
	require.Contains(t, b.topics(t), "worker.lost victim")
	require.Len(t, b.logs.find("worker lost"), 1)
}

// A stopped worker that goes on later finds out and exits before it does anything.
func TestAStoppedWorkerExits(t *testing.T) {
	t.Parallel()

	b := setup(t, func(context.Context, *river.Job[synthetic]) error { return nil }, func(o *queue.Options) {
		named("rescuer")(o)
		o.Queues = map[string]int{"idle": 1}
	})
	id := b.insert(t, river.InsertOpts{}, synthetic{N: waits})[0]
	c := startChild(t, b.url, "sleeper", false)
	c.wait(t, "begun")
	c.signal(t, syscall.SIGSTOP)
	stopped := time.NewTimer(2 * quickTTL)
	row := b.waitCurrent(t, id, rivertype.JobStateAvailable)
	require.NotEqual(t, id, row.ID)
	before := b.job(t, id)
	<-stopped.C
	c.signal(t, syscall.SIGCONT)
	c.wait(t, "overslept")
	require.Equal(t, overslept, <-c.ended)
	require.Equal(t, before, b.job(t, id))
	require.Equal(t, row, b.current(t, id))
}

// Whatever a worker still writes that was taken for dead meets a row that is final: its completion has no effect.
func TestCompletionByAZombieHasNoEffect(t *testing.T) {
	t.Parallel()

	b := setup(t, func(context.Context, *river.Job[synthetic]) error { return nil }, func(o *queue.Options) {
		named("rescuer")(o)
		o.Queues = map[string]int{"idle": 1}
	})
	id := b.insert(t, river.InsertOpts{}, synthetic{N: shrugs})[0]
	c := startChild(t, b.url, "zombie", true)
	c.wait(t, "begun")
	b.holds(t, "zombie", id)
	c.signal(t, syscall.SIGSTOP)
	stopped := time.NewTimer(2 * quickTTL)
	next := b.waitCurrent(t, id, rivertype.JobStateAvailable)
	// The zombie shall not fetch the successor itself.
	_, err := b.River().JobCancel(t.Context(), next.ID)
	require.NoError(t, err)
	before := b.job(t, id)
	<-stopped.C
	c.signal(t, syscall.SIGCONT)
	c.wait(t, "overslept")

	// It lives, joins again and works: so what it had to write of the old job is written.
	later := b.insert(t, river.InsertOpts{}, synthetic{N: waits})[0]
	c.wait(t, fmt.Sprint("begun ", later))
	b.holds(t, "zombie", later)
	require.Equal(t, before.State, b.job(t, id).State)
	require.Equal(t, before.FinalizedAt, b.job(t, id).FinalizedAt)
	require.Equal(t, rivertype.JobStateCancelled, b.current(t, id).State)
	last := b.events(t, id)
	require.Equal(t, event{"cancelled", 0, "cancelled"}, last[len(last)-1])
	require.Equal(t, []string{"worker.joined rescuer", "worker.joined zombie", "worker.lost zombie", "worker.joined zombie"}, b.topics(t))
}

// What a live worker has is its own for as long as it says so, also through many TTLs. What it does not say is not.
func TestRowsOfALiveWorker(t *testing.T) {
	t.Parallel()

	begun := make(chan started, 10)
	b := assemble(t, observed(begun), named("holder"))
	ids := b.insert(t, river.InsertOpts{}, synthetic{})
	b.start(t)
	attempt := <-begun
	// A fetch whose answer was lost: the row is the holder's, and the holder does not know.
	b.exec(t, `
		INSERT INTO river.river_job (kind, args, queue, state, attempt, attempted_at, attempted_by)
		VALUES ('synthetic', '{}', 'other', 'running', 1, now(), '{holder}')`)
	unclaimed := int64(b.count(t, `SELECT max(id) FROM river.river_job`))
	other := assembleAt(t, b.url, observed(begun), func(o *queue.Options) {
		named("other")(o)
		o.Queues = map[string]int{"other": 1}
	}).start(t)

	next := <-begun
	require.Equal(t, b.current(t, unclaimed).ID, next.row)
	require.NotEqual(t, unclaimed, next.row)
	require.Eventually(t, func() bool { // either of the two may have been first
		const text = "jobs reclaimed that their worker does not claim"
		return len(b.logs.find(text))+len(other.logs.find(text)) == 1
	}, 30*time.Second, time.Millisecond)
	b.holds(t, "holder", ids[0])
	b.holds(t, "other", next.row)
	// By now either has been held for longer than the unclaimed one was.
	var held bool
	require.Eventually(t, func() bool {
		require.NoError(t, b.owner.QueryRow(t.Context(), `
			SELECT min(w.renewed_at - j.attempted_at) > $1::interval
			FROM medianest.worker AS w
			JOIN river.river_job AS j ON j.id = ANY (w.held)`, 2*quickTTL).Scan(&held))
		return held
	}, 30*time.Second, 50*time.Millisecond)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM medianest.job_map`))
	require.NoError(t, attempt.cause())
	require.NoError(t, next.cause())
}

// Cut off from the database, a worker ends its jobs before anybody may take them, and what it has to say of them later
// meets final rows.
func TestWorkerThatIsCutOff(t *testing.T) {
	t.Parallel()

	url := storetest.DB(t)
	p, registry := newProxy(t, url), prometheus.NewRegistry()
	begun, elsewhere := make(chan started, 10), make(chan started, 10)
	b := assembleAt(t, url, observed(elsewhere), named("other")).start(t)
	cut := assembleAt(t, p.url, observed(begun), func(o *queue.Options) {
		named("cut")(o)
		o.Queues, o.Registerer = map[string]int{"cut": 1}, registry
	}).start(t)
	inserted, err := b.River().Insert(t.Context(), synthetic{}, &river.InsertOpts{Queue: "cut", MaxAttempts: 1})
	require.NoError(t, err)
	id := inserted.Job.ID
	attempt := <-begun
	b.holds(t, "cut", id)

	p.cut()
	<-attempt.ended
	require.ErrorIs(t, attempt.cause(), queue.ErrFenced)
	require.Equal(t, id, b.current(t, id).ID, "stopped before it was taken")
	row := b.waitCurrent(t, id, rivertype.JobStateAvailable)
	require.NotEqual(t, id, row.ID)
	b.exec(t, `UPDATE river.river_job SET queue = 'test' WHERE id = $1`, row.ID)
	next := <-elsewhere
	require.Equal(t, row.ID, next.row)

	p.heal()
	// It joins again, and is given work again.
	again, err := b.River().Insert(t.Context(), synthetic{}, &river.InsertOpts{Queue: "cut"})
	require.NoError(t, err)
	for attempt = range begun {
		if attempt.row == again.Job.ID {
			break
		}
	}
	b.holds(t, "cut", again.Job.ID)
	require.NoError(t, next.cause())
	require.Equal(t, rivertype.JobStateRunning, b.job(t, row.ID).State)
	require.Equal(t, rivertype.JobStateDiscarded, b.job(t, id).State)
	require.NotEmpty(t, cut.logs.find("cut off from the database; jobs stop and go on elsewhere"))
	require.GreaterOrEqual(t, gather(t, registry, "medianest_fences_total")[""], 1.0)
	require.Equal(t, "interrupted", cut.logs.find("job ended")[0].attrs["outcome"])
	require.Equal(t, []event{{"available", 0, ""}, {"running", 1, ""}, {"available", 0, ""}, {"running", 1, ""}}, b.events(t, id))
}

// While the database is away for everybody nobody is lost: jobs stop, and go on as what they were when it answers.
func TestOutageOfTheDatabaseLosesNobody(t *testing.T) {
	t.Parallel()

	url := storetest.DB(t)
	p := newProxy(t, url)
	begun := make(chan started, 100)
	one := assembleAt(t, p.url, observed(begun), named("one"))
	ids := one.insert(t, river.InsertOpts{MaxAttempts: 1}, make([]synthetic, 6)...)
	one.start(t)
	assembleAt(t, p.url, observed(begun), named("two")).start(t)
	direct := &bundle{owner: storetest.OpenPool(t, url, "")}
	var attempts []started
	for range ids {
		attempts = append(attempts, <-begun)
	}
	// Both have been there long enough to reclaim.
	for _, a := range attempts {
		direct.exec(t, `SELECT`)
		require.Eventually(t, func() bool {
			return direct.count(t, `SELECT count(*) FROM medianest.worker WHERE $1 = ANY (held)`, a.row) == 1
		}, 30*time.Second, 10*time.Millisecond)
	}

	p.cut()
	outage := time.NewTimer(3 * quickTTL)
	for _, a := range attempts {
		<-a.ended
		require.ErrorIs(t, a.cause(), queue.ErrFenced)
	}
	<-outage.C
	p.heal()

	again := make(map[int64]bool)
	for len(again) < len(ids) {
		a := <-begun
		again[a.row] = true
	}
	// The first moment at which they may reclaim has passed when all is named again.
	for id := range again {
		require.Eventually(t, func() bool {
			return direct.count(t, `
				SELECT count(*)
				FROM medianest.worker AS w
				JOIN river.river_job AS j ON j.id = ANY (w.held)
				WHERE j.id = $1 AND w.renewed_at - j.attempted_at > $2::interval`, id, 2*quickTTL) == 1
		}, 30*time.Second, 10*time.Millisecond)
	}
	require.Empty(t, begun)
	require.Zero(t, direct.count(t, `SELECT count(*) FROM medianest.job_map`))
	require.Equal(t, len(ids), direct.count(t, `SELECT count(*) FROM river.river_job WHERE state = 'running' AND attempt = 1 AND errors IS NULL`))
}

// What a fenced worker hands back it hands back once: when the statement arrives again, the row may run again.
func TestHandingBackTwiceIsHandingBackOnce(t *testing.T) {
	t.Parallel()

	b := assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers = nil, nil })
	ids := b.insert(t, river.InsertOpts{}, make([]synthetic, 4)...)
	mine, cancelled, others, taken := ids[0], ids[1], ids[2], ids[3]
	b.run(t, mine, 2, "me")
	b.note(t, mine, `{"reason": "disk_full", "reason_attempt": "2"}`)
	b.run(t, cancelled, 2, "me")
	b.note(t, cancelled, `{"cancel_attempted_at": "2026-01-01T00:00:00Z"}`)
	b.run(t, others, 2, "me", "somebody")
	b.run(t, taken, 2, "me")
	b.note(t, taken, `{"superseded_by": "1"}`)
	args := pgx.StrictNamedArgs{"rows": ids, "fetched": []time.Time{}, "worker": "me"}
	for _, id := range ids {
		args["fetched"] = append(args["fetched"].([]time.Time), *b.job(t, id).AttemptedAt)
	}
	line := b.job(t, mine).ScheduledAt
	_, err := b.owner.Exec(t.Context(), queue.GiveBackSQL, args)
	require.NoError(t, err)
	require.Equal(t, event{"available", 1, ""}, b.events(t, mine)[2])
	require.Equal(t, line, b.job(t, mine).ScheduledAt)
	require.Equal(t, event{"cancelled", 2, "cancelled"}, b.events(t, cancelled)[2])
	require.Equal(t, rivertype.JobStateRunning, b.job(t, others).State)
	require.Equal(t, rivertype.JobStateRunning, b.job(t, taken).State)

	b.run(t, mine, 2, "me")
	_, err = b.owner.Exec(t.Context(), queue.GiveBackSQL, args)
	require.NoError(t, err)
	require.Equal(t, rivertype.JobStateRunning, b.job(t, mine).State)
}

// Who is alone with its database has nobody to yield to.
func TestAloneWithItsDatabase(t *testing.T) {
	t.Parallel()

	url := storetest.DB(t)
	p := newProxy(t, url)
	begun := make(chan started, 10)
	var beats atomic.Int64
	b := assembleAt(t, p.url, observed(begun), func(o *queue.Options) {
		named("alone")(o)
		o.Presence.Alone = true
		o.Presence.OnBeat = func() { beats.Add(1) }
	})
	b.insert(t, river.InsertOpts{}, synthetic{})
	b.start(t)
	attempt := <-begun
	p.cut()
	before := beats.Load()
	require.Eventually(t, func() bool { return beats.Load() > before+12 }, 30*time.Second, 10*time.Millisecond) // two TTLs
	require.NoError(t, attempt.cause())
	p.heal()
}

// Beats are told when they are on record, not when they are due.
func TestBeatsAreRenewals(t *testing.T) {
	t.Parallel()

	url := storetest.DB(t)
	p := newProxy(t, url)
	var beats atomic.Int64
	b := assembleAt(t, p.url, nil, func(o *queue.Options) {
		named("beats")(o)
		o.Queues, o.Workers = nil, nil
		o.Presence.OnBeat = func() { beats.Add(1) }
	}).start(t)
	require.Eventually(t, func() bool { return beats.Load() > 3 }, 30*time.Second, time.Millisecond)
	p.cut()
	require.Eventually(t, func() bool { return len(b.logs.find("presence not renewed")) > 1 }, 30*time.Second, time.Millisecond)
	at := beats.Load()
	require.Eventually(t, func() bool { return len(b.logs.find("presence not renewed")) > 3 }, 30*time.Second, time.Millisecond)
	require.Equal(t, at, beats.Load())
	p.heal()
	require.Eventually(t, func() bool { return beats.Load() > at }, 30*time.Second, time.Millisecond)
}

// A process that can fetch jobs but not renew its presence gives them back as they were.
func TestNothingBeginsWhereThePresenceIsNotRenewed(t *testing.T) {
	t.Parallel()

	begun := make(chan started, 10)
	b := setup(t, observed(begun), named("mute"))
	b.exec(t, `REVOKE UPDATE ON medianest.worker FROM medianest_river`)
	require.Eventually(t, func() bool {
		return len(b.logs.find("cut off from the database; jobs stop and go on elsewhere")) > 0
	}, 30*time.Second, time.Millisecond)
	id := b.insert(t, river.InsertOpts{MaxAttempts: 1}, synthetic{})[0]
	require.Eventually(t, func() bool { return len(b.logs.find("job ended")) > 0 }, 30*time.Second, time.Millisecond)
	b.waitState(t, id, rivertype.JobStateAvailable)
	require.Zero(t, b.job(t, id).Attempt)
	require.Empty(t, begun)
	b.exec(t, `GRANT UPDATE ON medianest.worker TO medianest_river`)
	require.Equal(t, b.current(t, id).ID, (<-begun).row)
}

// A row that is another process's by now is not written to, whatever its attempt here comes to: River would take the
// other's attempt for this one.
func TestRowThatWasTakenAway(t *testing.T) {
	t.Parallel()

	for name, result := range map[string]error{"Success": nil, "Failure": errors.New("a fault of ours"), "Cancel": river.JobCancel(errors.New("no"))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cause := make(chan error, 1)
			begun := make(chan struct{})
			b := setup(t, func(ctx context.Context, _ *river.Job[synthetic]) error {
				close(begun)
				<-ctx.Done()
				cause <- context.Cause(ctx)
				return result
			}, nil)
			id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
			<-begun
			b.exec(t, `UPDATE river.river_job SET attempted_by = attempted_by || '{somebody}' WHERE id = $1`, id)
			require.ErrorIs(t, <-cause, queue.ErrSuperseded)
			require.NoError(t, b.Stop(t.Context())) // with this, River has written all that it had to
			row := b.job(t, id)
			require.Equal(t, rivertype.JobStateRunning, row.State)
			require.Equal(t, 1, row.Attempt)
			require.Empty(t, row.Errors)
			require.Equal(t, "lost", b.logs.find("job ended")[0].attrs["outcome"])
		})
	}
}

// Who completes its job in a transaction of its own may tidy up after it.
func TestJobThatCompletedItselfIsNotTakenAway(t *testing.T) {
	t.Parallel()

	begun, finished := make(chan error, 1), make(chan struct{})
	finish := sync.OnceFunc(func() { close(finished) })
	defer finish() // a job that never ends would keep the client from stopping
	var b *bundle
	b = setup(t, func(ctx context.Context, job *river.Job[synthetic]) error {
		begun <- pgx.BeginFunc(ctx, b.owner, func(tx pgx.Tx) error {
			_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
			return err
		})
		<-finished
		return context.Cause(ctx)
	}, named("tidy"))
	b.insert(t, river.InsertOpts{}, synthetic{})
	require.NoError(t, <-begun)
	// Renewals pass, each of which looks at the row.
	require.Eventually(t, func() bool {
		return b.count(t, `SELECT count(*) FROM medianest.worker WHERE cardinality(held) = 1`) == 1
	}, 30*time.Second, 10*time.Millisecond)
	finish()
	require.NoError(t, b.Stop(t.Context()))
	require.Equal(t, "completed", b.logs.find("job ended")[0].attrs["outcome"])
}

func TestDrain(t *testing.T) {
	t.Parallel()

	begun := make(chan started, 10)
	registry := prometheus.NewRegistry()
	b := assemble(t, observed(begun), func(o *queue.Options) {
		named("drained")(o)
		o.Registerer = registry
	})
	b.exec(t, `
		INSERT INTO medianest.worker (id, mode, host, version, expires_at, gone_at)
		VALUES ('gone', 'work', 'there', 'v1', now(), now())`)
	ids := b.insert(t, river.InsertOpts{MaxAttempts: 1}, synthetic{}, synthetic{})
	b.start(t)
	<-begun
	<-begun
	workers := store.New(b.owner)
	w, err := workers.AskDrain(t.Context(), "drained")
	require.NoError(t, err)
	require.Equal(t, store.WorkerDraining, w.State)
	<-b.Drained()
	for _, id := range ids {
		row := b.job(t, id)
		require.Equal(t, rivertype.JobStateAvailable, row.State)
		require.Zero(t, row.Attempt)
		require.Empty(t, row.Errors)
	}
	var renewed time.Time
	state := func() string {
		found, err := workers.ListWorkers(t.Context())
		require.NoError(t, err)
		require.Len(t, found, 1)
		renewed = found[0].RenewedAt
		return found[0].State
	}
	require.Eventually(t, func() bool { return state() == store.WorkerDrained }, 30*time.Second, 10*time.Millisecond)

	// The process goes on: present, healthy, and without jobs.
	at := renewed
	require.Eventually(t, func() bool { return state() == store.WorkerDrained && renewed.Sub(at) > quickTTL }, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, b.Health(t.Context()))
	select {
	case <-b.Stopped():
		t.Fatal("a drain is no stop")
	default:
	}
	require.Empty(t, begun)
	require.Equal(t, map[string]float64{"work drained": 1}, gather(t, registry, "medianest_workers"))
	// It stays drained when it was taken for lost meanwhile, or its row is gone.
	for _, sql := range []string{`UPDATE medianest.worker SET expires_at = now(), gone_at = now()`, `DELETE FROM medianest.worker`} {
		b.exec(t, sql)
		require.Eventually(t, func() bool {
			return b.count(t, `SELECT count(*) FROM medianest.worker WHERE drained_at IS NOT NULL AND gone_at IS NULL`) == 1
		}, 30*time.Second, 10*time.Millisecond)
	}

	require.NoError(t, b.Stop(t.Context()))
	require.Zero(t, b.count(t, `SELECT count(*) FROM medianest.worker WHERE gone_at IS NULL`))
	require.Equal(t, rivertype.JobStateAvailable, b.job(t, ids[0]).State)
}

// A drain that was accepted is done, also if the worker was taken for lost before it knew.
func TestDrainOutlivesALoss(t *testing.T) {
	t.Parallel()

	b := setup(t, func(context.Context, *river.Job[synthetic]) error { return nil }, named("drained"))
	b.exec(t, `UPDATE medianest.worker SET drain_asked_at = now(), expires_at = now(), gone_at = now()`)
	select {
	case <-b.Drained():
	case <-time.After(30 * time.Second):
		t.Fatal("the drain is forgotten")
	}
	require.Equal(t, []string{"worker.joined drained", "worker.lost drained", "worker.joined drained"}, b.topics(t))
}
