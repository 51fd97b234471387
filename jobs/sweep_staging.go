package jobs

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"

	"medianest/store"
)

// SweepStagingArgs are the arguments of a job that removes from a volume's staging area what killed workers have left and
// no job will need.
//
// Run twice, or cut off, it removes what is left the next time. Where nodes share no volume, a run is about the volume of
// the worker that takes it; each worker also sweeps its own when it starts.
type SweepStagingArgs struct{}

// Kind implements river.JobArgs.
func (SweepStagingArgs) Kind() string { return "sweep_staging" }

// InsertOpts implements river.JobArgsWithInsertOpts.
func (SweepStagingArgs) InsertOpts() river.InsertOpts { return upkeepOpts() }

// SweepStagingWorker works jobs of kind sweep_staging.
type SweepStagingWorker struct {
	river.WorkerDefaults[SweepStagingArgs]

	store   *store.Store
	library Library
}

// Timeout implements river.Worker.
func (w *SweepStagingWorker) Timeout(*river.Job[SweepStagingArgs]) time.Duration {
	return upkeepTimeout
}

// Work implements river.Worker.
func (w *SweepStagingWorker) Work(ctx context.Context, job *river.Job[SweepStagingArgs]) error {
	return classify(ctx, job.JobRow, SweepStaging(ctx, w.store, w.library))
}

// SweepStaging removes from the library's staging area what no job will need.
func SweepStaging(ctx context.Context, s *store.Store, library Library) error {
	return library.SweepStaging(func(contentID uuid.UUID) bool {
		unfinished, err := s.ContentUnfinished(ctx, contentID)
		return err != nil || unfinished // in doubt it stays until the next time
	})
}
