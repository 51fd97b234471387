package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// Schedules is the jobs that are enqueued again and again, for administrators.
type Schedules interface {
	// ScheduleKinds returns the kinds of job that a schedule may be of.
	ScheduleKinds() ([]store.ScheduleKind, error)
	// ListSchedules returns a page, oldest first.
	ListSchedules(ctx context.Context, cursor string, limit int) (page []store.Schedule, next string, err error)
	FindSchedule(ctx context.Context, id uuid.UUID) (store.Schedule, error)
	CreateSchedule(ctx context.Context, spec store.ScheduleSpec, by uuid.UUID) (store.Schedule, error)
	// UpdateSchedule answers with ErrConflict if the schedule has another revision.
	UpdateSchedule(
		ctx context.Context, id uuid.UUID, revision int64, spec store.ScheduleSpec, by uuid.UUID,
	) (store.Schedule, error)
	// PauseSchedule and ResumeSchedule change nothing the second time.
	PauseSchedule(ctx context.Context, id, by uuid.UUID) (store.Schedule, error)
	ResumeSchedule(ctx context.Context, id, by uuid.UUID) (store.Schedule, error)
	// DeleteSchedule answers with ErrConflict if the schedule is one of the platform's own.
	DeleteSchedule(ctx context.Context, id uuid.UUID) error
	// RunScheduleNow answers with ErrConflict if the last run has not ended and overlap is to skip.
	RunScheduleNow(ctx context.Context, id uuid.UUID) (store.ScheduleRun, error)
	// ListScheduleRuns returns a page, newest first.
	ListScheduleRuns(
		ctx context.Context, id uuid.UUID, cursor string, limit int,
	) (page []store.ScheduleRun, next string, err error)
}

// ScheduleRequest is what a schedule is to be.
type ScheduleRequest struct {
	Name       string          `json:"name" minLength:"1" maxLength:"200" doc:"What people know it by; no two have the same." example:"Sweep at night"`
	Enabled    *bool           `json:"enabled,omitempty" default:"true" doc:"Whether it has ticks. false: it is paused."`
	Kind       string          `json:"kind" maxLength:"128" doc:"What is to be done: one of the kinds that schedules may be of." example:"sweep_staging"`
	Args       json.RawMessage `json:"args,omitempty" doc:"The arguments of its jobs, an object; which ones depends on the kind."`
	Cron       string          `json:"cron,omitempty" maxLength:"200" doc:"When: minute, hour, day of month, month and day of week, or @hourly, @daily, @weekly, @monthly or @yearly. A named hour has its ticks once a day also when clocks change; an hour that begins with * goes by time that passes. Either this or interval_s." example:"30 2 * * *"`
	Timezone   string          `json:"timezone,omitempty" maxLength:"64" default:"UTC" doc:"The time zone of cron, by its IANA name." example:"Europe/Berlin"`
	IntervalS  int             `json:"interval_s,omitempty" doc:"Every so many seconds, from the moment on when this was set; 10 at least." example:"3600"`
	JitterS    int             `json:"jitter_s,omitempty" minimum:"0" maximum:"86400" doc:"A run begins up to so many seconds after its tick, at random."`
	Overlap    string          `json:"overlap,omitempty" enum:"skip,queue_one,cancel_previous" default:"skip" doc:"What becomes of a tick while the last run has not ended. skip: it is skipped. queue_one: its run waits for the end, and ticks that come meanwhile are skipped. cancel_previous: the last run is cancelled, and this one begins when that has ended."`
	Misfire    string          `json:"misfire,omitempty" enum:"skip,run_once,run_all" default:"run_once" doc:"What becomes of ticks when nobody was there for more than a minute. skip: they are missed. run_once: the newest is run. run_all: the newest misfire_max are run, one after another."`
	MisfireMax int             `json:"misfire_max,omitempty" minimum:"1" maximum:"100" default:"10" doc:"Of run_all: how many at most."`
}

// spec is the request as the store takes it.
func (r ScheduleRequest) spec() store.ScheduleSpec {
	return store.ScheduleSpec{
		Name: r.Name, Enabled: r.Enabled == nil || *r.Enabled, Kind: r.Kind, Args: r.Args,
		Cron: r.Cron, Timezone: r.Timezone, Interval: seconds(r.IntervalS), Jitter: seconds(r.JitterS),
		Overlap: r.Overlap, Misfire: r.Misfire, MisfireMax: r.MisfireMax,
	}
}

// seconds is as many as a duration can hold at most: what is out of range stays so.
func seconds(n int) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(max(int64(n), -most), most)) * time.Second
}

// ScheduleUpdateRequest is a ScheduleRequest for a schedule that is there.
type ScheduleUpdateRequest struct {
	ScheduleRequest

	Revision int64 `json:"revision" minimum:"1" doc:"The revision that was changed: it is refused if there has been another change since." example:"1"`
}

// Schedule is a job that is enqueued again and again.
type Schedule struct {
	ID         uuid.UUID       `json:"id" doc:"Identifies it." format:"uuid"`
	System     bool            `json:"system" doc:"It is one of the platform's own: it may be changed and paused, but not deleted."`
	Name       string          `json:"name" doc:"What people know it by." example:"Staging sweep"`
	Enabled    bool            `json:"enabled" doc:"Whether it has ticks. false: it is paused."`
	Kind       string          `json:"kind" doc:"What is to be done." example:"sweep_staging"`
	Args       json.RawMessage `json:"args" doc:"The arguments of its jobs, an object."`
	Cron       string          `json:"cron,omitempty" doc:"When, if not by interval_s." example:"30 2 * * *"`
	Timezone   string          `json:"timezone,omitempty" doc:"The time zone of cron." example:"Europe/Berlin"`
	IntervalS  int             `json:"interval_s,omitempty" doc:"Every how many seconds, if not by cron." example:"3600"`
	JitterS    int             `json:"jitter_s" doc:"Up to how many seconds after its tick a run begins."`
	Overlap    string          `json:"overlap" enum:"skip,queue_one,cancel_previous" doc:"What becomes of a tick while the last run has not ended." example:"skip"`
	Misfire    string          `json:"misfire" enum:"skip,run_once,run_all" doc:"What becomes of ticks when nobody was there." example:"run_once"`
	MisfireMax int             `json:"misfire_max" doc:"Of run_all: how many at most." example:"10"`
	NextRuns   []time.Time     `json:"next_runs" nullable:"false" doc:"Its next ten ticks; in lists, the next one. None while it is paused."`
	Revision   int64           `json:"revision" doc:"Counts its changes." example:"1"`
	CreatedAt  time.Time       `json:"created_at" doc:"When it was made."`
	UpdatedAt  time.Time       `json:"updated_at" doc:"When it was changed last."`
}

// ScheduleList is a page of schedules.
type ScheduleList struct {
	Items      []Schedule `json:"items" nullable:"false" doc:"The page, oldest first."`
	NextCursor string     `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

// ScheduleRun is what became of a tick, or of a run that somebody asked for.
type ScheduleRun struct {
	Tick     time.Time  `json:"tick" doc:"When it was to be; of a run that was asked for, when that was."`
	Manual   bool       `json:"manual" doc:"Somebody asked for it."`
	State    string     `json:"state" enum:"waiting,enqueued,completed,failed,cancelled,skipped,missed" doc:"waiting: for the end of the run before it. enqueued: it has a job that has not ended. skipped: the run before it had not ended. missed: nobody was there at its time." example:"completed"`
	Reason   string     `json:"reason,omitempty" doc:"Why it is, or became, so: overlap, late, replaced (by a later run), job_deleted, or why its job failed." example:"late"`
	JobID    string     `json:"job_id,omitempty" doc:"Its job. Jobs are kept for a while only." example:"42"`
	JobState string     `json:"job_state,omitempty" doc:"The state of its job while that has not ended." example:"running"`
	RunAt    *time.Time `json:"run_at,omitempty" doc:"From when on its job may run: the tick, with its jitter."`
	EndedAt  *time.Time `json:"ended_at,omitempty" doc:"When it ended, or was skipped or found missed."`
}

// ScheduleRunList is a page of a schedule's runs.
type ScheduleRunList struct {
	Items      []ScheduleRun `json:"items" nullable:"false" doc:"The page, newest first."`
	NextCursor string        `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

// ScheduleKind is a kind of job that a schedule may be of.
type ScheduleKind struct {
	Kind        string          `json:"kind" doc:"What schedules name it by." example:"sweep_staging"`
	Description string          `json:"description" doc:"What its jobs do." example:"Removes from the staging area what no download will need."`
	Args        json.RawMessage `json:"args" doc:"An example of its arguments."`
}

// ScheduleKindList is all kinds that schedules may be of.
type ScheduleKindList struct {
	Items []ScheduleKind `json:"items" nullable:"false" doc:"The kinds."`
}

const (
	previewTicks = 10
)

var listScheduleKinds = described{
	id: "list-schedule-kinds", scope: ScopeSchedulesRead, tag: tagSchedules, summary: "List what can be scheduled",
	text: "The kinds of job that a schedule may be of.",
}

type scheduleKindsOutput struct{ Body ScheduleKindList }

func (a *API) handleListScheduleKinds(context.Context, *struct{}) (*scheduleKindsOutput, error) {
	kinds, err := a.store.ScheduleKinds()
	if err != nil {
		return nil, err
	}
	list := ScheduleKindList{Items: make([]ScheduleKind, len(kinds))}
	for i, k := range kinds {
		list.Items[i] = ScheduleKind(k)
	}
	return &scheduleKindsOutput{list}, nil
}

var listSchedules = described{
	id: "list-schedules", scope: ScopeSchedulesRead, tag: tagSchedules, summary: "List schedules",
	text:     "Oldest first, the platform's own among them.",
	problems: []Code{CodeValidationFailed},
}

type listSchedulesInput struct{ Paging }

type listSchedulesOutput struct{ Body ScheduleList }

func (a *API) handleListSchedules(ctx context.Context, input *listSchedulesInput) (*listSchedulesOutput, error) {
	schedules, next, err := a.store.ListSchedules(ctx, input.Cursor, input.Limit)
	if err != nil {
		return nil, err
	}
	list := ScheduleList{Items: make([]Schedule, len(schedules)), NextCursor: next}
	for i, s := range schedules {
		if list.Items[i], err = mapSchedule(s, 1); err != nil {
			return nil, err
		}
	}
	return &listSchedulesOutput{list}, nil
}

var createSchedule = described{
	id: "create-schedule", scope: ScopeSchedulesWrite, tag: tagSchedules, summary: "Make a schedule", status: http.StatusCreated,
	text: "Its first tick is after now; the answer has the next ten. A tick is one run, whichever processes are there, come or go.",
}

type createScheduleInput struct{ Body ScheduleRequest }

type scheduleOutput struct{ Body Schedule }

func (a *API) handleCreateSchedule(ctx context.Context, input *createScheduleInput) (*scheduleOutput, error) {
	note(ctx, "asked", input.Body)
	made, err := a.store.CreateSchedule(ctx, input.Body.spec(), viewerOf(ctx).UserID)
	return presentSchedule(made, err)
}

// SchedulePath names a schedule. It is exported for huma to see its field where it is embedded.
type SchedulePath struct {
	ID uuid.UUID `path:"id" format:"uuid" doc:"The schedule's id."`
}

var findSchedule = described{
	id: "find-schedule", scope: ScopeSchedulesRead, tag: tagSchedules, summary: "Show a schedule",
	text:     "With its next ten ticks.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

func (a *API) handleFindSchedule(ctx context.Context, input *SchedulePath) (*scheduleOutput, error) {
	found, err := a.store.FindSchedule(ctx, input.ID)
	return presentSchedule(found, err)
}

var updateSchedule = described{
	id: "update-schedule", scope: ScopeSchedulesWrite, tag: tagSchedules, summary: "Change a schedule",
	text:     "Makes it what the body says, whole: what is left out has its default. Other times hold from now on. Runs that are under way go on.",
	problems: []Code{CodeNotFound, CodeConflict},
}

type updateScheduleInput struct {
	SchedulePath

	Body ScheduleUpdateRequest
}

func (a *API) handleUpdateSchedule(ctx context.Context, input *updateScheduleInput) (*scheduleOutput, error) {
	note(ctx, "asked", input.Body)
	changed, err := a.store.UpdateSchedule(ctx, input.ID, input.Body.Revision, input.Body.spec(), viewerOf(ctx).UserID)
	return presentSchedule(changed, conflict(err, "It has been changed since that revision: read it again."))
}

var deleteSchedule = described{
	id: "delete-schedule", scope: ScopeSchedulesWrite, tag: tagSchedules, summary: "Delete a schedule",
	text:     "With its history. A job of its that has not ended goes on. The platform's own cannot be deleted, but paused.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

func (a *API) handleDeleteSchedule(ctx context.Context, input *SchedulePath) (*struct{}, error) {
	err := a.store.DeleteSchedule(ctx, input.ID)
	return nil, conflict(notFound(err, "schedule"), "It is one of the platform's own: pause it instead.")
}

var pauseSchedule = described{
	id: "pause-schedule", scope: ScopeSchedulesWrite, tag: tagSchedules, summary: "Pause a schedule",
	text:     "It has no more ticks until it is resumed. A run that is under way goes on.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

func (a *API) handlePauseSchedule(ctx context.Context, input *SchedulePath) (*scheduleOutput, error) {
	paused, err := a.store.PauseSchedule(ctx, input.ID, viewerOf(ctx).UserID)
	return presentSchedule(paused, err)
}

var resumeSchedule = described{
	id: "resume-schedule", scope: ScopeSchedulesWrite, tag: tagSchedules, summary: "Resume a schedule",
	text:     "It goes on with its first tick after now: those that it would have had while it was paused are none.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

func (a *API) handleResumeSchedule(ctx context.Context, input *SchedulePath) (*scheduleOutput, error) {
	resumed, err := a.store.ResumeSchedule(ctx, input.ID, viewerOf(ctx).UserID)
	return presentSchedule(resumed, err)
}

var runSchedule = described{
	id: "run-schedule", scope: ScopeSchedulesWrite, tag: tagSchedules, summary: "Run a schedule now", status: http.StatusAccepted,
	text:     "A run besides those of its ticks, also while it is paused. If the last run has not ended it waits or replaces that, as overlap says.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

type scheduleRunOutput struct{ Body ScheduleRun }

func (a *API) handleRunSchedule(ctx context.Context, input *SchedulePath) (*scheduleRunOutput, error) {
	run, err := a.store.RunScheduleNow(ctx, input.ID)
	if err != nil {
		return nil, conflict(notFound(err, "schedule"), "Its last run has not ended.")
	}
	return &scheduleRunOutput{mapRun(run)}, nil
}

var listScheduleRuns = described{
	id: "list-schedule-runs", scope: ScopeSchedulesRead, tag: tagSchedules, summary: "List a schedule's runs",
	text:     "What became of each tick, newest first. The newest 200 are kept; of ticks that nobody was there for, only the first is listed, and those that are run.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

type listScheduleRunsInput struct {
	SchedulePath
	Paging
}

type listScheduleRunsOutput struct{ Body ScheduleRunList }

func (a *API) handleListScheduleRuns(ctx context.Context, input *listScheduleRunsInput) (*listScheduleRunsOutput, error) {
	runs, next, err := a.store.ListScheduleRuns(ctx, input.ID, input.Cursor, input.Limit)
	if err != nil {
		return nil, notFound(err, "schedule")
	}
	list := ScheduleRunList{Items: make([]ScheduleRun, len(runs)), NextCursor: next}
	for i, r := range runs {
		list.Items[i] = mapRun(r)
	}
	return &listScheduleRunsOutput{list}, nil
}

// presentSchedule answers with a schedule and its next ticks.
func presentSchedule(s store.Schedule, err error) (*scheduleOutput, error) {
	if err != nil {
		return nil, notFound(err, "schedule")
	}
	mapped, err := mapSchedule(s, previewTicks)
	if err != nil {
		return nil, err
	}
	return &scheduleOutput{mapped}, nil
}

func mapSchedule(s store.Schedule, ticks int) (Schedule, error) {
	mapped := Schedule{
		ID: s.ID, System: s.SystemKey != nil, Name: s.Name, Enabled: s.Enabled, Kind: s.Kind, Args: s.Args, Cron: s.Cron,
		JitterS: int(s.JitterS), Overlap: s.Overlap, Misfire: s.Misfire, MisfireMax: int(s.MisfireMax),
		NextRuns: []time.Time{}, Revision: s.Revision, CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt,
	}
	if s.IntervalS != nil {
		mapped.IntervalS = int(*s.IntervalS)
	} else {
		mapped.Timezone = s.Timezone
	}
	if s.NextTick == nil {
		return mapped, nil
	}
	mapped.NextRuns = append(mapped.NextRuns, *s.NextTick)
	if ticks > 1 {
		calendar, err := s.Calendar()
		if err != nil {
			return Schedule{}, err
		}
		mapped.NextRuns = append(mapped.NextRuns, calendar.Upcoming(*s.NextTick, ticks-1)...)
	}
	return mapped, nil
}

func mapRun(r store.ScheduleRun) ScheduleRun {
	mapped := ScheduleRun{
		Tick: r.Tick, Manual: r.IsManual, State: r.State, Reason: r.Reason, JobState: r.JobState,
		RunAt: r.RunAt, EndedAt: r.EndedAt,
	}
	if r.JobID != nil {
		mapped.JobID = strconv.FormatInt(*r.JobID, 10)
	}
	return mapped
}
