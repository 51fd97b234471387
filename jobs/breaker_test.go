package jobs_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// quickLadder has breakers wait for milliseconds.
func quickLadder(_ *jobs.Deps, options *queue.Options, _ *ytdlp.Options) { options.RetryScale = 1e-4 }

// anotherHost is an address that is another host for limits. The fake extractor does not ask it.
const anotherHost = "http://127.0.0.2:1/plain.mp4"

// bySQL changes the database behind everybody's back.
func (b *bundle) bySQL(t *testing.T, statement string) {
	t.Helper()
	_, err := b.owner.Exec(t.Context(), statement)
	require.NoError(t, err)
}

func (b *bundle) breakers(t *testing.T) []store.Breaker {
	t.Helper()
	list, _, err := b.api.ListBreakers(t.Context(), "", 0)
	require.NoError(t, err)
	return list
}

// A host that has had enough is left alone as a whole: its jobs wait without an attempt spent, one at a time asks, and
// when that one is let in all of them are. Another host is not held up.
func TestHostIsLeftAlone(t *testing.T) {
	t.Parallel()

	const downloads, refusals = 4, 5
	var asked, atATime, most atomic.Int64
	f := newFake(t)
	f.fetch = func(_ context.Context, req ytdlp.FetchRequest) error {
		if req.URL == anotherHost {
			return nil
		}
		n := asked.Add(1)
		if n > downloads && n <= downloads+refusals { // those that ran when it tripped are done
			most.Store(max(most.Load(), atATime.Add(1)))
			defer atATime.Add(-1)
		}
		if n <= downloads+refusals {
			return &reason.Error{Reason: reason.RateLimited, Detail: "HTTP Error 429: Too Many Requests"}
		}
		return nil
	}
	b := setup(t, with(f), quickLadder)
	anna := b.user(t, "anna")
	b.bySQL(t, `DELETE FROM medianest.limits`)
	wishes := make([]store.Download, downloads)
	for n := range wishes {
		wishes[n] = b.wish(t, anna, fmt.Sprintf("/plain.mp4?n=%d", n))
	}
	require.Eventually(t, func() bool { return len(b.breakers(t)) == 1 }, patience, 5*time.Millisecond)
	require.Equal(t, "rate_limited", b.breakers(t)[0].Reason)
	require.Equal(t, store.StateCompleted, b.wait(t, b.wish(t, anna, anotherHost).ID).State)

	refused := 0
	for _, d := range wishes {
		d = b.wait(t, d.ID)
		require.Equal(t, store.StateCompleted, d.State)
		require.Equal(t, 1, b.job(t, d.JobID).Attempt)
		reasons := b.reasons(t, d.JobID)
		require.Empty(t, reasons[len(reasons)-1])
		for _, r := range reasons[:len(reasons)-1] {
			require.Equal(t, "rate_limited", r)
			refused++
		}
	}
	require.Equal(t, downloads+refusals, refused)
	require.EqualValues(t, 2*downloads+refusals, asked.Load())
	require.EqualValues(t, 1, most.Load())
	require.Empty(t, b.breakers(t))
}

// What waits for its host says so, and until when.
func TestParkedDownloadSaysWhy(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	retryAt := time.Now().Add(time.Hour)
	f.probe = func(context.Context, ytdlp.ProbeRequest) (ytdlp.Probe, error) {
		return ytdlp.Probe{}, &reason.Error{Reason: reason.BotCheck, RetryAt: retryAt}
	}
	b := setup(t, with(f))
	anna := b.user(t, "anna")
	d := b.wish(t, anna, "/plain.mp4")
	require.Eventually(t, func() bool { return b.find(t, d.ID).WaitingOn == store.WaitingOnBreaker }, patience, 10*time.Millisecond)
	d = b.waitState(t, d.ID, store.StateWaiting)
	require.WithinDuration(t, retryAt, *d.NextTryAt, time.Minute)
	require.Equal(t, "host:127.0.0.1", d.Waiting.Key)
	require.Equal(t, store.WaitsForBreaker, d.Waiting.Reason)
	job := b.job(t, d.JobID)
	require.Equal(t, []any{"pending", 0, "bot_check"}, []any{job.State, job.Attempt, job.Reason})
	require.EqualValues(t, 1, f.probes.Load())

	// Parked for ever it is not. When its turn comes in the second month, that is the last one.
	b.bySQL(t, `UPDATE river.river_job SET created_at = now() - interval '31 d'`)
	require.NoError(t, b.api.ResetBreaker(t.Context(), "host:127.0.0.1"))
	d = b.wait(t, d.ID)
	require.Equal(t, []string{store.StateFailed, "bot_check"}, []string{d.State, d.FailureReason})
	require.Len(t, b.breakers(t), 1, "the host wants to be left alone, whatever becomes of the job")
}

// Where a breaker cannot be tripped, each job of the host is tried again by itself, and none is lost.
func TestBreakerThatCannotTrip(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	f.fetch = func(_ context.Context, req ytdlp.FetchRequest) error {
		if strings.Contains(req.URL, "refused") {
			return &reason.Error{Reason: reason.RateLimited}
		}
		return nil
	}
	b := setup(t, with(f), hurry)
	b.bySQL(t, `REVOKE INSERT ON medianest.breaker FROM medianest_river`)
	anna := b.user(t, "anna")
	d := b.wait(t, b.wish(t, anna, "/plain.mp4?refused").ID)
	require.Equal(t, []string{store.StateFailed, "rate_limited", reason.RateLimited.Sentence()}, []string{d.State, d.FailureReason, d.FailureDetail})
	job := b.job(t, d.JobID)
	require.Equal(t, []any{"discarded", 8}, []any{job.State, job.Attempt})
	for _, e := range job.Errors {
		require.NotContains(t, e.Error, "breaker", "what went wrong here is for the log")
	}
	require.Equal(t, store.StateCompleted, b.wait(t, b.wish(t, anna, "/plain.mp4").ID).State)
}
