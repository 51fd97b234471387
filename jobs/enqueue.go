package jobs

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"medianest/jobs/queue"
	"medianest/store"
)

// Enqueuer puts this package's kinds into the queue, in the transactions of the store.
type Enqueuer struct {
	client *river.Client[pgx.Tx]
}

var _ store.Queue = (*Enqueuer)(nil)

// NewEnqueuer returns an enqueuer that inserts with client, which need not be one that works.
func NewEnqueuer(client *queue.Client) *Enqueuer {
	return &Enqueuer{client: client.River()}
}

// EnqueueDownloadsTx inserts one download job for each content, all in one statement, and returns their ids in the
// same order.
func (e *Enqueuer) EnqueueDownloadsTx(ctx context.Context, tx pgx.Tx, contentIDs []uuid.UUID) ([]int64, error) {
	args := make([]river.JobArgs, len(contentIDs))
	for i, id := range contentIDs {
		args[i] = DownloadArgs{ContentID: id}
	}
	return e.insertTx(ctx, tx, args)
}

// EnqueueRemoveFilesTx inserts one job for each view, all in one statement.
func (e *Enqueuer) EnqueueRemoveFilesTx(ctx context.Context, tx pgx.Tx, views []store.ContentView) error {
	args := make([]river.JobArgs, len(views))
	for i, v := range views {
		args[i] = RemoveFilesArgs{UserID: v.UserID, ContentID: v.ContentID}
	}
	_, err := e.insertTx(ctx, tx, args)
	return err
}

func (e *Enqueuer) insertTx(ctx context.Context, tx pgx.Tx, args []river.JobArgs) ([]int64, error) {
	if len(args) == 0 {
		return nil, nil
	}
	params := make([]river.InsertManyParams, len(args))
	for i, a := range args {
		params[i].Args = a
	}
	results, err := e.client.InsertManyTx(ctx, tx, params)
	if err != nil {
		return nil, fmt.Errorf("insert %d jobs of kind %s: %w", len(args), args[0].Kind(), err)
	}
	ids := make([]int64, len(results))
	for i, r := range results {
		ids[i] = r.Job.ID
	}
	return ids, nil
}

// CancelTx cancels a waiting job at once, and asks for the end of a running one. A job that is final or gone is no
// error.
func (e *Enqueuer) CancelTx(ctx context.Context, tx pgx.Tx, row store.JobRow) error {
	if _, err := e.client.JobCancelTx(ctx, tx, int64(row)); err != nil && !errors.Is(err, rivertype.ErrNotFound) {
		return fmt.Errorf("cancel row %d: %w", row, err)
	}
	return nil
}

// RetryTx makes a job that is not running available now. A job that is gone is store.ErrNotFound.
func (e *Enqueuer) RetryTx(ctx context.Context, tx pgx.Tx, row store.JobRow) error {
	_, err := e.client.JobRetryTx(ctx, tx, int64(row))
	if errors.Is(err, rivertype.ErrNotFound) {
		return fmt.Errorf("retry row %d: %w", row, store.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("retry row %d: %w", row, err)
	}
	return nil
}
