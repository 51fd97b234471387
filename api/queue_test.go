package api_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

// riverQueue is a queue that nobody works: inserts, cancels and retries are River's own.
type riverQueue struct{ client *river.Client[pgx.Tx] }

var _ store.Queue = riverQueue{}

type downloadArgs struct {
	ContentID uuid.UUID `json:"content_id"`
}

func (downloadArgs) Kind() string { return "download" }

type removeFilesArgs struct {
	UserID    uuid.UUID `json:"user_id"`
	ContentID uuid.UUID `json:"content_id"`
}

func (removeFilesArgs) Kind() string { return "remove_files" }

func newRiverQueue(t testing.TB, pool *pgxpool.Pool) riverQueue {
	t.Helper()
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: "river"})
	require.NoError(t, err)
	return riverQueue{client: client}
}

func (q riverQueue) EnqueueDownloadsTx(ctx context.Context, tx pgx.Tx, fetches []store.NewFetch) ([]int64, error) {
	ids := make([]int64, len(fetches))
	for i, f := range fetches {
		result, err := q.client.InsertTx(ctx, tx, downloadArgs{ContentID: f.ContentID}, &river.InsertOpts{
			Queue: "download", MaxAttempts: 8,
			Metadata: fmt.Appendf(nil, `{"keys": ["kind:download", "host:%s", "user:%s"]}`, f.Host, f.UserID),
		})
		if err != nil {
			return nil, err
		}
		ids[i] = result.Job.ID
	}
	return ids, nil
}

func (q riverQueue) EnqueueRemoveFilesTx(ctx context.Context, tx pgx.Tx, views []store.ContentView) error {
	for _, v := range views {
		if _, err := q.client.InsertTx(ctx, tx, removeFilesArgs{UserID: v.UserID, ContentID: v.ContentID}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (q riverQueue) CancelTx(ctx context.Context, tx pgx.Tx, row store.JobRow) error {
	_, err := q.client.JobCancelTx(ctx, tx, int64(row))
	return err
}

func (q riverQueue) RetryTx(ctx context.Context, tx pgx.Tx, row store.JobRow) error {
	_, err := q.client.JobRetryTx(ctx, tx, int64(row))
	return err
}
