package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

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

// EnqueueDownloadsTx inserts one download job for each fetch, all in one statement, and returns their ids in the same
// order. Each names the keys of its limits: those that nobody limits cost nothing, and one that is limited later binds
// what waits already.
func (e *Enqueuer) EnqueueDownloadsTx(ctx context.Context, tx pgx.Tx, fetches []store.NewFetch) ([]int64, error) {
	params := make([]river.InsertManyParams, len(fetches))
	for i, f := range fetches {
		keys := []string{"user:" + f.UserID.String()}
		if f.Host != "" {
			keys = append(keys, "host:"+f.Host)
		}
		args := DownloadArgs{ContentID: f.ContentID}
		params[i] = river.InsertManyParams{Args: args, InsertOpts: &river.InsertOpts{Metadata: metadataOf(args.Kind(), keys, nil)}}
	}
	return e.insertTx(ctx, tx, params)
}

// EnqueueRemoveFilesTx inserts one job for each view, all in one statement.
func (e *Enqueuer) EnqueueRemoveFilesTx(ctx context.Context, tx pgx.Tx, views []store.ContentView) error {
	params := make([]river.InsertManyParams, len(views))
	for i, v := range views {
		args := RemoveFilesArgs{UserID: v.UserID, ContentID: v.ContentID}
		params[i] = river.InsertManyParams{Args: args, InsertOpts: &river.InsertOpts{Metadata: metadataOf(args.Kind(), nil, nil)}}
	}
	_, err := e.insertTx(ctx, tx, params)
	return err
}

// metadataOf is the metadata of a job: the keys of its limits, the kind's among them, so that every kind can be limited and
// paused; and what else is to be known of it.
func metadataOf(kind string, keys []string, more map[string]string) []byte {
	metadata := map[string]any{"keys": append([]string{"kind:" + kind}, keys...)}
	for name, value := range more {
		metadata[name] = value
	}
	encoded, _ := json.Marshal(metadata) //nolint:errchkjson // strings only
	return encoded
}

func (e *Enqueuer) insertTx(ctx context.Context, tx pgx.Tx, params []river.InsertManyParams) ([]int64, error) {
	if len(params) == 0 {
		return nil, nil
	}
	results, err := e.client.InsertManyTx(ctx, tx, params)
	if err != nil {
		return nil, fmt.Errorf("insert %d jobs of kind %s: %w", len(params), params[0].Args.Kind(), err)
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
