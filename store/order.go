package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Priorities of jobs, as River has them: those with a lower number go first, whoever they are for.
const (
	PriorityNow    = 1 // what an administrator wants before all else
	PriorityNormal = 2 // what downloads begin with
	PriorityLow    = 3
	PriorityLowest = 4
)

// DownloadNow moves what waits of a download, or of a collection's items, to the front of the line: before all else of the
// same user, and for an admin before everybody's. A pause before the next try ends. Limits, breakers and pauses hold for it
// as before. ErrConflict if nothing of it waits.
func (s *Store) DownloadNow(ctx context.Context, id uuid.UUID, v Viewer) (Download, error) {
	s = s.as(v)
	var d Download
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if d, err = findDownload(ctx, tx, id, v); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			WITH RECURSIVE below AS (
				SELECT d.id, d.job_id, d.cancelled_at
				FROM medianest.downloads AS d
				WHERE d.id = @id
				UNION
				SELECT d.id, d.job_id, d.cancelled_at
				FROM medianest.downloads AS d
				JOIN below AS b ON b.id = d.parent_id
			)
			SELECT DISTINCT b.job_id
			FROM below AS b
			WHERE b.job_id IS NOT NULL AND b.cancelled_at IS NULL`,
			pgx.StrictNamedArgs{"id": id})
		if err != nil {
			return fmt.Errorf("list jobs: %w", err)
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return fmt.Errorf("list jobs: %w", err)
		}
		jobs, err := lockJobs(ctx, tx, ids)
		if err != nil {
			return err
		}
		var waiting []int64
		for _, job := range jobs {
			switch job.State {
			case "retryable", "scheduled":
				if s.queue == nil {
					return errNoQueue
				}
				if err := s.queue.RetryTx(ctx, tx, job.Row); err != nil {
					return err
				}
			case "available", "pending":
			default:
				continue
			}
			waiting = append(waiting, int64(job.Row))
		}
		if len(waiting) == 0 {
			return fmt.Errorf("nothing of it waits: %w", ErrConflict)
		}
		if err := toFront(ctx, tx, waiting, v.Admin); err != nil {
			return err
		}
		d, err = findDownload(ctx, tx, id, v)
		return err
	})
	if err != nil {
		return Download{}, fmt.Errorf("move download %s to the front: %w", id, err)
	}
	return d, nil
}

// toFront has the locked rows go before all that waits of their users, in the order that they are in, and before everybody's
// with ofAll. Rounds of admission go by priority, then by whose turn it is, and then by scheduled_at.
func toFront(ctx context.Context, tx pgx.Tx, rows []int64, ofAll bool) error {
	_, err := tx.Exec(ctx, `
		WITH mine AS (
			SELECT a.row_id, a.user_key, row_number() OVER (PARTITION BY a.user_key ORDER BY a.priority DESC, a.scheduled_at DESC, a.row_id DESC) AS n
			FROM medianest.admission AS a
			WHERE a.row_id = ANY(@rows)
		), first AS (
			SELECT a.user_key, min(a.scheduled_at) AS at
			FROM medianest.admission AS a
			WHERE a.admitted_at IS NULL AND a.user_key IN (SELECT m.user_key FROM mine AS m)
			GROUP BY a.user_key
		)
		UPDATE river.river_job AS j
		SET scheduled_at = least(f.at, j.scheduled_at) - m.n * interval '1 ms',
			priority = CASE WHEN @of_all THEN @priority ELSE j.priority END
		FROM mine AS m
		JOIN first AS f USING (user_key)
		WHERE j.id = m.row_id`,
		pgx.StrictNamedArgs{"rows": rows, "of_all": ofAll, "priority": PriorityNow})
	if err != nil {
		return fmt.Errorf("move %d jobs: %w", len(rows), err)
	}
	return nil
}

// SetJobPriority changes the priority of a job that has not ended, for admins; the id is as CancelJob takes it. One that waits
// moves in the line, one that runs keeps it for its next attempt. ErrConflict if it has ended.
func (s *Store) SetJobPriority(ctx context.Context, id int64, priority int, v Viewer) (Job, error) {
	s = s.as(v)
	if priority < PriorityNow || priority > PriorityLowest {
		return Job{}, fmt.Errorf("set priority of job %d: %w", id, &InvalidError{
			Field: "priority", Reason: fmt.Sprintf("is not between %d and %d", PriorityNow, PriorityLowest)})
	}
	var job Job
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if job, err = findJob(ctx, tx, id, v); err != nil {
			return err
		}
		jobs, err := lockJobs(ctx, tx, []int64{job.ID})
		if err != nil {
			return err
		}
		if locked, ok := jobs[job.ID]; !ok || locked.final() {
			return fmt.Errorf("it has ended: %w", ErrConflict)
		}
		_, err = tx.Exec(ctx, `
			UPDATE river.river_job
			SET priority = @priority
			WHERE id = @id`,
			pgx.StrictNamedArgs{"id": int64(jobs[job.ID].Row), "priority": priority})
		if err != nil {
			return err
		}
		job, err = findJob(ctx, tx, job.ID, v)
		return err
	})
	if err != nil {
		return Job{}, fmt.Errorf("set priority of job %d: %w", id, err)
	}
	return job, nil
}
