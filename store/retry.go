package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// RetryDownload begins an ended download anew: it follows the job that is at its content, or a new one. A collection is
// expanded again, which begins its failed and cancelled children anew, adds what is new and leaves the rest. A child
// brings the collections above it back to life. ErrConflict if the download is active, or the user has another active
// one of the same content.
func (s *Store) RetryDownload(ctx context.Context, id uuid.UUID, v Viewer) (Download, error) {
	s = s.as(v)
	var d Download
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if d, err = findDownload(ctx, tx, id, v); err != nil {
			return err
		}
		content, err := lockContent(ctx, tx, d.ContentID)
		if err != nil {
			return err
		}
		row, above, err := lockWithAbove(ctx, tx, id)
		if err != nil {
			return err
		}
		ids := jobsOf([]lockedContent{content})
		if row.JobID != nil {
			ids = append(ids, *row.JobID)
		}
		jobs, err := lockJobs(ctx, tx, ids)
		if err != nil {
			return err
		}
		if isActive(row.State) && (row.IsCollection || !ended(row, jobs)) {
			return fmt.Errorf("it is %s: %w", row.State, ErrConflict)
		}
		if row.ParentID == nil {
			other, err := activeTopLevel(ctx, tx, row.UserID, row.ContentID, row.ID)
			if err != nil {
				return err
			}
			if other != nil {
				return fmt.Errorf("download %s of the same is active: %w", *other, ErrConflict)
			}
		}
		attachments, err := s.attachOrEnqueue(ctx, tx, []need{{content, row.UserID}}, jobs)
		if err != nil {
			return err
		}
		if err := follow(ctx, tx, []treeRow{row}, attachments); err != nil {
			return err
		}
		if err := reviveAbove(ctx, tx, above); err != nil {
			return err
		}
		d, err = findDownload(ctx, tx, id, v)
		return err
	})
	if err != nil {
		return Download{}, fmt.Errorf("retry download %s: %w", id, err)
	}
	return d, nil
}

// lockWithAbove locks a download, whose content is locked, and the collections above it.
func lockWithAbove(ctx context.Context, tx pgx.Tx, id uuid.UUID) (row treeRow, above []uuid.UUID, err error) {
	rows, err := lockAncestry(ctx, tx, []uuid.UUID{id}, false)
	if err != nil {
		return treeRow{}, nil, err
	}
	found := false
	for _, r := range rows {
		if r.ID == id {
			row, found = r, true
			continue
		}
		above = append(above, r.ID)
	}
	if !found {
		return treeRow{}, nil, ErrNotFound
	}
	return row, above, nil
}

// lockAncestry locks the downloads, the collections above them and, if asked for, their children. Below says which are
// the downloads themselves or their children.
func lockAncestry(ctx context.Context, tx pgx.Tx, ids []uuid.UUID, children bool) ([]treeRow, error) {
	rows, err := tx.Query(ctx, `
		WITH RECURSIVE above AS (
			SELECT d.id, d.parent_id
			FROM medianest.downloads AS d
			WHERE d.id = ANY(@ids)
			UNION
			SELECT d.id, d.parent_id
			FROM medianest.downloads AS d
			JOIN above AS a ON a.parent_id = d.id
		)
		SELECT d.id, d.user_id, d.content_id, d.parent_id, d.is_collection, d.state, d.job_id, d.cancelled_at,
			d.id = ANY(@ids) OR coalesce(d.parent_id = ANY(@ids), false) AS below
		FROM medianest.downloads AS d
		WHERE d.id IN (
			SELECT a.id
			FROM above AS a
			UNION
			SELECT c.id
			FROM medianest.downloads AS c
			WHERE @children AND c.parent_id = ANY(@ids)
		)
		ORDER BY d.id
		FOR NO KEY UPDATE OF d`,
		pgx.StrictNamedArgs{"ids": ids, "children": children})
	if err != nil {
		return nil, fmt.Errorf("lock downloads: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[treeRow])
	if err != nil {
		return nil, fmt.Errorf("lock downloads: %w", err)
	}
	return list, nil
}

// reviveAbove lets the collections above a download that began anew follow their children again, also if they were
// cancelled.
func reviveAbove(ctx context.Context, tx pgx.Tx, above []uuid.UUID) error {
	if len(above) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `
		UPDATE medianest.downloads
		SET cancelled_at = NULL
		WHERE id = ANY(@ids) AND cancelled_at IS NOT NULL`,
		pgx.StrictNamedArgs{"ids": above})
	if err != nil {
		return fmt.Errorf("revive collections: %w", err)
	}
	return deriveCollections(ctx, tx, above)
}
