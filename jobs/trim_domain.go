package jobs

import (
	"context"
	"time"

	"github.com/riverqueue/river"

	"medianest/store"
)

// TrimDomainArgs are the arguments of a job that removes what the domain's tables keep for a time only: idempotency keys,
// traces of jobs that are gone, contents that nobody needs.
//
// Run twice, or cut off, it removes what is left the next time. Two at a time do no harm.
type TrimDomainArgs struct{}

// Kind implements river.JobArgs.
func (TrimDomainArgs) Kind() string { return "trim_domain" }

// InsertOpts implements river.JobArgsWithInsertOpts.
func (TrimDomainArgs) InsertOpts() river.InsertOpts { return upkeepOpts() }

// TrimDomainWorker works jobs of kind trim_domain.
type TrimDomainWorker struct {
	river.WorkerDefaults[TrimDomainArgs]

	store     *store.Store
	retention time.Duration // of events, whose viewers are kept for as long
}

// Timeout implements river.Worker.
func (w *TrimDomainWorker) Timeout(*river.Job[TrimDomainArgs]) time.Duration { return upkeepTimeout }

// Work implements river.Worker.
func (w *TrimDomainWorker) Work(ctx context.Context, job *river.Job[TrimDomainArgs]) error {
	_, err := w.store.TrimDomain(ctx, w.retention)
	return classify(ctx, job.JobRow, err)
}
