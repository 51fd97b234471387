package jobs

import (
	"context"
	"log/slog"
	"time"

	"github.com/riverqueue/river"

	"medianest/store"
)

// RotateSecretsArgs are the arguments of a job that seals anew, under the active key, the secrets that are under older ones.
//
// Run twice, or cut off, it seals what is left.
type RotateSecretsArgs struct{}

// Kind implements river.JobArgs.
func (RotateSecretsArgs) Kind() string { return "rotate_secrets" }

// InsertOpts implements river.JobArgsWithInsertOpts.
func (RotateSecretsArgs) InsertOpts() river.InsertOpts { return upkeepOpts() }

// RotateSecretsWorker works jobs of kind rotate_secrets.
type RotateSecretsWorker struct {
	river.WorkerDefaults[RotateSecretsArgs]

	store *store.Store
	log   *slog.Logger
}

// Timeout implements river.Worker.
func (w *RotateSecretsWorker) Timeout(*river.Job[RotateSecretsArgs]) time.Duration {
	return upkeepTimeout
}

// Work implements river.Worker.
func (w *RotateSecretsWorker) Work(ctx context.Context, job *river.Job[RotateSecretsArgs]) error {
	r, err := w.store.RotateSecrets(ctx)
	if len(r.Lost) > 0 {
		w.log.WarnContext(ctx, "secrets that none of the secret keys opens", slog.Any("names", r.Lost))
	}
	return classify(ctx, job.JobRow, err)
}
