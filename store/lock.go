package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Locks are taken in one order by every transaction, so that none can wait for another in a circle:
//
//	idempotency key
//	content      all that the transaction needs, in one statement, by id; missing rows are inserted before, by key
//	downloads    all that it needs, in one statement, by id: the collections above and the items below included
//	river_job    one row by waiting for it; several by lockJobs, which never waits while it holds one
//	folders      of the users that a film is published for, in one statement, by user id (lockFolders)
//
// A reclaim, by which a job that lost its worker goes on as another row, takes rows of river_job and of job_map only,
// the former without waiting.
//
// Whoever changes which downloads follow a job, or finishes a job's work, holds the job's content: two transactions
// about the same job therefore never meet at its row, only with River itself. The outbox's consumer takes downloads
// only, by id as well.
//
// Content and downloads are locked FOR NO KEY UPDATE, which foreign keys do not wait for: Postgres checks those of a row
// once more when one transaction updates it twice, and would then lock contents out of order.
//
// A job's row is locked before a download is tied to it: the job cannot end between the look at its state and the
// commit, after which the consumer sees the download and tells it every later state.

const (
	// jobLockPatience bounds lockJobs, like lock_timeout bounds the waits inside Postgres.
	jobLockPatience = 10 * time.Second
	jobLockPauseMin = 2 * time.Millisecond
	jobLockPauseMax = 50 * time.Millisecond

	// maxBeat is how soon holdOpen notices that the connection is lost.
	maxBeat = 5 * time.Second
)

// lockContents locks the rows and returns those that exist, by id.
func lockContents(ctx context.Context, tx pgx.Tx, ids []uuid.UUID) ([]lockedContent, error) {
	rows, err := tx.Query(ctx, `
		SELECT `+lockedContentColumns+`
		FROM medianest.content AS c
		WHERE c.id = ANY(@ids)
		ORDER BY c.id
		FOR NO KEY UPDATE`,
		pgx.StrictNamedArgs{"ids": ids})
	if err != nil {
		return nil, fmt.Errorf("lock content: %w", err)
	}
	contents, err := pgx.CollectRows(rows, pgx.RowToStructByName[lockedContent])
	if err != nil {
		return nil, fmt.Errorf("lock content: %w", err)
	}
	return contents, nil
}

// lockContent locks one row; ErrNotFound if it is gone.
func lockContent(ctx context.Context, tx pgx.Tx, id uuid.UUID) (lockedContent, error) {
	contents, err := lockContents(ctx, tx, []uuid.UUID{id})
	if err != nil {
		return lockedContent{}, err
	}
	if len(contents) == 0 {
		return lockedContent{}, fmt.Errorf("content %s: %w", id, ErrNotFound)
	}
	return contents[0], nil
}

// treeRow is a locked download.
type treeRow struct {
	ID           uuid.UUID
	UserID       uuid.UUID
	ContentID    uuid.UUID
	ParentID     *uuid.UUID
	IsCollection bool
	State        string
	JobID        *int64
	CancelledAt  *time.Time
	Below        bool // a root or below one; else a collection above
}

// tree is downloads with everything below them and the collections above them, locked, as are the contents of the roots
// and of everything below. Nobody can add to it before the transaction ends.
type tree struct {
	rows     []treeRow
	contents map[uuid.UUID]lockedContent
}

func (t *tree) find(id uuid.UUID) (treeRow, bool) {
	i := slices.IndexFunc(t.rows, func(r treeRow) bool { return r.ID == id })
	if i < 0 {
		return treeRow{}, false
	}
	return t.rows[i], true
}

// below are the roots and all below them.
func (t *tree) below() []treeRow {
	return slices.DeleteFunc(slices.Clone(t.rows), func(r treeRow) bool { return !r.Below })
}

// above are the ids of the collections above the roots.
func (t *tree) above() []uuid.UUID {
	var ids []uuid.UUID
	for _, r := range t.rows {
		if !r.Below {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// lockTree locks the tree of roots. A root that is gone is missing in the tree.
func lockTree(ctx context.Context, tx pgx.Tx, roots []uuid.UUID) (*tree, error) {
	// An expansion may add children between the first look and the locks. It needs the locks on the content that it
	// expands, so that each round that finds more has waited for one to end.
	const rounds = 8
	for range rounds {
		t, complete, err := tryLockTree(ctx, tx, roots)
		if err != nil || complete {
			return t, err
		}
	}
	return nil, fmt.Errorf("lock downloads: they keep growing: %w", ErrUnavailable)
}

func tryLockTree(ctx context.Context, outer pgx.Tx, roots []uuid.UUID) (_ *tree, complete bool, err error) {
	// The savepoint gives back the locks of a round that did not lock enough, to keep the order by id.
	tx, err := outer.Begin(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("lock downloads: %w", err)
	}
	defer func() {
		if !complete {
			err = errors.Join(err, tx.Rollback(ctx))
		}
	}()

	rows, err := tx.Query(ctx, treeBelow+`
		SELECT DISTINCT b.content_id
		FROM below AS b`,
		pgx.StrictNamedArgs{"roots": roots})
	if err != nil {
		return nil, false, fmt.Errorf("list contents of downloads: %w", err)
	}
	contentIDs, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, false, fmt.Errorf("list contents of downloads: %w", err)
	}
	contents, err := lockContents(ctx, tx, contentIDs)
	if err != nil {
		return nil, false, err
	}
	t := &tree{contents: make(map[uuid.UUID]lockedContent, len(contents))}
	for _, c := range contents {
		t.contents[c.ID] = c
	}

	rows, err = tx.Query(ctx, treeBelow+`, above AS (
			SELECT d.parent_id AS id
			FROM medianest.downloads AS d
			WHERE d.id = ANY(@roots) AND d.parent_id IS NOT NULL
			UNION
			SELECT d.parent_id
			FROM medianest.downloads AS d
			JOIN above AS a ON a.id = d.id
			WHERE d.parent_id IS NOT NULL
		)
		SELECT d.id, d.user_id, d.content_id, d.parent_id, d.is_collection, d.state, d.job_id, d.cancelled_at,
			d.id IN (SELECT b.id FROM below AS b) AS below
		FROM medianest.downloads AS d
		WHERE d.id IN (SELECT b.id FROM below AS b UNION ALL SELECT a.id FROM above AS a)
		ORDER BY d.id
		FOR NO KEY UPDATE OF d`,
		pgx.StrictNamedArgs{"roots": roots})
	if err != nil {
		return nil, false, fmt.Errorf("lock downloads: %w", err)
	}
	t.rows, err = pgx.CollectRows(rows, pgx.RowToStructByName[treeRow])
	if err != nil {
		return nil, false, fmt.Errorf("lock downloads: %w", err)
	}
	for _, r := range t.below() {
		if _, ok := t.contents[r.ContentID]; !ok {
			return nil, false, nil
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, false, fmt.Errorf("lock downloads: %w", err)
	}
	return t, true, nil
}

const treeBelow = `
		WITH RECURSIVE below AS (
			SELECT d.id, d.content_id
			FROM medianest.downloads AS d
			WHERE d.id = ANY(@roots)
			UNION
			SELECT d.id, d.content_id
			FROM medianest.downloads AS d
			JOIN below AS b ON b.id = d.parent_id
		)`

// lockedJob is what is known of a job's row that cannot change before the transaction ends, unless it is final.
type lockedJob struct {
	ID          int64 // public
	Row         JobRow
	State       string
	ScheduledAt time.Time
	CancelAsked bool   // it runs, and its end is asked for
	Parked      string // why its worker put it off, if it is scheduled
	Superseded  bool   // the job goes on as another row
	Begun       bool   // it runs, or has run
}

func (j lockedJob) final() bool { return isFinalJobState(j.State) }

func isFinalJobState(state string) bool {
	return state == "completed" || state == "cancelled" || state == "discarded"
}

const lockedJobColumns = `n.id, j.id AS row, j.state::text AS state, j.scheduled_at,
	j.metadata ? 'cancel_attempted_at' AS cancel_asked,
	CASE WHEN j.state = 'scheduled' AND j.metadata ->> 'reason_attempt' = (j.attempt + 1)::text
		THEN coalesce(j.metadata ->> 'reason', '') ELSE '' END AS parked,
	j.metadata ? 'superseded_by' AS superseded,
	j.state = 'running' OR j.attempted_at IS NOT NULL AS begun`

// lockJobs locks the present rows of those of the jobs that are not final, and returns all that exist, by public id.
// The content of each download job among them is locked already.
//
// River updates many jobs in one statement in no order that we could follow. With one row there can be no circle. With
// several, a row that somebody holds is not waited for while others are held: everything is given back and tried
// again. So it is with a row that turns out to be superseded once it is locked: its job goes on as one that only a
// later statement sees.
func lockJobs(ctx context.Context, tx pgx.Tx, ids []int64) (map[int64]lockedJob, error) {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	switch len(ids) {
	case 0:
		return map[int64]lockedJob{}, nil
	case 1:
		jobs, err := queryJobs(ctx, tx, `FOR UPDATE OF j`, ids)
		if err != nil {
			return nil, fmt.Errorf("lock job %d: %w", ids[0], err)
		}
		if !jobs[ids[0]].Superseded {
			return jobs, nil
		}
	}
	start := time.Now()
	for pause := jobLockPauseMin; ; pause = min(2*pause, jobLockPauseMax) {
		jobs, ok, err := tryLockJobs(ctx, tx, ids)
		if err != nil {
			return nil, fmt.Errorf("lock %d jobs: %w", len(ids), err)
		}
		if ok {
			return jobs, nil
		}
		if time.Since(start) > jobLockPatience {
			return nil, fmt.Errorf("lock %d jobs: some stay locked: %w", len(ids), ErrUnavailable)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("lock %d jobs: %w", len(ids), ctx.Err())
		case <-timer.C:
		}
	}
}

func tryLockJobs(ctx context.Context, outer pgx.Tx, ids []int64) (_ map[int64]lockedJob, ok bool, err error) {
	tx, err := outer.Begin(ctx)
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if !ok {
			err = errors.Join(err, tx.Rollback(ctx))
		}
	}()
	locked, err := queryJobs(ctx, tx, `WHERE j.finalized_at IS NULL ORDER BY j.id FOR UPDATE OF j SKIP LOCKED`, ids)
	if err != nil {
		return nil, false, err
	}
	all, err := queryJobs(ctx, tx, ``, ids)
	if err != nil {
		return nil, false, err
	}
	for id, j := range all {
		if _, held := locked[id]; !held && !j.final() {
			return nil, false, nil
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, false, err
	}
	return all, true, nil
}

func queryJobs(ctx context.Context, tx pgx.Tx, tail string, ids []int64) (map[int64]lockedJob, error) {
	rows, err := tx.Query(ctx, `
		SELECT `+lockedJobColumns+`
		FROM unnest(@ids::bigint[]) AS n (id)
		LEFT JOIN medianest.job_map AS m ON m.public_id = n.id
		JOIN river.river_job AS j ON j.id = coalesce(m.row_id, n.id)
		`+tail,
		pgx.StrictNamedArgs{"ids": ids})
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[lockedJob])
	if err != nil {
		return nil, err
	}
	jobs := make(map[int64]lockedJob, len(list))
	for _, j := range list {
		jobs[j.ID] = j
	}
	return jobs, nil
}

// holdOpen runs fn, which does not use tx, and meanwhile keeps the server from ending tx as idle: work on files may
// take long, and a process that is stopped must still lose its locks. fn's context ends when the transaction is lost.
func holdOpen(ctx context.Context, tx pgx.Tx, fn func(ctx context.Context) error) error {
	var idleS float64
	if err := tx.QueryRow(ctx, `
		SELECT extract(epoch FROM current_setting('idle_in_transaction_session_timeout')::interval)`).Scan(&idleS); err != nil {
		return fmt.Errorf("keep transaction open: %w", err)
	}
	every := maxBeat
	if idleS > 0 {
		every = min(every, time.Duration(idleS*float64(time.Second)/3))
	}
	fnCtx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	done, beatEnded := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(beatEnded)
		beat := time.NewTicker(every)
		defer beat.Stop()
		for {
			select {
			case <-done:
				return
			case <-beat.C:
			}
			if _, err := tx.Exec(ctx, `SELECT 1`); err != nil {
				lose(fmt.Errorf("keep transaction open: %w", interpret(err)))
				return
			}
		}
	}()
	err := func() error {
		defer func() {
			close(done)
			<-beatEnded
		}()
		return fn(fnCtx)
	}()
	if fnCtx.Err() != nil && ctx.Err() == nil {
		return context.Cause(fnCtx)
	}
	return err
}
