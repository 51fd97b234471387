package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

func TestBeginFetch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben, cat := b.user("ann"), b.user("ben"), b.user("cat")
	anns, bens, cats := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a"), b.create(cat, "https://site.test/a")
	_, err := b.api.CancelDownload(ctx, cats.ID, cat.Viewer())
	require.NoError(t, err)
	b.setJob(*anns.JobID, "running")

	f, err := b.worker.BeginFetch(ctx, begin(anns.ContentID, *anns.JobID))
	require.NoError(t, err)
	require.Equal(t, 1, f.Generation)
	require.Equal(t, "https://site.test/a", f.Content.URL)
	require.Nil(t, f.Content.Probe)
	require.Empty(t, f.Files)
	require.Equal(t, []store.Wish{
		{DownloadID: anns.ID, UserID: ann.ID, UserName: "ann"},
		{DownloadID: bens.ID, UserID: ben.ID, UserName: "ben"},
	}, f.Wishes)

	f, err = b.worker.BeginFetch(ctx, begin(anns.ContentID, *anns.JobID))
	require.NoError(t, err)
	require.Equal(t, 2, f.Generation)

	_, err = b.worker.BeginFetch(ctx, begin(uuid.New(), *anns.JobID))
	require.ErrorIs(t, err, store.ErrNotFound)
}

// A job that an operator brings back runs before the outbox's consumer has revived its downloads.
func TestBeginFetchBeforeTheConsumerFollowed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	d := b.create(ann, "https://site.test/a")
	b.end(d, "discarded", store.StateFailed)
	b.setJob(*d.JobID, "running")
	f, err := b.worker.BeginFetch(t.Context(), begin(d.ContentID, *d.JobID))
	require.NoError(t, err)
	require.Len(t, f.Wishes, 1)

	// It is the content's job again.
	b.exec(`UPDATE medianest.content SET job_id = NULL`)
	_, err = b.worker.BeginFetch(t.Context(), begin(d.ContentID, *d.JobID))
	require.NoError(t, err)
	require.Equal(t, d.JobID, b.create(ben, "https://site.test/a").JobID)
}

// A job that an operator brings back while another one fetches the same leaves it to that one, with all who wait.
func TestBeginFetchWhileAnotherJobIsAtIt(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]struct{ state, want string }{
		"Running":   {"running", store.StateRunning},
		"Available": {"available", store.StateQueued},
		"Retryable": {"retryable", store.StateWaiting},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupFollowed(t)
			ann, ben, cat := b.user("ann"), b.user("ben"), b.user("cat")
			list := b.create(ann, "https://site.test/list")
			b.expand(list, entry("https://site.test/a"))
			anns, cats := b.children(list)[0], b.create(cat, "https://site.test/a")
			require.Equal(t, anns.JobID, cats.JobID)
			b.setJob(*anns.JobID, "running")
			_, err := b.api.CancelDownload(t.Context(), cats.ID, cat.Viewer())
			require.NoError(t, err)
			b.setJob(*anns.JobID, "discarded")
			b.requireState(list, store.StateFailed)

			bens := b.create(ben, "https://site.test/a")
			require.NotEqual(t, anns.JobID, bens.JobID)
			b.setJob(*bens.JobID, "running")
			f, err := b.worker.BeginFetch(t.Context(), begin(bens.ContentID, *bens.JobID))
			require.NoError(t, err)
			b.setJob(*bens.JobID, other.state)

			_, err = b.riverQueue().client.JobRetry(t.Context(), *anns.JobID)
			require.NoError(t, err)
			b.setJob(*anns.JobID, "running")
			_, err = b.worker.BeginFetch(t.Context(), begin(anns.ContentID, *anns.JobID))
			require.ErrorIs(t, err, store.ErrOtherJob)
			require.Equal(t, f.Generation, b.count(`SELECT generation FROM medianest.content WHERE id = $1`, anns.ContentID))
			got := b.find(anns)
			require.Equal(t, bens.JobID, got.JobID)
			require.Equal(t, other.want, got.State)
			require.Empty(t, got.FailureReason)
			require.Equal(t, store.StateRunning, b.find(list).State)
			require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.job_viewer WHERE job_id = $1 AND download_id = $2`, *bens.JobID, anns.ID))

			b.setJob(*anns.JobID, "cancelled")
			b.requireState(anns, other.want)
			b.fetch(bens, "a.mp4")
			require.Len(t, b.requireState(anns, store.StateCompleted).Files, 1)
			b.requireState(list, store.StateCompleted)
			require.Empty(t, b.requireState(cats, store.StateCancelled).Files)
		})
	}
}

// Who was told that a job ends for all is not moved out of its way.
func TestBeginFetchOfAJobThatAnAdminCancelled(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	anns := b.create(b.user("ann"), "https://site.test/a")
	b.setJob(*anns.JobID, "running")
	_, err := b.api.CancelJob(t.Context(), *anns.JobID, store.Viewer{Admin: true})
	require.NoError(t, err)
	bens := b.create(b.user("ben"), "https://site.test/a")
	require.NotEqual(t, anns.JobID, bens.JobID)
	_, err = b.worker.BeginFetch(t.Context(), begin(anns.ContentID, *anns.JobID))
	require.ErrorIs(t, err, store.ErrOtherJob)
	b.setJob(*anns.JobID, "cancelled")
	b.requireState(anns, store.StateCancelled)
	b.requireState(bens, store.StateQueued)
}

// One that is about to end is no reason to leave it.
func TestBeginFetchWhileAnotherJobDies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	anns := b.create(ann, "https://site.test/a")
	b.end(anns, "discarded", store.StateFailed)
	bens := b.create(ben, "https://site.test/a")
	b.setJob(*bens.JobID, "running")
	_, err := b.api.CancelDownload(t.Context(), bens.ID, ben.Viewer())
	require.NoError(t, err)
	require.True(t, b.cancelAsked(*bens.JobID))
	b.setJob(*anns.JobID, "running")
	f, err := b.worker.BeginFetch(t.Context(), begin(anns.ContentID, *anns.JobID))
	require.NoError(t, err)
	require.Len(t, f.Wishes, 1)
	require.Equal(t, anns.JobID, f.Content.JobID)
}

func TestSaveProbe(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	d := b.create(ann, "https://site.test/a")
	b.setJob(*d.JobID, "running")
	require.NoError(t, b.worker.SaveProbe(ctx, d.ContentID, 0, store.ProbeResult{
		Extractor: "generic\x00", ExtractorID: "42", Title: "Tit\x00le \xff" + strings.Repeat("é", 2000),
		Info: json.RawMessage(`{"title": "a\u0000b", "half": "\ud800", "pair": "\ud83d\ude00", "path": "C:\\u0000", "n": 12345678901234567890}`),
	}))
	got := b.find(d)
	require.True(t, strings.HasPrefix(got.Title, "Title \uFFFDé"), got.Title)
	require.LessOrEqual(t, len(got.Title), 1024)

	f, err := b.worker.BeginFetch(ctx, begin(d.ContentID, *d.JobID))
	require.NoError(t, err)
	require.Equal(t, "generic", f.Content.Extractor)
	require.Equal(t, "42", f.Content.ExtractorID)
	require.NotNil(t, f.Content.ProbedAt)
	require.JSONEq(t, `{"title": "ab", "half": "\ufffd", "pair": "😀", "path": "C:\\u0000", "n": 12345678901234567890}`, string(f.Content.Probe))
	require.Contains(t, string(f.Content.Probe), "12345678901234567890")

	// Who joins later gets the title at once; who has the file keeps the file's.
	require.Equal(t, got.Title, b.create(ben, "https://site.test/a").Title)
	b.setState(d, store.StateCompleted)
	require.NoError(t, b.worker.SaveProbe(ctx, d.ContentID, 1, store.ProbeResult{Title: "Another", Info: json.RawMessage(`{}`)}))
	require.Equal(t, got.Title, b.find(d).Title)

	require.ErrorIs(t, b.worker.SaveProbe(ctx, uuid.New(), 1, store.ProbeResult{Info: json.RawMessage(`{}`)}), store.ErrSuperseded)
	require.ErrorIs(t, b.worker.SaveProbe(ctx, d.ContentID, 1, store.ProbeResult{Info: json.RawMessage(`{`)}), store.ErrInvalid)

	require.NoError(t, b.worker.SaveFailure(ctx, d.ContentID, 1, "It broke.\x00"))
	f, err = b.worker.BeginFetch(ctx, begin(d.ContentID, *d.JobID))
	require.NoError(t, err)
	require.Equal(t, "It broke.", f.Content.FailureDetail)
	require.ErrorIs(t, b.worker.SaveFailure(ctx, uuid.New(), 1, ""), store.ErrSuperseded)
}

func TestPublish(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	anns, bens := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a")
	b.fetch(anns, "a.mp4")
	require.Equal(t, "completed", b.jobState(*anns.JobID))
	for _, d := range []store.Download{anns, bens} {
		require.Len(t, b.find(d).Files, 1)
		require.Equal(t, store.StateQueued, b.find(d).State, "the state follows the outbox")
	}

	// Another user, later: a job, but the file is there already.
	cat := b.user("cat")
	cats := b.create(cat, "https://site.test/a")
	b.setJob(*cats.JobID, "running")
	f, err := b.worker.BeginFetch(ctx, begin(cats.ContentID, *cats.JobID))
	require.NoError(t, err)
	require.Len(t, f.Files, 2)
	require.Len(t, f.Wishes, 1)
	require.NoError(t, b.worker.Publish(ctx, cats.ContentID, rowOf(cats), linkFor("a.mp4"), completeJob(*cats.JobID)))
	require.Equal(t, "cat/a.mp4", b.find(cats).Files[0].Path)
}

// Two films of the same name and the same bytes are published for the same user at once: the second looks into the folder
// when the first is on record, and so does who takes back what failed.
func TestPublishForTheSameUserAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	first, second := b.create(ann, "https://site.test/a"), b.create(ann, "https://site.test/b")
	b.setJob(*first.JobID, "running")
	b.setJob(*second.JobID, "running")
	placed, record := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 2)
	go func() {
		ended <- b.worker.Publish(t.Context(), first.ContentID, rowOf(first), func(ctx context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
			close(placed)
			<-record
			return linkFor("film.mp4")(ctx, wishes, existing)
		}, completeJob(*first.JobID))
	}()
	<-placed
	go func() {
		ended <- b.worker.Publish(t.Context(), second.ContentID, rowOf(second), func(ctx context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
			recorded, err := b.worker.FileRecorded(ctx, "ann/film.mp4")
			if err != nil || !recorded {
				return nil, fmt.Errorf("the first one's file is on record: %t, %w", recorded, err)
			}
			return linkFor("film (2).mp4")(ctx, wishes, existing)
		}, completeJob(*second.JobID))
	}()
	var removed []string
	go func() {
		files := []store.File{{UserID: ann.ID, Path: "ann/film.mp4"}, {UserID: ann.ID, Path: "ann/another.mp4"}}
		ended <- b.worker.RemoveUnrecorded(t.Context(), files, func(path string) error {
			removed = append(removed, path)
			return nil
		})
	}()
	require.Eventually(t, func() bool {
		return b.count(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 2
	}, 30*time.Second, 5*time.Millisecond)
	close(record)
	require.NoError(t, <-ended)
	require.NoError(t, <-ended)
	require.NoError(t, <-ended)
	require.Equal(t, "ann/film.mp4", b.find(first).Files[0].Path)
	require.Equal(t, "ann/film (2).mp4", b.find(second).Files[0].Path)
	require.Equal(t, []string{"ann/another.mp4"}, removed, "what is not on record, when it was known what is")
}

// A page that listed items has become a film: who asks for it again gets the film.
func TestPublishWhatWasACollection(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ann, ben := b.user("ann"), b.user("ben")
	bare, full := b.create(ann, "https://site.test/list"), b.create(ben, "https://site.test/list")
	b.expand(bare, entry("https://site.test/1"))
	child := b.children(bare)[0]
	b.setJob(*child.JobID, "discarded")
	b.requireState(bare, store.StateFailed)
	b.requireState(full, store.StateFailed)
	require.NoError(t, b.api.DeleteDownload(t.Context(), child.ID, ann.Viewer()))

	again, err := b.api.RetryDownload(t.Context(), bare.ID, ann.Viewer())
	require.NoError(t, err)
	require.True(t, again.IsCollection)
	_, err = b.api.RetryDownload(t.Context(), full.ID, ben.Viewer())
	require.NoError(t, err)
	b.fetch(again, "film.mp4")
	bare = b.requireState(bare, store.StateCompleted)
	require.False(t, bare.IsCollection)
	require.Nil(t, bare.Children)
	require.Len(t, bare.Files, 1)

	// Who still has the items keeps them, and what became of them; the film is theirs besides.
	full = b.requireState(full, store.StateFailed)
	require.True(t, full.IsCollection)
	require.Equal(t, "children_failed", full.FailureReason)
	require.Len(t, full.Files, 1)
}

func TestPublishGivesEachUserOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	alone := b.create(ann, "https://site.test/1")
	list := b.create(ann, "https://site.test/list")
	b.expand(list, entry("https://site.test/1"), entry("https://site.test/2"))
	b.setJob(*alone.JobID, "running")
	wishes, err := b.worker.Wishes(t.Context(), alone.ContentID, *alone.JobID)
	require.NoError(t, err)
	require.Len(t, wishes, 2)
	require.NoError(t, b.worker.Publish(t.Context(), alone.ContentID, rowOf(alone),
		func(ctx context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
			require.Len(t, wishes, 1)
			return linkFor("1.mp4")(ctx, wishes, existing)
		}, completeJob(*alone.JobID)))
	require.Len(t, b.find(alone).Files, 1)
	require.Len(t, b.children(list)[0].Files, 1)
}

func TestPublishOfAJobThatDoesNotRunAnyMore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.create(b.user("ann"), "https://site.test/a")
	link := func(context.Context, []store.Wish, []store.File) ([]store.File, error) {
		return nil, errors.New("linked")
	}
	for _, state := range []string{"available", "cancelled", "retryable", "discarded", "completed"} {
		b.setJob(*d.JobID, state)
		require.ErrorIs(t, b.worker.Publish(t.Context(), d.ContentID, rowOf(d), link, completeJob(*d.JobID)), store.ErrSuperseded)
		require.ErrorIs(t, b.worker.Expand(t.Context(), d.ContentID, rowOf(d), []store.NewEntry{entry("https://site.test/1")}, "", completeJob(*d.JobID)), store.ErrSuperseded)
	}
	require.ErrorIs(t, b.worker.Publish(t.Context(), d.ContentID, 1<<40, link, completeJob(*d.JobID)), store.ErrSuperseded)
	require.ErrorIs(t, b.worker.Publish(t.Context(), uuid.New(), rowOf(d), link, completeJob(*d.JobID)), store.ErrNotFound)
}

func TestPublishWithoutAWishOnlyCompletes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/a")
	b.setJob(*d.JobID, "running")
	_, err := b.api.CancelDownload(t.Context(), d.ID, ann.Viewer())
	require.NoError(t, err)
	require.NoError(t, b.worker.Publish(t.Context(), d.ContentID, rowOf(d), func(context.Context, []store.Wish, []store.File) ([]store.File, error) {
		return nil, errors.New("linked")
	}, completeJob(*d.JobID)))
	require.Equal(t, "completed", b.jobState(*d.JobID))
}

func TestFailedPublishLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/a")
	b.setJob(*d.JobID, "running")
	boom := errors.New("boom")

	require.ErrorIs(t, b.worker.Publish(ctx, d.ContentID, rowOf(d),
		func(context.Context, []store.Wish, []store.File) ([]store.File, error) { return nil, boom }, completeJob(*d.JobID)), boom)
	require.ErrorIs(t, b.worker.Publish(ctx, d.ContentID, rowOf(d), linkFor("a.mp4"),
		func(context.Context, pgx.Tx) error { return boom }), boom)
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.files`))
	require.Equal(t, "running", b.jobState(*d.JobID))

	// The path is another's.
	other := b.create(ann, "https://site.test/b")
	b.fetch(other, "taken.mp4")
	require.ErrorIs(t, b.worker.Publish(ctx, d.ContentID, rowOf(d), linkFor("taken.mp4"), completeJob(*d.JobID)), store.ErrConflict)
}

// Who wishes while the files are linked waits, and gets a job of its own: the one at work has counted its wishes.
func TestJoinDuringPublish(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	d := b.create(ann, "https://site.test/a")
	b.setJob(*d.JobID, "running")

	type result struct {
		d   store.Download
		err error
	}
	joined := make(chan result, 1)
	require.NoError(t, b.worker.Publish(ctx, d.ContentID, rowOf(d), func(ctx context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
		require.Len(t, wishes, 1)
		go func() {
			d, _, err := b.api.CreateDownload(t.Context(), wish(ben, "https://site.test/a"))
			joined <- result{d, err}
		}()
		b.waitForLockWaiter()
		return linkFor("a.mp4")(ctx, wishes, existing)
	}, completeJob(*d.JobID)))
	got := <-joined
	require.NoError(t, got.err)
	require.NotEqual(t, *d.JobID, *got.d.JobID)
}

// A file that its owner tidied away by hand is fetched again, maybe under another name.
func TestPublishReplacesTheUsersFile(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	d := b.create(ann, "https://site.test/a")
	b.create(ben, "https://site.test/a")
	b.fetch(d, "before.mp4")
	b.setState(d, store.StateCompleted)
	d, err := b.api.RetryDownload(t.Context(), d.ID, ann.Viewer())
	require.NoError(t, err)
	b.setJob(*d.JobID, "running")
	require.NoError(t, b.worker.Publish(t.Context(), d.ContentID, rowOf(d),
		func(ctx context.Context, wishes []store.Wish, _ []store.File) ([]store.File, error) {
			return linkFor("after.mp4")(ctx, wishes, nil)
		}, completeJob(*d.JobID)))
	files := b.find(d).Files
	require.Len(t, files, 1)
	require.Equal(t, "ann/after.mp4", files[0].Path)
	files, err = b.worker.FilesOf(t.Context(), ben.ID, d.ContentID)
	require.NoError(t, err)
	require.Len(t, files, 1, "another user's was forgotten")
}

// Linking may take longer than a transaction may be idle, as copying does where links are refused.
func TestPublishTakesItsTime(t *testing.T) {
	t.Parallel()
	url := storetest.DB(t)
	pool := storetest.OpenPool(t, url, "")
	impatient, err := store.OpenPool(t.Context(), store.PoolOptions{
		URL: url + "&idle_in_transaction_session_timeout=300ms", Role: store.RoleWorker,
	})
	require.NoError(t, err)
	t.Cleanup(impatient.Close)
	q := newRiverQueue(t, pool)
	b := &bundle{t: t, pool: pool, api: store.New(pool).WithQueue(q), worker: store.New(impatient).WithQueue(q)}
	d := b.create(b.user("ann"), "https://site.test/a")
	b.setJob(*d.JobID, "running")

	slow := func(ctx context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
			return linkFor("a.mp4")(ctx, wishes, existing)
		}
	}
	// Its connection is cut: it is told, and nothing is written.
	err = b.worker.Publish(t.Context(), d.ContentID, rowOf(d), func(ctx context.Context, _ []store.Wish, _ []store.File) ([]store.File, error) {
		b.exec(`SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a WHERE a.datname = current_database() AND a.state = 'idle in transaction'`)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Second):
			return nil, errors.New("not told")
		}
	}, completeJob(*d.JobID))
	require.ErrorIs(t, err, store.ErrUnavailable)
	require.Equal(t, "running", b.jobState(*d.JobID))

	require.NoError(t, b.worker.Publish(t.Context(), d.ContentID, rowOf(d), slow, completeJob(*d.JobID)))
	require.Len(t, b.find(d).Files, 1)
}
