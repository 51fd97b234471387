package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

// What is wanted now goes before all else of its user, and for an admin before everybody's.
func TestDownloadNow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	owner, admin := store.Viewer{UserID: ann.ID}, store.Viewer{Admin: true}
	var anns []store.Download
	for i := range 5 {
		anns = append(anns, b.create(ann, fmt.Sprintf("https://site.test/%d", i)))
	}
	bens := []store.Download{b.create(ben, "https://site.test/ben"), b.create(ben, "https://site.test/ben2")}
	b.exec(`INSERT INTO medianest.limit_use (key, last_at, next_at) VALUES ($1, now() - interval '1 min', now()), ($2, now(), now())`,
		"user:"+ben.ID.String(), "user:"+ann.ID.String())
	position := func(d store.Download) int { return b.waiting(d, admin).Position }
	require.Equal(t, []int{1, 2, 4}, []int{position(bens[0]), position(anns[0]), position(anns[1])})
	for _, d := range anns[3:] {
		found, err := b.api.DownloadNow(t.Context(), d.ID, owner)
		require.NoError(t, err)
		require.Equal(t, store.StateQueued, found.State)
	}
	require.Equal(t, []int{1, 2, 4, 5}, []int{position(bens[0]), position(anns[4]), position(anns[3]), position(anns[0])}, "the last that was wanted first, and nobody else behind it")
	_, err := b.api.DownloadNow(t.Context(), anns[2].ID, admin)
	require.NoError(t, err)
	require.Equal(t, []int{1, 2}, []int{position(anns[2]), position(bens[0])})

	// A pause before the next try ends, also that of what an admin is not asked about.
	b.setJob(*anns[1].JobID, "running")
	b.exec(`UPDATE river.river_job SET state = 'retryable', scheduled_at = now() + interval '1 hour' WHERE id = $1`, *anns[1].JobID)
	b.requireState(anns[1], store.StateWaiting)
	_, err = b.api.DownloadNow(t.Context(), anns[1].ID, owner)
	require.NoError(t, err)
	require.Equal(t, "pending", b.jobState(*anns[1].JobID))
	b.requireState(anns[1], store.StateQueued)
	require.Equal(t, 3, position(anns[1]), "before ann's others, behind what an admin wants and whose turn it is")

	for _, state := range []string{"running", "completed"} {
		b.setJob(*anns[0].JobID, state)
		_, err = b.api.DownloadNow(t.Context(), anns[0].ID, owner)
		require.ErrorIs(t, err, store.ErrConflict)
	}
	_, err = b.api.DownloadNow(t.Context(), bens[0].ID, owner)
	require.ErrorIs(t, err, store.ErrNotFound)
}

func TestPriorityOfAJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, admin := b.user("ann"), store.Viewer{Admin: true}
	first, second := b.create(ann, "https://site.test/1"), b.create(ann, "https://site.test/2")
	position := func(d store.Download) int { return b.waiting(d, admin).Position }
	job, err := b.api.SetJobPriority(t.Context(), *first.JobID, store.PriorityLow, admin)
	require.NoError(t, err)
	require.Equal(t, store.PriorityLow, job.Priority)
	require.Equal(t, []int{2, 1}, []int{position(first), position(second)})
	b.setJob(*second.JobID, "completed")
	_, err = b.api.SetJobPriority(t.Context(), *second.JobID, 1, admin)
	require.ErrorIs(t, err, store.ErrConflict)
	_, err = b.api.SetJobPriority(t.Context(), 1<<40, 1, admin)
	require.ErrorIs(t, err, store.ErrNotFound)
	for _, priority := range []int{-1, 0, 5} {
		_, err = b.api.SetJobPriority(t.Context(), *first.JobID, priority, admin)
		require.ErrorIs(t, err, store.ErrInvalid)
	}
}

// A download that has not begun by its time is dropped, alone: others who wish for the same keep the job.
func TestExpireDownloads(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	by := time.Now().Add(time.Hour)
	until := func(u store.User, url string) store.Download {
		t.Helper()
		n := wish(u, url)
		n.StartBy = &by
		d, created, err := b.api.CreateDownload(t.Context(), n)
		require.NoError(t, err)
		require.True(t, created)
		require.WithinDuration(t, by, *d.StartBy, time.Millisecond)
		return d
	}
	alone, shared, begun, putOff, ended := until(ann, "https://site.test/1"), until(ann, "https://site.test/2"), until(ann, "https://site.test/3"),
		until(ann, "https://site.test/4"), until(ann, "https://site.test/5")
	bens := b.create(ben, "https://site.test/2")
	require.Equal(t, *shared.JobID, *bens.JobID)
	b.setJob(*begun.JobID, "running")
	b.setJob(*putOff.JobID, "running")
	b.exec(`UPDATE river.river_job SET state = 'scheduled', scheduled_at = now() + interval '1 day' WHERE id = $1`, *putOff.JobID)
	b.setJob(*ended.JobID, "running")
	b.setJob(*ended.JobID, "completed") // none of which the downloads have been told of
	expire := func(now time.Time) int {
		t.Helper()
		n, err := b.worker.ExpireDownloads(t.Context(), &now)
		require.NoError(t, err)
		return n
	}
	require.Zero(t, expire(by.Add(-time.Second)))
	require.Equal(t, 2, expire(by))
	require.Zero(t, expire(by.Add(24*time.Hour)))
	for _, d := range []store.Download{alone, shared} {
		found := b.requireState(d, store.StateCancelled)
		require.Equal(t, "expired", found.FailureReason)
		require.Nil(t, found.StartedAt)
	}
	require.Equal(t, "cancelled", b.jobState(*alone.JobID))
	require.Equal(t, "pending", b.jobState(*shared.JobID), "ben wishes for it")
	b.requireState(bens, store.StateQueued)
	b.requireState(begun, store.StateRunning)
	b.requireState(ended, store.StateCompleted)

	// Tried again, it waits for as long as it takes.
	again, err := b.api.RetryDownload(t.Context(), alone.ID, store.Viewer{UserID: ann.ID})
	require.NoError(t, err)
	require.Equal(t, []any{store.StateQueued, ""}, []any{again.State, again.FailureReason})
	require.Zero(t, expire(by.Add(24*time.Hour)))

	by = time.Now().Add(-time.Second)
	n := wish(ann, "https://site.test/9")
	n.StartBy = &by
	_, _, err = b.api.CreateDownload(t.Context(), n)
	require.ErrorIs(t, err, store.ErrInvalid)
}
