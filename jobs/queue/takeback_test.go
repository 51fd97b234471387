package queue_test

import (
	"context"
	"testing"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

// A process that was killed left its jobs running; the next one with its ID has them back.
func TestTakeBack(t *testing.T) {
	t.Parallel()
	b := assemble(t, func(context.Context, *river.Job[synthetic]) error { return nil }, nil)
	ids := b.insert(t, river.InsertOpts{MaxAttempts: 3}, synthetic{1}, synthetic{2}, synthetic{3}, synthetic{4}, synthetic{5})
	fresh, last, cancelled, others, waiting := ids[0], ids[1], ids[2], ids[3], ids[4]
	running := func(id int64, attempt int, by ...string) {
		b.exec(t, `UPDATE river.river_job SET state = 'running', attempt = $2, attempted_at = now(), attempted_by = $3 WHERE id = $1`, id, attempt, by)
	}
	running(fresh, 1, "somebody", t.Name())
	running(last, 3, t.Name())
	running(cancelled, 1, t.Name())
	running(others, 1, t.Name(), "somebody")
	b.exec(t, `UPDATE river.river_job SET metadata = metadata || '{"cancel_attempted_at": "2026-01-01T00:00:00Z"}' WHERE id = $1`, cancelled)

	n, err := b.TakeBack(t.Context())
	require.NoError(t, err)
	require.Equal(t, 3, n)
	require.Equal(t, rivertype.JobStateAvailable, b.job(t, fresh).State)
	require.Equal(t, "The worker died.", b.job(t, fresh).Errors[0].Error)
	require.Equal(t, rivertype.JobStateDiscarded, b.job(t, last).State)
	require.Equal(t, rivertype.JobStateCancelled, b.job(t, cancelled).State)
	require.Equal(t, rivertype.JobStateRunning, b.job(t, others).State)
	require.Equal(t, rivertype.JobStateAvailable, b.job(t, waiting).State)
	ends := b.events(t, last)
	require.Equal(t, event{"discarded", 3, string(reason.PoisonPill)}, ends[len(ends)-1])
	ends = b.events(t, cancelled)
	require.Equal(t, event{"cancelled", 1, string(reason.Cancelled)}, ends[len(ends)-1])

	n, err = b.TakeBack(t.Context())
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, b.Start(t.Context()))
	row := b.waitState(t, fresh, rivertype.JobStateCompleted)
	require.Equal(t, 2, row.Attempt)
	_, err = b.TakeBack(t.Context())
	require.Error(t, err)
	require.NoError(t, b.Stop(t.Context()))
}
