package api

import (
	"context"
	"strconv"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// Bulk changes many jobs, for administrators.
type Bulk interface {
	// CountJobs counts the jobs that an action is for, by state; atLeast: there are more.
	CountJobs(ctx context.Context, action string, f store.JobFilter) (byState map[string]int, atLeast bool, err error)
	// ChangeJobs does the action to jobs in the order of their rows after that one, until there are none or until is over.
	ChangeJobs(ctx context.Context, action string, f store.JobFilter, after int64, until time.Time) (store.BulkDone, error)
}

// bulkTime is how long one request changes jobs before it answers that there are more.
const bulkTime = 10 * time.Second

// BulkFilter says which jobs are meant: those that all of it holds for.
type BulkFilter struct {
	State         []string  `json:"state,omitempty" nullable:"false" maxItems:"8" enum:"available,cancelled,completed,discarded,pending,retryable,running,scheduled" doc:"In one of these states."`
	Kind          []string  `json:"kind,omitempty" nullable:"false" maxItems:"20" doc:"Of one of these kinds."`
	Queue         []string  `json:"queue,omitempty" nullable:"false" maxItems:"20" doc:"In one of these queues."`
	Reason        []string  `json:"reason,omitempty" nullable:"false" maxItems:"20" doc:"Whose last attempt failed for one of these reasons." example:"[\"network\"]"`
	Key           string    `json:"key,omitempty" maxLength:"1024" doc:"That count under this key of limits." example:"host:example.org"`
	UserID        uuid.UUID `json:"user_id,omitempty,omitzero" format:"uuid" doc:"That work or worked for downloads of this user."`
	CreatedAfter  time.Time `json:"created_after,omitempty,omitzero" doc:"Made then or later."`
	CreatedBefore time.Time `json:"created_before,omitempty,omitzero" doc:"Made before."`
}

func (f BulkFilter) jobs(v store.Viewer) store.JobFilter {
	return store.JobFilter{
		Viewer: v, States: f.State, Kinds: f.Kind, Queues: f.Queue, Reasons: f.Reason, Key: f.Key, UserID: f.UserID,
		CreatedAfter: f.CreatedAfter, CreatedBefore: f.CreatedBefore,
	}
}

// BulkRequest is what is to be done to which jobs.
type BulkRequest struct {
	Action string     `json:"action" enum:"cancel,retry,delete" doc:"cancel: jobs that have not ended, whoever wishes for what they do. retry: jobs that ended badly or wait to be tried again. delete: jobs that ended more than a minute ago; downloads stay." example:"retry"`
	Filter BulkFilter `json:"filter" doc:"Which jobs. One that says nothing is refused."`
	DryRun bool       `json:"dry_run,omitempty" doc:"Only count them."`
	Cursor string     `json:"cursor,omitempty" pattern:"^[0-9]{1,19}$" patternDescription:"a cursor" doc:"The next_cursor of the answer before, to go on."`
}

// BulkResult is what was done, or would be.
type BulkResult struct {
	ByState    map[string]int `json:"by_state,omitempty" doc:"With dry_run: how many jobs it would be done to, by state."`
	AtLeast    bool           `json:"at_least,omitempty" doc:"With dry_run: there are more; counting stops at 100,000."`
	Done       int            `json:"done" doc:"To how many it was done." example:"10000"`
	Skipped    int            `json:"skipped" doc:"To how many it was not done: somebody else was at them, another job has taken their place, or nobody wishes for what they do any more." example:"3"`
	NextCursor string         `json:"next_cursor,omitempty" doc:"There are more: send the same with this cursor."`
}

var bulkJobs = described{
	id: "bulk-jobs", scope: ScopeQueueWrite, tag: tagJobs, summary: "Cancel, retry or delete many jobs",
	text: "Does it to all jobs that the filter fits, in many small steps, for ten seconds at most: while there are more, the answer has a `next_cursor` to go on with. With `dry_run` it only counts them.\n\n" +
		"The dead letters are the jobs that are discarded; to redrive them is to retry those of a reason.",
	problems: []Code{CodeValidationFailed},
}

type bulkJobsInput struct{ Body BulkRequest }

type bulkJobsOutput struct{ Body BulkResult }

func (a *API) handleBulkJobs(ctx context.Context, input *bulkJobsInput) (*bulkJobsOutput, error) {
	filter := input.Body.Filter.jobs(viewerOf(ctx))
	note(ctx, "asked", input.Body)
	var result BulkResult
	if input.Body.DryRun {
		var err error
		result.ByState, result.AtLeast, err = a.store.CountJobs(ctx, input.Body.Action, filter)
		if err != nil {
			return nil, err
		}
		return &bulkJobsOutput{result}, nil
	}
	var after int64
	if input.Body.Cursor != "" {
		var err error
		if after, err = strconv.ParseInt(input.Body.Cursor, 10, 64); err != nil {
			return nil, &store.InvalidError{Field: "cursor", Reason: "is not one that an answer gave"}
		}
	}
	done, err := a.store.ChangeJobs(ctx, input.Body.Action, filter, after, time.Now().Add(bulkTime))
	note(ctx, "done", done.Done)
	note(ctx, "skipped", done.Skipped)
	if err != nil {
		return nil, err
	}
	a.onLimits()
	result.Done, result.Skipped = done.Done, done.Skipped
	if done.More {
		result.NextCursor = strconv.FormatInt(done.After, 10)
	}
	return &bulkJobsOutput{result}, nil
}
