package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/jobs/media"
	"medianest/jobs/queue"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// A job that somebody else has ended, or taken over, while its worker fetched must not bring its result in.
func TestLostJobPublishesNothing(t *testing.T) {
	t.Parallel()

	for name, lose := range map[string]string{
		"Ended":   `UPDATE river.river_job SET state = 'cancelled', finalized_at = now() WHERE id = $1`,
		"Rescued": `UPDATE river.river_job SET attempt = attempt + 1 WHERE id = $1`,
		"Deleted": `DELETE FROM river.river_job WHERE id = $1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			var b *bundle
			jobID := make(chan int64, 1)
			f.fetch = func(ctx context.Context, _ ytdlp.FetchRequest) error {
				select {
				case id := <-jobID:
					_, err := b.owner.Exec(ctx, lose, id)
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			b = setup(t, with(f))
			d := b.wish(t, b.user(t, "anna"), "/plain.mp4")
			jobID <- *d.JobID
			require.Eventually(t, func() bool { return slices.Contains(b.progress.endedJobs(), *d.JobID) }, patience, 5*time.Millisecond)
			if name == "Rescued" {
				require.Len(t, b.staged(t), 1, "whoever has the job goes on with it")
				require.Len(t, b.files(t), 1)
			} else {
				b.requireLibrary(t)
			}
			require.Empty(t, b.find(t, d.ID).Files)
		})
	}
}

func (p *progressLog) endedJobs() []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.cleared)
}

// What was placed for one user goes again if the other's cannot be placed: all or nothing.
func TestPlacedFilesAreTakenBack(t *testing.T) {
	t.Parallel()

	f, m := newFake(t), &meddler{}
	var links atomic.Int64
	var b *bundle
	joined := make(chan struct{})
	f.fetch = func(ctx context.Context, _ ytdlp.FetchRequest) error {
		select {
		case <-joined:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.link = func(context.Context, string) error {
		if links.Add(1) == 1 {
			require.Len(t, b.files(t), 2, "one staged, one placed")
			return errors.New("the media server has the folder locked")
		}
		return nil
	}
	b = setup(t, with(f), withMeddler(m), hurry)
	one := b.wish(t, b.user(t, "anna"), "/plain.mp4")
	other := b.wish(t, b.user(t, "bob"), "/plain.mp4")
	close(joined)
	mine, yours := b.requireFile(t, b.wait(t, one.ID), "plain.mp4"), b.requireFile(t, b.wait(t, other.ID), "plain.mp4")
	require.Equal(t, "anna/Film [f1].mp4", mine.Path)
	require.Equal(t, "bob/Film [f1].mp4", yours.Path)
	b.requireLibrary(t, mine.Path, yours.Path)
	require.Equal(t, []string{"internal", ""}, b.reasons(t, one.JobID))
}

// Hours of fetching are not thrown away because the database is restarted while they are recorded.
func TestPublishWaitsForTheDatabase(t *testing.T) {
	t.Parallel()

	f, m := newFake(t), &meddler{}
	var tries atomic.Int64
	m.publish = func(context.Context, string) error {
		if tries.Add(1) <= 2 {
			return fmt.Errorf("commit: %w", store.ErrUnavailable)
		}
		return nil
	}
	b := setup(t, with(f), withMeddler(m))
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/plain.mp4").ID)
	file := b.requireFile(t, d, "plain.mp4")
	require.Equal(t, 1, b.job(t, d.JobID).Attempt)
	b.requireLibrary(t, file.Path)
}

// Whenever a cancel comes, the download is either cancelled and has left nothing, or completed and has its file.
func TestCancelAtAnyMoment(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	b := setup(t, with(f))
	anna := b.user(t, "anna")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's
	begun := time.Now()
	kept := []string{b.requireFile(t, b.wait(t, b.wish(t, anna, "/plain.mp4").ID), "plain.mp4").Path}
	whole := time.Since(begun)
	outcomes := make(map[string]int)
	for n := range 15 {
		d := b.wish(t, anna, fmt.Sprintf("/plain.mp4?n=%d", n))
		timer := time.NewTimer(time.Duration(random.Int64N(int64(whole))))
		<-timer.C
		_, err := b.api.CancelDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID})
		if err != nil {
			require.ErrorIs(t, err, store.ErrConflict)
		}
		require.Eventually(t, func() bool { return b.job(t, d.JobID).FinalizedAt != nil }, patience, 5*time.Millisecond)
		d = b.wait(t, d.ID)
		outcomes[d.State]++
		switch d.State {
		case store.StateCompleted:
			kept = append(kept, b.requireFile(t, d, "plain.mp4").Path)
		case store.StateCancelled:
			require.Empty(t, d.Files)
		default:
			t.Fatalf("%s: %s", d.State, d.FailureDetail)
		}
	}
	t.Logf("%v", outcomes)
	b.requireLibrary(t, kept...)
}

// An operator can have any job run again. It does no harm.
func TestRunTwice(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	b := setup(t, with(f))
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/plain.mp4").ID)
	file := b.requireFile(t, d, "plain.mp4")
	_, err := b.queue.River().JobRetry(t.Context(), *d.JobID)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		job := b.job(t, d.JobID)
		return job.State == "completed" && job.Attempt == 2
	}, patience, 10*time.Millisecond)
	again := b.requireFile(t, b.wait(t, d.ID), "plain.mp4")
	require.Equal(t, file, again)
	require.EqualValues(t, 1, f.probes.Load())
	b.requireLibrary(t, file.Path)
}

// A job that nobody follows any more fetches nothing.
func TestNobodyWishes(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	begun := make(chan struct{}, 1)
	f.fetch = func(ctx context.Context, _ ytdlp.FetchRequest) error {
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	b := setup(t, with(f))
	anna := b.user(t, "anna")
	d := b.wish(t, anna, "/plain.mp4")
	<-begun
	_, err := b.api.CancelDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return b.job(t, d.JobID).State == "cancelled" }, patience, 10*time.Millisecond)
	_, err = b.queue.River().JobRetry(t.Context(), *d.JobID)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return b.job(t, d.JobID).State == "completed" }, patience, 10*time.Millisecond)
	require.Equal(t, store.StateCancelled, b.find(t, d.ID).State)
	require.EqualValues(t, 1, f.probes.Load())
	b.requireLibrary(t)
}

// A file that somebody took from the library by hand is fetched again for the next who asks.
func TestFileGoneFromTheLibrary(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	b := setup(t, with(f))
	first := b.requireFile(t, b.wait(t, b.wish(t, b.user(t, "anna"), "/plain.mp4").ID), "plain.mp4")
	b.removeByHand(t, first.Path)
	second := b.requireFile(t, b.wait(t, b.wish(t, b.user(t, "bob"), "/plain.mp4").ID), "plain.mp4")
	require.EqualValues(t, 1, f.probes.Load(), "what was found out is still good")
	b.requireLibrary(t, second.Path)

	// Whose file it was can have it again, under the same name.
	anna := b.user(t, "anna2")
	third := b.requireFile(t, b.wait(t, b.wish(t, anna, "/plain.mp4").ID), "plain.mp4")
	b.removeByHand(t, third.Path)
	again := b.requireFile(t, b.wait(t, b.wish(t, anna, "/plain.mp4").ID), "plain.mp4")
	require.Equal(t, third.Path, again.Path)
	b.requireLibrary(t, second.Path, again.Path)
}

// Two addresses of the same film, for the same user: two files, neither taken for the other's.
func TestSameNameTwice(t *testing.T) {
	t.Parallel()

	b := setup(t, with(newFake(t)))
	anna := b.user(t, "anna")
	one := b.requireFile(t, b.wait(t, b.wish(t, anna, "/plain.mp4?n=1").ID), "plain.mp4")
	two := b.requireFile(t, b.wait(t, b.wish(t, anna, "/plain.mp4?n=2").ID), "plain.mp4")
	require.NotEqual(t, one.Path, two.Path)
	b.requireLibrary(t, one.Path, two.Path)
}

// Two addresses of the same film published at the same moment: the library, asked before either is on record, takes
// the one's file for the other's. That one is not removed when this shows.
func TestAnothersFileIsNotTakenBack(t *testing.T) {
	t.Parallel()

	root := t.TempDir()
	var unaware atomic.Bool // asked in the very moment before the other one is on record
	b := setupAt(t, root, with(newFake(t)), hurry, func(deps *jobs.Deps, _ *queue.Options, _ *ytdlp.Options) {
		library, err := media.Open(media.Options{Root: root, FFprobe: tool(t, "ffprobe"), Claimed: func(ctx context.Context, rel string) (bool, error) {
			if unaware.CompareAndSwap(true, false) {
				return false, nil
			}
			return deps.Store.FileRecorded(ctx, rel)
		}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, library.Close()) })
		deps.Library = library
	})
	anna := b.user(t, "anna")
	one := b.requireFile(t, b.wait(t, b.wish(t, anna, "/plain.mp4?n=1").ID), "plain.mp4")
	unaware.Store(true)
	two := b.requireFile(t, b.wait(t, b.wish(t, anna, "/plain.mp4?n=2").ID), "plain.mp4")
	require.False(t, unaware.Load())
	b.requireLibrary(t, one.Path, two.Path)
}
