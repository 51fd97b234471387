package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

// scheduleQueue is a queue with one kind that can be scheduled.
type scheduleQueue struct{ riverQueue }

var _ store.ScheduleQueue = scheduleQueue{}

type upkeepArgs struct {
	N int `json:"n"`
}

func (upkeepArgs) Kind() string { return "upkeep" }

func (scheduleQueue) ScheduleKinds() []store.ScheduleKind {
	return []store.ScheduleKind{{Kind: "upkeep", Description: "Keeps up.", Args: json.RawMessage(`{"n":1}`)}}
}

func (scheduleQueue) CheckScheduledArgs(kind string, args json.RawMessage) error {
	if kind != "upkeep" {
		return &store.InvalidError{Field: "kind", Reason: "is none of upkeep"}
	}
	if err := json.Unmarshal(args, &upkeepArgs{}); err != nil {
		return &store.InvalidError{Field: "args", Reason: "is not what jobs of kind upkeep take"}
	}
	return nil
}

func (q scheduleQueue) EnqueueScheduledTx(ctx context.Context, tx pgx.Tx, job store.ScheduledJob) (int64, error) {
	var args upkeepArgs
	if err := json.Unmarshal(job.Args, &args); err != nil {
		return 0, err
	}
	if args.N < 0 {
		return 0, fmt.Errorf("jobs with n = %d are not to be had", args.N)
	}
	metadata, err := json.Marshal(map[string]string{"schedule": job.ScheduleID.String(), "tick": job.Tick.Format(time.RFC3339)})
	if err != nil {
		return 0, err
	}
	inserted, err := q.client.InsertTx(ctx, tx, args, &river.InsertOpts{ScheduledAt: job.RunAt, Metadata: metadata})
	if err != nil {
		return 0, err
	}
	return inserted.Job.ID, nil
}

// scheduleBundle is a bundle whose schedules are attended to at times of the test's choice.
type scheduleBundle struct {
	*bundle
	api, worker *store.Store
	now         time.Time
	admin       uuid.UUID
}

func setupSchedules(t *testing.T) *scheduleBundle {
	t.Helper()
	url := storetest.DB(t)
	pool := storetest.OpenPool(t, url, "")
	q := scheduleQueue{newRiverQueue(t, pool)}
	return &scheduleBundle{
		bundle: &bundle{t: t, url: url, pool: pool, river: storetest.OpenPool(t, url, store.RoleRiver)},
		api:    store.New(storetest.OpenPool(t, url, store.RoleAPI)).WithQueue(q),
		worker: store.New(storetest.OpenPool(t, url, store.RoleWorker)).WithQueue(q),
		now:    time.Now().UTC(), admin: uuid.Must(uuid.NewV7()),
	}
}

func minutely(name string) store.ScheduleSpec {
	return store.ScheduleSpec{Name: name, Enabled: true, Kind: "upkeep", Args: json.RawMessage(`{"n":1}`), Interval: time.Minute}
}

func (b *scheduleBundle) schedule(spec store.ScheduleSpec) store.Schedule {
	b.t.Helper()
	s, err := b.api.CreateSchedule(b.t.Context(), spec, b.admin)
	require.NoError(b.t, err)
	return s
}

func (b *scheduleBundle) reload(s store.Schedule) store.Schedule {
	b.t.Helper()
	found, err := b.api.FindSchedule(b.t.Context(), s.ID)
	require.NoError(b.t, err)
	return found
}

// look sets the clock and has a worker's process attend.
func (b *scheduleBundle) look(now time.Time) []store.ScheduleRun {
	b.t.Helper()
	runs, err := b.worker.AttendSchedules(b.t.Context(), &now, slog.New(slog.DiscardHandler))
	require.NoError(b.t, err)
	return runs
}

// runs are the schedule's, oldest first, each as its tick's minute after the first tick, and its state.
func (b *scheduleBundle) runs(s store.Schedule) (told []string) {
	b.t.Helper()
	page, _, err := b.api.ListScheduleRuns(b.t.Context(), s.ID, "", 200)
	require.NoError(b.t, err)
	for _, r := range page {
		text := fmt.Sprintf("%d %s", int(r.Tick.Sub(*s.NextTick).Minutes()), r.State)
		if r.Reason != "" {
			text += " " + r.Reason
		}
		if r.IsManual {
			text = "now " + r.State
		}
		told = append([]string{text}, told...)
	}
	return told
}

// lastJob is the job of the schedule's newest run that has one.
func (b *scheduleBundle) lastJob(s store.Schedule) int64 {
	b.t.Helper()
	page, _, err := b.api.ListScheduleRuns(b.t.Context(), s.ID, "", 200)
	require.NoError(b.t, err)
	for _, r := range page {
		if r.JobID != nil {
			return *r.JobID
		}
	}
	b.t.Fatal("no run has a job")
	return 0
}

func (b *scheduleBundle) jobs() int {
	b.t.Helper()
	return b.count(`SELECT count(*) FROM river.river_job WHERE kind = 'upkeep'`)
}

func TestScheduleRunsAtItsTicks(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	s := b.schedule(minutely("a"))
	first := *s.NextTick
	require.WithinDuration(t, b.now.Add(time.Minute), first, 10*time.Second)
	require.Empty(t, b.look(first.Add(-time.Second)))

	made := b.look(first)
	require.Len(t, made, 1)
	require.Equal(t, store.RunEnqueued, made[0].State)
	require.Equal(t, first, made[0].Tick)
	require.Equal(t, first.Add(time.Minute), *b.reload(s).NextTick)
	require.Empty(t, b.look(first), "once")
	page, _, err := b.api.ListScheduleRuns(t.Context(), s.ID, "", 0)
	require.NoError(t, err)
	require.Equal(t, "available", page[0].JobState)

	b.setJob(b.lastJob(s), "completed")
	b.look(first.Add(time.Minute))
	require.Equal(t, []string{"0 completed", "1 enqueued"}, b.runs(s))
	require.Equal(t, 2, b.jobs())
	require.Equal(t, s.Revision, b.reload(s).Revision, "runs are no changes")
}

// Each policy, after nobody was there for the ticks 1 to 4, and where the fifth is on time or not.
func TestSchedulesMisfire(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		misfire string
		max     int
		late    time.Duration // of the look after tick 5
		want    []string      // when each job has completed at once
	}{
		{store.MisfireSkip, 0, time.Second, []string{"0 completed", "1 missed late", "5 completed"}},
		{store.MisfireSkip, 0, 61 * time.Second, []string{"0 completed", "1 missed late", "6 completed"}},
		{store.MisfireRunOnce, 0, time.Second, []string{"0 completed", "1 missed late", "5 completed"}},
		{store.MisfireRunAll, 10, 0, []string{"0 completed", "1 completed late", "2 completed late", "3 completed late", "4 completed late", "5 skipped overlap"}},
		{store.MisfireRunAll, 3, 0, []string{"0 completed", "1 missed late", "3 completed late", "4 completed late", "5 skipped overlap"}},
	} {
		t.Run(fmt.Sprintf("%s %d %s", c.misfire, c.max, c.late), func(t *testing.T) {
			t.Parallel()
			b := setupSchedules(t)
			spec := minutely("a")
			spec.Misfire, spec.MisfireMax = c.misfire, c.max
			s := b.schedule(spec)
			first := *s.NextTick
			b.look(first)
			b.setJob(b.lastJob(s), "completed")
			now := first.Add(5*time.Minute + c.late)
			for range 8 { // those that wait begin one after another
				b.look(now)
				require.LessOrEqual(t, b.count(`SELECT count(*) FROM river.river_job WHERE finalized_at IS NULL`), 1)
				b.setJob(b.lastJob(s), "completed")
			}
			require.Equal(t, c.want, b.runs(s))
		})
	}
	// Rarer than a tick is on time for: late ones are run or missed.
	for misfire, want := range map[string]string{
		store.MisfireSkip: "0 missed late", store.MisfireRunOnce: "0 enqueued late", store.MisfireRunAll: "0 enqueued late",
	} {
		t.Run("late "+misfire, func(t *testing.T) {
			t.Parallel()
			b := setupSchedules(t)
			spec := minutely("a")
			spec.Misfire, spec.Interval = misfire, time.Hour
			s := b.schedule(spec)
			b.look(s.NextTick.Add(10 * time.Minute))
			require.Equal(t, []string{want}, b.runs(s))
			require.Equal(t, s.NextTick.Add(time.Hour), *b.reload(s).NextTick)
		})
	}
}

func TestSchedulesOverlap(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, overlap string) (*scheduleBundle, store.Schedule, func(minute int)) {
		b := setupSchedules(t)
		spec := minutely("a")
		spec.Overlap = overlap
		s := b.schedule(spec)
		look := func(minute int) { b.look(s.NextTick.Add(time.Duration(minute) * time.Minute)) }
		look(0)
		b.setJob(b.lastJob(s), "running")
		return b, s, look
	}
	t.Run("Skip", func(t *testing.T) {
		t.Parallel()
		b, s, look := start(t, store.OverlapSkip)
		look(1)
		b.setJob(b.lastJob(s), "retryable")
		look(2)
		require.Equal(t, []string{"0 enqueued", "1 skipped overlap", "2 skipped overlap"}, b.runs(s), "it has not ended yet")
		b.setJob(b.lastJob(s), "discarded")
		look(3)
		require.Equal(t, []string{"0 failed", "1 skipped overlap", "2 skipped overlap", "3 enqueued"}, b.runs(s))
	})
	t.Run("QueueOne", func(t *testing.T) {
		t.Parallel()
		b, s, look := start(t, store.OverlapQueueOne)
		look(1)
		look(2)
		require.Equal(t, []string{"0 enqueued", "1 waiting", "2 skipped overlap"}, b.runs(s))
		require.Equal(t, 1, b.jobs())
		b.setJob(b.lastJob(s), "completed")
		look(2)
		require.Equal(t, []string{"0 completed", "1 enqueued", "2 skipped overlap"}, b.runs(s))
		look(3)
		require.Equal(t, []string{"0 completed", "1 enqueued", "2 skipped overlap", "3 waiting"}, b.runs(s))
		require.Equal(t, 2, b.jobs())
	})
	t.Run("CancelPrevious", func(t *testing.T) {
		t.Parallel()
		b, s, look := start(t, store.OverlapCancelPrevious)
		job := b.lastJob(s)
		look(1)
		require.True(t, b.cancelAsked(job))
		require.Equal(t, []string{"0 enqueued", "1 waiting"}, b.runs(s), "it still runs")
		look(2)
		require.Equal(t, []string{"0 enqueued", "1 cancelled replaced", "2 waiting"}, b.runs(s))
		require.Equal(t, 1, b.jobs())
		b.setJob(job, "cancelled")
		look(2)
		require.Equal(t, []string{"0 cancelled", "1 cancelled replaced", "2 enqueued"}, b.runs(s))
		look(3) // its job has not begun, and is cancelled at once
		require.Equal(t, []string{"0 cancelled", "1 cancelled replaced", "2 cancelled", "3 enqueued"}, b.runs(s))
		require.Equal(t, 1, b.count(`SELECT count(*) FROM river.river_job WHERE finalized_at IS NULL`))
	})
	t.Run("ADeletedJobHasEnded", func(t *testing.T) {
		t.Parallel()
		b, s, look := start(t, store.OverlapSkip)
		b.exec(`DELETE FROM river.river_job WHERE id = $1`, b.lastJob(s))
		look(1)
		require.Equal(t, []string{"0 cancelled job_deleted", "1 enqueued"}, b.runs(s))
	})
	t.Run("AJobThatLostItsWorkerHasNot", func(t *testing.T) {
		t.Parallel()
		b, s, look := start(t, store.OverlapSkip)
		job := b.lastJob(s)
		b.exec(`
			WITH successor AS (
				INSERT INTO river.river_job (kind, args, max_attempts, metadata)
				VALUES ('upkeep', '{}', 3, jsonb_build_object('public_id', $1::bigint::text))
				RETURNING id
			)
			INSERT INTO medianest.job_map (public_id, row_id)
			SELECT $1, id
			FROM successor`, job)
		b.setJob(job, "discarded")
		look(1)
		require.Equal(t, []string{"0 enqueued", "1 skipped overlap"}, b.runs(s))
	})
	t.Run("AFailureForGoodIsNoCancel", func(t *testing.T) {
		t.Parallel()
		b, s, look := start(t, store.OverlapSkip)
		b.exec(`UPDATE river.river_job SET metadata = metadata || '{"reason": "disk_full"}' WHERE id = $1`, b.lastJob(s))
		b.setJob(b.lastJob(s), "cancelled")
		look(1)
		require.Equal(t, []string{"0 failed disk_full", "1 enqueued"}, b.runs(s))
	})
}

func TestScheduleJitter(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	spec := minutely("a")
	spec.Jitter = 30 * time.Second
	s := b.schedule(spec)
	run := b.look(*s.NextTick)[0]
	require.False(t, run.RunAt.Before(*s.NextTick))
	require.WithinDuration(t, *s.NextTick, *run.RunAt, 30*time.Second)
	var at time.Time
	require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT scheduled_at FROM river.river_job WHERE id = $1`, *run.JobID).Scan(&at))
	require.WithinDuration(t, *run.RunAt, at, time.Millisecond)
}

func TestRunScheduleNow(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	spec := minutely("a")
	s := b.schedule(spec)
	first := s
	_, err := b.api.PauseSchedule(t.Context(), s.ID, b.admin)
	require.NoError(t, err)
	run, err := b.api.RunScheduleNow(t.Context(), s.ID)
	require.NoError(t, err, "also while it is paused")
	require.Equal(t, store.RunEnqueued, run.State)
	require.True(t, run.IsManual)
	_, err = b.api.RunScheduleNow(t.Context(), s.ID)
	require.ErrorIs(t, err, store.ErrConflict, "its last run has not ended")
	require.Equal(t, []string{"now enqueued"}, b.runs(first))
	require.Nil(t, b.reload(s).NextTick)

	spec.Overlap = store.OverlapQueueOne
	s, err = b.api.UpdateSchedule(t.Context(), s.ID, b.reload(s).Revision, spec, b.admin)
	require.NoError(t, err)
	run, err = b.api.RunScheduleNow(t.Context(), s.ID)
	require.NoError(t, err)
	require.Equal(t, store.RunWaiting, run.State)
	_, err = b.api.RunScheduleNow(t.Context(), s.ID)
	require.ErrorIs(t, err, store.ErrConflict, "one waits already")
	b.setJob(b.lastJob(s), "completed")
	b.look(b.now)
	require.Equal(t, []string{"now completed", "now enqueued"}, b.runs(first))
	_, err = b.api.RunScheduleNow(t.Context(), uuid.New())
	require.ErrorIs(t, err, store.ErrNotFound)
}

func TestChangeSchedule(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	spec := minutely("a")
	s := b.schedule(spec)
	b.schedule(minutely("taken"))
	ctx := t.Context()

	// Another name leaves a tick that is due as it is.
	b.exec(`UPDATE medianest.schedule SET next_tick = next_tick - interval '10 min' WHERE id = $1`, s.ID)
	spec.Name = "b"
	renamed, err := b.api.UpdateSchedule(ctx, s.ID, s.Revision, spec, b.admin)
	require.NoError(t, err)
	require.Equal(t, s.NextTick.Add(-10*time.Minute), *renamed.NextTick)
	require.Equal(t, s.Revision+1, renamed.Revision)
	require.Equal(t, b.admin, *renamed.UpdatedBy)

	_, err = b.api.UpdateSchedule(ctx, s.ID, s.Revision, spec, b.admin)
	require.ErrorIs(t, err, store.ErrConflict, "somebody else changed it meanwhile")
	spec.Name = "taken"
	_, err = b.api.UpdateSchedule(ctx, s.ID, renamed.Revision, spec, b.admin)
	require.ErrorContains(t, err, "name is another schedule's")
	_, err = b.api.CreateSchedule(ctx, spec, b.admin)
	require.ErrorContains(t, err, "name is another schedule's")

	// Other times are from now on.
	spec.Name, spec.Interval, spec.Cron, spec.Timezone = "b", 0, "0 4 * * *", "Europe/Berlin"
	changed, err := b.api.UpdateSchedule(ctx, s.ID, renamed.Revision, spec, b.admin)
	require.NoError(t, err)
	require.Equal(t, cronOf(t, "0 4 * * *", "Europe/Berlin").Next(time.Now()), *changed.NextTick)
	require.Nil(t, changed.IntervalS)

	// Paused, it has no ticks, and none of those that it would have had.
	paused, err := b.api.PauseSchedule(ctx, s.ID, b.admin)
	require.NoError(t, err)
	require.Nil(t, paused.NextTick)
	again, err := b.api.PauseSchedule(ctx, s.ID, b.admin)
	require.NoError(t, err)
	require.Equal(t, paused, again)
	b.exec(`DELETE FROM medianest.schedule WHERE name = 'taken'`)
	require.Empty(t, b.look(b.now.AddDate(1, 0, 0)))
	resumed, err := b.api.ResumeSchedule(ctx, s.ID, b.admin)
	require.NoError(t, err)
	require.Equal(t, changed.NextTick, resumed.NextTick)

	require.NoError(t, b.api.DeleteSchedule(ctx, s.ID))
	require.ErrorIs(t, b.api.DeleteSchedule(ctx, s.ID), store.ErrNotFound)
	_, err = b.api.PauseSchedule(ctx, s.ID, b.admin)
	require.ErrorIs(t, err, store.ErrNotFound)
}

func TestScheduleRefusals(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	for _, c := range []struct {
		change func(*store.ScheduleSpec)
		want   string
	}{
		{func(s *store.ScheduleSpec) { s.Name = "" }, "name is empty"},
		{func(s *store.ScheduleSpec) { s.Name = "a\x00" }, "name contains a NUL byte"},
		{func(s *store.ScheduleSpec) { s.Kind = "download" }, "kind is none of upkeep"},
		{func(s *store.ScheduleSpec) { s.Args = json.RawMessage(`[1]`) }, "args is no JSON object"},
		{func(s *store.ScheduleSpec) { s.Args = json.RawMessage(`{`) }, "args is no JSON object"},
		{func(s *store.ScheduleSpec) { s.Args = json.RawMessage(`{"n":"one"}`) }, "args is not what jobs of kind upkeep take"},
		{func(s *store.ScheduleSpec) { s.Interval = 0 }, "cron is missing"},
		{func(s *store.ScheduleSpec) { s.Cron = "@daily" }, "interval_s goes without cron"},
		{func(s *store.ScheduleSpec) { s.Interval = time.Second }, "interval_s must be from 10"},
		{func(s *store.ScheduleSpec) { s.Interval = -time.Minute }, "interval_s must be from 10"},
		{func(s *store.ScheduleSpec) { s.Interval = 1 << 62 }, "interval_s must be from 10"},
		{func(s *store.ScheduleSpec) { s.Jitter = time.Minute }, "jitter_s must be less than interval_s"},
		{func(s *store.ScheduleSpec) { s.Jitter = -1 }, "jitter_s must be from 0"},
		{func(s *store.ScheduleSpec) { s.Overlap = "all" }, "overlap is none of skip queue_one cancel_previous"},
		{func(s *store.ScheduleSpec) { s.Misfire = "all" }, "misfire is none of skip run_once run_all"},
		{func(s *store.ScheduleSpec) { s.MisfireMax = 101 }, "misfire_max must be from 1 to 100"},
		{func(s *store.ScheduleSpec) { s.Interval, s.Cron = 0, "61 * * * *" }, "cron is no cron expression"},
		{func(s *store.ScheduleSpec) { s.Interval, s.Cron, s.Timezone = 0, "@daily", "Mars" }, "timezone is no time zone"},
	} {
		spec := minutely("a")
		c.change(&spec)
		_, err := b.api.CreateSchedule(t.Context(), spec, b.admin)
		require.ErrorIs(t, err, store.ErrInvalid)
		require.ErrorContains(t, err, c.want)
	}
}

func TestOwnSchedules(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	b.schedule(minutely("Upkeep"))
	own := []store.SystemSchedule{{Key: "upkeep", Spec: minutely("Upkeep")}, {Key: "more", Spec: minutely("More")}}
	var wg sync.WaitGroup
	for _, s := range []*store.Store{b.api, b.worker, b.api, b.worker} { // every process does
		wg.Go(func() {
			if err := s.EnsureSchedules(context.WithoutCancel(t.Context()), own); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, next, err := b.api.ListSchedules(t.Context(), "", 2)
	require.NoError(t, err)
	rest, last, err := b.api.ListSchedules(t.Context(), next, 2)
	require.NoError(t, err)
	require.Empty(t, last)
	byName := map[string]store.Schedule{}
	for _, s := range append(all, rest...) {
		byName[s.Name] = s
	}
	require.Len(t, byName, 3)
	require.Equal(t, "upkeep", *byName["Upkeep (upkeep)"].SystemKey, "a name that is taken does not keep it away")

	// What administrators make of them stays.
	more := byName["More"]
	require.ErrorIs(t, b.api.DeleteSchedule(t.Context(), more.ID), store.ErrConflict)
	spec := minutely("Less")
	spec.Interval = time.Hour
	_, err = b.api.UpdateSchedule(t.Context(), more.ID, more.Revision, spec, b.admin)
	require.NoError(t, err)
	require.NoError(t, b.api.EnsureSchedules(t.Context(), own))
	require.Equal(t, 3, b.count(`SELECT count(*) FROM medianest.schedule`))
	require.EqualValues(t, 3600, *b.reload(more).IntervalS)
	spec.Kind = "other"
	_, err = b.api.UpdateSchedule(t.Context(), more.ID, b.reload(more).Revision, spec, b.admin)
	require.ErrorContains(t, err, "kind cannot be changed")
}

// A schedule that cannot be run keeps no other from its turn, and stays due.
func TestOneScheduleFails(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	bad := minutely("bad")
	bad.Args = json.RawMessage(`{"n":-1}`)
	broken, fine := b.schedule(bad), b.schedule(minutely("fine"))
	unknown := b.schedule(minutely("of a newer build"))
	b.exec(`UPDATE medianest.schedule SET kind = 'newer' WHERE id = $1`, unknown.ID)
	now := fine.NextTick.Add(time.Minute)
	made, err := b.worker.AttendSchedules(t.Context(), &now, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "n = -1")
	require.Len(t, made, 2)
	require.Empty(t, b.runs(broken))
	require.Empty(t, b.runs(unknown))
	require.Equal(t, []string{"0 missed late", "1 enqueued"}, b.runs(fine))
	require.Equal(t, broken.NextTick, b.reload(broken).NextTick)
}

func TestOldRunsAreRemoved(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	s := b.schedule(minutely("a"))
	b.exec(`
		INSERT INTO medianest.schedule_run (schedule_id, tick, state, ended_at)
		SELECT $1, now() - n * interval '1 day', 'completed', now()
		FROM generate_series(1, 500) AS n`, s.ID)
	b.look(*s.NextTick)
	require.Equal(t, 200, b.count(`SELECT count(*) FROM medianest.schedule_run`))
}

// Several processes attend while their connections and their calls are cut off again and again, wherever they are: each
// tick is one run, and each run that was to have one has one job. The clock goes on with each look that succeeds.
func TestScheduleTicksAreExactlyOnce(t *testing.T) {
	t.Parallel()
	const (
		ticks = 90 // fewer than are run after nobody was there
		step  = 20 * time.Second
	)
	b := setupSchedules(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var schedules []store.Schedule
	for i, overlap := range []string{
		store.OverlapSkip, store.OverlapQueueOne, store.OverlapCancelPrevious, store.OverlapSkip,
	} {
		spec := minutely(fmt.Sprint("s", i))
		spec.Overlap, spec.Misfire, spec.MisfireMax = overlap, store.MisfireRunAll, 100
		schedules = append(schedules, b.schedule(spec))
	}
	start := schedules[0].NextTick.Add(-time.Second)
	end := start.Add(ticks * time.Minute)

	working, stop := context.WithCancel(t.Context())
	var (
		wg           sync.WaitGroup
		good, broken atomic.Int64 // looks
		killed       int
	)
	clock := func() time.Time {
		if now := start.Add(time.Duration(good.Load()) * step); now.Before(end) {
			return now
		}
		return end
	}
	for i := range 5 {
		role := []string{store.RoleAPI, store.RoleWorker}[i%2]
		pool, err := store.OpenPool(t.Context(), store.PoolOptions{URL: b.url, Role: role, AppName: "runner", MaxConns: 2})
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		quiet := &river.Config{Schema: "river", Logger: slog.New(slog.DiscardHandler)}
		client, err := river.NewClient(riverpgxv5.New(b.pool), quiet)
		require.NoError(t, err)
		runner := store.New(pool).WithQueue(scheduleQueue{riverQueue{client: client}})
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			patience := 20 * time.Millisecond
			for working.Err() == nil {
				ctx, cancel := context.WithTimeout(working, time.Millisecond+time.Duration(random.Int64N(int64(patience))))
				now := clock()
				if _, err := runner.AttendSchedules(ctx, &now, slog.New(slog.DiscardHandler)); err != nil {
					broken.Add(1)
					patience = min(2*patience, 10*time.Second) // a busy machine gets there too
				} else {
					good.Add(1)
					patience = time.Duration(5+random.IntN(50)) * time.Millisecond
				}
				cancel()
			}
		})
	}
	// Jobs run for a moment and end.
	wg.Go(func() {
		for working.Err() == nil {
			_, _ = b.pool.Exec(working, `
				UPDATE river.river_job SET state = 'completed', finalized_at = now() WHERE kind = 'upkeep' AND finalized_at IS NULL`)
		}
	})
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for seen := int64(-1); clock().Before(end); <-pace.C {
		if seen == good.Load() {
			continue // as often as they can bear
		}
		seen = good.Load()
		killed += b.count(`
			SELECT count(pg_terminate_backend(a.pid))
			FROM (
				SELECT pid
				FROM pg_stat_activity
				WHERE application_name = 'runner' AND datname = current_database() AND state <> 'idle'
				ORDER BY state = 'active', random()
				LIMIT 1
			) AS a`)
	}
	stop()
	wg.Wait()
	t.Logf("%d looks went well, %d were cut off, %d connections were ended", good.Load(), broken.Load(), killed)
	require.NotZero(t, broken.Load())
	require.NotZero(t, killed)
	// A look passes over a schedule that another holds, and the server may not have noticed yet that a runner left in
	// the middle of one.
	require.Eventually(t, func() bool {
		return b.count(`
			SELECT count(*)
			FROM pg_stat_activity
			WHERE application_name = 'runner' AND datname = current_database() AND state <> 'idle'`) == 0
	}, 30*time.Second, 10*time.Millisecond)
	b.look(end)

	for _, s := range schedules {
		got := pgxTimes(t, b.pool, `SELECT tick FROM medianest.schedule_run WHERE schedule_id = $1 ORDER BY tick`, s.ID)
		calendar, err := s.Calendar()
		require.NoError(t, err)
		require.Equal(t, minutes(calendar.Between(*s.NextTick, end, 1<<20)), minutes(got), s.Overlap)
	}
	const want = `r.job_id IS NOT NULL AND r.state NOT IN ('skipped', 'missed', 'waiting')`
	require.Equal(t, b.count(`SELECT count(*) FROM medianest.schedule_run AS r WHERE `+want), b.jobs(), "no job without a run")
	require.Equal(t, b.jobs(), b.count(`
		SELECT count(*)
		FROM medianest.schedule_run AS r
		JOIN river.river_job AS j ON j.id = r.job_id AND j.metadata ->> 'schedule' = r.schedule_id::text
			AND (j.metadata ->> 'tick')::timestamptz = r.tick
		WHERE `+want), "each run has its own job")
}

// minutes are the times in a form that is short to compare.
func minutes(times []time.Time) string {
	var b strings.Builder
	for _, at := range times {
		b.WriteString(at.UTC().Format("15:04:05 "))
	}
	return b.String()
}

func pgxTimes(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) []time.Time {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	times, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	require.NoError(t, err)
	return times
}
