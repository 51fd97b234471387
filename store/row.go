package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// JobRow is the id of a row of river.river_job. A job that lost its worker goes on as another row, under the public id
// that its first row had, which everything but River calls it by. What a worker writes names its own row: that tells it
// from a worker that has taken the job over.
type JobRow int64

// currentRow is the id of the row that stands for a job now, given an expression of its public id.
func currentRow(publicID string) string {
	return `coalesce((SELECT m.row_id FROM medianest.job_map AS m WHERE m.public_id = ` + publicID + `), ` + publicID + `)`
}

// jobByAnyID finds the present row j, and the public id n.id, of the job that @id is of: its public id, or that of any
// row that it has had.
const jobByAnyID = `(
			SELECT coalesce((SELECT medianest.public_id(r.id, r.metadata) FROM river.river_job AS r WHERE r.id = @id), @id) AS id
		) AS n
		LEFT JOIN medianest.job_map AS m ON m.public_id = n.id
		JOIN river.river_job AS j ON j.id = coalesce(m.row_id, n.id)`

// CurrentRow returns the row that stands for a job now. The id may also be that of another row that the job has had.
// ErrNotFound if there is none (any more).
func (s *Store) CurrentRow(ctx context.Context, publicID int64) (JobRow, error) {
	var row JobRow
	err := s.pool.QueryRow(ctx, `
		SELECT j.id
		FROM `+jobByAnyID,
		pgx.StrictNamedArgs{"id": publicID}).Scan(&row)
	if err != nil {
		return 0, fmt.Errorf("find row of job %d: %w", publicID, interpret(err))
	}
	return row, nil
}

// publicIDOf returns the public id of a worker's row, which never changes. ErrSuperseded if the row is gone.
func publicIDOf(ctx context.Context, tx pgx.Tx, row JobRow) (id int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT medianest.public_id(j.id, j.metadata)
		FROM river.river_job AS j
		WHERE j.id = @row`,
		pgx.StrictNamedArgs{"row": row}).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("row %d is gone: %w", row, ErrSuperseded)
	}
	if err != nil {
		return 0, fmt.Errorf("find public id of row %d: %w", row, err)
	}
	return id, nil
}

// lockRunning locks the job's row; ErrSuperseded if it does not run or is not the job's row any more.
func lockRunning(ctx context.Context, tx pgx.Tx, jobID int64, row JobRow) error {
	jobs, err := lockJobs(ctx, tx, []int64{jobID})
	if err != nil {
		return err
	}
	return checkRunning(jobs, jobID, row)
}

func checkRunning(jobs map[int64]lockedJob, jobID int64, row JobRow) error {
	job, ok := jobs[jobID]
	switch {
	case !ok:
		return fmt.Errorf("job %d is gone: %w", jobID, ErrSuperseded)
	case job.Row != row:
		return fmt.Errorf("job %d goes on as row %d: %w", jobID, job.Row, ErrSuperseded)
	case job.State != "running":
		return fmt.Errorf("job %d does not run: %w", jobID, ErrSuperseded)
	}
	return nil
}
