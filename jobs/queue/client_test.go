package queue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/store"
)

// Everything that River's leader and producers say to the database must be within the rights of role river. The rows
// are such that each of its services finds something to do.
func TestRiverLivesWithinItsRole(t *testing.T) {
	t.Parallel()

	b := assemble(t, func(context.Context, *river.Job[synthetic]) error { return nil }, nil)
	b.exec(t, `
		INSERT INTO river.river_job (kind, args, queue, state, finalized_at, scheduled_at, attempted_at, attempt, metadata)
		VALUES
			('synthetic', '{}', 'idle', 'completed', now() - interval '7 h', now(), now(), 1, '{}'),
			('synthetic', '{}', 'idle', 'completed', now() - interval '5 h', now(), now(), 1, '{"kept": true}'),
			('synthetic', '{}', 'idle', 'cancelled', now() - interval '25 h', now(), now(), 1, '{}'),
			('synthetic', '{}', 'idle', 'discarded', now() - interval '8 days', now(), now(), 1, '{}'),
			('synthetic', '{}', 'idle', 'running', NULL, now(), now() - interval '14 h', 1, '{"stuck": true}'),
			('synthetic', '{}', 'idle', 'running', NULL, now(), now() - interval '12 h', 1, '{"kept": true}'),
			('synthetic', '{}', 'test', 'retryable', NULL, now(), now(), 1, '{"promoted": true}');
		INSERT INTO river.river_queue (name, updated_at) VALUES ('forgotten', now() - interval '25 h')`)
	require.NoError(t, b.Start(t.Context()))

	for what, sql := range map[string]string{
		"a leader":                      `SELECT count(*) = 1 FROM river.river_leader`,
		"old rows deleted":              `SELECT count(*) = 0 FROM river.river_job WHERE metadata = '{}'`,
		"the others kept":               `SELECT count(*) = 2 FROM river.river_job WHERE metadata ? 'kept'`,
		"the stuck one rescued":         `SELECT count(*) = 1 FROM river.river_job WHERE metadata ? 'stuck' AND state <> 'running'`,
		"the retryable one worked":      `SELECT count(*) = 1 FROM river.river_job WHERE metadata ? 'promoted' AND state = 'completed'`,
		"the forgotten queue forgotten": `SELECT count(*) = 0 FROM river.river_queue WHERE name = 'forgotten'`,
	} {
		require.Eventually(t, func() (done bool) {
			require.NoError(t, b.owner.QueryRow(t.Context(), sql).Scan(&done))
			return done
		}, 20*time.Second, 50*time.Millisecond, what)
	}

	// What operators do goes through the same role: pause, resume, cancel, retry, delete.
	client := b.River()
	require.NoError(t, client.QueuePause(t.Context(), "test", nil))
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	_, err := client.JobCancel(t.Context(), id)
	require.NoError(t, err)
	_, err = client.JobRetry(t.Context(), id)
	require.NoError(t, err)
	require.NoError(t, client.QueueResume(t.Context(), "test", nil))
	b.waitState(t, id, rivertype.JobStateCompleted)
	_, err = client.JobDelete(t.Context(), id)
	require.NoError(t, err)

	require.NoError(t, b.Stop(t.Context()))
	require.Empty(t, b.logs.above(slog.LevelWarn))
}

func TestStopWaitsForJobsThatEndInTime(t *testing.T) {
	t.Parallel()

	begun, finish := make(chan struct{}), make(chan struct{})
	b := setup(t, func(ctx context.Context, _ *river.Job[synthetic]) error {
		close(begun)
		<-finish
		return ctx.Err()
	}, nil)
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	<-begun
	require.NoError(t, b.Health(t.Context()))

	stopped := make(chan error)
	go func() { stopped <- b.Stop(t.Context()) }()
	// No job is taken any more: this one stays where it is.
	require.Eventually(t, func() bool {
		later := b.insert(t, river.InsertOpts{}, synthetic{})[0]
		return b.job(t, later).State == rivertype.JobStateAvailable
	}, 5*time.Second, 50*time.Millisecond)
	close(finish)
	require.NoError(t, <-stopped)
	require.Equal(t, rivertype.JobStateCompleted, b.job(t, id).State)
	require.ErrorContains(t, b.Health(t.Context()), "stopped")
	require.NoError(t, b.Stop(t.Context()), "once more is harmless")
}

// interruptible works until its context ends, and says when it began.
func interruptible(begun chan<- struct{}) work {
	return func(ctx context.Context, job *river.Job[synthetic]) error {
		begun <- struct{}{}
		<-ctx.Done()
		return fmt.Errorf("fetch: %w", ctx.Err())
	}
}

func TestStopHandsBackWithoutSpendingAnAttempt(t *testing.T) {
	t.Parallel()

	begun := make(chan struct{})
	b := setup(t, interruptible(begun), func(o *queue.Options) { o.StopTimeout = 50 * time.Millisecond })
	id := b.insert(t, river.InsertOpts{MaxAttempts: 1}, synthetic{})[0]
	<-begun
	require.NoError(t, b.Stop(t.Context()))
	row := b.job(t, id)
	require.Equal(t, rivertype.JobStateAvailable, row.State)
	require.Zero(t, row.Attempt)
	require.Empty(t, row.Errors)
	require.Equal(t, []event{{"available", 0, ""}, {"running", 1, ""}, {"available", 0, ""}}, b.events(t, id))
	require.Equal(t, "interrupted", b.logs.find("job ended")[0].attrs["outcome"])
}

func TestSecondStopIsAtOnce(t *testing.T) {
	t.Parallel()

	begun := make(chan struct{})
	b := setup(t, interruptible(begun), func(o *queue.Options) { o.StopTimeout = time.Hour })
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	<-begun

	first := make(chan error)
	go func() { first <- b.Stop(t.Context()) }()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	select {
	case <-first:
		t.Fatal("the first stop did not wait for the job")
	case <-short.Done():
	}
	begin := time.Now()
	require.NoError(t, b.Stop(t.Context()))
	require.NoError(t, <-first)
	require.Less(t, time.Since(begin), 5*time.Second)
	require.Equal(t, rivertype.JobStateAvailable, b.job(t, id).State)
}

func TestStopWithoutGrace(t *testing.T) {
	t.Parallel()

	begun := make(chan struct{})
	b := setup(t, interruptible(begun), func(o *queue.Options) { o.StopTimeout = -1 })
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	<-begun
	begin := time.Now()
	require.NoError(t, b.Stop(t.Context()))
	require.Less(t, time.Since(begin), 5*time.Second)
	require.Equal(t, rivertype.JobStateAvailable, b.job(t, id).State)
}

func TestStopIsBoundedByItsContext(t *testing.T) {
	t.Parallel()

	begun, finish := make(chan struct{}), make(chan struct{})
	b := setup(t, func(context.Context, *river.Job[synthetic]) error {
		close(begun)
		<-finish // ignores its context
		return nil
	}, func(o *queue.Options) { o.StopTimeout = -1 })
	b.insert(t, river.InsertOpts{}, synthetic{})
	<-begun
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.Stop(short), context.DeadlineExceeded)
	close(finish)
	<-b.Stopped()
}

func TestCancelOfARunningJob(t *testing.T) {
	t.Parallel()

	for name, cancel := range map[string]func(t *testing.T, b *bundle, id int64){
		"ByNotification": func(t *testing.T, b *bundle, id int64) {
			_, err := b.River().JobCancel(t.Context(), id)
			require.NoError(t, err)
		},
		// As it is when the listening connection is being made again: River would look once a minute.
		"WithoutNotification": func(t *testing.T, b *bundle, id int64) {
			b.exec(t, `
				UPDATE river.river_job
				SET metadata = jsonb_set(metadata, '{cancel_attempted_at}', to_jsonb(now()))
				WHERE id = $1`, id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begun := make(chan struct{})
			b := setup(t, interruptible(begun), nil)
			id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
			<-begun
			asked := time.Now()
			cancel(t, b, id)
			b.waitState(t, id, rivertype.JobStateCancelled)
			require.Less(t, time.Since(asked), 4*time.Second, "promised: 2 s")
			require.Equal(t, event{"cancelled", 1, "cancelled"}, b.events(t, id)[2])
			require.Equal(t, "cancelled", b.logs.find("job ended")[0].attrs["outcome"])
		})
	}
}

// A worker whose error says something else when its context ends on a cancel must not have the job tried again.
func TestCancelWinsOverTheWorkersError(t *testing.T) {
	t.Parallel()

	begun := make(chan struct{})
	b := setup(t, func(ctx context.Context, _ *river.Job[synthetic]) error {
		close(begun)
		<-ctx.Done()
		return &reason.Error{Reason: reason.Network, Err: errors.New("connection closed by our own kill")}
	}, nil)
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	<-begun
	_, err := b.River().JobCancel(t.Context(), id)
	require.NoError(t, err)
	b.waitState(t, id, rivertype.JobStateCancelled)
	require.Equal(t, event{"cancelled", 1, "cancelled"}, b.events(t, id)[2])
}

func TestInsertOnlyClient(t *testing.T) {
	t.Parallel()

	b := assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers = nil, nil })
	require.NoError(t, b.Start(t.Context()))
	require.NoError(t, b.Health(t.Context()))
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	require.Equal(t, rivertype.JobStateAvailable, b.job(t, id).State)
	require.NoError(t, b.Stop(t.Context()))
}

func TestOptions(t *testing.T) {
	t.Parallel()

	_, err := queue.New(queue.Options{})
	require.ErrorContains(t, err, "required")
	pool, err := store.OpenPool(t.Context(), store.PoolOptions{URL: "postgres://nowhere.invalid/", Role: "river"})
	require.NoError(t, err)
	defer pool.Close()
	_, err = queue.New(queue.Options{Pool: pool, Logger: slog.New(slog.DiscardHandler), Queues: map[string]int{"a": 1}})
	require.ErrorContains(t, err, "need Workers")
	_, err = queue.New(queue.Options{
		Pool: pool, Logger: slog.New(slog.DiscardHandler), Queues: map[string]int{"a": 0}, Workers: river.NewWorkers(),
	})
	require.ErrorContains(t, err, "invalid number of workers")
	c, err := queue.New(queue.Options{Pool: pool, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.Error(t, c.Health(t.Context()))
}
