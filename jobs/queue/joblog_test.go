package queue_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/store"
)

// logOf is the job's log.
func (b *bundle) logOf(t *testing.T, id int64) []store.LogLine {
	t.Helper()
	lines, err := store.New(b.owner).TailLog(t.Context(), id, 0, 1000, store.Viewer{Admin: true})
	require.NoError(t, err)
	return lines
}

func texts(lines []store.LogLine) (said []string) {
	for _, l := range lines {
		said = append(said, l.Level+" "+l.Text)
	}
	return said
}

// A job's log tells what its attempts said and how each of them ended, in order, while it runs and over the loss of a worker.
func TestJobLog(t *testing.T) {
	t.Parallel()

	goOn := make(chan struct{})
	n := 0
	b := assemble(t, func(ctx context.Context, _ *river.Job[synthetic]) error {
		n++
		queue.Say(ctx, queue.Info, "try %d", n)
		switch n {
		case 1:
			return &reason.Error{Reason: reason.Network, Detail: "no route", Err: errors.New("to 10.1.2.3")}
		case 2:
			queue.Say(ctx, queue.Warning, "a\x1b[31m \x00line\nof \xff bytes")
			return errors.Join(river.JobSnooze(0), &reason.Error{Reason: reason.DiskFull, Detail: "full"})
		}
		<-goOn
		queue.Say(ctx, queue.Info, "done")
		return nil
	}, quick)
	id := b.insert(t, river.InsertOpts{MaxAttempts: 3}, synthetic{})[0]
	b.run(t, id, 1, t.Name())
	_, err := b.TakeBack(t.Context())
	require.NoError(t, err)
	b.start(t)
	require.Eventually(t, func() bool { return len(b.logOf(t, id)) == 6 }, 20*time.Second, 10*time.Millisecond, "read while it runs")
	close(goOn)
	b.waitCurrent(t, id, rivertype.JobStateCompleted)
	require.Equal(t, []string{
		"info try 1", "error Failed, and is tried again: no route",
		"info try 2", "warning a[31m line of \uFFFD bytes", "warning Put off: full",
		"info try 3", "info done",
	}, texts(b.logOf(t, id)))
	for i, l := range b.logOf(t, id) {
		require.Equal(t, []int{1, 1, 2, 2, 2, 2, 2}[i], l.Attempt)
		require.WithinDuration(t, time.Now(), l.At, time.Minute)
	}
}

// What a job with keys says last is written along with its end; a job that says nothing has no lines.
func TestJobLogOfAJobWithKeys(t *testing.T) {
	t.Parallel()

	b := assemble(t, func(ctx context.Context, job *river.Job[synthetic]) error {
		if strings.Contains(string(job.Metadata), "host:talks") {
			queue.Say(ctx, queue.Info, "done")
		}
		return nil
	}, quick)
	y := newYard(t, b)
	talks, silent := y.add(t, 1, "host:talks")[0], y.add(t, 1, "host:silent")[0]
	b.start(t)
	require.Eventually(t, func() bool {
		_, err := y.admission.Round(t.Context())
		return err == nil && b.job(t, talks).State == rivertype.JobStateCompleted && b.job(t, silent).State == rivertype.JobStateCompleted
	}, 20*time.Second, 10*time.Millisecond)
	require.Equal(t, []string{"info done"}, texts(b.logOf(t, talks)))
	require.Empty(t, b.logOf(t, silent))
}

// However much is said, the newest lines are kept, of bounded length; one attempt that says too much is told to be quiet, and
// how it ended is kept all the same.
func TestJobLogIsBounded(t *testing.T) {
	t.Parallel()

	b := assemble(t, func(ctx context.Context, job *river.Job[synthetic]) error {
		for range 5000 {
			queue.Say(ctx, queue.Info, "%s", strings.Repeat("ü", 5000))
		}
		if job.Attempt == 1 {
			return &reason.Error{Reason: reason.Network}
		}
		queue.Say(ctx, queue.Info, "unheard")
		return river.JobCancel(&reason.Error{Reason: reason.Gone, Detail: "gone"})
	}, quick)
	b.start(t)
	id := b.insert(t, river.InsertOpts{MaxAttempts: 3}, synthetic{})[0]
	b.waitCurrent(t, id, rivertype.JobStateCancelled)
	lines := b.logOf(t, id)
	require.Len(t, lines, 200)
	require.Equal(t, 200, b.count(t, `SELECT count(*) FROM medianest.job_log`))
	require.Equal(t, []string{"warning More was said than is kept of one attempt.", "error Failed: gone"}, texts(lines[198:]))
	for _, l := range lines {
		require.LessOrEqual(t, len(l.Text), 1100)
	}
	tail, err := store.New(b.owner).TailLog(t.Context(), id, lines[100].ID, 3, store.Viewer{Admin: true})
	require.NoError(t, err)
	require.Equal(t, lines[197:], tail)
}

// Where a log cannot be written, its lines are lost and counted, and the job is not touched.
func TestJobLogIsLostAlone(t *testing.T) {
	t.Parallel()

	registry := prometheus.NewRegistry()
	b := assemble(t, func(ctx context.Context, _ *river.Job[synthetic]) error {
		queue.Say(ctx, queue.Info, "into the void")
		return nil
	}, func(o *queue.Options) { quick(o); o.Registerer = registry })
	b.exec(t, `REVOKE INSERT ON medianest.job_log FROM medianest_river`)
	b.start(t)
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	b.waitCurrent(t, id, rivertype.JobStateCompleted)
	require.Empty(t, b.logOf(t, id))
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP medianest_job_log_lines_lost_total Lines of jobs' logs that this process could not write.
# TYPE medianest_job_log_lines_lost_total counter
medianest_job_log_lines_lost_total 1
`), "medianest_job_log_lines_lost_total"))
}
