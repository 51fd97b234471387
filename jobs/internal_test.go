package jobs

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

func TestPausesBeforeRetries(t *testing.T) {
	t.Parallel()

	w := &DownloadWorker{retryScale: 1}
	for attempt, want := range map[int]time.Duration{
		1: 10 * time.Second, 2: 30 * time.Second, 3: 2 * time.Minute, 7: 3 * time.Hour, 8: 6 * time.Hour, 30: 6 * time.Hour, 0: 10 * time.Second,
	} {
		job := &river.Job[DownloadArgs]{JobRow: &rivertype.JobRow{Attempt: attempt}}
		for range 50 {
			pause := time.Until(w.NextRetry(job)).Seconds()
			require.InEpsilon(t, want.Seconds(), pause, retryJitter+0.01, "attempt %d", attempt)
		}
	}
	require.Less(t, downloadTimeout, queue.DefaultRescueAfter, "River would take slow workers for dead")
	require.GreaterOrEqual(t, len(retryPauses), DownloadArgs{}.InsertOpts().MaxAttempts-1)
}

// A job that names no host has no breaker to wait for.
func TestHostRefusesAJobWithoutHost(t *testing.T) {
	t.Parallel()

	refused := &reason.Error{Reason: reason.RateLimited}
	for _, metadata := range []string{``, `{}`, `{"keys": []}`, `{"keys": ["user:1"]}`, `{"keys": "host:a"}`, `{"keys": 7}`} {
		job := &rivertype.JobRow{CreatedAt: time.Now(), Metadata: []byte(metadata)}
		require.Equal(t, error(refused), classify(t.Context(), job, refused), metadata)
	}
	// Nor has one a breaker that is not worked by this platform's client: it is tried again.
	job := &rivertype.JobRow{CreatedAt: time.Now(), Metadata: []byte(`{"keys": ["user:1", "host:a"]}`)}
	err := classify(t.Context(), job, refused)
	require.Equal(t, refused, reason.Find(err))
	require.ErrorContains(t, err, "trip the breaker of host:a")
	var snooze *river.JobSnoozeError
	require.NotErrorAs(t, err, &snooze)
}

// slowSink takes half a second for each report.
type slowSink struct {
	got   []store.Progress
	clear []int64
}

func (s *slowSink) Publish(_ context.Context, p store.Progress) error {
	<-time.After(500 * time.Millisecond)
	s.got = append(s.got, p)
	return nil
}

func (s *slowSink) Clear(_ context.Context, jobID int64) error {
	s.clear = append(s.clear, jobID)
	return nil
}

func TestReportTellsOnceASecond(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		sink := &slowSink{}
		r := startReport(t.Context(), sink, 42)
		r.phase(phaseProbing)
		synctest.Wait()
		begun := time.Now()
		for n := range 1000 { // for ten seconds
			r.fetched(ytdlp.Progress{Phase: ytdlp.PhaseDownloading, DownloadedBytes: int64(n), Percent: float64(n) / 10})
			<-time.After(10 * time.Millisecond)
		}
		require.InDelta(t, 10, time.Since(begun).Seconds(), 0.1, "nobody waits for the sink")
		r.phase(phaseVerifying)
		<-time.After(2 * time.Second)
		r.stop(t.Context())

		require.Equal(t, phaseProbing, sink.got[0].Phase)
		require.InDelta(t, 8, len(sink.got), 3)
		last := sink.got[len(sink.got)-1]
		require.Equal(t, phaseVerifying, last.Phase)
		require.InDelta(t, 100, last.Percent, 0)
		for i, p := range sink.got {
			require.Equal(t, int64(42), p.JobID)
			require.True(t, i == 0 || !p.At.Before(sink.got[i-1].At))
		}
		require.Equal(t, []int64{42}, sink.clear)
	})
}
