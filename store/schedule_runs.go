package store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// attendBatch is how many schedules a look attends to at most; what is left over waits for the next one.
const attendBatch = 100

// ScheduleRun is what became of a tick, or of somebody's wish for a run now.
type ScheduleRun struct {
	ID         int64
	ScheduleID uuid.UUID
	Tick       time.Time
	IsManual   bool
	State      string
	Reason     string
	JobID      *int64
	JobState   string     // River's, of a job that has not ended; "" otherwise
	RunAt      *time.Time // the tick with its jitter
	CreatedAt  time.Time
	EndedAt    *time.Time
}

const runColumns = `r.id, r.schedule_id, r.tick, r.is_manual, r.state, r.reason, r.job_id, r.run_at,
			r.created_at, r.ended_at`

// ListScheduleRuns returns a page of a schedule's runs, newest first, and the cursor of the next. The newest 200 are
// kept.
func (s *Store) ListScheduleRuns(
	ctx context.Context, id uuid.UUID, cursor string, limit int,
) (page []ScheduleRun, next string, err error) {
	if limit, err = pageSize(limit); err != nil {
		return nil, "", err
	}
	args := pgx.StrictNamedArgs{"id": id, "before": int64(1<<63 - 1), "limit": limit + 1}
	if cursor != "" {
		raw, err := decodeCursor(cursor, 8)
		if err != nil {
			return nil, "", err
		}
		args["before"] = int64(binary.BigEndian.Uint64(raw)) //nolint:gosec // all 64 bits are the value
	}
	if _, err := s.FindSchedule(ctx, id); err != nil {
		return nil, "", err
	}
	rows, err := s.pool.Query(ctx, `
		SELECT `+runColumns+`, coalesce(CASE WHEN r.state = 'enqueued' THEN j.state::text END, '') AS job_state
		FROM medianest.schedule_run AS r
		LEFT JOIN river.river_job AS j ON j.id = `+currentRow("r.job_id")+`
		WHERE r.schedule_id = @id AND r.id < @before
		ORDER BY r.id DESC
		LIMIT @limit`, args)
	if err != nil {
		return nil, "", fmt.Errorf("list runs of schedule %s: %w", id, interpret(err))
	}
	page, err = pgx.CollectRows(rows, pgx.RowToStructByName[ScheduleRun])
	if err != nil {
		return nil, "", fmt.Errorf("list runs of schedule %s: %w", id, interpret(err))
	}
	if len(page) > limit {
		page = page[:limit]
		last := binary.BigEndian.AppendUint64(nil, uint64(page[limit-1].ID)) //nolint:gosec // all 64 bits are the value
		next = base64.RawURLEncoding.EncodeToString(last)
	}
	return page, next, nil
}

// RunScheduleNow makes a run besides those of the schedule's ticks, also of one that is paused. If its last run has not
// ended it does as the schedule's overlap says, and where that is to skip a run: ErrConflict.
func (s *Store) RunScheduleNow(ctx context.Context, id uuid.UUID) (ScheduleRun, error) {
	var run ScheduleRun
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		a, err := s.attendant(ctx, tx, nil)
		if err != nil {
			return err
		}
		if a.schedule, err = findSchedule(ctx, tx, id, "FOR UPDATE"); err != nil {
			return err
		}
		if err := a.catchUp(ctx); err != nil {
			return err
		}
		made, err := a.fire(ctx, firing{tick: a.now, manual: true})
		if err != nil {
			return err
		}
		if made.State == RunSkipped {
			return fmt.Errorf("its last run has not ended: %w", ErrConflict)
		}
		run = made
		return nil
	})
	if err != nil {
		return ScheduleRun{}, fmt.Errorf("run schedule %s: %w", id, err)
	}
	return run, nil
}

// AttendSchedules does once what schedules want done: it notes which runs have ended, makes the runs of ticks that are
// due, and begins runs that waited for the end of another. It returns the runs that it made or began. now is the time;
// nil means the database's.
//
// Any number of processes may call it at the same time. A schedule is attended to under a lock on its row, in one
// transaction that makes the run, enqueues its job and moves the schedule on to its next tick: whoever dies when, a
// tick is one run. A schedule that fails is left as it was, keeps no other from its turn, and is among the errors.
// Schedules of kinds that this process does not know are left to those that do.
func (s *Store) AttendSchedules(ctx context.Context, now *time.Time, log *slog.Logger) ([]ScheduleRun, error) {
	q, err := s.scheduleQueue()
	if err != nil {
		return nil, err
	}
	var kinds []string
	for _, k := range q.ScheduleKinds() {
		kinds = append(kinds, k.Kind)
	}
	if err := settleRuns(ctx, s.pool, nil); err != nil {
		return nil, fmt.Errorf("settle runs of schedules: %w", interpret(err))
	}
	rows, err := s.pool.Query(ctx, `
		(
			SELECT s.id
			FROM medianest.schedule AS s
			WHERE s.next_tick <= coalesce(@now, now()) AND s.kind = ANY(@kinds)
			ORDER BY s.next_tick
			LIMIT @batch
		)
		UNION
		(
			SELECT r.schedule_id
			FROM medianest.schedule_run AS r
			JOIN medianest.schedule AS s ON s.id = r.schedule_id
			WHERE r.state = 'waiting' AND s.kind = ANY(@kinds)
				AND NOT EXISTS (
					SELECT FROM medianest.schedule_run AS o WHERE o.schedule_id = r.schedule_id AND o.state = 'enqueued')
			LIMIT @batch
		)`,
		pgx.StrictNamedArgs{"now": now, "kinds": kinds, "batch": attendBatch})
	if err != nil {
		return nil, fmt.Errorf("look for schedules: %w", interpret(err))
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("look for schedules: %w", interpret(err))
	}
	var (
		made   []ScheduleRun
		faults []error
	)
	for _, id := range ids {
		runs, err := s.attend(ctx, id, now)
		if err != nil {
			faults = append(faults, fmt.Errorf("schedule %s: %w", id, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		for _, r := range runs {
			log.InfoContext(ctx, "run of schedule",
				"schedule_id", r.ScheduleID, "tick", r.Tick, "state", r.State, "job_id", r.JobID)
		}
		made = append(made, runs...)
	}
	return made, errors.Join(faults...)
}

// attend does for one schedule what is to be done now, unless another process is at it.
func (s *Store) attend(ctx context.Context, id uuid.UUID, now *time.Time) (made []ScheduleRun, err error) {
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		a, err := s.attendant(ctx, tx, now)
		if err != nil {
			return err
		}
		// What another process has done until now is seen from here on, not before.
		a.schedule, err = findSchedule(ctx, tx, id, "FOR UPDATE SKIP LOCKED")
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := a.catchUp(ctx); err != nil {
			return err
		}
		if err := a.fireDue(ctx); err != nil {
			return err
		}
		made = a.made
		return nil
	})
	return made, err
}

// attendant attends to one schedule, inside the transaction that holds its lock.
type attendant struct {
	store    *Store
	queue    ScheduleQueue
	tx       pgx.Tx
	now      time.Time
	schedule Schedule

	open    *ScheduleRun // the run that has a job which has not ended
	waiting int          // runs that wait
	made    []ScheduleRun
}

func (s *Store) attendant(ctx context.Context, tx pgx.Tx, now *time.Time) (*attendant, error) {
	q, err := s.scheduleQueue()
	if err != nil {
		return nil, err
	}
	a := &attendant{store: s, queue: q, tx: tx}
	if now != nil {
		a.now = now.UTC()
		return a, nil
	}
	a.now, err = databaseTime(ctx, tx)
	return a, err
}

// settleRuns notes how the runs whose jobs have ended ended: those of all schedules but for what another process is at, or
// all of one schedule, whose next tick depends on it.
func settleRuns(ctx context.Context, db querier, scheduleID *uuid.UUID) error {
	lock := "FOR UPDATE"
	if scheduleID == nil {
		lock += " SKIP LOCKED"
	}
	rows, err := db.Query(ctx, `
		WITH open AS (
			SELECT r.id, r.job_id
			FROM medianest.schedule_run AS r
			WHERE r.state = 'enqueued' AND (@schedule_id::uuid IS NULL OR r.schedule_id = @schedule_id)
			`+lock+`
		)
		UPDATE medianest.schedule_run AS r
		SET state = CASE j.state::text WHEN 'completed' THEN 'completed' WHEN 'discarded' THEN 'failed'
				WHEN 'cancelled' THEN CASE WHEN j.metadata ? 'cancel_attempted_at' THEN 'cancelled' ELSE 'failed' END
				ELSE 'cancelled' END,
			reason = CASE
				WHEN j.id IS NULL THEN 'job_deleted'
				WHEN j.state::text = 'completed' THEN r.reason
				ELSE left(coalesce(j.metadata ->> 'reason', ''), 100) END,
			ended_at = coalesce(j.finalized_at, now())
		FROM open AS o
		LEFT JOIN river.river_job AS j ON j.id = `+currentRow("o.job_id")+`
		WHERE r.id = o.id AND (j.id IS NULL OR j.finalized_at IS NOT NULL)`,
		pgx.StrictNamedArgs{"schedule_id": scheduleID})
	if err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}

// catchUp reads what is open of the schedule, and begins the oldest run that waits if it can.
func (a *attendant) catchUp(ctx context.Context) error {
	if err := settleRuns(ctx, a.tx, &a.schedule.ID); err != nil {
		return fmt.Errorf("settle runs: %w", err)
	}
	if err := a.readOpen(ctx); err != nil {
		return err
	}
	if a.open != nil || a.waiting == 0 {
		return nil
	}
	rows, err := a.tx.Query(ctx, `
		SELECT `+runColumns+`, '' AS job_state
		FROM medianest.schedule_run AS r
		WHERE r.schedule_id = @id AND r.state = 'waiting'
		ORDER BY r.id
		LIMIT 1`,
		pgx.StrictNamedArgs{"id": a.schedule.ID})
	if err != nil {
		return err
	}
	run, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[ScheduleRun])
	if err != nil {
		return fmt.Errorf("find waiting run: %w", err)
	}
	a.waiting--
	return a.enqueue(ctx, run)
}

func (a *attendant) readOpen(ctx context.Context) error {
	rows, err := a.tx.Query(ctx, `
		SELECT `+runColumns+`, '' AS job_state
		FROM medianest.schedule_run AS r
		WHERE r.schedule_id = @id AND r.state IN ('waiting', 'enqueued')
		ORDER BY r.id`,
		pgx.StrictNamedArgs{"id": a.schedule.ID})
	if err != nil {
		return fmt.Errorf("read open runs: %w", err)
	}
	runs, err := pgx.CollectRows(rows, pgx.RowToStructByName[ScheduleRun])
	if err != nil {
		return fmt.Errorf("read open runs: %w", err)
	}
	a.open, a.waiting = nil, 0
	for _, r := range runs {
		if r.State == RunWaiting {
			a.waiting++
		} else {
			a.open = &r
		}
	}
	return nil
}

// fireDue makes the runs of the ticks that are due, as the schedule's misfire says, and moves it on to its next one.
func (a *attendant) fireDue(ctx context.Context) error {
	s := a.schedule
	if s.NextTick == nil || s.NextTick.After(a.now) {
		return nil
	}
	calendar, err := s.Calendar()
	if err != nil {
		return err
	}
	most := 1
	if s.Misfire == MisfireRunAll {
		most = int(s.MisfireMax)
	}
	due := calendar.Between(*s.NextTick, a.now, most)
	if len(due) == 0 { // a zone's rules have changed since it was computed
		due = []time.Time{*s.NextTick}
	}
	if due[0].After(*s.NextTick) { // of a long time that nobody was there, the beginning is kept
		if _, err := a.fire(ctx, firing{tick: *s.NextTick, missed: true}); err != nil {
			return err
		}
	}
	for _, tick := range due {
		late := a.now.Sub(tick) > onTime || !tick.Equal(due[len(due)-1])
		f := firing{tick: tick, late: late}
		f.missed, f.behind = late && s.Misfire == MisfireSkip, late && s.Misfire == MisfireRunAll
		if _, err := a.fire(ctx, f); err != nil {
			return err
		}
	}
	_, err = a.tx.Exec(ctx, `
		UPDATE medianest.schedule
		SET next_tick = @next
		WHERE id = @id`,
		pgx.StrictNamedArgs{"id": s.ID, "next": s.nextTick(calendar, a.now)})
	if err != nil {
		return fmt.Errorf("move on: %w", err)
	}
	return a.trim(ctx)
}

// firing is a tick, or a wish for a run, whose turn has come.
type firing struct {
	tick   time.Time
	manual bool // somebody's wish
	late   bool
	missed bool // it is not to be run, as it is too late
	behind bool // it is to be run after those before it, however they overlap
}

// fire makes the run of a tick, unless it is made, and enqueues its job if the overlap lets it.
func (a *attendant) fire(ctx context.Context, f firing) (ScheduleRun, error) {
	run := ScheduleRun{ScheduleID: a.schedule.ID, Tick: f.tick.UTC(), IsManual: f.manual, State: RunWaiting}
	if f.late {
		run.Reason = RunReasonLate
	}
	var cancel bool
	busy := a.open != nil || a.waiting > 0
	switch {
	case f.missed:
		run.State, run.Reason = RunMissed, RunReasonLate
	case !busy || f.behind:
	case a.schedule.Overlap == OverlapCancelPrevious:
		cancel = true
	case a.schedule.Overlap == OverlapQueueOne && a.waiting == 0:
	default:
		run.State, run.Reason = RunSkipped, RunReasonOverlap
	}
	if run.State == RunWaiting && !f.manual && !f.late {
		runAt := run.Tick.Add(rand.N(time.Duration(a.schedule.JitterS)*time.Second + 1))
		run.RunAt = &runAt
	}
	err := a.tx.QueryRow(ctx, `
		INSERT INTO medianest.schedule_run (schedule_id, tick, is_manual, state, reason, run_at, ended_at)
		VALUES (@schedule_id, @tick, @is_manual, @state, @reason, @run_at,
			CASE WHEN @state IN ('skipped', 'missed') THEN now() END)
		ON CONFLICT (schedule_id, tick) WHERE NOT is_manual DO NOTHING
		RETURNING id, created_at, ended_at`,
		pgx.StrictNamedArgs{
			"schedule_id": run.ScheduleID, "tick": run.Tick, "is_manual": run.IsManual, "state": run.State,
			"reason": run.Reason, "run_at": run.RunAt,
		}).Scan(&run.ID, &run.CreatedAt, &run.EndedAt)
	if errors.Is(err, pgx.ErrNoRows) { // a clock was put back: it has been run
		return run, nil
	}
	if err != nil {
		return run, fmt.Errorf("make run of %s: %w", run.Tick, err)
	}
	if cancel {
		if err := a.cancelPrevious(ctx, run.ID); err != nil {
			return run, err
		}
		busy = a.open != nil
	}
	switch {
	case run.State == RunWaiting && !busy:
		if err := a.enqueue(ctx, run); err != nil {
			return run, err
		}
		return a.made[len(a.made)-1], nil
	case run.State == RunWaiting:
		a.waiting++
	}
	a.made = append(a.made, run)
	return run, nil
}

// cancelPrevious cancels the schedule's runs before this one. One that runs ends in its own time, and this one waits for
// that.
func (a *attendant) cancelPrevious(ctx context.Context, runID int64) error {
	_, err := a.tx.Exec(ctx, `
		UPDATE medianest.schedule_run
		SET state = 'cancelled', reason = @reason, ended_at = now()
		WHERE schedule_id = @id AND state = 'waiting' AND id < @run`,
		pgx.StrictNamedArgs{"id": a.schedule.ID, "run": runID, "reason": RunReasonReplaced})
	if err != nil {
		return fmt.Errorf("cancel waiting runs: %w", err)
	}
	a.waiting = 0
	if a.open == nil || a.open.JobID == nil {
		return nil
	}
	locked, err := lockJobs(ctx, a.tx, []int64{*a.open.JobID})
	if err != nil {
		return err
	}
	if job, ok := locked[*a.open.JobID]; ok && !job.final() {
		if err := a.store.queue.CancelTx(ctx, a.tx, job.Row); err != nil {
			return err
		}
	}
	if err := settleRuns(ctx, a.tx, &a.schedule.ID); err != nil {
		return fmt.Errorf("settle runs: %w", err)
	}
	if err := a.readOpen(ctx); err != nil {
		return err
	}
	a.waiting = 0 // but for this one
	return nil
}

// enqueue gives a run its job.
func (a *attendant) enqueue(ctx context.Context, run ScheduleRun) error {
	job := ScheduledJob{ScheduleID: a.schedule.ID, Tick: run.Tick, Kind: a.schedule.Kind, Args: a.schedule.Args}
	if run.RunAt != nil && run.RunAt.After(a.now) {
		job.RunAt = *run.RunAt
	}
	id, err := a.queue.EnqueueScheduledTx(ctx, a.tx, job)
	if err != nil {
		return fmt.Errorf("enqueue job: %w", err)
	}
	run.State, run.JobID = RunEnqueued, &id
	_, err = a.tx.Exec(ctx, `
		UPDATE medianest.schedule_run
		SET state = 'enqueued', job_id = @job
		WHERE id = @id`,
		pgx.StrictNamedArgs{"id": run.ID, "job": id})
	if err != nil {
		return fmt.Errorf("note job of run: %w", err)
	}
	a.open = &run
	a.made = append(a.made, run)
	return nil
}

// trim removes the oldest of the runs that have ended.
func (a *attendant) trim(ctx context.Context) error {
	_, err := a.tx.Exec(ctx, `
		DELETE FROM medianest.schedule_run
		WHERE schedule_id = @id AND state NOT IN ('waiting', 'enqueued')
			AND id < (
				SELECT r.id
				FROM medianest.schedule_run AS r
				WHERE r.schedule_id = @id
				ORDER BY r.id DESC
				OFFSET @kept
				LIMIT 1
			)`,
		pgx.StrictNamedArgs{"id": a.schedule.ID, "kept": runsKept - 1})
	if err != nil {
		return fmt.Errorf("trim runs: %w", err)
	}
	return nil
}

// SchedulerOptions says how a Scheduler works. Store and Logger are required.
type SchedulerOptions struct {
	Store  *Store // with a queue that is a ScheduleQueue
	Logger *slog.Logger

	// Own are the platform's own schedules, made where they are missing.
	Own []SystemSchedule

	// Interval is how often it looks for what is due, and about how late a run may be. Default: 1 s.
	Interval time.Duration

	// Now is the time. Default: the database's, which all processes have in common.
	Now func() time.Time
}

// Scheduler attends to schedules. Every process may run one: no one is in charge, so no one is missed.
type Scheduler struct{ o SchedulerOptions }

// NewScheduler returns a scheduler that works when Run runs.
func NewScheduler(o SchedulerOptions) *Scheduler {
	setDefault(&o.Interval, time.Second)
	return &Scheduler{o: o}
}

// Run works until ctx ends. What fails is logged and tried again; it returns nil.
func (s *Scheduler) Run(ctx context.Context) error {
	failures := newStreak(s.o.Logger, "schedules")
	ensured := false
	for {
		err := s.look(ctx, &ensured)
		failures.note(ctx, err)
		if !wait(ctx, jitter(s.o.Interval)) {
			return nil
		}
	}
}

func (s *Scheduler) look(ctx context.Context, ensured *bool) error {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	if !*ensured {
		if err := s.o.Store.EnsureSchedules(ctx, s.o.Own); err != nil {
			return err
		}
		*ensured = true
	}
	var now *time.Time
	if s.o.Now != nil {
		t := s.o.Now()
		now = &t
	}
	_, err := s.o.Store.AttendSchedules(ctx, now, s.o.Logger)
	_, expireErr := s.o.Store.ExpireDownloads(ctx, now)
	return errors.Join(err, expireErr)
}
