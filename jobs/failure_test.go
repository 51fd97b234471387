package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// hurry makes the pauses before retries so short that all attempts are over at once.
func hurry(deps *jobs.Deps, _ *queue.Options, _ *ytdlp.Options) { deps.RetryScale = 1e-6 }

func TestFailuresEndAsTheirReasonsSay(t *testing.T) {
	t.Parallel()

	cases := []struct {
		name   string
		err    error
		state  string // of the job
		reason string
		detail string
		// attempts that were made, and those that were spent
		attempts, spent int
	}{
		{"Permanent", &reason.Error{Reason: reason.Gone, Detail: "Removed."}, "cancelled", "gone", "Removed.", 1, 1},
		{"PermanentWithoutDetail", fmt.Errorf("fetch: %w", &reason.Error{Reason: reason.DRM}), "cancelled", "drm", reason.DRM.Sentence(), 1, 1},
		{"Retried", &reason.Error{Reason: reason.Network, Detail: "Reset."}, "discarded", "network", "Reset.", 8, 8},
		{"OurOwnFault", errors.New("a secret"), "discarded", "internal", reason.Internal.Sentence(), 8, 8},
		{"NoSpace", fmt.Errorf("write: %w", syscall.ENOSPC), "scheduled", "disk_full", "", 1, 0},
		{"NotYet", &reason.Error{Reason: reason.Upcoming, RetryAt: time.Now().Add(time.Hour)}, "scheduled", "upcoming", "", 1, 0},
	}
	attempts := make([]atomic.Int64, len(cases))
	f := newFake(t)
	f.fetch = func(_ context.Context, req ytdlp.FetchRequest) error {
		n, err := strconv.Atoi(req.URL[strings.LastIndex(req.URL, "=")+1:])
		require.NoError(t, err)
		attempts[n].Add(1)
		return cases[n].err
	}
	b := setup(t, with(f), hurry)
	anna := b.user(t, "anna")
	t.Cleanup(func() { b.requireLibrary(t) })
	for n, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := b.wish(t, anna, fmt.Sprintf("/plain.mp4?case=%d", n))
			require.Eventually(t, func() bool { return b.job(t, d.JobID).State == c.state }, patience, 10*time.Millisecond)

			job := b.job(t, d.JobID)
			require.EqualValues(t, c.attempts, attempts[n].Load())
			require.Equal(t, c.spent, job.Attempt)
			for _, e := range job.Errors {
				require.NotContains(t, e.Error, "secret")
				require.Contains(t, e.Error, c.reason+": ")
			}
			for _, r := range b.reasons(t, d.JobID) {
				require.Equal(t, c.reason, r)
			}
			if c.state == "scheduled" {
				b.waitState(t, d.ID, store.StateWaiting)
				return
			}
			d = b.wait(t, d.ID)
			require.Equal(t, store.StateFailed, d.State)
			require.Equal(t, c.reason, d.FailureReason)
			require.Equal(t, c.detail, d.FailureDetail)
		})
	}
}

func TestPanicIsOurFault(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	var attempts atomic.Int64
	f.fetch = func(_ context.Context, req ytdlp.FetchRequest) error {
		if attempts.Add(1) == 1 {
			require.NoError(t, os.WriteFile(req.Dir+"/half", nil, 0o600))
			panic("nobody thought of this")
		}
		return nil
	}
	b := setup(t, with(f), hurry)
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/plain.mp4").ID)
	file := b.requireFile(t, d, "plain.mp4")
	require.Equal(t, []string{"internal", ""}, b.reasons(t, d.JobID))
	b.requireLibrary(t, file.Path)
}

func TestRetryRemembersWhatWasFoundOut(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	var attempts atomic.Int64
	var b *bundle
	f.fetch = func(ctx context.Context, req ytdlp.FetchRequest) error {
		require.JSONEq(t, string(film("Film").Info), string(req.Info))
		switch attempts.Add(1) {
		case 1:
			return &reason.Error{Reason: reason.Network}
		case 2: // an hour later, say
			_, err := b.owner.Exec(ctx, `UPDATE medianest.content SET probed_at = now() - interval '4 h'`)
			return errors.Join(err, &reason.Error{Reason: reason.Network})
		}
		return nil
	}
	b = setup(t, with(f), hurry)
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/plain.mp4").ID)
	b.requireFile(t, d, "plain.mp4")
	require.Equal(t, "Film", d.Title)
	require.EqualValues(t, 3, attempts.Load())
	require.EqualValues(t, 2, f.probes.Load(), "once, and once more when that was old")
	require.Equal(t, []string{"network", "network", ""}, b.reasons(t, d.JobID))
}

func TestUnknownProfile(t *testing.T) {
	t.Parallel()

	b := setup(t, with(newFake(t)))
	d, _, err := b.api.CreateDownload(t.Context(), store.NewDownload{
		UserID: b.user(t, "anna").ID, URL: b.siteURL + "/plain.mp4", ContentKey: "odd", Profile: "odd",
	})
	require.NoError(t, err)
	d = b.wait(t, d.ID)
	require.Equal(t, "unsupported_url", d.FailureReason)
	require.Equal(t, `There is no profile "odd".`, d.FailureDetail)
}
