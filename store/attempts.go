package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Outcomes of attempts.
const (
	AttemptRunning   = "running"
	AttemptCompleted = "completed"
)

// Attempt is one try of a job.
type Attempt struct {
	Attempt   int // its number; one that cost none, as when it was put off or its worker was lost, is given out again
	Worker    string
	StartedAt time.Time
	EndedAt   *time.Time // nil while it runs
	Outcome   string     // running, completed, retried, failed, snoozed, cancelled, interrupted, lost
	Reason    string     // from the closed list; "" if it says nothing
	Detail    string     // in words, if there are any
	Bytes     *int64     // how much of what is fetched was there at its end; nil: not known
}

// maxAttempts is how many attempts are listed.
const maxAttempts = 50

// ListAttempts returns the attempts of a job that the viewer may see, newest first and fifty at most; the id is as FindJob
// takes it. A job keeps what there is to tell of those that did not complete; the others are as its row tells.
func (s *Store) ListAttempts(ctx context.Context, id int64, v Viewer) ([]Attempt, error) {
	s = s.as(v)
	job, err := s.FindJob(ctx, id, v)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, `
		SELECT a.attempt, a.worker, a.started_at, a.ended_at, a.outcome, a.reason, a.detail, a.bytes
		FROM medianest.attempt AS a
		WHERE a.job_id = @id
		ORDER BY a.id DESC
		LIMIT @limit`,
		pgx.StrictNamedArgs{"id": job.ID, "limit": maxAttempts})
	if err != nil {
		return nil, fmt.Errorf("list attempts of job %d: %w", id, interpret(err))
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[Attempt])
	if err != nil {
		return nil, fmt.Errorf("list attempts of job %d: %w", id, interpret(err))
	}
	if present, ok := presentAttempt(job); ok && (len(list) == 0 || list[0].Outcome != AttemptCompleted) {
		list = append([]Attempt{present}, list...)
	}
	return list[:min(len(list), maxAttempts)], nil
}

// presentAttempt is the attempt that the job's row tells of: one that runs or completed.
func presentAttempt(job Job) (Attempt, bool) {
	if job.AttemptedAt == nil || job.State != AttemptRunning && job.State != AttemptCompleted {
		return Attempt{}, false
	}
	a := Attempt{Attempt: job.Attempt, StartedAt: *job.AttemptedAt, EndedAt: job.FinalizedAt, Outcome: job.State}
	if n := len(job.AttemptedBy); n > 0 {
		a.Worker = job.AttemptedBy[n-1]
	}
	return a, true
}

// trimAttempts removes those of jobs that are gone.
func (s *Store) trimAttempts(ctx context.Context) (int64, error) {
	return s.trimGoneJobs(ctx, "attempt")
}
