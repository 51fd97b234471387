package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// contentRetention is how long a content that nobody wishes for and that has no file is kept.
	contentRetention = 24 * time.Hour

	// breakerRetention is how long a breaker is kept whose wait is over and whose key nobody has asked for since: what the
	// host thought of us then is old by now.
	breakerRetention = 7 * 24 * time.Hour

	// workerRetention is how long it is known of a process that it is gone.
	workerRetention = 24 * time.Hour
)

// trimBatch is how many rows a statement of retention looks at or removes: short transactions, no long locks.
const trimBatch = 1000

// Trimmed says how many rows retention removed.
type Trimmed struct {
	IdempotencyKeys, JobViewers, JobMap, Workers, Breakers, Audit, Attempts, LogLines, Contents, SignIns int64
}

// TrimDomain removes what the domain tables keep for a time only: idempotency keys past their day, the viewers of jobs
// that are gone and whose events are older than eventRetention, where jobs that are gone went on, processes that have been
// gone for a day, breakers that have been due for a week, what was done a year ago, the attempts and logs of jobs that are
// gone, sessions that ended a month ago, people who are gone with their last file, and contents a day old that nobody needs. It goes through the large tables in batches and may be called at any time
// by any number of processes; once an hour is plenty.
func (s *Store) TrimDomain(ctx context.Context, eventRetention time.Duration) (Trimmed, error) {
	s = s.Everyone()
	var (
		t   Trimmed
		err error
	)
	if t.IdempotencyKeys, err = s.trimIdempotency(ctx); err != nil {
		return t, fmt.Errorf("trim idempotency keys: %w", interpret(err))
	}
	if t.JobViewers, err = s.trimJobViewers(ctx, eventRetention); err != nil {
		return t, fmt.Errorf("trim job viewers: %w", interpret(err))
	}
	if t.Attempts, err = s.trimAttempts(ctx); err != nil {
		return t, fmt.Errorf("trim attempts: %w", interpret(err))
	}
	if t.LogLines, err = s.trimJobLog(ctx); err != nil {
		return t, fmt.Errorf("trim jobs' logs: %w", interpret(err))
	}
	if t.JobMap, err = s.trimJobMap(ctx); err != nil {
		return t, fmt.Errorf("trim job map: %w", interpret(err))
	}
	if t.Workers, err = s.trimWorkers(ctx); err != nil {
		return t, fmt.Errorf("trim workers: %w", interpret(err))
	}
	if t.Breakers, err = s.trimBreakers(ctx); err != nil {
		return t, fmt.Errorf("trim breakers: %w", interpret(err))
	}
	if t.Audit, err = s.trimAudit(ctx); err != nil {
		return t, fmt.Errorf("trim audit: %w", interpret(err))
	}
	if t.SignIns, err = s.trimSessions(ctx); err != nil {
		return t, fmt.Errorf("trim sessions: %w", interpret(err))
	}
	if t.Contents, err = s.trimContents(ctx); err != nil {
		return t, fmt.Errorf("trim contents: %w", interpret(err))
	}
	return t, nil
}

func (s *Store) trimIdempotency(ctx context.Context) (int64, error) {
	return s.trimInBatches(ctx, `
		DELETE FROM medianest.idempotency
		WHERE (user_id, key) IN (
			SELECT i.user_id, i.key
			FROM medianest.idempotency AS i
			WHERE i.created_at < now() - @window::interval
			ORDER BY i.created_at
			LIMIT @batch
			FOR UPDATE SKIP LOCKED
		)`,
		pgx.StrictNamedArgs{"window": idempotencyWindow, "batch": trimBatch})
}

// trimInBatches repeats a statement that removes up to trimBatch rows until it finds no more.
func (s *Store) trimInBatches(ctx context.Context, sql string, args pgx.StrictNamedArgs) (total int64, err error) {
	for {
		tag, err := s.pool.Exec(ctx, sql, args)
		total += tag.RowsAffected()
		if err != nil || tag.RowsAffected() < trimBatch {
			return total, err
		}
	}
}

// trimGoneJobs removes from a table with id and job_id what is about jobs that are gone.
func (s *Store) trimGoneJobs(ctx context.Context, table string) (int64, error) {
	table = pgx.Identifier{"medianest", table}.Sanitize()
	return s.trimInBatches(ctx, `
		DELETE FROM `+table+`
		WHERE id IN (
			SELECT t.id
			FROM `+table+` AS t
			WHERE NOT EXISTS (SELECT FROM river.river_job AS j WHERE j.id = `+currentRow("t.job_id")+`)
			LIMIT @batch
		)`,
		pgx.StrictNamedArgs{"batch": trimBatch})
}

// trimJobViewers walks the table by job, a window of jobs at a time: rows that stay cost a look each and no more.
func (s *Store) trimJobViewers(ctx context.Context, age time.Duration) (total int64, err error) {
	var after int64
	for {
		var (
			last    *int64
			removed int64
		)
		err := s.pool.QueryRow(ctx, `
			WITH window_jobs AS (
				SELECT DISTINCT v.job_id
				FROM medianest.job_viewer AS v
				WHERE v.job_id > @after
				ORDER BY v.job_id
				LIMIT @batch
			), gone AS (
				UPDATE medianest.job_viewer AS v
				SET gone_at = now()
				FROM window_jobs AS w
				WHERE v.job_id = w.job_id
					AND v.gone_at IS NULL
					AND NOT EXISTS (SELECT FROM river.river_job AS j WHERE j.id = `+currentRow("w.job_id")+`)
			), removed AS (
				-- Not by when somebody joined: a job may wait for days, and its last events are to be seen for as long as
				-- any others.
				DELETE FROM medianest.job_viewer AS v
				USING window_jobs AS w
				WHERE v.job_id = w.job_id
					AND v.gone_at < now() - @age::interval
				RETURNING v.job_id
			)
			SELECT (SELECT max(w.job_id) FROM window_jobs AS w), (SELECT count(*) FROM removed)`,
			pgx.StrictNamedArgs{"after": after, "batch": trimBatch, "age": age}).Scan(&last, &removed)
		total += removed
		if err != nil || last == nil {
			return total, err
		}
		after = *last
	}
}

// trimJobMap removes what leads nowhere any more. A mapping is kept for as long as the job's first row is there:
// without it, that row would stand for the job again.
func (s *Store) trimJobMap(ctx context.Context) (int64, error) {
	return s.trimInBatches(ctx, `
		DELETE FROM medianest.job_map
		WHERE public_id IN (
			SELECT m.public_id
			FROM medianest.job_map AS m
			WHERE NOT EXISTS (SELECT FROM river.river_job AS j WHERE j.id = m.row_id)
				AND NOT EXISTS (SELECT FROM river.river_job AS j WHERE j.id = m.public_id)
			LIMIT @batch
		)`,
		pgx.StrictNamedArgs{"batch": trimBatch})
}

// trimWorkers leaves those in whose name jobs are still running: only of who is known to be gone are they taken.
func (s *Store) trimWorkers(ctx context.Context) (int64, error) {
	tag, err := s.pool.Exec(ctx, `
		DELETE FROM medianest.worker AS w
		WHERE w.gone_at < now() - @age::interval
			AND NOT EXISTS (
				SELECT
				FROM river.river_job AS j
				WHERE j.state = 'running' AND j.attempted_by[array_upper(j.attempted_by, 1)] = w.id
			)`,
		pgx.StrictNamedArgs{"age": workerRetention})
	return tag.RowsAffected(), err
}

// trimBreakers leaves those whose probe is under way.
func (s *Store) trimBreakers(ctx context.Context) (int64, error) {
	tag, err := s.pool.Exec(ctx, `
		DELETE FROM medianest.breaker AS b
		WHERE b.open_until < now() - @age::interval
			AND NOT EXISTS (
				SELECT
				FROM medianest.admission AS a
				WHERE a.row_id = `+currentRow("b.probe_job")+` AND a.admitted_at IS NOT NULL
			)`,
		pgx.StrictNamedArgs{"age": breakerRetention})
	return tag.RowsAffected(), err
}

// trimContents walks the table by id, which is by age.
func (s *Store) trimContents(ctx context.Context) (total int64, err error) {
	var after uuid.UUID
	for {
		candidates, last, err := s.staleContents(ctx, after)
		if err != nil || last == nil {
			return total, err
		}
		after = *last
		if len(candidates) == 0 {
			continue
		}
		removed, err := s.deleteContents(ctx, candidates)
		total += removed
		if err != nil {
			return total, err
		}
	}
}

// staleContents looks at one window of contents after an id and returns those that may go, and the window's last id or
// nil.
func (s *Store) staleContents(ctx context.Context, after uuid.UUID) (stale []uuid.UUID, last *uuid.UUID, err error) {
	rows, err := s.pool.Query(ctx, `
		SELECT w.id, w.created_at < now() - @age::interval AND `+unneededContent+` AS stale
		FROM (
			SELECT c.id, c.job_id, c.created_at
			FROM medianest.content AS c
			WHERE c.id > @after
			ORDER BY c.id
			LIMIT @batch
		) AS w
		ORDER BY w.id`,
		pgx.StrictNamedArgs{"after": after, "batch": trimBatch, "age": contentRetention})
	if err != nil {
		return nil, nil, err
	}
	var (
		id      uuid.UUID
		isStale bool
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &isStale}, func() error {
		seen := id
		last = &seen
		if isStale {
			stale = append(stale, id)
		}
		return nil
	})
	return stale, last, err
}

// unneededContent says of a content w that it has no download, no file and no job at work.
var unneededContent = `NOT EXISTS (SELECT FROM medianest.downloads AS d WHERE d.content_id = w.id)
			AND NOT EXISTS (SELECT FROM medianest.files AS f WHERE f.content_id = w.id)
			AND NOT EXISTS (
				SELECT FROM river.river_job AS j WHERE j.id = ` + currentRow("w.job_id") + ` AND j.finalized_at IS NULL)`

// deleteContents locks first and looks again then: whoever held a row may have made a download of it.
func (s *Store) deleteContents(ctx context.Context, ids []uuid.UUID) (removed int64, err error) {
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			SELECT c.id
			FROM medianest.content AS c
			WHERE c.id = ANY(@ids)
			ORDER BY c.id
			FOR UPDATE SKIP LOCKED`,
			pgx.StrictNamedArgs{"ids": ids})
		if err != nil {
			return err
		}
		locked, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			DELETE FROM medianest.content AS w
			WHERE w.id = ANY(@ids) AND `+unneededContent,
			pgx.StrictNamedArgs{"ids": locked})
		removed = tag.RowsAffected()
		return err
	})
	return removed, err
}
