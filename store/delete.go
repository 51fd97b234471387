package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// DeleteDownload removes a download with all below it, cancelling what is active. Where that was its owner's last
// download of a content, a job takes the owner's files out of the library. Others' downloads and files stay.
func (s *Store) DeleteDownload(ctx context.Context, id uuid.UUID, v Viewer) error {
	s = s.as(v)
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := findDownload(ctx, tx, id, v); err != nil {
			return err
		}
		if err := widen(ctx, tx); err != nil { // others may wish for the same
			return err
		}
		t, err := lockTree(ctx, tx, []uuid.UUID{id})
		if err != nil {
			return err
		}
		if _, ok := t.find(id); !ok {
			return ErrNotFound
		}
		jobs, err := lockFollowed(ctx, tx, t.below())
		if err != nil {
			return err
		}
		if err := deleteDownloads(ctx, tx, t.below()); err != nil {
			return err
		}
		if err := s.cancelUnfollowed(ctx, tx, jobs); err != nil {
			return err
		}
		if err := s.enqueueRemovals(ctx, tx, t.below()); err != nil {
			return err
		}
		return deriveCollections(ctx, tx, t.above())
	})
	if err != nil {
		return fmt.Errorf("delete download %s: %w", id, err)
	}
	return nil
}

// deleteDownloads deletes all in one statement: a cascade from the parent would run a statement for each level.
func deleteDownloads(ctx context.Context, tx pgx.Tx, downloads []treeRow) error {
	ids := make([]uuid.UUID, len(downloads))
	for i, d := range downloads {
		ids[i] = d.ID
	}
	_, err := tx.Exec(ctx, `
		DELETE FROM medianest.downloads
		WHERE id = ANY(@ids)`,
		pgx.StrictNamedArgs{"ids": ids})
	if err != nil {
		return fmt.Errorf("delete %d downloads: %w", len(ids), err)
	}
	return nil
}

// enqueueRemovals enqueues the removal of the files that the owners of the deleted downloads have no download of any
// more. The contents are locked: no file can come to be while we look.
func (s *Store) enqueueRemovals(ctx context.Context, tx pgx.Tx, deleted []treeRow) error {
	users, contents := make([]uuid.UUID, len(deleted)), make([]uuid.UUID, len(deleted))
	for i, d := range deleted {
		users[i], contents[i] = d.UserID, d.ContentID
	}
	rows, err := tx.Query(ctx, `
		SELECT DISTINCT n.user_id, n.content_id
		FROM unnest(@users::uuid[], @contents::uuid[]) AS n (user_id, content_id)
		WHERE EXISTS (SELECT FROM medianest.files AS f WHERE f.content_id = n.content_id AND f.user_id = n.user_id)
			AND NOT EXISTS (SELECT FROM medianest.downloads AS d WHERE d.content_id = n.content_id AND d.user_id = n.user_id)
		ORDER BY n.user_id, n.content_id`,
		pgx.StrictNamedArgs{"users": users, "contents": contents})
	if err != nil {
		return fmt.Errorf("find files without a download: %w", err)
	}
	views, err := pgx.CollectRows(rows, pgx.RowToStructByName[ContentView])
	if err != nil {
		return fmt.Errorf("find files without a download: %w", err)
	}
	if len(views) == 0 {
		return nil
	}
	if s.queue == nil {
		return errNoQueue
	}
	if err := s.queue.EnqueueRemoveFilesTx(ctx, tx, views); err != nil {
		return fmt.Errorf("enqueue removal of files: %w", err)
	}
	return nil
}
