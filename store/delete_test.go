package store_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

func (b *bundle) removals(u store.User, d store.Download) int {
	b.t.Helper()
	return b.count(`
		SELECT count(*)
		FROM river.river_job
		WHERE kind = 'remove_files' AND args ->> 'user_id' = $1 AND args ->> 'content_id' = $2`, u.ID.String(), d.ContentID.String())
}

func TestDeleteDownload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	anns, bens := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a")

	require.NoError(t, b.api.DeleteDownload(ctx, anns.ID, ann.Viewer()))
	_, err := b.api.FindDownload(ctx, anns.ID, ann.Viewer())
	require.ErrorIs(t, err, store.ErrNotFound)
	require.ErrorIs(t, b.api.DeleteDownload(ctx, anns.ID, ann.Viewer()), store.ErrNotFound)
	require.Equal(t, "pending", b.jobState(*bens.JobID))
	require.Zero(t, b.removals(ann, anns), "there was no file to remove")

	require.NoError(t, b.api.DeleteDownload(ctx, bens.ID, ben.Viewer()))
	require.Equal(t, "cancelled", b.jobState(*bens.JobID))
}

func TestDeleteTakesTheFileWithTheLastView(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	anns, bens := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a")
	b.fetch(anns, "a.mp4")
	b.setState(anns, store.StateCompleted)
	b.setState(bens, store.StateCompleted)
	second := b.create(ann, "https://site.test/a")
	require.Len(t, second.Files, 1)

	require.NoError(t, b.api.DeleteDownload(ctx, anns.ID, ann.Viewer()))
	require.Zero(t, b.removals(ann, anns), "the user has another download of it")
	require.NoError(t, b.api.DeleteDownload(ctx, second.ID, ann.Viewer()))
	require.Equal(t, 1, b.removals(ann, anns))
	require.Zero(t, b.removals(ben, anns))

	files, err := b.worker.FilesOf(ctx, ben.ID, anns.ContentID)
	require.NoError(t, err)
	require.Len(t, files, 1)
	require.Equal(t, "ben/a.mp4", files[0].Path)

	// The job's work: paths and rows, the others' left alone, and run twice.
	var removed []string
	remove := func(_ context.Context, paths []string) error {
		removed = append(removed, paths...)
		return nil
	}
	full := errors.New("read-only file system")
	require.ErrorIs(t, b.worker.RemoveFiles(ctx, ann.ID, anns.ContentID, func(context.Context, []string) error { return full }), full)
	require.NoError(t, b.worker.RemoveFiles(ctx, ann.ID, anns.ContentID, remove))
	require.NoError(t, b.worker.RemoveFiles(ctx, ann.ID, anns.ContentID, remove))
	require.NoError(t, b.worker.RemoveFiles(ctx, ben.ID, anns.ContentID, remove), "he still has his download")
	require.Equal(t, []string{"ann/a.mp4"}, removed)
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.files`))
}

func TestRemoveFilesLeavesWhatIsWishedForAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/a")
	b.fetch(d, "a.mp4")
	b.setState(d, store.StateCompleted)
	require.NoError(t, b.api.DeleteDownload(t.Context(), d.ID, ann.Viewer()))
	b.create(ann, "https://site.test/a")
	require.NoError(t, b.worker.RemoveFiles(t.Context(), ann.ID, d.ContentID, func(context.Context, []string) error {
		return errors.New("called")
	}))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.files`))
}

func TestDeleteOfACollection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	list := b.create(ann, "https://site.test/list")
	b.expand(list, entry("https://site.test/1"), entry("https://site.test/2"), entry("https://site.test/deeper"))
	kids := b.children(list)
	b.fetch(kids[0], "1.mp4")
	b.setState(kids[0], store.StateCompleted)
	bens := b.create(ben, "https://site.test/2")
	b.expand(kids[2], entry("https://site.test/3"), entry("https://site.test/4"))
	grandkids := b.children(kids[2])

	require.NoError(t, b.api.DeleteDownload(ctx, list.ID, ann.Viewer()))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.downloads`))
	require.Equal(t, 1, b.removals(ann, kids[0]))
	require.Equal(t, "pending", b.jobState(*bens.JobID))
	for _, d := range grandkids {
		require.Equal(t, "cancelled", b.jobState(*d.JobID))
	}
}

func TestDeleteOfAChildMovesItsCollection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann := b.user("ann")
	list := b.create(ann, "https://site.test/list")
	b.expand(list, entry("https://site.test/1"), entry("https://site.test/2"))
	kids := b.children(list)
	b.end(kids[0], "completed", store.StateCompleted)
	require.NoError(t, b.api.DeleteDownload(ctx, kids[1].ID, ann.Viewer()))
	require.Equal(t, store.StateCompleted, b.find(list).State)
	require.NoError(t, b.api.DeleteDownload(ctx, kids[0].ID, ann.Viewer()))
	require.Equal(t, store.StateCompleted, b.find(list).State, "it ended as it did")

	emptied := b.create(ann, "https://site.test/emptied")
	b.expand(emptied, entry("https://site.test/3"))
	require.NoError(t, b.api.DeleteDownload(ctx, b.children(emptied)[0].ID, ann.Viewer()))
	require.Equal(t, store.StateCancelled, b.find(emptied).State)
}
