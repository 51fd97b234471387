package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// CancelJob cancels a job, given its public id or that of any row that it has had. For an admin that is the job itself,
// whoever follows it. Others cancel the downloads of their own that follow it, which ends the job unless somebody else
// wishes for it. ErrConflict if the job has ended, or nothing of the viewer's follows it any more.
func (s *Store) CancelJob(ctx context.Context, id int64, v Viewer) (Job, error) {
	s = s.as(v)
	var job Job
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if job, err = findJob(ctx, tx, id, v); err != nil {
			return err
		}
		if isFinalJobState(job.State) {
			return fmt.Errorf("it has ended: %w", ErrConflict)
		}
		if err := widen(ctx, tx); err != nil { // others may wish for the same
			return err
		}
		if v.Admin {
			err = s.cancelJobForAll(ctx, tx, job.ID)
		} else {
			err = s.cancelJobFor(ctx, tx, job.ID, v.UserID)
		}
		if err != nil {
			return err
		}
		job, err = findJob(ctx, tx, job.ID, v)
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
	return s.queue.CancelTx(ctx, tx, job.Row)
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
		if own, err = s.cancelTrees(ctx, tx, own, ""); err != nil {
			return err
		}
	}
	if len(own) == 0 {
		return fmt.Errorf("no active download of the viewer follows it: %w", ErrConflict)
	}
	return nil
}

// RetryJob makes a job that ended badly, or waits to be tried again, available now; the id is as CancelJob takes it.
// The downloads that follow it come back to life by the outbox, but not those that their users cancelled, except the
// viewer's own. ErrConflict if the job runs, is available already or has completed, if another job is at the content by
// now, or if nobody wishes for it.
func (s *Store) RetryJob(ctx context.Context, id int64, v Viewer) (Job, error) {
	s = s.as(v)
	var job Job
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if job, err = findJob(ctx, tx, id, v); err != nil {
			return err
		}
		if err := widen(ctx, tx); err != nil { // others may wish for the same
			return err
		}
		if err := s.retryJob(ctx, tx, job.ID, v.UserID); err != nil {
			return err
		}
		job, err = findJob(ctx, tx, job.ID, v)
		return err
	})
	if err != nil {
		return Job{}, fmt.Errorf("retry job %d: %w", id, err)
	}
	return job, nil
}

// retryJob retries a job, given its public id, for a user who may.
func (s *Store) retryJob(ctx context.Context, tx pgx.Tx, id int64, userID uuid.UUID) error {
	// The content first, then the user's downloads, then the job.
	content, err := contentOfJob(ctx, tx, id)
	if err != nil {
		return err
	}
	if content != nil && userID != uuid.Nil {
		if err := reviveOwn(ctx, tx, id, userID); err != nil {
			return err
		}
	}
	row, err := lockToRetry(ctx, tx, id, content)
	if err != nil {
		return err
	}
	if s.queue == nil {
		return errNoQueue
	}
	return s.queue.RetryTx(ctx, tx, row)
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
		SET cancelled_at = NULL, start_by = NULL
		WHERE id = ANY(@ids) AND cancelled_at IS NOT NULL`,
		pgx.StrictNamedArgs{"ids": revived})
	if err != nil {
		return fmt.Errorf("revive downloads: %w", err)
	}
	return nil
}

// lockToRetry locks the job, which is of the locked content or of none, and makes it the content's job. It returns the
// job's row.
func lockToRetry(ctx context.Context, tx pgx.Tx, id int64, content *lockedContent) (JobRow, error) {
	ids := []int64{id}
	if content != nil && content.JobID != nil {
		ids = append(ids, *content.JobID)
	}
	jobs, err := lockJobs(ctx, tx, ids)
	if err != nil {
		return 0, err
	}
	job, ok := jobs[id]
	if !ok {
		return 0, ErrNotFound
	}
	if !slices.Contains([]string{"cancelled", "discarded", "retryable", "scheduled"}, job.State) {
		return 0, fmt.Errorf("it is %s: %w", job.State, ErrConflict)
	}
	if content == nil {
		return job.Row, nil
	}
	if content.JobID != nil && *content.JobID != id {
		if other, ok := jobs[*content.JobID]; ok && !other.final() {
			return 0, fmt.Errorf("job %d is at the content by now: %w", other.ID, ErrConflict)
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
		return 0, fmt.Errorf("take content over: %w", err)
	}
	if !followed {
		return 0, fmt.Errorf("no download follows it: %w", ErrConflict)
	}
	return job.Row, nil
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
		WHERE j.id = `+currentRow("@id::bigint")+` AND j.kind = 'download'`,
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
