package store_test

import (
	"testing"
	"time"

	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

var someday = time.Now().Add(24 * time.Hour)

func (b *bundle) change(action string, f store.JobFilter) store.BulkDone {
	b.t.Helper()
	d, err := b.api.ChangeJobs(b.t.Context(), action, f, 0, someday)
	require.NoError(b.t, err)
	require.False(b.t, d.More)
	return d
}

// Ten thousand jobs are cancelled, retried and deleted in seconds, and what follows them follows.
func TestBulkOfTenThousand(t *testing.T) {
	t.Parallel()
	const jobs = 10_000
	b := setup(t)
	b.exec(`
		INSERT INTO river.river_job (kind, args, queue, state, max_attempts, priority, metadata)
		SELECT 'synthetic', '{}', 'bulk', 'available', 3, 2, CASE WHEN n % 2 = 0 THEN '{"keys": ["host:a"]}' ELSE '{}' END::jsonb
		FROM generate_series(1, $1::int) AS n`, jobs)
	f := store.JobFilter{Queues: []string{"bulk"}}
	for _, action := range []string{store.BulkCancel, store.BulkRetry, store.BulkCancel, store.BulkDelete} {
		if action == store.BulkDelete {
			require.Zero(t, b.change(action, f).Done, "what became of them has hardly been told")
			b.exec(`UPDATE river.river_job SET finalized_at = now() - interval '1 hour' WHERE queue = 'bulk'`)
		}
		counted, atLeast, err := b.api.CountJobs(t.Context(), action, f)
		require.NoError(t, err)
		require.False(t, atLeast)
		sum := 0
		for _, n := range counted {
			sum += n
		}
		require.Equal(t, jobs, sum)
		begun := time.Now()
		require.Equal(t, jobs, b.change(action, f).Done)
		t.Logf("%s: %s", action, time.Since(begun).Round(10*time.Millisecond))
		require.Less(t, time.Since(begun), 2*time.Minute)
	}
	require.Zero(t, b.count(`SELECT count(*) FROM river.river_job WHERE queue = 'bulk'`))
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.admission`))
}

// Each job is changed as it would be alone: by the rules of its download, and of the queue.
func TestBulkObeysTheRules(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	waits, runs, failed, unwanted, done, bens := b.create(ann, "https://site.test/1"), b.create(ann, "https://site.test/2"),
		b.create(ann, "https://site.test/3"), b.create(ann, "https://site.test/4"), b.create(ann, "https://site.test/5"), b.create(ben, "https://other.test/1")
	b.setJob(*runs.JobID, "running")
	for _, d := range []store.Download{failed, unwanted, done} {
		b.setJob(*d.JobID, "running")
	}
	b.setReason(*failed.JobID, "network")
	b.setJob(*failed.JobID, "discarded")
	b.requireState(failed, store.StateFailed)
	b.setJob(*done.JobID, "completed")
	_, err := b.api.CancelDownload(t.Context(), unwanted.ID, store.Viewer{UserID: ann.ID})
	require.NoError(t, err)
	b.setJob(*unwanted.JobID, "cancelled")
	superseded := b.create(ann, "https://site.test/6")
	b.exec(`UPDATE river.river_job SET state = 'discarded', finalized_at = now() - interval '1 day', metadata = metadata || '{"superseded_by": "1"}' WHERE id = $1`, *superseded.JobID)

	require.Equal(t, store.BulkDone{Done: 2, After: *runs.JobID}, b.change(store.BulkCancel, store.JobFilter{Key: "host:site.test"}))
	require.Equal(t, "cancelled", b.jobState(*waits.JobID))
	require.Equal(t, "running", b.jobState(*runs.JobID))
	require.True(t, b.cancelAsked(*runs.JobID))
	b.requireState(waits, store.StateCancelled)
	require.Equal(t, "pending", b.jobState(*bens.JobID), "of another host")

	counted, _, err := b.api.CountJobs(t.Context(), store.BulkRetry, store.JobFilter{States: []string{"discarded"}, Reasons: []string{"network"}})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"discarded": 1}, counted)
	d := b.change(store.BulkRetry, store.JobFilter{UserID: ann.ID})
	require.Equal(t, []int{2, 1}, []int{d.Done, d.Skipped}, "what failed, and what an admin cancelled; nobody wishes for what its user did")
	require.Equal(t, "pending", b.jobState(*failed.JobID))
	b.requireState(failed, store.StateQueued)

	b.exec(`UPDATE river.river_job SET finalized_at = now() - interval '1 hour' WHERE finalized_at IS NOT NULL`)
	b.followAll()
	require.Equal(t, 2, b.change(store.BulkDelete, store.JobFilter{Kinds: []string{"download"}}).Done)
	require.Equal(t, string(rivertype.JobStateDiscarded), b.jobState(*superseded.JobID), "it speaks for no job, and is not touched")
	b.requireState(done, store.StateCompleted)

	for _, f := range []store.JobFilter{{}, {States: []string{"odd"}}, {Kinds: []string{""}}, {Reasons: []string{"\x00"}}, {Key: "\xff"}} {
		_, err = b.api.ChangeJobs(t.Context(), store.BulkCancel, f, 0, someday)
		require.ErrorIs(t, err, store.ErrInvalid)
		_, _, err = b.api.CountJobs(t.Context(), store.BulkCancel, f)
		require.ErrorIs(t, err, store.ErrInvalid)
	}
	_, _, err = b.api.CountJobs(t.Context(), "explode", store.JobFilter{Key: "host:a"})
	require.ErrorIs(t, err, store.ErrInvalid)
}

// What takes too long ends in the middle and says where to go on; rows that somebody is at are left to him.
func TestBulkGoesOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(`
		INSERT INTO river.river_job (kind, args, queue, state, max_attempts)
		SELECT 'synthetic', '{}', 'bulk', 'available', 3 FROM generate_series(1, 1200)`)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(t.Context()) //nolint:errcheck // it holds a row, no more
	_, err = tx.Exec(t.Context(), `SELECT FROM river.river_job WHERE queue = 'bulk' ORDER BY id LIMIT 1 FOR UPDATE`)
	require.NoError(t, err)
	f := store.JobFilter{Queues: []string{"bulk"}}
	var d store.BulkDone
	steps, done, skipped := 0, 0, 0
	for more := true; more; more = d.More {
		d, err = b.api.ChangeJobs(t.Context(), store.BulkCancel, f, d.After, time.Now())
		require.NoError(t, err)
		steps, done, skipped = steps+1, done+d.Done, skipped+d.Skipped
	}
	require.Equal(t, []int{3, 1199, 1}, []int{steps, done, skipped})
}

// The lists of jobs by reason, key, user and time hold what they say.
func TestListJobsByMore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	anns, bens := b.create(ann, "https://site.test/1"), b.create(ben, "https://other.test/1")
	b.setJob(*anns.JobID, "running")
	b.setReason(*anns.JobID, "network")
	b.setJob(*anns.JobID, "discarded")
	list := func(f store.JobFilter) (ids []int64) {
		t.Helper()
		if f.Viewer.UserID == ben.ID {
			f.Viewer.Admin = false
		} else {
			f.Viewer = store.Viewer{Admin: true}
		}
		for cursor, pages := "", 0; cursor != "" || pages == 0; pages++ {
			f.Cursor, f.Limit = cursor, 1
			page, next, err := b.api.ListJobs(t.Context(), f)
			require.NoError(t, err)
			for _, j := range page {
				ids = append(ids, j.ID)
			}
			cursor = next
		}
		return ids
	}
	both := []int64{*bens.JobID, *anns.JobID}
	require.Equal(t, both, list(store.JobFilter{}))
	require.Equal(t, both[1:], list(store.JobFilter{Reasons: []string{"network", "timeout"}}))
	require.Empty(t, list(store.JobFilter{Reasons: []string{"timeout"}}))
	require.Equal(t, both[1:], list(store.JobFilter{UserID: ann.ID}))
	require.Equal(t, both[:1], list(store.JobFilter{Key: "host:other.test"}))
	require.Empty(t, list(store.JobFilter{Key: "host:none.test"}))
	require.Equal(t, both, list(store.JobFilter{CreatedAfter: time.Now().Add(-time.Hour), CreatedBefore: time.Now().Add(time.Hour)}))
	require.Empty(t, list(store.JobFilter{CreatedBefore: time.Now().Add(-time.Hour)}))
	require.Empty(t, list(store.JobFilter{CreatedAfter: time.Now().Add(time.Hour)}))
	require.Equal(t, both[:1], list(store.JobFilter{Viewer: store.Viewer{UserID: ben.ID}, UserID: ann.ID}), "another's is not asked for")
	// It was tried again since.
	b.setJob(*anns.JobID, "running")
	require.Empty(t, list(store.JobFilter{Reasons: []string{"network"}}))
}

func TestRetryFailedChildren(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	owner := store.Viewer{UserID: ann.ID}
	page := b.create(ann, "https://site.test/page")
	b.expand(page, entry("https://site.test/1"), entry("https://site.test/2"), entry("https://site.test/3"))
	children := b.children(page)
	for i, state := range []string{"discarded", "completed", "running"} {
		b.setJob(*children[i].JobID, "running")
		b.setJob(*children[i].JobID, state)
	}
	b.requireState(children[0], store.StateFailed)
	b.requireState(page, store.StateRunning)
	n, err := b.api.RetryFailedChildren(t.Context(), page.ID, owner)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	b.requireState(children[0], store.StateQueued)
	b.requireState(children[1], store.StateCompleted)
	b.requireState(children[2], store.StateRunning)
	_, err = b.api.RetryFailedChildren(t.Context(), page.ID, owner)
	require.ErrorIs(t, err, store.ErrConflict)
	_, err = b.api.RetryFailedChildren(t.Context(), children[0].ID, owner)
	require.ErrorIs(t, err, store.ErrConflict, "it is no collection")
	_, err = b.api.RetryFailedChildren(t.Context(), page.ID, store.Viewer{UserID: b.user("ben").ID})
	require.ErrorIs(t, err, store.ErrNotFound)
}
