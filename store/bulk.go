package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// What can be done to many jobs.
const (
	BulkCancel = "cancel" // those that have not ended, whoever follows them
	BulkRetry  = "retry"  // those that ended badly or wait to be tried again, as RetryJob does
	BulkDelete = "delete" // those that have ended
)

// bulkStates are the states of the jobs that an action is for.
var bulkStates = map[string]string{
	BulkCancel: "'available', 'pending', 'retryable', 'running', 'scheduled'",
	BulkRetry:  "'cancelled', 'discarded', 'retryable', 'scheduled'",
	BulkDelete: "'cancelled', 'completed', 'discarded'",
}

const (
	// bulkBatch is how many jobs one transaction changes, and bulkParallel how many are at a time that each take one.
	bulkBatch    = 500
	bulkParallel = 4

	// bulkCount is where counting stops.
	bulkCount = 100_000

	// bulkRest is for how long a job has ended before it is deleted: what became of it has been told by then.
	bulkRest = time.Minute
)

// BulkDone is what became of many jobs.
type BulkDone struct {
	Done    int   // jobs that were changed
	Skipped int   // that another is at, or that the rules do not allow it for
	After   int64 // the row of the last one; from there on goes who has more to do
	More    bool
}

func (f JobFilter) isEmpty() bool {
	return len(f.Kinds)+len(f.Queues)+len(f.States)+len(f.Reasons) == 0 && f.Key == "" && f.UserID == uuid.Nil &&
		f.CreatedAfter.IsZero() && f.CreatedBefore.IsZero()
}

// bulkWhere is the condition on j that the action is for a job, which never is a superseded row.
func bulkWhere(action string, f JobFilter) (string, pgx.StrictNamedArgs, error) {
	states, ok := bulkStates[action]
	if !ok {
		return "", nil, &InvalidError{Field: "action", Reason: "is none of cancel retry delete"}
	}
	if f.isEmpty() {
		return "", nil, &InvalidError{Field: "filter", Reason: "says nothing: name at least one of state, kind, queue, reason, key, user_id, created_after and created_before"}
	}
	args := pgx.StrictNamedArgs{}
	where, err := f.conditions(args)
	if err != nil {
		return "", nil, err
	}
	where = append(where, "j.state IN ("+states+")")
	if f.UserID != uuid.Nil {
		where = append(where, `EXISTS (
			SELECT
			FROM medianest.job_viewer AS w
			WHERE w.job_id = medianest.public_id(j.id, j.metadata) AND w.user_id = @of)`)
		args["of"] = f.UserID
	}
	if action == BulkDelete {
		where = append(where, "j.finalized_at < now() - @rest::interval")
		args["rest"] = bulkRest
	}
	return strings.Join(where, " AND "), args, nil
}

// CountJobs counts the jobs that an action is for, by state, and stops at 100,000: then atLeast is true.
func (s *Store) CountJobs(ctx context.Context, action string, f JobFilter) (byState map[string]int, atLeast bool, err error) {
	s = s.Everyone()
	sql, args, err := countQuery(action, f)
	if err != nil {
		return nil, false, fmt.Errorf("count jobs: %w", err)
	}
	rows, err := s.pool.Query(ctx, sql, args)
	if err != nil {
		return nil, false, fmt.Errorf("count jobs: %w", interpret(err))
	}
	byState = map[string]int{}
	var (
		state string
		n     int
		all   int
	)
	_, err = pgx.ForEachRow(rows, []any{&state, &n}, func() error {
		byState[state] = n
		all += n
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("count jobs: %w", interpret(err))
	}
	return byState, all > bulkCount, nil
}

func countQuery(action string, f JobFilter) (string, pgx.StrictNamedArgs, error) {
	where, args, err := bulkWhere(action, f)
	if err != nil {
		return "", nil, err
	}
	args["bound"] = bulkCount + 1
	return `
		SELECT c.state, count(*)::int AS n
		FROM (
			SELECT j.state::text AS state
			FROM river.river_job AS j
			WHERE ` + where + `
			LIMIT @bound
		) AS c
		GROUP BY c.state`, args, nil
}

// ChangeJobs does the action to the jobs that it is for, in the order of their rows after that row, in transactions of
// their own, until there are none or until is over. Whoever is killed at it leaves each job changed or not; to be asked
// again does the rest. New jobs with the same are not waited for.
func (s *Store) ChangeJobs(ctx context.Context, action string, f JobFilter, after int64, until time.Time) (d BulkDone, err error) {
	s = s.Everyone()
	d.After = after
	for {
		rows, err := s.bulkPage(ctx, action, f, d.After)
		if err != nil {
			return d, fmt.Errorf("%s jobs: %w", action, err)
		}
		if len(rows) == 0 {
			d.More = false
			return d, nil
		}
		var done int
		switch action {
		case BulkCancel:
			done, err = s.cancelRows(ctx, rows)
		case BulkRetry:
			done, err = s.retryRows(ctx, rows)
		case BulkDelete:
			done, err = s.deleteRows(ctx, rows)
		}
		d.Done += done
		if err != nil {
			return d, fmt.Errorf("%s jobs: %w", action, err)
		}
		d.Skipped += len(rows) - done
		d.After = rows[len(rows)-1]
		if d.More = len(rows) == bulkBatch; !d.More || !time.Now().Before(until) {
			return d, nil
		}
	}
}

// bulkPage is the next rows.
func (s *Store) bulkPage(ctx context.Context, action string, f JobFilter, after int64) ([]int64, error) {
	where, args, err := bulkWhere(action, f)
	if err != nil {
		return nil, err
	}
	args["after"], args["batch"] = after, bulkBatch
	found, err := s.pool.Query(ctx, `
		SELECT j.id
		FROM river.river_job AS j
		WHERE j.id > @after AND `+where+`
		ORDER BY j.id
		LIMIT @batch`, args)
	if err != nil {
		return nil, interpret(err)
	}
	rows, err := pgx.CollectRows(found, pgx.RowTo[int64])
	return rows, interpret(err)
}

// lockedRows locks those of the rows that nobody else is at, in their order, and of which the action is for still.
const lockedRows = `
			SELECT j.id, j.queue, j.state
			FROM river.river_job AS j
			WHERE j.id = ANY(@rows) AND j.state IN ($states) AND NOT j.metadata ? 'superseded_by'
			ORDER BY j.id
			FOR UPDATE SKIP LOCKED`

// cancelRows is River's cancel, of many: what waits has ended, who runs is told so.
func (s *Store) cancelRows(ctx context.Context, rows []int64) (done int, err error) {
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
			WITH mine AS (`+strings.Replace(lockedRows, "$states", bulkStates[BulkCancel], 1)+`
			), told AS (
				SELECT pg_notify('river.river_control', json_build_object('action', 'cancel', 'job_id', m.id, 'queue', m.queue)::text)
				FROM mine AS m
				WHERE m.state = 'running'
			), changed AS (
				UPDATE river.river_job AS j
				SET state = CASE WHEN m.state = 'running' THEN j.state ELSE 'cancelled' END,
					finalized_at = CASE WHEN m.state <> 'running' THEN now() END,
					metadata = j.metadata || jsonb_build_object('cancel_attempted_at', now())
				FROM mine AS m
				WHERE j.id = m.id
				RETURNING j.id
			)
			SELECT count(*) + 0 * (SELECT count(*) FROM told)
			FROM changed`, pgx.StrictNamedArgs{"rows": rows}).Scan(&done)
	})
	return done, err
}

func (s *Store) deleteRows(ctx context.Context, rows []int64) (done int, err error) {
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			DELETE FROM river.river_job
			WHERE id IN (
				SELECT m.id
				FROM (`+strings.Replace(lockedRows, "$states", bulkStates[BulkDelete], 1)+`
				) AS m
			)`, pgx.StrictNamedArgs{"rows": rows})
		done = int(tag.RowsAffected())
		return err
	})
	return done, err
}

// retryRows retries each job as RetryJob does for an admin who wishes for none of it, some at a time.
func (s *Store) retryRows(ctx context.Context, rows []int64) (int, error) {
	var done atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(bulkParallel)
	for _, row := range rows {
		group.Go(func() error {
			err := s.inTx(ctx, func(tx pgx.Tx) error {
				id, err := publicID(ctx, tx, row)
				if err != nil {
					return err
				}
				return s.retryJob(ctx, tx, id, uuid.Nil)
			})
			switch {
			case errors.Is(err, ErrConflict), errors.Is(err, ErrNotFound):
				return nil // the rules, or another was quicker
			case err == nil:
				done.Add(1)
			}
			return err
		})
	}
	err := group.Wait()
	return int(done.Load()), err
}

func publicID(ctx context.Context, tx pgx.Tx, row int64) (id int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT medianest.public_id(j.id, j.metadata)
		FROM river.river_job AS j
		WHERE j.id = @row`,
		pgx.StrictNamedArgs{"row": row}).Scan(&id)
	return id, err
}

// RetryFailedChildren begins the failed children of a collection anew, as RetryDownload does each, and returns how many. The
// collection may be active. ErrConflict if it is no collection, or none has failed.
func (s *Store) RetryFailedChildren(ctx context.Context, id uuid.UUID, v Viewer) (retried int, err error) {
	s = s.as(v)
	collection, err := s.FindDownload(ctx, id, v)
	if err != nil {
		return 0, err
	}
	rows, err := s.pool.Query(ctx, `
		SELECT d.id
		FROM medianest.downloads AS d
		WHERE d.parent_id = @id AND d.state = 'failed'
		ORDER BY d.position, d.id`,
		pgx.StrictNamedArgs{"id": collection.ID})
	if err != nil {
		return 0, fmt.Errorf("list failed children of %s: %w", id, interpret(err))
	}
	children, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return 0, fmt.Errorf("list failed children of %s: %w", id, interpret(err))
	}
	var done atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(bulkParallel)
	for _, child := range children {
		group.Go(func() error {
			_, err := s.RetryDownload(ctx, child, v)
			if errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) {
				return nil // another was quicker
			}
			if err == nil {
				done.Add(1)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return int(done.Load()), err
	}
	if done.Load() == 0 {
		return 0, fmt.Errorf("retry failed children of %s: none has failed: %w", id, ErrConflict)
	}
	return int(done.Load()), nil
}
