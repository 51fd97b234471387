package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// CancelDownload ends the viewer's wish, and with a collection's all below it. A job is cancelled when the last wish
// that follows it ends; one that others wish for goes on. A download that is cancelled already is returned as it is;
// ErrConflict if it has ended otherwise.
func (s *Store) CancelDownload(ctx context.Context, id uuid.UUID, v Viewer) (Download, error) {
	s = s.as(v)
	var d Download
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if d, err = findDownload(ctx, tx, id, v); err != nil {
			return err
		}
		if d.State == StateCancelled {
			return nil
		}
		if err := widen(ctx, tx); err != nil { // others may wish for the same
			return err
		}
		cancelled, err := s.cancelTrees(ctx, tx, []uuid.UUID{id}, "")
		if err != nil {
			return err
		}
		if d, err = findDownload(ctx, tx, id, v); err != nil {
			return err
		}
		// Whoever else cancelled it between the first look and the locks did what was asked for.
		if !slices.Contains(cancelled, id) && d.State != StateCancelled {
			return fmt.Errorf("it has ended: %w", ErrConflict)
		}
		return nil
	})
	if err != nil {
		return Download{}, fmt.Errorf("cancel download %s: %w", id, err)
	}
	return d, nil
}

// cancelTrees cancels what is active of the roots and below them, and returns which downloads those are. An item whose
// job has ended is not active, though the outbox's consumer may be a moment behind. Those that expire have not begun.
func (s *Store) cancelTrees(ctx context.Context, tx pgx.Tx, roots []uuid.UUID, reason string) (cancelled []uuid.UUID, err error) {
	t, err := lockTree(ctx, tx, roots)
	if err != nil {
		return nil, err
	}
	jobs, err := lockFollowed(ctx, tx, t.below())
	if err != nil {
		return nil, err
	}
	for _, r := range t.below() {
		if reason == reasonExpired && (r.IsCollection || r.JobID != nil && jobs[*r.JobID].Begun) {
			continue
		}
		if isActive(r.State) && (r.IsCollection || !ended(r, jobs)) {
			cancelled = append(cancelled, r.ID)
		}
	}
	if len(cancelled) == 0 {
		return nil, nil
	}
	_, err = tx.Exec(ctx, `
		UPDATE medianest.downloads
		SET state = 'cancelled',
			cancelled_at = now(),
			finished_at = now(),
			waiting_on = '',
			next_try_at = NULL,
			failure_reason = @reason
		WHERE id = ANY(@ids) AND state = ANY(@active)`,
		pgx.StrictNamedArgs{"ids": cancelled, "active": activeStates, "reason": reason})
	if err != nil {
		return nil, fmt.Errorf("cancel %d downloads: %w", len(cancelled), err)
	}
	if err := s.cancelUnfollowed(ctx, tx, jobs); err != nil {
		return nil, err
	}
	return cancelled, deriveCollections(ctx, tx, t.above())
}

// lockFollowed locks the jobs that the downloads follow.
func lockFollowed(ctx context.Context, tx pgx.Tx, downloads []treeRow) (map[int64]lockedJob, error) {
	var ids []int64
	for _, d := range downloads {
		if d.JobID != nil {
			ids = append(ids, *d.JobID)
		}
	}
	return lockJobs(ctx, tx, ids)
}

// ended reports whether the job that d follows is final.
func ended(d treeRow, jobs map[int64]lockedJob) bool {
	if d.JobID == nil {
		return false
	}
	job, ok := jobs[*d.JobID]
	return ok && job.final()
}

// cancelUnfollowed cancels those of the locked jobs that no wish follows any more.
func (s *Store) cancelUnfollowed(ctx context.Context, tx pgx.Tx, jobs map[int64]lockedJob) error {
	var live []int64
	for id, job := range jobs {
		if !job.final() && !job.CancelAsked {
			live = append(live, id)
		}
	}
	if len(live) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `
		SELECT n.id
		FROM unnest(@ids::bigint[]) AS n (id)
		WHERE NOT EXISTS (SELECT FROM medianest.downloads AS d WHERE d.job_id = n.id AND d.cancelled_at IS NULL)
		ORDER BY n.id`,
		pgx.StrictNamedArgs{"ids": live})
	if err != nil {
		return fmt.Errorf("find jobs that nobody follows: %w", err)
	}
	unfollowed, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("find jobs that nobody follows: %w", err)
	}
	if len(unfollowed) > 0 && s.queue == nil {
		return errNoQueue
	}
	for _, id := range unfollowed {
		if err := s.queue.CancelTx(ctx, tx, jobs[id].Row); err != nil {
			return fmt.Errorf("cancel job %d: %w", id, err)
		}
	}
	return nil
}
