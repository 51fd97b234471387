package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// LinkFunc puts what was fetched into the library for the users who wish for it and have no file among existing, and
// returns the files that it made, which take the place of those that their users had on record. A user occurs once among
// wishes. It runs while nobody else can publish, join or cancel, and must be content with what an earlier call left
// behind: the transaction may yet fail. Its context ends when the transaction is lost.
type LinkFunc func(ctx context.Context, wishes []Wish, existing []File) ([]File, error)

// CompleteFunc completes the job in the transaction, and fails if it can not.
type CompleteFunc func(ctx context.Context, tx pgx.Tx) error

// Publish ends a fetch: it links the files in, records them and completes the job, all in one transaction. The
// downloads' states follow by the outbox. With no wish left nothing is linked, and the job is completed.
//
// What was a collection and has become a single film is none any more, unless it still has children: those it follows.
//
// ErrSuperseded if the row does not run, or the job goes on as another; ErrNotFound if the content is gone.
func (s *Store) Publish(ctx context.Context, contentID uuid.UUID, row JobRow, link LinkFunc, complete CompleteFunc) error {
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := lockContent(ctx, tx, contentID); err != nil {
			return err
		}
		jobID, err := publicIDOf(ctx, tx, row)
		if err != nil {
			return err
		}
		if err := unmarkCollections(ctx, tx, contentID, jobID); err != nil {
			return err
		}
		// The downloads' rows are not locked: linking may take long, and who only looks after their states goes on.
		if err := lockRunning(ctx, tx, jobID, row); err != nil {
			return err
		}
		wishes, err := queryWishes(ctx, tx, contentID, jobID)
		if err != nil {
			return err
		}
		if len(wishes) > 0 {
			if err := linkFiles(ctx, tx, contentID, onePerUser(wishes), link); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `
			UPDATE medianest.content
			SET failure_detail = '', staged_on = '', staged_wait_from = NULL
			WHERE id = @id`,
			pgx.StrictNamedArgs{"id": contentID}); err != nil {
			return err
		}
		return complete(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("publish content %s by row %d: %w", contentID, row, err)
	}
	return nil
}

// unmarkCollections makes downloads that were expanded once, and have no children left, follow their own job. It comes
// before the job is locked, as in all transactions: the downloads concerned are few, mostly none, and stay locked.
func unmarkCollections(ctx context.Context, tx pgx.Tx, contentID uuid.UUID, jobID int64) error {
	_, err := tx.Exec(ctx, `
		UPDATE medianest.downloads
		SET is_collection = false, left_out = ''
		WHERE id IN (
			SELECT d.id
			FROM medianest.downloads AS d
			WHERE d.job_id = @job_id
				AND d.content_id = @content_id
				AND d.cancelled_at IS NULL
				AND d.is_collection
				AND NOT EXISTS (SELECT FROM medianest.downloads AS c WHERE c.parent_id = d.id)
			ORDER BY d.id
			FOR NO KEY UPDATE
		)`,
		pgx.StrictNamedArgs{"job_id": jobID, "content_id": contentID})
	if err != nil {
		return fmt.Errorf("unmark collections: %w", err)
	}
	return nil
}

func onePerUser(wishes []Wish) []Wish {
	seen := make(map[uuid.UUID]bool, len(wishes))
	var first []Wish
	for _, w := range wishes {
		if !seen[w.UserID] {
			seen[w.UserID] = true
			first = append(first, w)
		}
	}
	return first
}

func linkFiles(ctx context.Context, tx pgx.Tx, contentID uuid.UUID, wishes []Wish, link LinkFunc) error {
	users := make([]uuid.UUID, len(wishes))
	for i, w := range wishes {
		users[i] = w.UserID
	}
	if err := lockFolders(ctx, tx, users); err != nil {
		return err
	}
	existing, err := queryFiles(ctx, tx, contentID)
	if err != nil {
		return err
	}
	var made []File
	err = holdOpen(ctx, tx, func(ctx context.Context) (err error) {
		made, err = link(ctx, wishes, existing)
		return err
	})
	if err != nil {
		return err
	}
	for _, f := range made {
		if err := insertFile(ctx, tx, contentID, f); err != nil {
			return err
		}
	}
	return forgetReplaced(ctx, tx, contentID, made)
}

// lockFolders has others wait who publish for the same users, until the transaction ends: what is placed in a user's
// folder and not yet on record would pass for what an interrupted publication has left, if it is the same film.
func lockFolders(ctx context.Context, tx pgx.Tx, users []uuid.UUID) error {
	slices.SortFunc(users, compareUUID)
	_, err := tx.Exec(ctx, `
		SELECT pg_advisory_xact_lock(hashtextextended('medianest.folder ' || u.id, 0))
		FROM unnest(@users::uuid[]) AS u (id)`,
		pgx.StrictNamedArgs{"users": users})
	if err != nil {
		return fmt.Errorf("wait for the users' folders: %w", err)
	}
	return nil
}

// RemoveUnrecorded calls remove for those of the files that are on nobody's record, of whatever content, while nobody
// publishes for their users: what a publication placed that failed may have been taken over by another, of the same film.
// It goes on after an error of remove.
func (s *Store) RemoveUnrecorded(ctx context.Context, files []File, remove func(path string) error) error {
	users := make([]uuid.UUID, len(files))
	for i, f := range files {
		users[i] = f.UserID
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		if err := lockFolders(ctx, tx, users); err != nil {
			return err
		}
		var failed error
		for _, f := range files {
			recorded, err := fileRecorded(ctx, tx, f.Path)
			if err != nil {
				return errors.Join(failed, err)
			}
			if !recorded {
				failed = errors.Join(failed, remove(f.Path))
			}
		}
		return failed
	})
	if err != nil {
		return fmt.Errorf("remove what is on no record: %w", err)
	}
	return nil
}

// forgetReplaced takes off the record what users had besides what was made for them now: it was not in the library any
// more.
func forgetReplaced(ctx context.Context, tx pgx.Tx, contentID uuid.UUID, made []File) error {
	users, paths := make([]uuid.UUID, len(made)), make([]string, len(made))
	for i, f := range made {
		users[i], paths[i] = f.UserID, f.Path
	}
	_, err := tx.Exec(ctx, `
		DELETE FROM medianest.files
		WHERE content_id = @content_id AND user_id = ANY(@users) AND path <> ALL(@paths)`,
		pgx.StrictNamedArgs{"content_id": contentID, "users": users, "paths": paths})
	if err != nil {
		return fmt.Errorf("forget replaced files: %w", err)
	}
	return nil
}

// insertFile records a file, or again one that an earlier job of the same content made at the same path.
func insertFile(ctx context.Context, tx pgx.Tx, contentID uuid.UUID, f File) error {
	tag, err := tx.Exec(ctx, `
		INSERT INTO medianest.files AS f (id, content_id, user_id, path, size_bytes, sha256)
		VALUES (@id, @content_id, @user_id, @path, @size_bytes, @sha256)
		ON CONFLICT (path) DO UPDATE
		SET size_bytes = excluded.size_bytes, sha256 = excluded.sha256
		WHERE f.content_id = excluded.content_id AND f.user_id = excluded.user_id`,
		pgx.StrictNamedArgs{
			"id": uuid.Must(uuid.NewV7()), "content_id": contentID, "user_id": f.UserID, "path": f.Path,
			"size_bytes": f.SizeBytes, "sha256": f.SHA256,
		})
	if err != nil {
		return fmt.Errorf("record file %q: %w", f.Path, err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("record file %q: the path is another content's: %w", f.Path, ErrConflict)
	}
	return nil
}
