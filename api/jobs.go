package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// Jobs is the queue as its users see it: users see the jobs that fetch what they wish for, admins all.
type Jobs interface {
	FindJob(ctx context.Context, id int64, v store.Viewer) (store.Job, error)
	// ListJobs returns a page, newest first, and the cursor of the next one, or "".
	ListJobs(ctx context.Context, f store.JobFilter) ([]store.Job, string, error)
	CancelJob(ctx context.Context, id int64, v store.Viewer) (store.Job, error)
	RetryJob(ctx context.Context, id int64, v store.Viewer) (store.Job, error)
	// ListAttempts returns a job's attempts, newest first.
	ListAttempts(ctx context.Context, id int64, v store.Viewer) ([]store.Attempt, error)
	// TailLog returns the last lines of a job's log, oldest first.
	TailLog(ctx context.Context, id, after int64, tail int, v store.Viewer) ([]store.LogLine, error)
	SetJobPriority(ctx context.Context, id int64, priority int, v store.Viewer) (store.Job, error)
	// CurrentRow returns the row that a job has now, by the job's id or that of any row that it has had. ErrNotFound if
	// it has none any more.
	CurrentRow(ctx context.Context, id int64) (store.JobRow, error)
}

// Job is a piece of work in the queue.
type Job struct {
	ID           string      `json:"id" doc:"Identifies the job; a number too large for some programs, hence a string." example:"42"`
	Kind         string      `json:"kind" doc:"What is to be done." example:"download"`
	Queue        string      `json:"queue" doc:"Where it waits." example:"download"`
	State        string      `json:"state" enum:"available,cancelled,completed,discarded,pending,retryable,running,scheduled" doc:"River's state. pending: it waits for its limits, or for a worker to have room; see waiting. available: a worker takes it next. discarded: all attempts failed. retryable: it failed and is tried again at scheduled_at." example:"running"`
	Reason       string      `json:"reason,omitempty" doc:"Why the last attempt failed; from the same list as a download's failure." example:"network"`
	Priority     int         `json:"priority" doc:"1 goes first, 4 last." example:"1"`
	Attempt      int         `json:"attempt" doc:"Which attempt it is in, or was." example:"1"`
	MaxAttempts  int         `json:"max_attempts" doc:"How many there are at most." example:"8"`
	CreatedAt    time.Time   `json:"created_at" doc:"When it was put into the queue."`
	ScheduledAt  time.Time   `json:"scheduled_at" doc:"From when on it may run."`
	AttemptedAt  *time.Time  `json:"attempted_at,omitempty" doc:"When its last attempt began."`
	FinalizedAt  *time.Time  `json:"finalized_at,omitempty" doc:"When it ended."`
	IsCancelling bool        `json:"is_cancelling" doc:"It runs, and its end has been asked for."`
	AttemptedBy  []string    `json:"attempted_by" nullable:"false" doc:"Which workers had it, by their ids: the last ten, the last one last."`
	Errors       []JobError  `json:"errors" nullable:"false" doc:"What went wrong, attempt by attempt; in lists, the last time only."`
	Progress     *Progress   `json:"progress,omitempty" doc:"How far it is while it runs."`
	Waiting      *Waiting    `json:"waiting,omitempty" doc:"Why it is pending, and where in line."`
	DownloadIDs  []uuid.UUID `json:"download_ids" format:"uuid" nullable:"false" doc:"The downloads, of those that you may see, that it is or was for; 100 at most."`
}

// JobError is how an attempt failed.
type JobError struct {
	Attempt int       `json:"attempt" doc:"Which attempt." example:"1"`
	At      time.Time `json:"at" doc:"When."`
	Error   string    `json:"error" doc:"What went wrong, in technical words." example:"network: the site could not be reached"`
}

// JobList is a page of jobs.
type JobList struct {
	Items      []Job  `json:"items" nullable:"false" doc:"The page."`
	NextCursor string `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

type jobOutput struct{ Body Job }

type jobInput struct {
	ID string `path:"id" pattern:"^[1-9][0-9]{0,18}$" patternDescription:"a job id" doc:"The job's id." example:"42"`
}

// number is the id as the store knows it. One that no job can have is not found.
func (in jobInput) number() (int64, error) { return parseJobID(in.ID) }

func parseJobID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id <= 0 || text[0] == '+' {
		return 0, newProblem(CodeNotFound, "There is no such job, or it is not yours.")
	}
	return id, nil
}

var listJobs = described{
	id: "list-jobs", scope: ScopeJobsRead, tag: tagJobs, summary: "List jobs",
	text:     "Newest first: those that work for your downloads; an admin sees all. Jobs that have ended are kept for a while only: downloads are what lasts.",
	problems: []Code{CodeValidationFailed},
}

type listJobsInput struct {
	Kind          []string  `query:"kind" nullable:"false" maxItems:"20" maxLength:"128" doc:"Only these kinds, separated by commas." example:"download"`
	Queue         []string  `query:"queue" nullable:"false" maxItems:"20" maxLength:"128" doc:"Only these queues, separated by commas."`
	Reason        []string  `query:"reason" nullable:"false" maxItems:"20" maxLength:"128" doc:"Only those whose last attempt failed for one of these reasons, separated by commas." example:"network"`
	Key           string    `query:"key" maxLength:"1024" doc:"Only those that count under this key of limits." example:"host:example.org"`
	UserID        uuid.UUID `query:"user_id" format:"uuid" doc:"Only those that work or worked for downloads of this user; others than admins see no others' in any case."`
	CreatedAfter  time.Time `query:"created_after" doc:"Only those made then or later."`
	CreatedBefore time.Time `query:"created_before" doc:"Only those made before."`
	State         []string  `query:"state" nullable:"false" enum:"available,cancelled,completed,discarded,pending,retryable,running,scheduled" doc:"Only those in one of these states, separated by commas."`
	Paging
}

type listJobsOutput struct{ Body JobList }

func (a *API) handleListJobs(ctx context.Context, input *listJobsInput) (*listJobsOutput, error) {
	jobs, next, err := a.store.ListJobs(ctx, store.JobFilter{
		Viewer: viewerOf(ctx), Kinds: input.Kind, Queues: input.Queue, States: input.State,
		Reasons: input.Reason, Key: input.Key, UserID: input.UserID, CreatedAfter: input.CreatedAfter, CreatedBefore: input.CreatedBefore,
		Cursor: input.Cursor, Limit: input.Limit,
	})
	if err != nil {
		return nil, err
	}
	return &listJobsOutput{JobList{Items: a.presentJobs(ctx, jobs), NextCursor: next}}, nil
}

var findJob = described{
	id: "find-job", scope: ScopeJobsRead, tag: tagJobs, summary: "Show a job",
	text:     "With its progress while it runs, and how each attempt failed. A job whose worker was lost goes on elsewhere under the same id, without an attempt spent; the id of the row that it has in River UI from then on finds it as well.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

func (a *API) handleFindJob(ctx context.Context, input *jobInput) (*jobOutput, error) {
	id, err := input.number()
	if err != nil {
		return nil, err
	}
	job, err := a.store.FindJob(ctx, id, viewerOf(ctx))
	if err != nil {
		return nil, notFound(err, "job")
	}
	return &jobOutput{a.presentJobs(ctx, []store.Job{job})[0]}, nil
}

// Attempt is one try of a job.
type Attempt struct {
	Attempt   int        `json:"attempt" doc:"Its number. One that cost none, as when the job was put off or its worker was lost, is given out again." example:"1"`
	Worker    string     `json:"worker,omitempty" doc:"The process that worked it." example:"nas-1"`
	StartedAt time.Time  `json:"started_at" doc:"When it began."`
	EndedAt   *time.Time `json:"ended_at,omitempty" doc:"When it ended; missing while it runs."`
	Outcome   string     `json:"outcome" enum:"running,completed,retried,failed,snoozed,cancelled,interrupted,lost" doc:"retried: it failed, and the job is tried again. failed: it was the last one. snoozed: the job was put off, as for a full disk or a site that asked for less. interrupted: handed back by a worker that stopped. lost: its worker was killed, froze or was cut off." example:"retried"`
	Reason    string     `json:"reason,omitempty" doc:"Why, from the list of reasons." example:"network"`
	Detail    string     `json:"detail,omitempty" doc:"The same in words."`
	Bytes     *int64     `json:"bytes,omitempty" doc:"How much of what is fetched was there at its end, what earlier attempts left included." example:"10485760"`
}

// AttemptList is what a job's attempts were.
type AttemptList struct {
	Items []Attempt `json:"items" nullable:"false" doc:"The attempts, newest first; fifty at most."`
}

var listAttempts = described{
	id: "list-attempts", scope: ScopeJobsRead, tag: tagJobs, summary: "List a job's attempts",
	text:     "What became of each try, who worked it, and why it ended, also over the loss of workers. The newest fifty are kept, for as long as the job is.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

type listAttemptsOutput struct{ Body AttemptList }

func (a *API) handleListAttempts(ctx context.Context, input *jobInput) (*listAttemptsOutput, error) {
	id, err := input.number()
	if err != nil {
		return nil, err
	}
	attempts, err := a.store.ListAttempts(ctx, id, viewerOf(ctx))
	if err != nil {
		return nil, notFound(err, "job")
	}
	list := AttemptList{Items: make([]Attempt, len(attempts))}
	for i, attempt := range attempts {
		list.Items[i] = Attempt(attempt)
	}
	return &listAttemptsOutput{list}, nil
}

// LogLine is a line of a job's log.
type LogLine struct {
	At      time.Time `json:"at" doc:"When it was said."`
	Attempt int       `json:"attempt" doc:"In which attempt." example:"1"`
	Level   string    `json:"level" enum:"info,warning,error" doc:"How grave it is. error: how an attempt ended that failed."`
	Text    string    `json:"text" doc:"What was said, in plain words." example:"Verified: 95 s, 10485760 bytes."`
}

// JobLog is the end of a job's log.
type JobLog struct {
	Items []LogLine `json:"items" nullable:"false" doc:"The lines, oldest first."`
	After string    `json:"after" doc:"Asks for what is said later, in the parameter of the same name." example:"4711"`
}

var tailLog = described{
	id: "tail-job-log", scope: ScopeJobsRead, tag: tagJobs, summary: "Read a job's log",
	text:     "What the job said of itself, and what yt-dlp warned of, attempt by attempt. A line can be read a second after it was said. The newest 200 lines are kept, for as long as the job is. Ask again with after to follow a job that runs.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

type tailLogInput struct {
	ID    string `path:"id" pattern:"^[1-9][0-9]{0,18}$" patternDescription:"a job id" doc:"The job's id." example:"42"`
	After string `query:"after" pattern:"^[0-9]{1,18}$" patternDescription:"what an answer gave as after" doc:"Only lines after these; what the last answer gave as after."`
	Tail  int    `query:"tail" minimum:"1" maximum:"200" default:"200" doc:"Only the last lines, so many."`
}

type tailLogOutput struct{ Body JobLog }

func (a *API) handleTailLog(ctx context.Context, input *tailLogInput) (*tailLogOutput, error) {
	id, err := (&jobInput{ID: input.ID}).number()
	if err != nil {
		return nil, err
	}
	after, _ := strconv.ParseInt(input.After, 10, 64) // as the pattern has it, or none
	lines, err := a.store.TailLog(ctx, id, after, input.Tail, viewerOf(ctx))
	if err != nil {
		return nil, notFound(err, "job")
	}
	log := JobLog{Items: make([]LogLine, len(lines))}
	for i, l := range lines {
		log.Items[i] = LogLine{At: l.At, Attempt: l.Attempt, Level: l.Level, Text: l.Text}
		after = l.ID
	}
	log.After = strconv.FormatInt(after, 10)
	return &tailLogOutput{log}, nil
}

var cancelJob = described{
	id: "cancel-job", scope: ScopeJobsWrite, tag: tagJobs, summary: "Cancel a job", status: http.StatusAccepted,
	text:     "Cancels your downloads that it works for, and ends it unless it works for others too; for an admin it ends in any case. A job that waits has ended when the answer comes; one that runs is stopped within two seconds, and the event stream tells when.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

func (a *API) handleCancelJob(ctx context.Context, input *jobInput) (*jobOutput, error) {
	id, err := input.number()
	if err != nil {
		return nil, err
	}
	job, err := a.store.CancelJob(ctx, id, viewerOf(ctx))
	if err != nil {
		return nil, conflict(notFound(err, "job"), "It has ended already, or does not work for you any more.")
	}
	return &jobOutput{a.presentJobs(ctx, []store.Job{job})[0]}, nil
}

var retryJob = described{
	id: "retry-job", scope: ScopeJobsWrite, tag: tagJobs, summary: "Try a job again", status: http.StatusAccepted,
	text:     "Makes a job that failed, was cancelled or waits to be tried again run as soon as a worker is free. Your own downloads that were cancelled follow it again; those that others cancelled do not.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

func (a *API) handleRetryJob(ctx context.Context, input *jobInput) (*jobOutput, error) {
	id, err := input.number()
	if err != nil {
		return nil, err
	}
	job, err := a.store.RetryJob(ctx, id, viewerOf(ctx))
	if err != nil {
		return nil, conflict(notFound(err, "job"), "It runs, waits for a worker already, or has completed; or another job has taken its place; or nobody wishes for what it fetches.")
	}
	return &jobOutput{a.presentJobs(ctx, []store.Job{job})[0]}, nil
}

var setJobPriority = described{
	id: "set-job-priority", scope: ScopeQueueWrite, tag: tagJobs, summary: "Change a job's priority",
	text:     "Moves a job that waits in the line; one that runs keeps the priority for its next attempt.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

// JobChange is what can be changed of a job.
type JobChange struct {
	Priority int `json:"priority" minimum:"1" maximum:"4" doc:"Jobs with a lower number go first, whoever they are for. Downloads begin with 2." example:"1"`
}

type setJobPriorityInput struct {
	ID   string `path:"id" pattern:"^[1-9][0-9]{0,18}$" patternDescription:"a job id" doc:"The job's id." example:"42"`
	Body JobChange
}

func (a *API) handleSetJobPriority(ctx context.Context, input *setJobPriorityInput) (*jobOutput, error) {
	id, err := (&jobInput{ID: input.ID}).number()
	if err != nil {
		return nil, err
	}
	note(ctx, "asked", input.Body)
	job, err := a.store.SetJobPriority(ctx, id, input.Body.Priority, viewerOf(ctx))
	if err != nil {
		return nil, conflict(notFound(err, "job"), "It has ended.")
	}
	a.onLimits()
	return &jobOutput{a.presentJobs(ctx, []store.Job{job})[0]}, nil
}

const jobRunning = "running"

// presentJobs are the jobs as clients see them. The progress of those that run is looked up.
func (a *API) presentJobs(ctx context.Context, jobs []store.Job) []Job {
	var running []int64
	for _, job := range jobs {
		if job.State == jobRunning {
			running = append(running, job.ID)
		}
	}
	progress := a.lastProgress(ctx, running)
	presented := make([]Job, 0, len(jobs))
	for _, job := range jobs {
		mapped := mapJob(job)
		if p, ok := progress[job.ID]; ok {
			mapped.Progress = mapProgress(p)
		}
		presented = append(presented, mapped)
	}
	return presented
}

func mapJob(job store.Job) Job {
	mapped := Job{
		ID: strconv.FormatInt(job.ID, 10), Kind: job.Kind, Queue: job.Queue, State: job.State, Reason: job.Reason,
		Priority: job.Priority, Attempt: job.Attempt, MaxAttempts: job.MaxAttempts,
		CreatedAt: job.CreatedAt, ScheduledAt: job.ScheduledAt, AttemptedAt: job.AttemptedAt, FinalizedAt: job.FinalizedAt,
		IsCancelling: job.CancelAsked, Waiting: mapWaiting(job.Waiting),
		AttemptedBy: append([]string{}, job.AttemptedBy...), DownloadIDs: append([]uuid.UUID{}, job.DownloadIDs...),
		Errors: make([]JobError, 0, len(job.Errors)),
	}
	for _, e := range job.Errors {
		mapped.Errors = append(mapped.Errors, JobError{Attempt: e.Attempt, At: e.At, Error: e.Error})
	}
	return mapped
}
