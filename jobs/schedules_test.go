package jobs_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/store"
)

// The platform's own schedules do what the processes did by themselves.
func TestOwnSchedules(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	require.NoError(t, b.api.EnsureSchedules(ctx, jobs.OwnSchedules()))
	own, _, err := b.api.ListSchedules(ctx, "", 0)
	require.NoError(t, err)
	require.Len(t, own, len(jobs.OwnSchedules()))

	// Something for each of them to do.
	u := b.user(t, "ann")
	left := filepath.Join(b.root, ".medianest", "staging", uuid.NewString())
	require.NoError(t, os.MkdirAll(left, 0o750))
	_, err = b.owner.Exec(ctx, `
		INSERT INTO medianest.idempotency (user_id, key, fingerprint, resource_id, created_at)
		VALUES ($1, 'k', '\x00', gen_random_uuid(), now() - interval '1 year')`, u.ID)
	require.NoError(t, err)
	const oldTicks = `SELECT count(*) FROM medianest.tick WHERE at < now() - interval '1 day'`
	for count(t, b, `SELECT count(*) FROM medianest.tick`) < 5 {
		_, err = b.owner.Exec(ctx, `INSERT INTO medianest.event (topic, state, previous_state) VALUES ('job.state', 'running', '')`)
		require.NoError(t, err)
		_, _, err = b.api.AdvanceTick(ctx)
		require.NoError(t, err)
	}
	_, err = b.owner.Exec(ctx, `UPDATE medianest.tick SET at = at - interval '1 year'`)
	require.NoError(t, err)
	require.GreaterOrEqual(t, count(t, b, oldTicks), 5)

	for _, s := range own {
		_, err := b.api.RunScheduleNow(ctx, s.ID)
		require.NoError(t, err)
	}
	for _, s := range own {
		require.Eventually(t, func() bool {
			_, err := b.api.AttendSchedules(ctx, nil, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			runs, _, err := b.api.ListScheduleRuns(ctx, s.ID, "", 1)
			require.NoError(t, err)
			return runs[0].State == store.RunCompleted
		}, patience, 10*time.Millisecond, s.Name)
	}
	require.NoDirExists(t, left)
	require.Zero(t, count(t, b, `SELECT count(*) FROM medianest.idempotency`))
	require.LessOrEqual(t, count(t, b, oldTicks), 2, "but for the last, by which later events are told apart, and the one that the consumer may be at")
}

func count(t *testing.T, b *bundle, sql string) (n int) {
	t.Helper()
	require.NoError(t, b.owner.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

func TestWhatCanBeScheduled(t *testing.T) {
	t.Parallel()
	e := &jobs.Enqueuer{}
	known := map[string]bool{}
	for _, k := range e.ScheduleKinds() {
		known[k.Kind] = true
		require.NotEmpty(t, k.Description)
		require.NoError(t, e.CheckScheduledArgs(k.Kind, k.Args), "the example is one")
	}
	for _, s := range jobs.OwnSchedules() {
		require.True(t, known[s.Spec.Kind], s.Key)
	}
	require.ErrorContains(t, e.CheckScheduledArgs("download", json.RawMessage(`{}`)), "kind is none of trim_events")
	require.ErrorContains(t, e.CheckScheduledArgs("trim_events", json.RawMessage(`{"n":1}`)), `unknown field "n"`)
	require.ErrorIs(t, e.CheckScheduledArgs("trim_events", json.RawMessage(`1`)), store.ErrInvalid)
}
