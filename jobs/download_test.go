package jobs_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/jobs/queue"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// The tests of this file run the real yt-dlp against the sample site, through the real proxy, into a real library.

func TestPlainFilm(t *testing.T) {
	t.Parallel()

	b := setup(t)
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/plain.mp4").ID)
	file := b.requireFile(t, d, "plain.mp4")
	require.True(t, strings.HasPrefix(file.Path, "anna/plain [plain"), file.Path)
	require.Equal(t, "plain", d.Title)
	b.requireLibrary(t, file.Path)

	job := b.job(t, d.JobID)
	require.Equal(t, "completed", job.State)
	require.Equal(t, 1, job.Attempt)
	require.Equal(t, []string{""}, b.reasons(t, d.JobID))
	require.Empty(t, b.processes(t))

	phases := b.progress.phases(*d.JobID)
	require.Equal(t, "probing", phases[0])
	require.Subset(t, phases, []string{"probing", "downloading", "verifying", "publishing"})
	require.Contains(t, b.progress.cleared, *d.JobID)

	// What the job said is there for whoever may see it.
	require.Eventually(t, func() bool { return strings.HasSuffix(b.jobLog(t, *d.JobID), "info It is in the library.") }, patience, 10*time.Millisecond)
	require.Regexp(t, `^info Found “plain” \(generic\), and fetches it\.\ninfo Fetched and found whole: \d+ s, \d+\.\d MB\.\ninfo It is in the library\.$`, b.jobLog(t, *d.JobID))

	// Somebody who comes later gets a link, and the site hears nothing of it.
	b.site.Forget()
	later := b.wait(t, b.wish(t, b.user(t, "bob"), "/plain.mp4").ID)
	linked := b.requireFile(t, later, "plain.mp4")
	require.True(t, strings.HasPrefix(linked.Path, "bob/"))
	require.True(t, sameFile(t, b, file, linked), "the bytes are there once")
	require.Empty(t, b.site.Requests())

	// Each one's path is that one's own.
	require.NoError(t, b.api.DeleteDownload(t.Context(), d.ID, store.Viewer{UserID: d.UserID}))
	require.Eventually(t, func() bool { return len(b.files(t)) == 1 }, patience, 10*time.Millisecond)
	b.requireLibrary(t, linked.Path)

	// And when nobody has it any more, it is fetched again.
	require.NoError(t, b.api.DeleteDownload(t.Context(), later.ID, store.Viewer{UserID: later.UserID}))
	require.Eventually(t, func() bool { return len(b.files(t)) == 0 }, patience, 10*time.Millisecond)
}

// jobLog is the job's log, a line each.
func (b *bundle) jobLog(t *testing.T, job int64) string {
	t.Helper()
	lines, err := b.api.TailLog(t.Context(), job, 0, 200, store.Viewer{Admin: true})
	require.NoError(t, err)
	var said []string
	for _, l := range lines {
		said = append(said, l.Level+" "+l.Text)
	}
	return strings.Join(said, "\n")
}

func sameFile(t *testing.T, b *bundle, one, other store.File) bool {
	t.Helper()
	first, err := os.Stat(filepath.Join(b.root, one.Path))
	require.NoError(t, err)
	second, err := os.Stat(filepath.Join(b.root, other.Path))
	require.NoError(t, err)
	return os.SameFile(first, second)
}

func TestStreamInFragments(t *testing.T) {
	t.Parallel()

	b := setup(t)
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/hls/master.m3u8").ID)
	require.Equal(t, store.StateCompleted, d.State, d.FailureDetail)
	require.Len(t, d.Files, 1)
	require.Equal(t, ".mp4", filepath.Ext(d.Files[0].Path))
	b.requireLibrary(t, d.Files[0].Path)
}

func TestPageOfFilmsBecomesACollection(t *testing.T) {
	t.Parallel()

	b := setup(t)
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/gallery").ID)
	require.Equal(t, store.StateCompleted, d.State, d.FailureDetail)
	require.True(t, d.IsCollection)
	require.Equal(t, "Holiday gallery", d.Title)
	children := b.children(t, d.ID)
	require.Len(t, children, 5)
	var paths []string
	for i, child := range children {
		child = b.find(t, child.ID)
		require.Equal(t, i, child.Position)
		file := b.requireFile(t, child, "item-"+string(rune('1'+i))+".mp4")
		paths = append(paths, file.Path)
	}
	b.requireLibrary(t, paths...)
	require.Empty(t, b.processes(t))
	require.Equal(t, strings.Join([]string{
		"warning yt-dlp: [generic] Falling back on generic information extractor", "info Found the collection “Holiday gallery” of 5.",
	}, "\n"), b.jobLog(t, *d.JobID))
}

// Two users ask for the same at the same time: it is fetched once, and one's cancel is not the other's.
func TestTwoUsersOneFetch(t *testing.T) {
	t.Parallel()

	b := setup(t)
	anna, bob, carl := b.user(t, "anna"), b.user(t, "bob"), b.user(t, "carl")
	// It takes some seconds at this rate.
	const address = "/slow.mp4?rate=40000"
	first, second, third := b.wish(t, anna, address), b.wish(t, bob, address), b.wish(t, carl, address)
	require.Equal(t, first.JobID, second.JobID)
	require.Equal(t, first.JobID, third.JobID)
	b.waitPhase(t, *first.JobID, ytdlp.PhaseDownloading)

	_, err := b.api.CancelDownload(t.Context(), third.ID, store.Viewer{UserID: carl.ID})
	require.NoError(t, err)
	require.Equal(t, store.StateCancelled, b.find(t, third.ID).State)

	mine, yours := b.wait(t, first.ID), b.wait(t, second.ID)
	require.True(t, sameFile(t, b, b.requireFile(t, mine, "plain.mp4"), b.requireFile(t, yours, "plain.mp4")))
	b.requireLibrary(t, mine.Files[0].Path, yours.Files[0].Path)
	require.Equal(t, store.StateCancelled, b.find(t, third.ID).State)

	var bodies int
	size := mine.Files[0].SizeBytes
	for _, r := range b.site.Requests("/slow.mp4") {
		if r.Bytes == size {
			bodies++
		}
	}
	require.Equal(t, 1, bodies, "whole bodies that the site sent")
}

func (b *bundle) waitPhase(t *testing.T, jobID int64, phase string) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, r := range b.progress.of(jobID) {
			if r.Phase == phase {
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond, "never came to %s", phase)
}

// waitBytes waits until yt-dlp fetches.
func (b *bundle) waitBytes(t *testing.T, jobID int64) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, r := range b.progress.of(jobID) {
			if r.DownloadedBytes > 0 {
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond, "never got a byte")
}

func TestCancelOfARunningDownload(t *testing.T) {
	t.Parallel()

	b := setup(t)
	anna := b.user(t, "anna")
	d := b.wish(t, anna, "/big.mp4?mb=20&rate=60000")
	b.waitBytes(t, *d.JobID)
	require.NotEmpty(t, b.processes(t))

	asked := time.Now()
	_, err := b.api.CancelDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID})
	require.NoError(t, err)
	require.Equal(t, store.StateCancelled, b.find(t, d.ID).State, "at once")
	require.Eventually(t, func() bool { return len(b.processes(t)) == 0 }, patience, 5*time.Millisecond)
	t.Logf("no process after %s", time.Since(asked))
	require.Less(t, time.Since(asked), 5*time.Second, "promised: 2 s")
	require.Eventually(t, func() bool { return b.job(t, d.JobID).State == "cancelled" }, patience, 10*time.Millisecond)
	require.Equal(t, []string{"cancelled"}, b.reasons(t, d.JobID))
	b.requireLibrary(t)
	require.Zero(t, b.site.Active())

	// And again: the same wish anew is a job anew.
	again, err := b.api.RetryDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID})
	require.NoError(t, err)
	require.NotEqual(t, d.JobID, again.JobID)
	require.Equal(t, store.StateQueued, again.State)
}

func TestCancelOfAWaitingDownload(t *testing.T) {
	t.Parallel()

	b := setup(t, func(_ *jobs.Deps, options *queue.Options, _ *ytdlp.Options) {
		delete(options.Queues, jobs.QueueDownload)
	})
	anna := b.user(t, "anna")
	d := b.wish(t, anna, "/plain.mp4")
	_, err := b.api.CancelDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID})
	require.NoError(t, err)
	require.Equal(t, "cancelled", b.job(t, d.JobID).State)
	require.Empty(t, b.site.Requests())
}

// As River UI does it: nobody told the store.
func TestCancelOfTheJobReachesTheDownload(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	begun := make(chan struct{})
	f.fetch = func(ctx context.Context, _ ytdlp.FetchRequest) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}
	b := setup(t, with(f))
	d := b.wish(t, b.user(t, "anna"), "/plain.mp4")
	<-begun
	_, err := b.queue.River().JobCancel(t.Context(), *d.JobID)
	require.NoError(t, err)
	require.Equal(t, store.StateCancelled, b.wait(t, d.ID).State)
	b.requireLibrary(t)
}

func TestStopHandsADownloadBack(t *testing.T) {
	t.Parallel()

	b := setup(t)
	d := b.wish(t, b.user(t, "anna"), "/big.mp4?mb=20&rate=60000")
	b.waitBytes(t, *d.JobID)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, b.queue.Stop(ctx))

	require.Empty(t, b.processes(t))
	job := b.job(t, d.JobID)
	require.Contains(t, []string{"pending", "available"}, job.State, "it waits; nobody works, but that is noticed by and by")
	require.Zero(t, job.Attempt)
	require.Empty(t, job.Errors)
	require.Equal(t, []string{""}, b.reasons(t, d.JobID))
	b.waitState(t, d.ID, store.StateQueued)
}

// What people give that cannot be downloaded fails with a reason, leaves nothing, and does so at once where trying again
// is of no use.
func TestBadInput(t *testing.T) {
	t.Parallel()

	b := setup(t)
	anna := b.user(t, "anna")
	for _, c := range []struct{ address, reason string }{
		{"/novideo", "no_media"},
		{"/text.txt", "no_media"},
		{"/empty.rss", "no_media"},
		{"/404", "not_found"},
		{"/redirect?to=http://10.11.12.13/film.mp4", "egress_denied"},
		{"http://192.168.4.5/film.mp4", "egress_denied"},
	} {
		t.Run(c.reason+" "+c.address, func(t *testing.T) {
			t.Parallel()
			d := b.wait(t, b.wish(t, anna, c.address).ID)
			require.Equal(t, store.StateFailed, d.State)
			require.Equal(t, c.reason, d.FailureReason, d.FailureDetail)
			require.NotEmpty(t, d.FailureDetail)
			require.Equal(t, 1, b.job(t, d.JobID).Attempt)
			require.Equal(t, []string{c.reason}, b.reasons(t, d.JobID))
		})
	}
	t.Cleanup(func() {
		b.requireLibrary(t)
		require.Empty(t, b.processes(t))
	})
}

// A host that takes the connection and never answers is a matter of time, and may be better later.
func TestHostThatHangs(t *testing.T) {
	t.Parallel()

	b := setup(t, func(_ *jobs.Deps, _ *queue.Options, runner *ytdlp.Options) {
		runner.SocketTimeout, runner.ProbeTimeout = 500*time.Millisecond, 5*time.Second
	})
	d := b.wish(t, b.user(t, "anna"), "/hang")
	require.Eventually(t, func() bool { return len(b.job(t, d.JobID).Errors) >= 1 }, patience, 20*time.Millisecond)
	require.Equal(t, "timeout", b.reasons(t, d.JobID)[0])
	_, err := b.queue.River().JobCancel(t.Context(), *d.JobID)
	require.NoError(t, err)
	b.wait(t, d.ID)
	require.Empty(t, b.processes(t))
	b.requireLibrary(t)
}

// A film whose connection breaks is tried again until it is whole.
func TestConnectionThatBreaks(t *testing.T) {
	t.Parallel()

	b := setup(t)
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/cut-once.mp4").ID)
	b.requireFile(t, d, "plain.mp4")
}
