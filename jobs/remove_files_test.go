package jobs_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/store"
)

func TestFilesAreRemovedWhenTheyCanBe(t *testing.T) {
	t.Parallel()

	m := &meddler{}
	var tries atomic.Int64
	m.remove = func(string) error {
		if tries.Add(1) == 1 {
			return errors.New("the folder cannot be written")
		}
		return nil
	}
	b := setup(t, with(newFake(t)), withMeddler(m))
	anna := b.user(t, "anna")
	d := b.wait(t, b.wish(t, anna, "/plain.mp4").ID)
	file := b.requireFile(t, d, "plain.mp4")
	require.NoError(t, b.api.DeleteDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID}))
	require.Eventually(t, func() bool {
		recorded, err := b.api.FilesOf(t.Context(), anna.ID, d.ContentID)
		return err == nil && len(recorded) == 0
	}, patience, 10*time.Millisecond, "%s stays on record", file.Path)
	require.EqualValues(t, 2, tries.Load())
	b.requireLibrary(t)
}

// Who asks for it again before the job has run keeps the file.
func TestFilesWishedForAgainStay(t *testing.T) {
	t.Parallel()

	b := setup(t, with(newFake(t)))
	anna := b.user(t, "anna")
	d := b.wait(t, b.wish(t, anna, "/plain.mp4").ID)
	file := b.requireFile(t, d, "plain.mp4")

	client := b.queue.River()
	require.NoError(t, client.QueuePause(t.Context(), jobs.QueueLibrary, nil))
	require.NoError(t, b.api.DeleteDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID}))
	again := b.wait(t, b.wish(t, anna, "/plain.mp4").ID)
	require.NotEqual(t, d.ID, again.ID)
	require.NoError(t, client.QueueResume(t.Context(), jobs.QueueLibrary, nil))
	require.Eventually(t, func() bool {
		list, _, err := b.api.ListJobs(t.Context(), store.JobFilter{Viewer: store.Viewer{Admin: true}, Kinds: []string{"remove_files"}})
		return err == nil && len(list) == 1 && list[0].State == "completed"
	}, patience, 10*time.Millisecond)
	require.Equal(t, file.Path, b.requireFile(t, b.find(t, again.ID), "plain.mp4").Path)
	b.requireLibrary(t, file.Path)
}
