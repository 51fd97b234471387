package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// rowQuerier is a pool or a transaction.
type rowQuerier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// File is one user's path in the library to what was fetched.
type File struct {
	ID        uuid.UUID
	ContentID uuid.UUID
	UserID    uuid.UUID
	Path      string // relative to the media root, with slashes
	SizeBytes int64
	SHA256    []byte
	CreatedAt time.Time
}

const fileColumns = `f.id, f.content_id, f.user_id, f.path, f.size_bytes, f.sha256, f.created_at`

// FilesOf lists the user's files of the content, by path.
func (s *Store) FilesOf(ctx context.Context, userID, contentID uuid.UUID) ([]File, error) {
	s = s.asUser(userID)
	files, err := queryFilesOf(ctx, s.pool, []ContentView{{UserID: userID, ContentID: contentID}})
	if err != nil {
		return nil, fmt.Errorf("list files of content %s for user %s: %w", contentID, userID, interpret(err))
	}
	return files, nil
}

// queryFiles lists all users' files of the content, by age.
func queryFiles(ctx context.Context, db rowQuerier, contentID uuid.UUID) ([]File, error) {
	rows, err := db.Query(ctx, `
		SELECT `+fileColumns+`
		FROM medianest.files AS f
		WHERE f.content_id = @content_id
		ORDER BY f.id`,
		pgx.StrictNamedArgs{"content_id": contentID})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[File])
}

func queryFilesOf(ctx context.Context, db rowQuerier, views []ContentView) ([]File, error) {
	users, contents := make([]uuid.UUID, len(views)), make([]uuid.UUID, len(views))
	for i, v := range views {
		users[i], contents[i] = v.UserID, v.ContentID
	}
	rows, err := db.Query(ctx, `
		SELECT `+fileColumns+`
		FROM medianest.files AS f
		JOIN (SELECT DISTINCT n.user_id, n.content_id FROM unnest(@users::uuid[], @contents::uuid[]) AS n (user_id, content_id)) AS v
			ON v.content_id = f.content_id AND v.user_id = f.user_id
		ORDER BY f.path`,
		pgx.StrictNamedArgs{"users": users, "contents": contents})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[File])
}

// RemoveFiles takes the user's files of the content out of the library, unless the user has a download of it again.
// remove is given their paths while nobody else can publish or wish for the content; it must be content with paths
// that are gone already, since it is called again if the transaction fails after it. With no file it is not called.
func (s *Store) RemoveFiles(ctx context.Context, userID, contentID uuid.UUID, remove func(ctx context.Context, paths []string) error) error {
	s = s.Everyone()
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		contents, err := lockContents(ctx, tx, []uuid.UUID{contentID})
		if err != nil {
			return err
		}
		if len(contents) == 0 {
			return nil // it is not removed before its files
		}
		wished, err := isWished(ctx, tx, userID, contentID)
		if err != nil || wished {
			return err
		}
		files, err := queryFilesOf(ctx, tx, []ContentView{{UserID: userID, ContentID: contentID}})
		if err != nil || len(files) == 0 {
			return err
		}
		ids, paths := make([]uuid.UUID, len(files)), make([]string, len(files))
		for i, f := range files {
			ids[i], paths[i] = f.ID, f.Path
		}
		if err := holdOpen(ctx, tx, func(ctx context.Context) error { return remove(ctx, paths) }); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			DELETE FROM medianest.files
			WHERE id = ANY(@ids)`,
			pgx.StrictNamedArgs{"ids": ids})
		return err
	})
	if err != nil {
		return fmt.Errorf("remove files of content %s for user %s: %w", contentID, userID, err)
	}
	return nil
}

func isWished(ctx context.Context, tx pgx.Tx, userID, contentID uuid.UUID) (wished bool, err error) {
	err = tx.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT
			FROM medianest.downloads AS d
			WHERE d.content_id = @content_id AND d.user_id = @user_id
		)`,
		pgx.StrictNamedArgs{"content_id": contentID, "user_id": userID}).Scan(&wished)
	return wished, err
}
