package store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
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

// Job is a job as its row is now. Rows of ended jobs are kept for a while only.
type Job struct {
	ID          int64
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
	DownloadIDs []uuid.UUID // that follow or followed it and that the viewer may see, oldest first, 100 at most
}

// JobError is a failed attempt.
type JobError struct {
	At      time.Time `json:"at"`
	Attempt int       `json:"attempt"`
	Error   string    `json:"error"`
}

// JobFilter says which jobs to list, newest first.
type JobFilter struct {
	Viewer Viewer // an admin sees all, others those that a download of theirs follows or followed
	Kinds  []string
	Queues []string
	States []string
	Cursor string // where the last page ended; empty: from the start
	Limit  int    // 1 to 200; 0: 50
}

// jobColumns reads of attempted_by and errors only so much that a page of jobs stays small. The reason of an attempt
// before the last one is not passed off as the last one's; a snooze counts an attempt back.
const jobColumns = `j.id, j.kind, j.queue, j.state::text AS state, j.priority, j.attempt, j.max_attempts, j.created_at, j.scheduled_at,
			j.attempted_at, j.finalized_at,
			coalesce(j.attempted_by[greatest(1, cardinality(j.attempted_by) - 9):], '{}') AS attempted_by,
			CASE
				WHEN j.state IN ('running', 'completed') THEN ''
				WHEN j.state = 'cancelled' AND j.metadata ? 'cancel_attempted_at' THEN 'cancelled'
				WHEN j.metadata ->> 'reason_attempt' IN (j.attempt::text, (j.attempt + 1)::text) THEN coalesce(j.metadata ->> 'reason', '')
				ELSE ''
			END AS reason,
			j.state = 'running' AND j.metadata ? 'cancel_attempted_at' AS cancel_asked,
			ARRAY(
				SELECT v.download_id
				FROM medianest.job_viewer AS v
				WHERE v.job_id = j.id AND (@admin OR v.user_id = @user_id)
				ORDER BY v.download_id
				LIMIT @max_downloads
			) AS download_ids`

// FindJob returns a job that the viewer may see.
func (s *Store) FindJob(ctx context.Context, id int64, v Viewer) (Job, error) {
	job, err := findJob(ctx, s.pool, id, v)
	if err != nil {
		return Job{}, fmt.Errorf("load job %d: %w", id, interpret(err))
	}
	return job, nil
}

func findJob(ctx context.Context, db rowQuerier, id int64, v Viewer) (Job, error) {
	rows, err := db.Query(ctx, `
		SELECT `+jobColumns+`, to_jsonb(coalesce(j.errors, '{}')) AS errors
		FROM river.river_job AS j
		WHERE j.id = @id
			AND (@admin OR EXISTS (SELECT FROM medianest.job_viewer AS v WHERE v.job_id = j.id AND v.user_id = @user_id))`,
		pgx.StrictNamedArgs{"id": id, "admin": v.Admin, "user_id": v.UserID, "max_downloads": maxJobDownloads})
	if err != nil {
		return Job{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Job])
}

// ListJobs returns a page, and the cursor of the next one, or "" after the last.
func (s *Store) ListJobs(ctx context.Context, f JobFilter) (page []Job, next string, err error) {
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
		next = jobCursor(page[limit-1].ID)
	}
	return page, next, nil
}

func listJobsQuery(f JobFilter, limit int) (string, pgx.StrictNamedArgs, error) {
	args := pgx.StrictNamedArgs{
		"admin": f.Viewer.Admin, "user_id": f.Viewer.UserID, "max_downloads": maxJobDownloads, "limit": limit + 1,
	}
	where := []string{"true"}
	for _, c := range []struct {
		field, column string
		values        []string
	}{{"kind", "j.kind", f.Kinds}, {"queue", "j.queue", f.Queues}} {
		for _, value := range c.values {
			if err := checkText(c.field, value, maxKeyBytes); err != nil {
				return "", nil, err
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
			return "", nil, &InvalidError{Field: "state", Reason: "is none of " + strings.Join(JobStates, " ")}
		}
	}
	if len(f.States) > 0 {
		states := slices.Compact(slices.Sorted(slices.Values(f.States)))
		where = append(where, "j.state IN ('"+strings.Join(states, "', '")+"')")
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
	case f.Viewer.Admin && before != "":
		where = append(where, "j.id "+before)
	case !f.Viewer.Admin:
		// From the viewer's end: a user's few jobs are not looked for among everybody's many.
		visible := "w.user_id = @user_id"
		if before != "" {
			visible += " AND w.job_id " + before
		}
		from = `(
			SELECT DISTINCT w.job_id
			FROM medianest.job_viewer AS w
			WHERE ` + visible + `
			ORDER BY w.job_id DESC
		) AS mine
		JOIN river.river_job AS j ON j.id = mine.job_id`
	}
	order := "j.id DESC"
	if !f.Viewer.Admin {
		order = "mine.job_id DESC"
	}
	return `
		SELECT ` + jobColumns + `, to_jsonb(coalesce(j.errors[cardinality(j.errors):], '{}')) AS errors
		FROM ` + from + `
		WHERE ` + strings.Join(where, " AND ") + `
		ORDER BY ` + order + `
		LIMIT @limit`, args, nil
}

func jobCursor(id int64) string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(id))) //nolint:gosec // all 64 bits are the value
}

// CancelJob cancels a job. For an admin that is the job itself, whoever follows it. Others cancel the downloads of
// their own that follow it, which ends the job unless somebody else wishes for it. ErrConflict if the job has ended, or
// nothing of the viewer's follows it any more.
func (s *Store) CancelJob(ctx context.Context, id int64, v Viewer) (Job, error) {
	var job Job
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if job, err = findJob(ctx, tx, id, v); err != nil {
			return err
		}
		if isFinalJobState(job.State) {
			return fmt.Errorf("it has ended: %w", ErrConflict)
		}
		if v.Admin {
			err = s.cancelJobForAll(ctx, tx, id)
		} else {
			err = s.cancelJobFor(ctx, tx, id, v.UserID)
		}
		if err != nil {
			return err
		}
		job, err = findJob(ctx, tx, id, v)
		return err
	})
	if err != nil {
		return Job{}, fmt.Errorf("cancel job %d: %w", id, err)
	}
	return job, nil
}

func (s *Store) cancelJobForAll(ctx context.Context, tx pgx.Tx, id int64) error {
	job, _, err := lockJobAndContent(ctx, tx, id)
	if err != nil {
		return err
	}
	if job.final() {
		return fmt.Errorf("it has ended: %w", ErrConflict)
	}
	if s.queue == nil {
		return errNoQueue
	}
	return s.queue.CancelTx(ctx, tx, id)
}

func (s *Store) cancelJobFor(ctx context.Context, tx pgx.Tx, id int64, userID uuid.UUID) error {
	rows, err := tx.Query(ctx, `
		SELECT d.id
		FROM medianest.downloads AS d
		WHERE d.job_id = @job_id AND d.user_id = @user_id AND d.cancelled_at IS NULL
		ORDER BY d.id`,
		pgx.StrictNamedArgs{"job_id": id, "user_id": userID})
	if err != nil {
		return fmt.Errorf("list downloads: %w", err)
	}
	own, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return fmt.Errorf("list downloads: %w", err)
	}
	if len(own) > 0 {
		if own, err = s.cancelTrees(ctx, tx, own); err != nil {
			return err
		}
	}
	if len(own) == 0 {
		return fmt.Errorf("no active download of the viewer follows it: %w", ErrConflict)
	}
	return nil
}

// RetryJob makes a job that ended badly, or waits to be tried again, available now. The downloads that follow it come
// back to life by the outbox, but not those that their users cancelled, except the viewer's own. ErrConflict if the job
// runs, is available already or has completed, if another job is at the content by now, or if nobody wishes for it.
func (s *Store) RetryJob(ctx context.Context, id int64, v Viewer) (Job, error) {
	var job Job
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if job, err = findJob(ctx, tx, id, v); err != nil {
			return err
		}
		// The content first, then the viewer's downloads, then the job.
		content, err := contentOfJob(ctx, tx, id)
		if err != nil {
			return err
		}
		if content != nil {
			if err := reviveOwn(ctx, tx, id, v.UserID); err != nil {
				return err
			}
		}
		if err := lockToRetry(ctx, tx, id, content); err != nil {
			return err
		}
		if s.queue == nil {
			return errNoQueue
		}
		if err := s.queue.RetryTx(ctx, tx, id); err != nil {
			return err
		}
		job, err = findJob(ctx, tx, id, v)
		return err
	})
	if err != nil {
		return Job{}, fmt.Errorf("retry job %d: %w", id, err)
	}
	return job, nil
}

// reviveOwn lets the user's download that was cancelled follow the job again, unless another in the same place does;
// and the collections above it with it.
func reviveOwn(ctx context.Context, tx pgx.Tx, jobID int64, userID uuid.UUID) error {
	rows, err := tx.Query(ctx, `
		SELECT DISTINCT ON (d.parent_id) d.id
		FROM medianest.downloads AS d
		WHERE d.job_id = @job_id
			AND d.user_id = @user_id
			AND d.cancelled_at IS NOT NULL
			AND NOT EXISTS (
				SELECT
				FROM medianest.downloads AS o
				WHERE o.job_id = @job_id
					AND o.user_id = @user_id
					AND o.parent_id IS NOT DISTINCT FROM d.parent_id
					AND o.cancelled_at IS NULL
			)
		ORDER BY d.parent_id, d.id DESC`,
		pgx.StrictNamedArgs{"job_id": jobID, "user_id": userID})
	if err != nil {
		return fmt.Errorf("list cancelled downloads: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return fmt.Errorf("list cancelled downloads: %w", err)
	}
	if len(ids) == 0 {
		return nil
	}
	locked, err := lockAncestry(ctx, tx, ids, false)
	if err != nil {
		return err
	}
	revived := make([]uuid.UUID, len(locked))
	for i, d := range locked {
		revived[i] = d.ID
	}
	_, err = tx.Exec(ctx, `
		UPDATE medianest.downloads
		SET cancelled_at = NULL
		WHERE id = ANY(@ids) AND cancelled_at IS NOT NULL`,
		pgx.StrictNamedArgs{"ids": revived})
	if err != nil {
		return fmt.Errorf("revive downloads: %w", err)
	}
	return nil
}

// lockToRetry locks the job, which is of the locked content or of none, and makes it the content's job.
func lockToRetry(ctx context.Context, tx pgx.Tx, id int64, content *lockedContent) error {
	ids := []int64{id}
	if content != nil && content.JobID != nil {
		ids = append(ids, *content.JobID)
	}
	jobs, err := lockJobs(ctx, tx, ids)
	if err != nil {
		return err
	}
	job, ok := jobs[id]
	if !ok {
		return ErrNotFound
	}
	if !slices.Contains([]string{"cancelled", "discarded", "retryable", "scheduled"}, job.State) {
		return fmt.Errorf("it is %s: %w", job.State, ErrConflict)
	}
	if content == nil {
		return nil
	}
	if content.JobID != nil && *content.JobID != id {
		if other, ok := jobs[*content.JobID]; ok && !other.final() {
			return fmt.Errorf("job %d is at the content by now: %w", other.ID, ErrConflict)
		}
	}
	var followed bool
	err = tx.QueryRow(ctx, `
		WITH taken AS (
			UPDATE medianest.content
			SET job_id = @job_id
			WHERE id = @content_id
		)
		SELECT EXISTS (SELECT FROM medianest.downloads AS d WHERE d.job_id = @job_id AND d.cancelled_at IS NULL)`,
		pgx.StrictNamedArgs{"job_id": id, "content_id": content.ID}).Scan(&followed)
	if err != nil {
		return fmt.Errorf("take content over: %w", err)
	}
	if !followed {
		return fmt.Errorf("no download follows it: %w", ErrConflict)
	}
	return nil
}

// lockJobAndContent locks the content of a download job, which is nil for other kinds, and the job.
func lockJobAndContent(ctx context.Context, tx pgx.Tx, id int64) (lockedJob, *lockedContent, error) {
	content, err := contentOfJob(ctx, tx, id)
	if err != nil {
		return lockedJob{}, nil, err
	}
	jobs, err := lockJobs(ctx, tx, []int64{id})
	if err != nil {
		return lockedJob{}, nil, err
	}
	job, ok := jobs[id]
	if !ok {
		return lockedJob{}, nil, ErrNotFound
	}
	return job, content, nil
}

// contentOfJob locks the content of a download job; nil if the job is of another kind or the content is gone.
func contentOfJob(ctx context.Context, tx pgx.Tx, id int64) (*lockedContent, error) {
	var text *string
	err := tx.QueryRow(ctx, `
		SELECT j.args ->> 'content_id'
		FROM river.river_job AS j
		WHERE j.id = @id AND j.kind = 'download'`,
		pgx.StrictNamedArgs{"id": id}).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && text == nil) {
		return nil, nil // a job without a content is no fault
	}
	if err != nil {
		return nil, fmt.Errorf("find content of job: %w", err)
	}
	contentID, err := uuid.Parse(*text)
	if err != nil {
		return nil, nil //nolint:nilerr // as good as none: nothing can be locked by it
	}
	contents, err := lockContents(ctx, tx, []uuid.UUID{contentID})
	if err != nil || len(contents) == 0 {
		return nil, err
	}
	return &contents[0], nil
}
