package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// What a schedule does about a tick that comes while its last run has not ended: it has one job at a time.
const (
	OverlapSkip           = "skip"            // nothing: the tick is skipped
	OverlapQueueOne       = "queue_one"       // one run waits for the end; ticks that come meanwhile are skipped
	OverlapCancelPrevious = "cancel_previous" // the last run is cancelled, and this one begins when it has ended
)

// What a schedule does about ticks that nobody was there for. A tick is on time for a minute.
const (
	MisfireSkip    = "skip"     // nothing: they are missed
	MisfireRunOnce = "run_once" // the newest of them is run, the others are missed
	MisfireRunAll  = "run_all"  // the newest ones are run, up to a number, one after another
)

// States of a run.
const (
	RunWaiting   = "waiting"  // for the end of the run before it
	RunEnqueued  = "enqueued" // it has a job, which has not ended
	RunCompleted = "completed"
	RunFailed    = "failed"
	RunCancelled = "cancelled"
	RunSkipped   = "skipped" // the run before it had not ended
	RunMissed    = "missed"  // nobody was there at its time
)

// Why a run is, or became, what it is, where its job's own reason does not tell.
const (
	RunReasonOverlap    = "overlap"     // skipped: the run before it had not ended
	RunReasonLate       = "late"        // missed, or run later than its time
	RunReasonReplaced   = "replaced"    // cancelled for a later run's sake
	RunReasonJobDeleted = "job_deleted" // cancelled: its job's row is gone
)

const (
	// onTime is how late a tick may be without being missed. A takeover between processes takes seconds.
	onTime = time.Minute

	maxScheduleNameBytes = 200
	maxScheduleArgsBytes = 8 << 10
	maxJitter            = 24 * time.Hour
	maxMisfireMax        = 100
	defaultMisfireMax    = 10

	// runsKept is how many ended runs of a schedule are kept.
	runsKept = 200
)

// ScheduleQueue is what a Queue is besides when jobs can be scheduled with it.
type ScheduleQueue interface {
	// ScheduleKinds returns the kinds of job that a schedule may be of.
	ScheduleKinds() []ScheduleKind

	// CheckScheduledArgs returns an InvalidError of field kind or args unless a job of that kind can do with them.
	CheckScheduledArgs(kind string, args json.RawMessage) error

	// EnqueueScheduledTx inserts a job of one of the kinds and returns its id.
	EnqueueScheduledTx(ctx context.Context, tx pgx.Tx, job ScheduledJob) (int64, error)
}

// ScheduleKind is a kind of job that a schedule may be of.
type ScheduleKind struct {
	Kind        string
	Description string
	Args        json.RawMessage // an example
}

// ScheduledJob is a run's job.
type ScheduledJob struct {
	ScheduleID uuid.UUID
	Tick       time.Time
	Kind       string
	Args       json.RawMessage
	RunAt      time.Time // not before; zero: at once
}

// Schedule is a job that is enqueued again and again.
type Schedule struct {
	ID         uuid.UUID
	SystemKey  *string // of the platform's own
	Name       string
	Enabled    bool
	Kind       string
	Args       json.RawMessage
	Cron       string // "": by interval
	Timezone   string // of cron
	IntervalS  *int32
	AnchorAt   time.Time // what intervals count from
	JitterS    int32
	Overlap    string
	Misfire    string
	MisfireMax int32
	NextTick   *time.Time // nil: never, or not enabled
	Revision   int64      // counts changes
	CreatedAt  time.Time
	UpdatedAt  time.Time
	UpdatedBy  *uuid.UUID // nil: the platform itself
}

const scheduleColumns = `s.id, s.system_key, s.name, s.enabled, s.kind, s.args, s.cron, s.timezone, s.interval_s,
			s.anchor_at, s.jitter_s, s.overlap, s.misfire, s.misfire_max, s.next_tick, s.revision,
			s.created_at, s.updated_at, s.updated_by`

// Calendar says when the schedule's ticks are, whether or not it is enabled.
func (s Schedule) Calendar() (Calendar, error) {
	if s.IntervalS != nil {
		return NewIntervalCalendar(s.AnchorAt, time.Duration(*s.IntervalS)*time.Second)
	}
	return NewCronCalendar(s.Cron, s.Timezone)
}

// ScheduleSpec is what somebody wants a schedule to be. Either Cron or Interval is set.
type ScheduleSpec struct {
	Name       string
	Enabled    bool
	Kind       string
	Args       json.RawMessage // an object; empty means {}
	Cron       string
	Timezone   string // of Cron; empty means UTC
	Interval   time.Duration
	Jitter     time.Duration // a run begins up to so much after its tick, at random
	Overlap    string        // empty means skip
	Misfire    string        // empty means run_once
	MisfireMax int           // of run_all; 0 means 10
}

// schedule returns the row that the spec describes, with intervals counted from anchor. What is wrong with it is an
// InvalidError.
func (sp ScheduleSpec) schedule(q ScheduleQueue, anchor time.Time) (Schedule, Calendar, error) {
	fail := func(field, why string) (Schedule, Calendar, error) {
		return Schedule{}, Calendar{}, &InvalidError{Field: field, Reason: why}
	}
	s := Schedule{
		Name: sp.Name, Enabled: sp.Enabled, Kind: sp.Kind, Timezone: "UTC", AnchorAt: anchor,
		Overlap: cmp.Or(sp.Overlap, OverlapSkip), Misfire: cmp.Or(sp.Misfire, MisfireRunOnce),
	}
	if err := checkText("name", sp.Name, maxScheduleNameBytes); err != nil {
		return Schedule{}, Calendar{}, err
	}
	if overlaps := []string{OverlapSkip, OverlapQueueOne, OverlapCancelPrevious}; !slices.Contains(overlaps, s.Overlap) {
		return fail("overlap", "is none of "+strings.Join(overlaps, " "))
	}
	if misfires := []string{MisfireSkip, MisfireRunOnce, MisfireRunAll}; !slices.Contains(misfires, s.Misfire) {
		return fail("misfire", "is none of "+strings.Join(misfires, " "))
	}
	most := cmp.Or(sp.MisfireMax, defaultMisfireMax)
	if most < 1 || most > maxMisfireMax {
		return fail("misfire_max", fmt.Sprintf("must be from 1 to %d", maxMisfireMax))
	}
	s.MisfireMax = int32(most) //nolint:gosec // bounded above
	if sp.Jitter < 0 || sp.Jitter > maxJitter {
		return fail("jitter_s", fmt.Sprintf("must be from 0 to %d", int(maxJitter.Seconds())))
	}
	s.JitterS = int32(sp.Jitter / time.Second) //nolint:gosec // bounded above

	var err error
	if s.Args, err = objectOf(sp.Args); err != nil {
		return Schedule{}, Calendar{}, err
	}
	if err := q.CheckScheduledArgs(s.Kind, s.Args); err != nil {
		return Schedule{}, Calendar{}, err
	}

	switch {
	case sp.Cron == "" && sp.Interval == 0:
		return fail("cron", "is missing, and so is interval_s: one of them says when")
	case sp.Cron != "" && sp.Interval != 0:
		return fail("interval_s", "goes without cron: one of them says when")
	case sp.Cron != "":
		s.Cron, s.Timezone = strings.TrimSpace(sp.Cron), cmp.Or(sp.Timezone, s.Timezone)
	case sp.Jitter >= sp.Interval && sp.Interval > 0:
		return fail("jitter_s", "must be less than interval_s")
	default:
		if sp.Interval < minInterval || sp.Interval > maxInterval { // before it is cut to 32 bits
			_, err := NewIntervalCalendar(anchor, sp.Interval)
			return Schedule{}, Calendar{}, err
		}
		seconds := int32(sp.Interval / time.Second) //nolint:gosec // bounded above
		s.IntervalS = &seconds
	}
	calendar, err := s.Calendar()
	return s, calendar, err
}

// objectOf returns the arguments as they are stored.
func objectOf(raw json.RawMessage) (json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0:
		return json.RawMessage(`{}`), nil
	case len(raw) > maxScheduleArgsBytes:
		return nil, &InvalidError{Field: "args", Reason: fmt.Sprintf("is longer than %d bytes", maxScheduleArgsBytes)}
	case raw[0] != '{':
		return nil, &InvalidError{Field: "args", Reason: "is no JSON object"}
	}
	clean, err := cleanJSON(raw)
	if err != nil {
		return nil, &InvalidError{Field: "args", Reason: "is no JSON object"}
	}
	return clean, nil
}

// errNoSchedules is of a store whose queue schedules nothing: a fault of the build.
var errNoSchedules = errors.New("the store's queue schedules no jobs")

func (s *Store) scheduleQueue() (ScheduleQueue, error) {
	q, ok := s.queue.(ScheduleQueue)
	if !ok {
		return nil, errNoSchedules
	}
	return q, nil
}

// ScheduleKinds returns the kinds of job that a schedule may be of.
func (s *Store) ScheduleKinds() ([]ScheduleKind, error) {
	q, err := s.scheduleQueue()
	if err != nil {
		return nil, err
	}
	return q.ScheduleKinds(), nil
}

// ListSchedules returns a page of the schedules, by id, which is by age, and the cursor of the next.
func (s *Store) ListSchedules(ctx context.Context, cursor string, limit int) (page []Schedule, next string, err error) {
	if limit, err = pageSize(limit); err != nil {
		return nil, "", err
	}
	var after uuid.UUID
	if cursor != "" {
		if after, err = parseIDCursor(cursor); err != nil {
			return nil, "", err
		}
	}
	rows, err := s.pool.Query(ctx, `
		SELECT `+scheduleColumns+`
		FROM medianest.schedule AS s
		WHERE s.id > @after
		ORDER BY s.id
		LIMIT @limit`,
		pgx.StrictNamedArgs{"after": after, "limit": limit + 1})
	if err != nil {
		return nil, "", fmt.Errorf("list schedules: %w", interpret(err))
	}
	page, err = pgx.CollectRows(rows, pgx.RowToStructByName[Schedule])
	if err != nil {
		return nil, "", fmt.Errorf("list schedules: %w", interpret(err))
	}
	if len(page) > limit {
		page = page[:limit]
		last := page[limit-1].ID
		next = base64.RawURLEncoding.EncodeToString(last[:])
	}
	return page, next, nil
}

// FindSchedule returns a schedule.
func (s *Store) FindSchedule(ctx context.Context, id uuid.UUID) (Schedule, error) {
	found, err := findSchedule(ctx, s.pool, id, "")
	if err != nil {
		return Schedule{}, fmt.Errorf("find schedule %s: %w", id, interpret(err))
	}
	return found, nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// findSchedule reads a schedule; lock is what FOR clause it is read with.
func findSchedule(ctx context.Context, db querier, id uuid.UUID, lock string) (Schedule, error) {
	rows, err := db.Query(ctx, `
		SELECT `+scheduleColumns+`
		FROM medianest.schedule AS s
		WHERE s.id = @id `+lock,
		pgx.StrictNamedArgs{"id": id})
	if err != nil {
		return Schedule{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Schedule])
}

// CreateSchedule makes a schedule, on behalf of a user. Its first tick is after now.
func (s *Store) CreateSchedule(ctx context.Context, spec ScheduleSpec, by uuid.UUID) (Schedule, error) {
	var made Schedule
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		made, err = s.insertSchedule(ctx, tx, spec, nil, &by)
		return err
	})
	if err != nil {
		return Schedule{}, fmt.Errorf("create schedule: %w", nameTaken(err))
	}
	return made, nil
}

// insertSchedule makes a schedule. pgx.ErrNoRows if it is one of the platform's own and is there, or its name is.
func (s *Store) insertSchedule(
	ctx context.Context, tx pgx.Tx, spec ScheduleSpec, systemKey *string, by *uuid.UUID,
) (Schedule, error) {
	q, err := s.scheduleQueue()
	if err != nil {
		return Schedule{}, err
	}
	now, err := databaseTime(ctx, tx)
	if err != nil {
		return Schedule{}, err
	}
	row, calendar, err := spec.schedule(q, now.Truncate(time.Second))
	if err != nil {
		return Schedule{}, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Schedule{}, err
	}
	onConflict := ""
	if systemKey != nil {
		onConflict = "ON CONFLICT DO NOTHING"
	}
	args := row.arguments()
	args["id"], args["system_key"], args["by"] = id, systemKey, by
	args["next_tick"] = row.nextTick(calendar, now)
	rows, err := tx.Query(ctx, `
		INSERT INTO medianest.schedule AS s (id, system_key, name, enabled, kind, args, cron, timezone, interval_s,
			anchor_at, jitter_s, overlap, misfire, misfire_max, next_tick, updated_by)
		VALUES (@id, @system_key, @name, @enabled, @kind, @args, @cron, @timezone, @interval_s, @anchor_at,
			@jitter_s, @overlap, @misfire, @misfire_max, @next_tick, @by)
		`+onConflict+`
		RETURNING `+scheduleColumns, args)
	if err != nil {
		return Schedule{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Schedule])
}

func (s Schedule) arguments() pgx.StrictNamedArgs {
	return pgx.StrictNamedArgs{
		"name": s.Name, "enabled": s.Enabled, "kind": s.Kind, "args": s.Args, "cron": s.Cron, "timezone": s.Timezone,
		"interval_s": s.IntervalS, "anchor_at": s.AnchorAt, "jitter_s": s.JitterS, "overlap": s.Overlap,
		"misfire": s.Misfire, "misfire_max": s.MisfireMax,
	}
}

// nextTick is the first one after now that the schedule is to have, or nil.
func (s Schedule) nextTick(c Calendar, now time.Time) *time.Time {
	if next := c.Next(now); s.Enabled && !next.IsZero() {
		return &next
	}
	return nil
}

// nameTaken says so where that is what a unique index refused.
func nameTaken(err error) error {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.ConstraintName == "schedule_name_key" {
		return &InvalidError{Field: "name", Reason: "is another schedule's"}
	}
	return err
}

// UpdateSchedule makes a schedule what the spec says, given the revision that the caller has seen; ErrConflict if it
// has another by now. A change of its times, or of whether it is enabled, has its next tick after now; any other leaves
// that as it is. Its runs go on. The platform's own keep their kind.
func (s *Store) UpdateSchedule(
	ctx context.Context, id uuid.UUID, revision int64, spec ScheduleSpec, by uuid.UUID,
) (Schedule, error) {
	return s.changeSchedule(ctx, id, by, func(old Schedule) (ScheduleSpec, error) {
		if old.Revision != revision {
			return ScheduleSpec{}, fmt.Errorf("it has revision %d, not %d: %w", old.Revision, revision, ErrConflict)
		}
		if old.SystemKey != nil && spec.Kind != old.Kind {
			return ScheduleSpec{}, &InvalidError{Field: "kind", Reason: "cannot be changed: this schedule is the platform's own"}
		}
		return spec, nil
	})
}

// PauseSchedule has a schedule make no more runs by itself; those that are under way go on. One that is paused already
// stays as it is.
func (s *Store) PauseSchedule(ctx context.Context, id, by uuid.UUID) (Schedule, error) {
	return s.enableSchedule(ctx, id, by, false)
}

// ResumeSchedule has a schedule go on with its first tick after now: ticks while it was paused are none. One that is not
// paused stays as it is.
func (s *Store) ResumeSchedule(ctx context.Context, id, by uuid.UUID) (Schedule, error) {
	return s.enableSchedule(ctx, id, by, true)
}

var errUnchanged = errors.New("unchanged")

func (s *Store) enableSchedule(ctx context.Context, id, by uuid.UUID, enabled bool) (Schedule, error) {
	var unchanged Schedule
	changed, err := s.changeSchedule(ctx, id, by, func(old Schedule) (ScheduleSpec, error) {
		if old.Enabled == enabled {
			unchanged = old
			return ScheduleSpec{}, errUnchanged
		}
		spec := old.spec()
		spec.Enabled = enabled
		return spec, nil
	})
	if errors.Is(err, errUnchanged) {
		return unchanged, nil
	}
	return changed, err
}

// spec is the schedule as it was asked for.
func (s Schedule) spec() ScheduleSpec {
	sp := ScheduleSpec{
		Name: s.Name, Enabled: s.Enabled, Kind: s.Kind, Args: s.Args, Cron: s.Cron, Timezone: s.Timezone,
		Jitter: time.Duration(s.JitterS) * time.Second, Overlap: s.Overlap, Misfire: s.Misfire, MisfireMax: int(s.MisfireMax),
	}
	if s.IntervalS != nil {
		sp.Interval = time.Duration(*s.IntervalS) * time.Second
	}
	return sp
}

// changeSchedule makes a schedule what change makes of it.
func (s *Store) changeSchedule(
	ctx context.Context, id, by uuid.UUID, change func(old Schedule) (ScheduleSpec, error),
) (Schedule, error) {
	var changed Schedule
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		q, err := s.scheduleQueue()
		if err != nil {
			return err
		}
		old, err := findSchedule(ctx, tx, id, "FOR UPDATE")
		if err != nil {
			return err
		}
		spec, err := change(old)
		if err != nil {
			return err
		}
		now, err := databaseTime(ctx, tx)
		if err != nil {
			return err
		}
		row, calendar, err := spec.schedule(q, now.Truncate(time.Second))
		if err != nil {
			return err
		}
		sameTimes := row.Cron == old.Cron && row.Timezone == old.Timezone && row.IntervalS == old.IntervalS
		if row.IntervalS != nil && old.IntervalS != nil && *row.IntervalS == *old.IntervalS {
			sameTimes, row.AnchorAt = true, old.AnchorAt
			calendar.anchor = old.AnchorAt
		}
		next := old.NextTick
		if !sameTimes || row.Enabled != old.Enabled {
			next = row.nextTick(calendar, now)
		}
		args := row.arguments()
		args["id"], args["by"], args["next_tick"] = id, by, next
		rows, err := tx.Query(ctx, `
			UPDATE medianest.schedule AS s
			SET name = @name, enabled = @enabled, kind = @kind, args = @args, cron = @cron, timezone = @timezone,
				interval_s = @interval_s, anchor_at = @anchor_at, jitter_s = @jitter_s, overlap = @overlap,
				misfire = @misfire, misfire_max = @misfire_max, next_tick = @next_tick,
				revision = s.revision + 1, updated_at = now(), updated_by = @by
			WHERE s.id = @id
			RETURNING `+scheduleColumns, args)
		if err != nil {
			return err
		}
		changed, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Schedule])
		return err
	})
	if err != nil {
		return Schedule{}, fmt.Errorf("change schedule %s: %w", id, nameTaken(err))
	}
	return changed, nil
}

// DeleteSchedule removes a schedule with its history. A job of its that has not ended goes on. ErrConflict if it is one
// of the platform's own.
func (s *Store) DeleteSchedule(ctx context.Context, id uuid.UUID) error {
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		old, err := findSchedule(ctx, tx, id, "FOR UPDATE")
		if err != nil {
			return err
		}
		if old.SystemKey != nil {
			return fmt.Errorf("it is the platform's own: %w", ErrConflict)
		}
		_, err = tx.Exec(ctx, `DELETE FROM medianest.schedule WHERE id = @id`, pgx.StrictNamedArgs{"id": id})
		return err
	})
	if err != nil {
		return fmt.Errorf("delete schedule %s: %w", id, err)
	}
	return nil
}

// SystemSchedule is one of the platform's own.
type SystemSchedule struct {
	Key  string // never changes
	Spec ScheduleSpec
}

// EnsureSchedules makes those of the platform's own schedules that are not there. What administrators have made of them
// stays.
func (s *Store) EnsureSchedules(ctx context.Context, own []SystemSchedule) error {
	for _, o := range own {
		err := s.inTx(ctx, func(tx pgx.Tx) error {
			_, err := s.insertSchedule(ctx, tx, o.Spec, &o.Key, nil)
			if !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			// It is there, or somebody's own schedule has its name.
			o.Spec.Name += " (" + o.Key + ")"
			_, err = s.insertSchedule(ctx, tx, o.Spec, &o.Key, nil)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("make schedule %s: %w", o.Key, err)
		}
	}
	return nil
}

// databaseTime is the time now, which all processes have in common.
func databaseTime(ctx context.Context, tx pgx.Tx) (now time.Time, err error) {
	err = tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now)
	return now, err
}
