package queue

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivertype"

	"medianest/jobs/reason"
)

// maxHistory is how many attempts are kept of a job: the newest. One that waits for space tries once a minute for weeks.
const maxHistory = 50

// NoteBytes notes how much of what the attempt fetches is there, for the job's history. Outside an attempt it does nothing.
func NoteBytes(ctx context.Context, n int64) {
	if of, ok := ctx.Value(attemptKey{}).(attemptOf); ok {
		of.bytes.Store(n)
	}
}

// queueAttempt adds to the batch what keeps an attempt.
func (a *attempts) queueAttempt(batch *pgx.Batch, job *rivertype.JobRow, begun time.Time, e end, bytes *atomic.Int64, err error) {
	detail := ""
	if failure := reason.Find(err); failure != nil {
		detail = failure.Describe()
	}
	var fetched *int64
	if n := bytes.Load(); n > 0 {
		fetched = &n
	}
	batch.Queue(`
		INSERT INTO medianest.attempt (job_id, attempt, worker, started_at, ended_at, outcome, reason, detail, bytes)
		VALUES ($1, $2, $3, $4, clock_timestamp(), $5, $6, left($7, 2000), $8)`,
		PublicID(job), job.Attempt, a.presence.id, begun, string(e.outcome), string(e.reason), detail, fetched)
	if e.outcome != completed {
		batch.Queue(`
			DELETE FROM medianest.attempt
			WHERE job_id = $1 AND id <= (
				SELECT a.id
				FROM medianest.attempt AS a
				WHERE a.job_id = $1
				ORDER BY a.id DESC
				OFFSET $2
				LIMIT 1
			)`, PublicID(job), maxHistory)
	}
}

// isKept reports whether an attempt that did not complete is kept by who ended it. Those whose worker was lost are kept by
// who found it lost; a process that is cut off from the database cannot.
func isKept(e end, cause error) bool {
	return e.outcome != completed && e.outcome != lost && !errors.Is(cause, ErrFenced)
}

// keep keeps an attempt that did not complete. Where that fails, the history lacks a line, and the job nothing.
func (a *attempts) keep(ctx context.Context, job *rivertype.JobRow, begun time.Time, e end, bytes *atomic.Int64, err error) {
	ctx, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), freeTimeout, errTooLong)
	defer stop()
	batch := &pgx.Batch{}
	a.queueAttempt(batch, job, begun, e, bytes, err)
	if err := a.presence.pool.SendBatch(ctx, batch).Close(); err != nil {
		a.log.LogAttrs(ctx, slog.LevelDebug, "attempt not kept in the job's history", append(logAttrs(job), slog.Any("err", err))...)
	}
}
