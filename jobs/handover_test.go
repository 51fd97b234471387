package jobs_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// River UI's Retry on a job that ended, while another one fetches the same: that one goes on undisturbed, for all.
func TestJobBroughtBackBesideAnother(t *testing.T) {
	t.Parallel()

	var fetches atomic.Int64
	release := make(chan struct{})
	f := newFake(t)
	f.fetch = func(ctx context.Context, _ ytdlp.FetchRequest) error {
		if fetches.Add(1) == 1 {
			return &reason.Error{Reason: reason.Gone}
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b := setup(t, with(f))
	annas := b.wish(t, b.user(t, "anna"), "/film")
	first := annas.JobID
	require.Equal(t, store.StateFailed, b.wait(t, annas.ID).State)
	bens := b.wish(t, b.user(t, "ben"), "/film")
	require.NotEqual(t, first, bens.JobID)
	require.Eventually(t, func() bool { return fetches.Load() == 2 }, patience, 5*time.Millisecond)

	_, err := b.queue.River().JobRetry(t.Context(), *first)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return b.job(t, first).State == "cancelled" }, patience, 5*time.Millisecond)
	require.Equal(t, bens.JobID, b.find(t, annas.ID).JobID)

	close(release)
	annas, bens = b.wait(t, annas.ID), b.wait(t, bens.ID)
	require.Equal(t, store.StateCompleted, annas.State, annas.FailureDetail)
	require.Equal(t, store.StateCompleted, bens.State, bens.FailureDetail)
	b.requireLibrary(t, annas.Files[0].Path, bens.Files[0].Path)
	require.EqualValues(t, 2, fetches.Load(), "it was fetched again")
}
