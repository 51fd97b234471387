package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

func TestRetryDownload(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ job, state string }{
		{"discarded", store.StateFailed}, {"cancelled", store.StateCancelled}, {"completed", store.StateCompleted},
		{"discarded", store.StateRunning}, // the consumer has yet to follow
	} {
		t.Run(c.state, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			ann := b.user("ann")
			d := b.create(ann, "https://site.test/a")
			b.end(d, c.job, c.state)
			b.exec(`UPDATE medianest.downloads SET failure_reason = 'gone', failure_detail = 'It is gone.', started_at = now()`)

			again, err := b.api.RetryDownload(t.Context(), d.ID, ann.Viewer())
			require.NoError(t, err)
			require.Equal(t, d.ID, again.ID)
			require.NotEqual(t, *d.JobID, *again.JobID)
			require.Equal(t, store.StateQueued, again.State)
			require.Empty(t, again.FailureReason)
			require.Empty(t, again.FailureDetail)
			require.Nil(t, again.StartedAt)
			require.Nil(t, again.FinishedAt)
			require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.job_viewer WHERE job_id = $1 AND download_id = $2`, *again.JobID, d.ID))

			_, err = b.api.RetryDownload(t.Context(), d.ID, ann.Viewer())
			require.ErrorIs(t, err, store.ErrConflict)
		})
	}
}

func TestRetryJoinsAnothersJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	d := b.create(ann, "https://site.test/a")
	b.end(d, "discarded", store.StateFailed)
	bens := b.create(ben, "https://site.test/a")
	b.setJob(*bens.JobID, "running")
	again, err := b.api.RetryDownload(t.Context(), d.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, bens.JobID, again.JobID)
	require.Equal(t, store.StateRunning, again.State)
	require.NotNil(t, again.StartedAt)
}

func TestRetryAfterCancelWhileTheJobDies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/a")
	b.setJob(*d.JobID, "running")
	_, err := b.api.CancelDownload(t.Context(), d.ID, ann.Viewer())
	require.NoError(t, err)
	again, err := b.api.RetryDownload(t.Context(), d.ID, ann.Viewer())
	require.NoError(t, err)
	require.NotEqual(t, *d.JobID, *again.JobID)
	wishes, err := b.worker.Wishes(t.Context(), d.ContentID, *d.JobID)
	require.NoError(t, err)
	require.Empty(t, wishes)
}

func TestRetryWhileAnotherOfTheSameIsActive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/a")
	b.end(d, "discarded", store.StateFailed)
	b.create(ann, "https://site.test/a")
	_, err := b.api.RetryDownload(t.Context(), d.ID, ann.Viewer())
	require.ErrorIs(t, err, store.ErrConflict)
}

func TestRetryOfAChildRevivesItsCollections(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	list := b.create(ann, "https://site.test/list")
	b.expand(list, entry("https://site.test/1"), entry("https://site.test/2"))
	_, err := b.api.CancelDownload(t.Context(), list.ID, ann.Viewer())
	require.NoError(t, err)

	kid := b.children(list)[1]
	kid, err = b.api.RetryDownload(t.Context(), kid.ID, ann.Viewer())
	require.NoError(t, err)
	got := b.find(list)
	require.Equal(t, store.StateRunning, got.State)
	require.Nil(t, got.FinishedAt)
	require.Equal(t, &store.ChildCounts{Total: 2, Queued: 1, Cancelled: 1}, got.Children)

	// The collection follows its children again.
	_, err = b.api.CancelDownload(t.Context(), kid.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, store.StateCancelled, b.find(list).State)
}

func TestRetryOfACollectionExpandsAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	list := b.create(ann, "https://site.test/list")
	entries := []store.NewEntry{
		entry("https://site.test/completed"), entry("https://site.test/failed"), entry("https://site.test/cancelled"), entry("https://site.test/removed"),
	}
	b.expand(list, entries...)
	kids := b.children(list)
	b.end(kids[0], "completed", store.StateCompleted)
	b.end(kids[1], "discarded", store.StateFailed)
	_, err := b.api.CancelDownload(t.Context(), list.ID, ann.Viewer())
	require.NoError(t, err)
	completed := b.find(kids[0])

	list, err = b.api.RetryDownload(t.Context(), list.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, store.StateQueued, list.State)
	b.expand(list, entry("https://site.test/completed"), entry("https://site.test/failed"), entry("https://site.test/cancelled"), entry("https://site.test/new"))

	got := b.children(list)
	require.Len(t, got, 5)
	byURL := make(map[string]store.Download)
	for _, k := range got {
		byURL[k.URL[len("https://site.test/"):]] = k
	}
	require.Equal(t, completed, byURL["completed"])
	require.Equal(t, store.StateCancelled, byURL["removed"].State)
	for i, name := range []string{"failed", "cancelled"} {
		require.Equal(t, store.StateQueued, byURL[name].State)
		require.Equal(t, kids[i+1].ID, byURL[name].ID)
		require.NotEqual(t, *kids[i+1].JobID, *byURL[name].JobID)
	}
	require.Equal(t, store.StateQueued, byURL["new"].State)
}
