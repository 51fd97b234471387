package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

func TestCancelDownload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	anns, bens := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a")

	// One of two leaves: the job goes on for the other.
	got, err := b.api.CancelDownload(ctx, anns.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, store.StateCancelled, got.State)
	require.NotNil(t, got.FinishedAt)
	require.Equal(t, "pending", b.jobState(*anns.JobID))
	require.Equal(t, store.StateQueued, b.find(bens).State)

	again, err := b.api.CancelDownload(ctx, anns.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, got, again)

	// The last one takes the job along.
	_, err = b.api.CancelDownload(ctx, bens.ID, ben.Viewer())
	require.NoError(t, err)
	require.Equal(t, "cancelled", b.jobState(*anns.JobID))
}

func TestCancelOfARunningJobIsAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/a")
	b.setJob(*d.JobID, "running")
	_, err := b.api.CancelDownload(t.Context(), d.ID, store.Viewer{Admin: true})
	require.NoError(t, err)
	require.Equal(t, "running", b.jobState(*d.JobID))
	require.True(t, b.cancelAsked(*d.JobID))
	require.Equal(t, store.StateCancelled, b.find(d).State)
}

func TestCancelOfWhatHasEnded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	for _, state := range []string{store.StateCompleted, store.StateFailed} {
		d := b.create(ann, "https://site.test/"+state)
		b.end(d, "completed", state)
		_, err := b.api.CancelDownload(t.Context(), d.ID, ann.Viewer())
		require.ErrorIs(t, err, store.ErrConflict)
		require.Equal(t, state, b.find(d).State)
	}
	// The job has completed, the download is about to.
	d := b.create(ann, "https://site.test/lag")
	b.setJob(*d.JobID, "completed")
	_, err := b.api.CancelDownload(t.Context(), d.ID, ann.Viewer())
	require.ErrorIs(t, err, store.ErrConflict)

	// A job whose row is gone can say nothing any more.
	d = b.create(ann, "https://site.test/gone")
	b.exec(`DELETE FROM river.river_job WHERE id = $1`, *d.JobID)
	_, err = b.api.CancelDownload(t.Context(), d.ID, ann.Viewer())
	require.NoError(t, err)
}

func TestCancelOfACollection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	list := b.create(ann, "https://site.test/list")
	b.expand(list, entry("https://site.test/1"), entry("https://site.test/2"), entry("https://site.test/3"), entry("https://site.test/4"))
	kids := b.children(list)
	b.end(kids[0], "completed", store.StateCompleted)
	b.end(kids[1], "discarded", store.StateFailed)
	bens := b.create(ben, "https://site.test/3")
	require.Equal(t, kids[2].JobID, bens.JobID)

	got, err := b.api.CancelDownload(ctx, list.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, store.StateCancelled, got.State)
	require.Equal(t, &store.ChildCounts{Total: 4, Completed: 1, Failed: 1, Cancelled: 2}, got.Children)
	require.Equal(t, "pending", b.jobState(*kids[2].JobID), "another user's wish was hurt")
	require.Equal(t, "cancelled", b.jobState(*kids[3].JobID))
	require.Equal(t, store.StateQueued, b.find(bens).State)
}

func TestCancelOfAChildMovesItsCollection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	cancelKid := func(kid store.Download) {
		_, err := b.api.CancelDownload(t.Context(), kid.ID, ann.Viewer())
		require.NoError(t, err)
	}

	list := b.create(ann, "https://site.test/list")
	b.expand(list, entry("https://site.test/1"), entry("https://site.test/2"))
	kids := b.children(list)
	cancelKid(kids[0])
	require.Equal(t, store.StateRunning, b.find(list).State)
	cancelKid(kids[1])
	got := b.find(list)
	require.Equal(t, store.StateCancelled, got.State)
	require.NotNil(t, got.FinishedAt)

	mixed := b.create(ann, "https://site.test/mixed")
	b.expand(mixed, entry("https://site.test/3"), entry("https://site.test/4"), entry("https://site.test/5"))
	kids = b.children(mixed)
	b.end(kids[0], "completed", store.StateCompleted)
	b.end(kids[1], "discarded", store.StateFailed)
	cancelKid(kids[2])
	got = b.find(mixed)
	require.Equal(t, store.StateCompleted, got.State)
	require.Equal(t, "some_children_failed", got.FailureReason)
	require.NotEmpty(t, got.FailureDetail)

	failed := b.create(ann, "https://site.test/failed")
	b.expand(failed, entry("https://site.test/6"), entry("https://site.test/7"))
	kids = b.children(failed)
	b.end(kids[0], "discarded", store.StateFailed)
	cancelKid(kids[1])
	got = b.find(failed)
	require.Equal(t, store.StateFailed, got.State)
	require.Equal(t, "children_failed", got.FailureReason)
}

// The same content asked for by one user alone and within a collection is two wishes.
func TestCancelLeavesTheUsersOtherWish(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	alone := b.create(ann, "https://site.test/1")
	list := b.create(ann, "https://site.test/list")
	b.expand(list, entry("https://site.test/1"), entry("https://site.test/2"))
	require.Equal(t, alone.JobID, b.children(list)[0].JobID)

	_, err := b.api.CancelDownload(t.Context(), list.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, store.StateQueued, b.find(alone).State)
	require.Equal(t, "pending", b.jobState(*alone.JobID))
}
