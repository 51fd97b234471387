package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/jobs/guard"
	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// supersede gives the running job a successor, as a reclaim does that takes its worker for dead.
func (b *bundle) supersede(t *testing.T, row int64) {
	t.Helper()
	tag, err := b.owner.Exec(t.Context(), `
		WITH old AS (
			UPDATE river.river_job
			SET state = 'discarded', finalized_at = now(),
				metadata = metadata || jsonb_build_object('superseded_by', nextval('river.river_job_id_seq')::text)
			WHERE id = $1 AND state = 'running'
			RETURNING *, (metadata ->> 'superseded_by')::bigint AS successor
		), new AS (
			INSERT INTO river.river_job (id, args, attempt, created_at, kind, max_attempts, metadata, priority, queue, state)
			SELECT successor, args, attempt - 1, created_at, kind, max_attempts,
				metadata - 'superseded_by' || jsonb_build_object('public_id', id::text, 'losses', 1, 'lost_attempt', attempt),
				priority, queue, 'available'
			FROM old
		)
		INSERT INTO medianest.job_map (public_id, row_id)
		SELECT id, successor
		FROM old`, row)
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())
}

// staged are the contents of the files in staging folders, by their names.
func (b *bundle) staged(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for _, rel := range b.files(t) {
		if strings.HasPrefix(rel, ".medianest/staging/") {
			content, err := os.ReadFile(filepath.Join(b.root, rel))
			require.NoError(t, err)
			found[filepath.Base(rel)] = string(content)
		}
	}
	return found
}

func stop(t *testing.T, client *queue.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, client.Stop(ctx))
}

// A worker that was taken for dead is not: while its successor is at work with a copy of what it has fetched, it goes on
// writing, and then has no say any more.
func TestZombieHasNoEffect(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	begun, awake, published := make(chan string, 1), make(chan struct{}), make(chan struct{})
	var fetches atomic.Int64
	f.fetch = func(_ context.Context, req ytdlp.FetchRequest) error {
		name := filepath.Join(req.Dir, "media.mp4.part")
		if fetches.Add(1) > 1 {
			content, err := os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, "half", string(content))
			close(awake)
			<-published // by then the zombie has written
			content, err = os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, "half", string(content))
			return nil
		}
		file, err := os.Create(name)
		require.NoError(t, err)
		_, err = file.WriteString("half")
		require.NoError(t, err)
		begun <- req.Dir
		<-awake
		_, err = file.WriteString(" and half")
		require.NoError(t, err)
		require.NoError(t, file.Close())
		require.Error(t, os.WriteFile(filepath.Join(req.Dir, "media.mp4.part-Frag1"), nil, 0o600))
		close(published)
		return nil // and fake's Fetch writes a whole film, where there is nothing any more
	}
	b := setup(t, with(f))
	d := b.wish(t, b.user(t, "anna"), "/plain.mp4")
	<-begun
	b.supersede(t, *d.JobID)

	d = b.wait(t, d.ID)
	file := b.requireFile(t, d, "plain.mp4")
	job := b.job(t, d.JobID)
	require.Equal(t, *d.JobID, job.ID)
	require.NotEqual(t, store.JobRow(job.ID), job.Row)
	require.Equal(t, 1, job.Attempt, "a loss costs none")
	stop(t, b.queue)
	b.requireLibrary(t, file.Path)
	for _, p := range b.progress.all() {
		require.Equal(t, *d.JobID, p.JobID, "people know one id only")
	}
}

func (p *progressLog) all() []store.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.reports)
}

// What was fetched is kept for the next attempt if that can be of use, and only then.
func TestWhatIsKept(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	var b *bundle
	var attempts atomic.Int64
	steps := []struct {
		fails error
		finds bool // what the attempt before has left
	}{
		{&reason.Error{Reason: reason.Network}, false},
		{&reason.Error{Reason: reason.RateLimited}, true},
		{fmt.Errorf("run yt-dlp: %w", guard.ErrMissedBeats), true},
		{fmt.Errorf("run yt-dlp: %w", guard.ErrSignalled), true},
		{&reason.Error{Reason: reason.Damaged}, true},
		{errors.New("our own fault"), false},
		{&reason.Error{Reason: reason.Postprocess}, true},
		{fmt.Errorf("commit: %w", store.ErrUnavailable), false},
		{nil, true},
	}
	f.fetch = func(_ context.Context, req ytdlp.FetchRequest) error {
		step := steps[attempts.Add(1)-1]
		name := filepath.Join(req.Dir, "media.mp4.part")
		_, err := os.Stat(name)
		require.Equal(t, step.finds, err == nil, "attempt %d", attempts.Load())
		require.NoError(t, os.WriteFile(name, []byte("half"), 0o600))
		require.Len(t, b.staged(t), 1, "of one generation")
		return step.fails
	}
	b = setup(t, with(f), hurry)
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/plain.mp4").ID)
	file := b.requireFile(t, d, "plain.mp4")
	require.Equal(t, []string{"network", "rate_limited", "", "", "damaged", "internal", "postprocess", "internal", ""}, b.reasons(t, d.JobID))
	require.Equal(t, 6, b.job(t, d.JobID).Attempt, "what its worker could not help costs no attempt, nor what its host wanted")
	b.requireLibrary(t, file.Path)
	require.Empty(t, b.stagedOn(t))
}

func (b *bundle) stagedOn(t *testing.T) string {
	t.Helper()
	var volume string
	require.NoError(t, b.owner.QueryRow(t.Context(), `SELECT staged_on FROM medianest.content`).Scan(&volume))
	return volume
}

// A last attempt that fails, a cancel, a failure for good: nothing is left of what was fetched.
func TestEndedJobsLeaveNothing(t *testing.T) {
	t.Parallel()

	for name, end := range map[string]error{
		"LastAttempt": &reason.Error{Reason: reason.Network},
		"ForGood":     &reason.Error{Reason: reason.GeoBlocked},
		"Cancelled":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			begun := make(chan struct{}, 8)
			f.fetch = func(ctx context.Context, req ytdlp.FetchRequest) error {
				require.NoError(t, os.WriteFile(filepath.Join(req.Dir, "media.mp4.part"), []byte("half"), 0o600))
				begun <- struct{}{}
				if end != nil {
					return end
				}
				<-ctx.Done()
				return ctx.Err()
			}
			b := setup(t, with(f), hurry)
			anna := b.user(t, "anna")
			d := b.wish(t, anna, "/plain.mp4")
			<-begun
			if end == nil {
				_, err := b.api.CancelDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID})
				require.NoError(t, err)
			}
			require.Eventually(t, func() bool { return b.job(t, d.JobID).FinalizedAt != nil }, patience, 5*time.Millisecond)
			b.requireLibrary(t)
			require.Empty(t, b.stagedOn(t))
		})
	}
}

// split is a bundle whose workers see two volumes.
type split struct {
	*bundle

	fake  *fake
	d     store.Download
	found chan []string // the files in the folder of each fetch that begins
	goOn  chan struct{} // closed when the second one may go on
}

func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		if e.Name() != ".boot" { // who writes there
			names = append(names, e.Name())
		}
	}
	return names
}

// Two volumes: what is begun on one is left to its workers for a while, also while there are none.
func TestVolumeAffinity(t *testing.T) {
	t.Parallel()

	// begin fetches half of a film on the first volume, whose only worker stops then.
	begin := func(t *testing.T) *split {
		t.Helper()
		s := &split{fake: newFake(t), found: make(chan []string, 8), goOn: make(chan struct{})}
		var fetches atomic.Int64
		s.fake.fetch = func(ctx context.Context, req ytdlp.FetchRequest) error {
			s.found <- namesIn(t, req.Dir)
			if fetches.Add(1) > 1 {
				<-s.goOn
				return nil
			}
			require.NoError(t, os.WriteFile(filepath.Join(req.Dir, "media.mp4.part"), []byte("half"), 0o600))
			<-ctx.Done()
			return ctx.Err()
		}
		s.bundle = setup(t, with(s.fake))
		s.d = s.wish(t, s.user(t, "anna"), "/plain.mp4")
		require.Empty(t, <-s.found)
		stop(t, s.queue)
		return s
	}
	waiting := func(wait time.Duration) setting {
		return func(deps *jobs.Deps, _ *queue.Options, _ *ytdlp.Options) { deps.StagingWait = wait }
	}
	// refused waits until a worker has put the job off, and asserts that it cost nothing.
	refused := func(t *testing.T, w *split) {
		t.Helper()
		require.Eventually(t, func() bool {
			var refusals int
			err := w.owner.QueryRow(t.Context(), `
				SELECT coalesce((metadata ->> 'snoozes')::int, 0)
				FROM river.river_job
				WHERE id = $1`, *w.d.JobID).Scan(&refusals)
			return err == nil && refusals > 0
		}, patience, 10*time.Millisecond)
		require.Zero(t, w.job(t, w.d.JobID).Attempt)
		for _, r := range w.reasons(t, w.d.JobID) {
			require.Empty(t, r)
		}
	}

	t.Run("WaitsForAWorkerOfTheVolume", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		other := w.another(t, t.TempDir(), "other", with(w.fake), waiting(time.Hour))
		refused(t, w)
		stop(t, other)
		w.another(t, w.root, "third", with(w.fake))
		require.Equal(t, []string{"media.mp4.part"}, <-w.found)
		close(w.goOn)
		file := w.requireFile(t, w.wait(t, w.d.ID), "plain.mp4")
		w.requireLibrary(t, file.Path)
	})

	t.Run("BeginsAnewAfterAWhile", func(t *testing.T) {
		t.Parallel()
		w := begin(t)
		root := t.TempDir()
		w.another(t, root, "other", with(w.fake), waiting(time.Second))
		refused(t, w)
		require.Empty(t, <-w.found)
		w.waitPhase(t, *w.d.JobID, "starting_over")
		close(w.goOn)
		d := w.wait(t, w.d.ID)
		require.Equal(t, store.StateCompleted, d.State, d.FailureDetail)
		require.FileExists(t, filepath.Join(root, d.Files[0].Path))
	})
}
