package store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// JobStates are the states of a job, as River has them.
var JobStates = []string{"available", "cancelled", "completed", "discarded", "pending", "retryable", "running", "scheduled"}

// maxJobDownloads bounds how many downloads are told with a job.
const maxJobDownloads = 100

// Job is a job as its present row is. Rows of ended jobs are kept for a while only.
type Job struct {
	ID          int64  // public: that of its first row
	Row         JobRow // that stands for it now
	Kind        string
	Queue       string
	State       string
	Priority    int
	Attempt     int
	MaxAttempts int
	CreatedAt   time.Time
	ScheduledAt time.Time
	AttemptedAt *time.Time
	FinalizedAt *time.Time
	AttemptedBy []string    // the clients that ran it, last ones only
	Errors      []JobError  // of failed attempts, oldest first; in a list only the last
	Reason      string      // why the last attempt ended, from the closed list; "" if it says nothing
	CancelAsked bool        // it runs, and its end is asked for
	Waiting     *Waiting    `db:"-"` // what it waits for in the queue, else nil
	DownloadIDs []uuid.UUID // that follow or followed it and that the viewer may see, oldest first, 100 at most
}

// JobError is a failed attempt.
type JobError struct {
	At      time.Time `json:"at"`
	Attempt int       `json:"attempt"`
	Error   string    `json:"error"`
}

// JobFilter says which jobs to list, newest first. In an admin's list, a job that lost its worker has the place of its
// present row.
type JobFilter struct {
	Viewer Viewer // an admin sees all, others those that a download of theirs follows or followed
	Kinds  []string
	Queues []string
	States []string

	Reasons       []string  // of the last attempt's failure
	Key           string    // one that it names, such as "host:example.org"
	UserID        uuid.UUID // whose downloads it works or worked for; for admins
	CreatedAfter  time.Time // or at that time
	CreatedBefore time.Time

	Cursor string // where the last page ended; empty: from the start
	Limit  int    // 1 to 200; 0: 50
}

const jobReason = `CASE
				WHEN j.state IN ('running', 'completed') THEN ''
				WHEN j.state = 'cancelled' AND j.metadata ? 'cancel_attempted_at' THEN 'cancelled'
				WHEN j.metadata ->> 'reason_attempt' IN (j.attempt::text, (j.attempt + 1)::text) THEN coalesce(j.metadata ->> 'reason', '')
				ELSE ''
			END`

// jobColumns reads of attempted_by and errors only so much that a page of jobs stays small. The reason of an attempt
// before the last one is not passed off as the last one's; a snooze counts an attempt back.
const jobColumns = `medianest.public_id(j.id, j.metadata) AS id, j.id AS row, j.kind, j.queue, j.state::text AS state,
			j.priority, j.attempt, j.max_attempts, j.created_at, j.scheduled_at, j.attempted_at, j.finalized_at,
			coalesce(j.attempted_by[greatest(1, cardinality(j.attempted_by) - 9):], '{}') AS attempted_by,
			` + jobReason + ` AS reason,
			j.state = 'running' AND j.metadata ? 'cancel_attempted_at' AS cancel_asked,
			ARRAY(
				SELECT v.download_id
				FROM medianest.job_viewer AS v
				WHERE v.job_id = medianest.public_id(j.id, j.metadata) AND (@admin OR v.user_id = @user_id)
				ORDER BY v.download_id
				LIMIT @max_downloads
			) AS download_ids`

// FindJob returns a job that the viewer may see. The id may also be that of any row that the job has had.
func (s *Store) FindJob(ctx context.Context, id int64, v Viewer) (Job, error) {
	s = s.as(v)
	job, err := findJob(ctx, s.pool, id, v)
	if err != nil {
		return Job{}, fmt.Errorf("load job %d: %w", id, interpret(err))
	}
	return job, nil
}

func findJob(ctx context.Context, db rowQuerier, id int64, v Viewer) (Job, error) {
	rows, err := db.Query(ctx, `
		SELECT `+jobColumns+`, to_jsonb(coalesce(j.errors, '{}')) AS errors
		FROM `+jobByAnyID+`
		WHERE @admin OR EXISTS (SELECT FROM medianest.job_viewer AS v WHERE v.job_id = n.id AND v.user_id = @user_id)`,
		pgx.StrictNamedArgs{"id": id, "admin": v.Admin, "user_id": v.UserID, "max_downloads": maxJobDownloads})
	if err != nil {
		return Job{}, err
	}
	job, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Job])
	if err != nil {
		return Job{}, err
	}
	jobs := []Job{job}
	err = addJobsWaiting(ctx, db, jobs, v, true)
	return jobs[0], err
}

// addJobsWaiting adds what those of the jobs wait for that wait for admission.
func addJobsWaiting(ctx context.Context, db rowQuerier, jobs []Job, v Viewer, ofOne bool) error {
	var pending []int64
	for _, j := range jobs {
		if j.State == "pending" {
			pending = append(pending, j.ID)
		}
	}
	waiting, _, err := queryWaiting(ctx, db, pending, v, ofOne)
	if err != nil {
		return err
	}
	for i, j := range jobs {
		if w, ok := waiting[j.ID]; ok && j.State == "pending" {
			jobs[i].Waiting = &w
		}
	}
	return nil
}

// ListJobs returns a page, and the cursor of the next one, or "" after the last.
func (s *Store) ListJobs(ctx context.Context, f JobFilter) (page []Job, next string, err error) {
	s = s.as(f.Viewer)
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	sql, args, err := listJobsQuery(f, limit)
	if err != nil {
		return nil, "", err
	}
	rows, err := s.pool.Query(ctx, sql, args)
	if err != nil {
		return nil, "", fmt.Errorf("list jobs: %w", interpret(err))
	}
	page, err = pgx.CollectRows(rows, pgx.RowToStructByName[Job])
	if err != nil {
		return nil, "", fmt.Errorf("list jobs: %w", interpret(err))
	}
	if len(page) > limit {
		page = page[:limit]
		next = jobCursor(page[limit-1], f)
	}
	if err := addJobsWaiting(ctx, s.pool, page, f.Viewer, false); err != nil {
		return nil, "", fmt.Errorf("list jobs: %w", interpret(err))
	}
	return page, next, nil
}

func listJobsQuery(f JobFilter, limit int) (string, pgx.StrictNamedArgs, error) {
	args := pgx.StrictNamedArgs{
		"admin": f.Viewer.Admin, "user_id": f.Viewer.UserID, "max_downloads": maxJobDownloads, "limit": limit + 1,
	}
	where, err := f.conditions(args)
	if err != nil {
		return "", nil, err
	}
	before := ""
	if f.Cursor != "" {
		raw, err := decodeCursor(f.Cursor, 8)
		if err != nil {
			return "", nil, err
		}
		args["before"] = int64(binary.BigEndian.Uint64(raw)) //nolint:gosec // all 64 bits are the value
		before = "< @before"
	}
	from := "river.river_job AS j"
	switch {
	case !f.ofOne() && before != "":
		where = append(where, "j.id "+before)
	case f.ofOne():
		// From the user's end: a user's few jobs are not looked for among everybody's many.
		of := f.Viewer.UserID
		if f.Viewer.Admin {
			of = f.UserID
		}
		args["of"] = of
		visible := "w.user_id = @of"
		if before != "" {
			visible += " AND w.job_id " + before
		}
		from = `(
			SELECT DISTINCT w.job_id
			FROM medianest.job_viewer AS w
			WHERE ` + visible + `
			ORDER BY w.job_id DESC
		) AS mine
		LEFT JOIN medianest.job_map AS m ON m.public_id = mine.job_id
		JOIN river.river_job AS j ON j.id = coalesce(m.row_id, mine.job_id)`
	}
	order := "j.id DESC"
	if f.ofOne() {
		order = "mine.job_id DESC"
	}
	return `
		SELECT ` + jobColumns + `, to_jsonb(coalesce(j.errors[cardinality(j.errors):], '{}')) AS errors
		FROM ` + from + `
		WHERE ` + strings.Join(where, " AND ") + `
		ORDER BY ` + order + `
		LIMIT @limit`, args, nil
}

// ofOne reports whether the jobs of one user are asked for.
func (f JobFilter) ofOne() bool { return !f.Viewer.Admin || f.UserID != uuid.Nil }

// conditions are those of the filter on j, but for whose they are, and for the cursor; their arguments are added.
func (f JobFilter) conditions(args pgx.StrictNamedArgs) ([]string, error) {
	where := []string{"NOT j.metadata ? 'superseded_by'"}
	for _, c := range []struct {
		field, column string
		values        []string
	}{{"kind", "j.kind", f.Kinds}, {"queue", "j.queue", f.Queues}} {
		for _, value := range c.values {
			if err := checkText(c.field, value, maxKeyBytes); err != nil {
				return nil, err
			}
		}
		if len(c.values) > 0 {
			where = append(where, c.column+" = ANY(@"+c.field+")")
			args[c.field] = c.values
		}
	}
	// States are written out, not given as a parameter: only then the planner knows that few jobs run and many have
	// completed, and takes the index by state for the ones and the primary key for the others.
	for _, state := range f.States {
		if !slices.Contains(JobStates, state) {
			return nil, &InvalidError{Field: "state", Reason: "is none of " + strings.Join(JobStates, " ")}
		}
	}
	states := f.States
	if len(states) == 0 && len(f.Queues) > 0 {
		states = JobStates // the index by queue begins with the state: a queue of few jobs would be looked for in all of it
	}
	if len(states) > 0 {
		states = slices.Compact(slices.Sorted(slices.Values(states)))
		where = append(where, "j.state IN ('"+strings.Join(states, "', '")+"')")
	}
	if len(f.Reasons) > 0 {
		var any []string
		for i, reason := range f.Reasons {
			if err := checkText("reason", reason, maxKeyBytes); err != nil {
				return nil, err
			}
			// The first by an index; but what an attempt before the last one failed for is not asked for.
			name := fmt.Sprintf("reason_%d", i)
			any = append(any, "j.metadata @> jsonb_build_object('reason', @"+name+"::text)")
			args[name] = reason
		}
		if slices.Contains(f.Reasons, "cancelled") {
			any = append(any, "j.state = 'cancelled'")
		}
		where = append(where, "("+strings.Join(any, " OR ")+")", "("+jobReason+") = ANY(@reasons)")
		args["reasons"] = f.Reasons
	}
	if f.Key != "" {
		if err := checkText("key", f.Key, maxKeyBytes); err != nil {
			return nil, err
		}
		where = append(where, "j.metadata @> jsonb_build_object('keys', jsonb_build_array(@key::text))")
		args["key"] = f.Key
	}
	if !f.CreatedAfter.IsZero() {
		where = append(where, "j.created_at >= @created_after")
		args["created_after"] = f.CreatedAfter
	}
	if !f.CreatedBefore.IsZero() {
		where = append(where, "j.created_at < @created_before")
		args["created_before"] = f.CreatedBefore
	}
	return where, nil
}

// jobCursor is the last job's place in the order of the list.
func jobCursor(last Job, f JobFilter) string {
	id := last.ID
	if !f.ofOne() {
		id = int64(last.Row)
	}
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(id))) //nolint:gosec // all 64 bits are the value
}
