package jobs

import (
	"context"
	"time"

	"github.com/riverqueue/river"

	"medianest/store"
)

// TrimEventsArgs are the arguments of a job that removes events past the retention of the event stream.
//
// Run twice, or cut off, it removes what is left the next time. Two at a time remove each a part.
type TrimEventsArgs struct{}

// Kind implements river.JobArgs.
func (TrimEventsArgs) Kind() string { return "trim_events" }

// InsertOpts implements river.JobArgsWithInsertOpts.
func (TrimEventsArgs) InsertOpts() river.InsertOpts { return upkeepOpts() }

// upkeepTimeout bounds a job of upkeep.
const upkeepTimeout = 10 * time.Minute

// upkeepOpts are of jobs whose schedule comes again soon: a failure is not worth more than a few tries.
func upkeepOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueLibrary, MaxAttempts: 3}
}

// TrimEventsWorker works jobs of kind trim_events.
type TrimEventsWorker struct {
	river.WorkerDefaults[TrimEventsArgs]

	store     *store.Store
	retention time.Duration
}

// Timeout implements river.Worker.
func (w *TrimEventsWorker) Timeout(*river.Job[TrimEventsArgs]) time.Duration { return upkeepTimeout }

// Work implements river.Worker.
func (w *TrimEventsWorker) Work(ctx context.Context, job *river.Job[TrimEventsArgs]) error {
	_, err := w.store.TrimEvents(ctx, w.retention)
	return classify(ctx, job.JobRow, err)
}
