package queue

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivertype"

	"medianest/jobs/reason"
)

// maxHistory is how many attempts are kept of a job: the newest. One that waits for space tries once a minute for weeks.
const maxHistory = 50

// noteTimeout bounds what is written about an attempt besides its job's row.
const noteTimeout = 2 * time.Second

// NoteBytes notes how much of what the attempt fetches is there, for the job's history. Outside an attempt it does nothing.
func NoteBytes(ctx context.Context, n int64) {
	if at := attemptOf(ctx); at != nil {
		at.bytes.Store(n)
	}
}

// queueEnd adds to the batch what keeps how an attempt ended, where there is more to tell of it than the job's row does, and
// what waits of its log. It returns how many lines of the log that are.
func (a *attempts) queueEnd(batch *pgx.Batch, at *attempt, e end, err error) int {
	lines := at.log.end()
	defer func() { queueLog(batch, at.job, lines) }()
	if e.outcome == completed && at.bytes.Load() == 0 {
		return len(lines)
	}
	detail := ""
	if failure := reason.Find(err); failure != nil {
		detail = failure.Describe()
	}
	var fetched *int64
	if n := at.bytes.Load(); n > 0 {
		fetched = &n
	}
	batch.Queue(`
		INSERT INTO medianest.attempt (job_id, attempt, worker, started_at, ended_at, outcome, reason, detail, bytes)
		VALUES ($1, $2, $3, $4, clock_timestamp(), $5, $6, left($7, 2000), $8)`,
		PublicID(at.job), at.job.Attempt, a.presence.id, at.begun, string(e.outcome), string(e.reason), detail, fetched)
	if e.outcome == completed {
		return len(lines)
	}
	batch.Queue(`
		DELETE FROM medianest.attempt
		WHERE job_id = $1 AND id <= (
			SELECT a.id
			FROM medianest.attempt AS a
			WHERE a.job_id = $1
			ORDER BY a.id DESC
			OFFSET $2
			LIMIT 1
		)`, PublicID(at.job), maxHistory)
	if line, ok := endLine(e, detail); ok {
		lines = append(lines, line)
	}
	return len(lines)
}

// keep keeps of an attempt that has ended what is to be told of it. Those whose worker was lost are kept by who found it
// lost, and a process that is cut off from the database cannot. Where it fails, the history lacks a line, and the job
// nothing.
func (a *attempts) keep(ctx context.Context, at *attempt, e end, cause, err error) {
	switch {
	case at.kept:
		return
	case e.outcome == lost || errors.Is(cause, ErrFenced):
		a.metrics.unlogged.Add(float64(len(at.log.end())))
		return
	}
	batch := &pgx.Batch{}
	lines := a.queueEnd(batch, at, e, err)
	if batch.Len() == 0 {
		return
	}
	ctx, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), noteTimeout, errTooLong)
	defer stop()
	a.send(ctx, at.job, batch, lines, "attempt not kept in the job's history")
}

// send sends what is written of an attempt besides its job's row. Lines of its log that are lost are counted.
func (a *attempts) send(ctx context.Context, job *rivertype.JobRow, batch *pgx.Batch, lines int, fault string) (sent bool) {
	err := a.presence.pool.SendBatch(ctx, batch).Close()
	if err != nil {
		a.metrics.unlogged.Add(float64(lines))
		a.log.LogAttrs(ctx, slog.LevelDebug, fault, append(logAttrs(job), slog.Any("err", err))...)
	}
	return err == nil
}
