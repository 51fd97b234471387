package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// LogLine is a line of a job's log.
type LogLine struct {
	ID      int64 // later lines of a job have higher ones
	At      time.Time
	Attempt int
	Level   string // info, warning, error
	Text    string
}

// TailLog returns the last lines of the log of a job that the viewer may see, oldest first, tail of them at most; the id is
// as FindJob takes it. With after, only lines after that one.
func (s *Store) TailLog(ctx context.Context, id, after int64, tail int, v Viewer) ([]LogLine, error) {
	s = s.as(v)
	job, err := s.FindJob(ctx, id, v)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, `
		SELECT t.id, t.at, t.attempt, t.level, t.text
		FROM (
			SELECT l.id, l.at, l.attempt, l.level, l.text
			FROM medianest.job_log AS l
			WHERE l.job_id = @job AND l.id > @after
			ORDER BY l.id DESC
			LIMIT @tail
		) AS t
		ORDER BY t.id`,
		pgx.StrictNamedArgs{"job": job.ID, "after": after, "tail": tail})
	if err != nil {
		return nil, fmt.Errorf("read log of job %d: %w", id, interpret(err))
	}
	lines, err := pgx.CollectRows(rows, pgx.RowToStructByName[LogLine])
	if err != nil {
		return nil, fmt.Errorf("read log of job %d: %w", id, interpret(err))
	}
	return lines, nil
}

// trimJobLog removes lines of jobs that are gone.
func (s *Store) trimJobLog(ctx context.Context) (int64, error) {
	return s.trimGoneJobs(ctx, "job_log")
}
