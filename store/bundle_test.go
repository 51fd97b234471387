package store_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

// bundle is a database of the test's own with the stores of both kinds of process, each in its own role.
type bundle struct {
	t      *testing.T
	url    string
	pool   *pgxpool.Pool // as the owner, to look and to play River
	river  *pgxpool.Pool // as River's client has it
	api    *store.Store
	worker *store.Store
}

func setup(t *testing.T) *bundle {
	t.Helper()
	url := storetest.DB(t)
	b := &bundle{t: t, url: url, pool: storetest.OpenPool(t, url, ""), river: storetest.OpenPool(t, url, store.RoleRiver)}
	q := newRiverQueue(t, b.pool)
	b.api = store.New(storetest.OpenPool(t, url, store.RoleAPI)).WithQueue(q)
	b.worker = store.New(storetest.OpenPool(t, url, store.RoleWorker)).WithQueue(q)
	return b
}

// riverQueue is the queue as the platform's is, on River's own client: inserts, cancels and retries are River's.
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
	params := make([]river.InsertManyParams, len(fetches))
	for i, f := range fetches {
		params[i] = river.InsertManyParams{Args: downloadArgs{ContentID: f.ContentID}, InsertOpts: &river.InsertOpts{
			Queue: "download", MaxAttempts: 8, Priority: store.PriorityNormal,
			Metadata: fmt.Appendf(nil, `{"keys": ["kind:download", "host:%s", "user:%s"]}`, f.Host, f.UserID),
		}}
	}
	results, err := q.client.InsertManyTx(ctx, tx, params)
	if err != nil {
		return nil, err
	}
	ids := make([]int64, len(results))
	for i, r := range results {
		ids[i] = r.Job.ID
	}
	return ids, nil
}

func (q riverQueue) EnqueueRemoveFilesTx(ctx context.Context, tx pgx.Tx, views []store.ContentView) error {
	params := make([]river.InsertManyParams, len(views))
	for i, v := range views {
		params[i] = river.InsertManyParams{Args: removeFilesArgs{UserID: v.UserID, ContentID: v.ContentID}}
	}
	_, err := q.client.InsertManyTx(ctx, tx, params)
	return err
}

func (q riverQueue) CancelTx(ctx context.Context, tx pgx.Tx, row store.JobRow) error {
	_, err := q.client.JobCancelTx(ctx, tx, int64(row))
	return err
}

func (q riverQueue) RetryTx(ctx context.Context, tx pgx.Tx, row store.JobRow) error {
	_, err := q.client.JobRetryTx(ctx, tx, int64(row))
	return err
}

func (b *bundle) user(name string) store.User {
	b.t.Helper()
	u, err := b.api.CreateUser(b.t.Context(), store.NewUser{Name: name, Role: store.UserMember})
	require.NoError(b.t, err)
	return u
}

// wish is what a user asks for when posting the address.
func wish(u store.User, url string) store.NewDownload {
	return store.NewDownload{UserID: u.ID, URL: url, ContentKey: "best " + url, Profile: "best"}
}

func (b *bundle) create(u store.User, url string) store.Download {
	b.t.Helper()
	d, created, err := b.api.CreateDownload(b.t.Context(), wish(u, url))
	require.NoError(b.t, err)
	require.True(b.t, created)
	return d
}

func (b *bundle) find(d store.Download) store.Download {
	b.t.Helper()
	found, err := b.api.FindDownload(b.t.Context(), d.ID, store.Viewer{Admin: true})
	require.NoError(b.t, err)
	return found
}

func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	_, err := b.pool.Exec(b.t.Context(), sql, args...)
	require.NoError(b.t, err)
}

func (b *bundle) count(sql string, args ...any) int {
	b.t.Helper()
	var n int
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), sql, args...).Scan(&n))
	return n
}

// setJob puts a job into a state, as River would.
func (b *bundle) setJob(id int64, state string) {
	b.t.Helper()
	b.exec(`
		UPDATE river.river_job
		SET state = $2::river.river_job_state,
			attempt = attempt + CASE WHEN $2 = 'running' THEN 1 ELSE 0 END,
			attempted_at = CASE WHEN $2 = 'running' THEN now() ELSE attempted_at END,
			finalized_at = CASE WHEN $2 IN ('completed', 'cancelled', 'discarded') THEN now() END
		WHERE id = $1`, id, state)
}

func (b *bundle) jobState(id int64) string {
	b.t.Helper()
	var state string
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), `SELECT state::text FROM river.river_job WHERE id = $1`, id).Scan(&state))
	return state
}

func (b *bundle) cancelAsked(id int64) bool {
	b.t.Helper()
	return b.count(`SELECT count(*) FROM river.river_job WHERE id = $1 AND metadata ? 'cancel_attempted_at'`, id) == 1
}

// setState brings a download where the outbox's consumer would.
func (b *bundle) setState(d store.Download, state string) {
	b.t.Helper()
	b.exec(`
		UPDATE medianest.downloads
		SET state = $2,
			finished_at = CASE WHEN $2 IN ('completed', 'failed', 'cancelled') THEN now() END
		WHERE id = $1`, d.ID, state)
}

// end ends the download's job and lets the download follow.
func (b *bundle) end(d store.Download, jobState, state string) {
	b.t.Helper()
	b.setJob(*d.JobID, jobState)
	b.setState(d, state)
}

// completeJob is what a worker gives to Publish and Expand.
func completeJob(id int64) store.CompleteFunc {
	return func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE river.river_job SET state = 'completed', finalized_at = now() WHERE id = $1 AND state = 'running'`, id)
		if err == nil && tag.RowsAffected() == 0 {
			return store.ErrSuperseded
		}
		return err
	}
}

// linkFor makes one file for each user who has none.
func linkFor(name string) store.LinkFunc {
	return func(_ context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
		has := make(map[uuid.UUID]bool)
		for _, f := range existing {
			has[f.UserID] = true
		}
		var made []store.File
		for _, w := range wishes {
			if !has[w.UserID] {
				sum := sha256.Sum256([]byte(name))
				made = append(made, store.File{UserID: w.UserID, Path: w.UserName + "/" + name, SizeBytes: int64(len(name)), SHA256: sum[:]})
			}
		}
		return made, nil
	}
}

// rowOf is the first row of the download's job, as a worker names it.
func rowOf(d store.Download) store.JobRow { return store.JobRow(*d.JobID) }

// begin is what a worker says that begins to fetch.
func begin(contentID uuid.UUID, row int64) store.BeginFetchParams {
	return store.BeginFetchParams{ContentID: contentID, Row: store.JobRow(row), Volume: "volume"}
}

// fetch plays a worker that runs the download's job to its end.
func (b *bundle) fetch(d store.Download, name string) {
	b.t.Helper()
	row := b.currentRow(*d.JobID)
	b.setJob(int64(row), "running")
	_, err := b.worker.BeginFetch(b.t.Context(), begin(d.ContentID, int64(row)))
	require.NoError(b.t, err)
	require.NoError(b.t, b.worker.Publish(b.t.Context(), d.ContentID, row, linkFor(name), completeJob(int64(row))))
}

// expand plays a worker that finds n entries at the download's content.
func (b *bundle) expand(d store.Download, entries ...store.NewEntry) {
	b.t.Helper()
	b.setJob(*d.JobID, "running")
	require.NoError(b.t, b.worker.Expand(b.t.Context(), d.ContentID, rowOf(d), entries, "", completeJob(*d.JobID)))
	b.setState(d, store.StateRunning)
}

func entry(url string) store.NewEntry {
	return store.NewEntry{ContentKey: "best " + url, URL: url, Title: "about " + url[strings.LastIndex(url, "/")+1:]}
}

func (b *bundle) children(d store.Download) []store.Download {
	b.t.Helper()
	page, next, err := b.api.ListDownloads(b.t.Context(), store.DownloadFilter{Viewer: store.Viewer{Admin: true}, ParentID: &d.ID, Limit: 200})
	require.NoError(b.t, err)
	require.Empty(b.t, next)
	return page
}

// together runs fn n times at once and fails the test for every error.
func together(t *testing.T, n int, fn func(i int) error) {
	t.Helper()
	var (
		wg    sync.WaitGroup
		start = make(chan struct{})
		errs  = make([]error, n)
	)
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = fn(i)
		})
	}
	close(start)
	wg.Wait()
	for i, err := range errs {
		require.NoError(t, err, fmt.Sprintf("call %d", i))
	}
}

// deadlocks is how many there were in the test's database.
func (b *bundle) deadlocks() int {
	b.t.Helper()
	b.exec(`SELECT pg_stat_clear_snapshot()`)
	return b.count(`SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`)
}

// waitForLockWaiter returns when somebody in the test's database waits for a lock.
func (b *bundle) waitForLockWaiter() {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		return b.holds(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
	}, 10*time.Second, 5*time.Millisecond)
}

// holds reports what a query for a boolean says, and false if it fails: for conditions that are polled.
func (b *bundle) holds(sql string) bool {
	var yes bool
	return b.pool.QueryRow(b.t.Context(), sql).Scan(&yes) == nil && yes
}
