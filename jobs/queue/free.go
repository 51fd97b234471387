package queue

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"
)

// free completes a job that holds keys at once, and closes the breakers that it was the probe of: River writes ends in
// batches, up to a quarter of a second later, and the next job under the same keys would wait for it. What fails here
// River does then. What is to be kept of the attempt goes along.
func (a *attempts) free(ctx context.Context, at *attempt) {
	if hasKeys(at.job.Metadata) {
		at.kept = true
		a.ends.do(ctx, at)
	}
}

// freeSQL completes those that are still these attempts'.
const freeSQL = `
	UPDATE river.river_job AS j
	SET state = 'completed', finalized_at = now()
	FROM unnest($1::bigint[], $2::integer[]) AS e (id, attempt)
	WHERE j.id = e.id AND j.state = 'running' AND j.attempt = e.attempt`

// freeAll does so for attempts that ended together.
func (a *attempts) freeAll(ctx context.Context, ended []*attempt) {
	ctx, stop := context.WithTimeoutCause(ctx, noteTimeout, errTooLong)
	defer stop()
	var (
		rows, jobs []int64
		numbers    []int
	)
	for _, at := range ended {
		rows, jobs, numbers = append(rows, at.job.ID), append(jobs, PublicID(at.job)), append(numbers, at.job.Attempt)
	}
	batch, lines := &pgx.Batch{}, 0
	batch.Queue(freeSQL, rows, numbers)
	a.breakers.close(ctx, batch, jobs...)
	for _, at := range ended {
		lines += a.queueEnd(batch, at, end{completed, ""}, nil)
	}
	if a.send(ctx, ended[0].job, batch, lines, "jobs' keys not freed at once") {
		a.onFree()
	}
}

// together does for several at a time what each of them asks for: those who come while it is done for others are next, all
// at once. So none waits for company, and the more there are the less each costs.
type together[T any] struct {
	all func(context.Context, []T) // never called twice at a time

	mu      sync.Mutex
	waiting []T
	served  chan struct{} // closed when it is done for those who wait
	busy    bool
}

// do returns when it is done for one. It is done to the end, whatever becomes of ctx, which gives its values only.
func (t *together[T]) do(ctx context.Context, one T) {
	t.mu.Lock()
	if len(t.waiting) == 0 {
		t.served = make(chan struct{})
	}
	t.waiting = append(t.waiting, one)
	served := t.served
	if !t.busy {
		t.busy = true
		go t.serve(context.WithoutCancel(ctx))
	}
	t.mu.Unlock()
	<-served
}

// serve serves those who wait until nobody does.
func (t *together[T]) serve(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.waiting) > 0 {
		group, served := t.waiting, t.served
		t.waiting = nil
		t.mu.Unlock()
		t.all(ctx, group)
		close(served)
		t.mu.Lock()
	}
	t.busy = false
}
