package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

func TestFindJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben, cat := b.user("ann"), b.user("ben"), b.user("cat")
	anns, bens := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a")
	b.exec(`
		UPDATE river.river_job
		SET state = 'retryable', attempt = 2, attempted_at = now(), attempted_by = '{w1,w2}',
			metadata = '{"reason": "network", "reason_attempt": "2"}',
			errors = ARRAY[
				'{"at": "2026-01-02T03:04:05Z", "attempt": 1, "error": "first", "trace": ""}',
				'{"at": "2026-01-02T03:05:05Z", "attempt": 2, "error": "second", "trace": "stack"}']::jsonb[]`)

	job, err := b.api.FindJob(ctx, *anns.JobID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, "download", job.Kind)
	require.Equal(t, "download", job.Queue)
	require.Equal(t, "retryable", job.State)
	require.Equal(t, 2, job.Attempt)
	require.Equal(t, 8, job.MaxAttempts)
	require.Equal(t, []string{"w1", "w2"}, job.AttemptedBy)
	require.Equal(t, "network", job.Reason)
	require.Len(t, job.Errors, 2)
	require.Equal(t, "second", job.Errors[1].Error)
	require.Equal(t, 2, job.Errors[1].Attempt)
	require.Equal(t, 2026, job.Errors[1].At.Year())
	require.Equal(t, []uuid.UUID{anns.ID}, job.DownloadIDs, "of others' downloads nothing is told")

	job, err = b.api.FindJob(ctx, *anns.JobID, store.Viewer{Admin: true})
	require.NoError(t, err)
	require.Equal(t, []uuid.UUID{anns.ID, bens.ID}, job.DownloadIDs)

	for _, v := range []store.Viewer{cat.Viewer(), {}} {
		_, err = b.api.FindJob(ctx, *anns.JobID, v)
		require.ErrorIs(t, err, store.ErrNotFound)
		_, err = b.api.CancelJob(ctx, *anns.JobID, v)
		require.ErrorIs(t, err, store.ErrNotFound)
		_, err = b.api.RetryJob(ctx, *anns.JobID, v)
		require.ErrorIs(t, err, store.ErrNotFound)
	}
	_, err = b.api.FindJob(ctx, 1<<40, store.Viewer{Admin: true})
	require.ErrorIs(t, err, store.ErrNotFound)

	// An older attempt's reason is not passed off as this one's.
	b.exec(`UPDATE river.river_job SET attempt = 4`)
	job, err = b.api.FindJob(ctx, *anns.JobID, ann.Viewer())
	require.NoError(t, err)
	require.Empty(t, job.Reason)
}

func TestListJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	var anns []int64
	for i := range 7 {
		d := b.create(ann, fmt.Sprintf("https://site.test/%d", i))
		anns = append(anns, *d.JobID)
		if i%2 == 0 {
			b.setJob(*d.JobID, "running")
			b.exec(`UPDATE river.river_job SET errors = ARRAY['{"attempt": 1, "error": "first"}', '{"attempt": 2, "error": "last"}']::jsonb[] WHERE id = $1`, *d.JobID)
		}
	}
	b.create(ann, "https://site.test/list")
	bens := b.create(ben, "https://site.test/6")
	// Several of one user's downloads follow a job: it is listed once.
	list := b.create(ben, "https://site.test/other-list")
	b.expand(list, entry("https://site.test/6"), entry("https://site.test/5"))
	slices.Reverse(anns)

	walk := func(f store.JobFilter) (ids []int64) {
		for {
			page, next, err := b.api.ListJobs(t.Context(), f)
			require.NoError(t, err)
			require.LessOrEqual(t, len(page), f.Limit)
			for _, j := range page {
				ids = append(ids, j.ID)
				if j.State == "running" && j.ID != *list.JobID {
					require.Len(t, j.Errors, 1)
					require.Equal(t, "last", j.Errors[0].Error)
				}
			}
			if next == "" {
				return ids
			}
			f.Cursor = next
		}
	}
	for _, limit := range []int{1, 3, 200} {
		require.Equal(t, anns, walk(store.JobFilter{Viewer: ann.Viewer(), Limit: limit})[1:])
		require.Equal(t, []int64{*list.JobID, *bens.JobID, anns[1]}, walk(store.JobFilter{Viewer: ben.Viewer(), Limit: limit}))
		require.Len(t, walk(store.JobFilter{Viewer: store.Viewer{Admin: true}, Limit: limit}), 9)
		require.Empty(t, walk(store.JobFilter{Limit: limit}))
		require.Equal(t, []int64{anns[0], anns[2], anns[4], anns[6]}, walk(store.JobFilter{Viewer: ann.Viewer(), States: []string{"running"}, Limit: limit}))
		require.Len(t, walk(store.JobFilter{
			Viewer: store.Viewer{Admin: true}, States: []string{"running", "completed"}, Kinds: []string{"download"}, Queues: []string{"download", "other"}, Limit: limit,
		}), 5)
		require.Empty(t, walk(store.JobFilter{Viewer: store.Viewer{Admin: true}, Kinds: []string{"remove_files"}, Limit: limit}))
	}
}

func TestCancelJobIsTheViewersOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	anns, bens := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a")

	job, err := b.api.CancelJob(ctx, *anns.JobID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, "pending", job.State, "another user wishes for it")
	require.Equal(t, store.StateCancelled, b.find(anns).State)
	require.Equal(t, store.StateQueued, b.find(bens).State)
	_, err = b.api.CancelJob(ctx, *anns.JobID, ann.Viewer())
	require.ErrorIs(t, err, store.ErrConflict)

	job, err = b.api.CancelJob(ctx, *anns.JobID, ben.Viewer())
	require.NoError(t, err)
	require.Equal(t, "cancelled", job.State)
	_, err = b.api.CancelJob(ctx, *anns.JobID, ben.Viewer())
	require.ErrorIs(t, err, store.ErrConflict)
}

func TestCancelJobByAnAdminIsForAll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	admin := store.Viewer{Admin: true}
	d := b.create(b.user("ann"), "https://site.test/a")
	b.setJob(*d.JobID, "running")
	for range 2 {
		job, err := b.api.CancelJob(ctx, *d.JobID, admin)
		require.NoError(t, err)
		require.Equal(t, "running", job.State)
		require.True(t, job.CancelAsked)
	}
	require.Equal(t, store.StateQueued, b.find(d).State, "it follows the outbox")
	b.setJob(*d.JobID, "cancelled")
	_, err := b.api.CancelJob(ctx, *d.JobID, admin)
	require.ErrorIs(t, err, store.ErrConflict)

	var id int64
	require.NoError(t, b.pool.QueryRow(ctx, `INSERT INTO river.river_job (kind, args, max_attempts) VALUES ('other', '{"content_id": 7}', 3) RETURNING id`).Scan(&id))
	job, err := b.api.CancelJob(ctx, id, admin)
	require.NoError(t, err)
	require.Equal(t, "cancelled", job.State)
	job, err = b.api.RetryJob(ctx, id, admin)
	require.NoError(t, err)
	require.Equal(t, "available", job.State)
}

func TestRetryJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	anns, bens := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a")
	for _, state := range []string{"running", "completed", "available"} {
		b.setJob(*anns.JobID, state)
		_, err := b.api.RetryJob(ctx, *anns.JobID, ann.Viewer())
		require.ErrorIs(t, err, store.ErrConflict, state)
	}
	b.setJob(*anns.JobID, "available")
	_, err := b.api.CancelDownload(ctx, bens.ID, ben.Viewer())
	require.NoError(t, err)

	// Failed for the one, cancelled by the other.
	b.end(anns, "discarded", store.StateFailed)
	job, err := b.api.RetryJob(ctx, *anns.JobID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, "pending", job.State)
	followers := func() []store.Wish {
		wishes, err := b.worker.Wishes(ctx, anns.ContentID, *anns.JobID)
		require.NoError(t, err)
		return wishes
	}
	require.Len(t, followers(), 1, "a cancelled download came back by another's retry")

	b.end(anns, "discarded", store.StateFailed)
	_, err = b.api.RetryJob(ctx, *anns.JobID, ben.Viewer())
	require.NoError(t, err)
	require.Len(t, followers(), 2)
}

func TestRetryJobThatNobodyWishesFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/a")
	_, err := b.api.CancelDownload(t.Context(), d.ID, ann.Viewer())
	require.NoError(t, err)
	_, err = b.api.RetryJob(t.Context(), *d.JobID, store.Viewer{Admin: true})
	require.ErrorIs(t, err, store.ErrConflict)
	require.Equal(t, "cancelled", b.jobState(*d.JobID))

	_, err = b.api.RetryJob(t.Context(), *d.JobID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, "pending", b.jobState(*d.JobID))
}

func TestRetryJobThatAnotherFollowed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben, cat := b.user("ann"), b.user("ben"), b.user("cat")
	d := b.create(ann, "https://site.test/a")
	b.end(d, "discarded", store.StateFailed)
	bens := b.create(ben, "https://site.test/a")
	_, err := b.api.RetryJob(t.Context(), *d.JobID, ann.Viewer())
	require.ErrorIs(t, err, store.ErrConflict)

	b.end(bens, "completed", store.StateCompleted)
	_, err = b.api.RetryJob(t.Context(), *d.JobID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, d.JobID, b.create(cat, "https://site.test/a").JobID, "it is the content's job again")
}
