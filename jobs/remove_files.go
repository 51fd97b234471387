package jobs

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"

	"medianest/store"
)

// RemoveFilesArgs are the arguments of a job that removes one user's files of a content from the library.
//
// Run twice, it finds nothing the second time. Cut off, it has removed some of the files; their rows go with the last
// one. A user who wishes for the content again before it runs keeps the files.
type RemoveFilesArgs struct {
	UserID    uuid.UUID `json:"user_id"`
	ContentID uuid.UUID `json:"content_id"`
}

// Kind implements river.JobArgs.
func (RemoveFilesArgs) Kind() string { return "remove_files" }

// InsertOpts implements river.JobArgsWithInsertOpts.
func (RemoveFilesArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueLibrary, MaxAttempts: 10}
}

const removeFilesTimeout = 10 * time.Minute

// RemoveFilesWorker works jobs of kind remove_files.
type RemoveFilesWorker struct {
	river.WorkerDefaults[RemoveFilesArgs]

	store   *store.Store
	library Library
}

// Timeout implements river.Worker.
func (w *RemoveFilesWorker) Timeout(*river.Job[RemoveFilesArgs]) time.Duration {
	return removeFilesTimeout
}

// Work implements river.Worker.
func (w *RemoveFilesWorker) Work(ctx context.Context, job *river.Job[RemoveFilesArgs]) error {
	err := w.store.RemoveFiles(ctx, job.Args.UserID, job.Args.ContentID, func(ctx context.Context, paths []string) error {
		for _, rel := range paths {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := w.library.Remove(rel); err != nil {
				return err
			}
		}
		return nil
	})
	return classify(ctx, job.JobRow, err)
}
