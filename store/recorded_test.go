package store_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestFileRecorded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.create(b.user("ann"), "https://site.test/a")
	b.fetch(d, "a.mp4")
	for path, want := range map[string]bool{"ann/a.mp4": true, "ann/b.mp4": false, "": false} {
		recorded, err := b.worker.FileRecorded(t.Context(), path)
		require.NoError(t, err)
		require.Equal(t, want, recorded, path)
	}
}

func TestContentUnfinished(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.create(b.user("ann"), "https://site.test/a")
	unfinished := func(id uuid.UUID) bool {
		t.Helper()
		is, err := b.worker.ContentUnfinished(t.Context(), id)
		require.NoError(t, err)
		return is
	}
	require.True(t, unfinished(d.ContentID))
	b.setJob(*d.JobID, "running")
	require.True(t, unfinished(d.ContentID))
	b.setJob(*d.JobID, "retryable")
	require.True(t, unfinished(d.ContentID))
	b.setJob(*d.JobID, "discarded")
	require.False(t, unfinished(d.ContentID))
	require.False(t, unfinished(uuid.New()))
}
