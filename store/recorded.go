package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// FileRecorded reports whether the path is on record as somebody's file, of whatever content. The library asks before
// it takes a file with the right bytes for one that an interrupted publication has left: two contents can have the
// same bytes.
func (s *Store) FileRecorded(ctx context.Context, path string) (recorded bool, err error) {
	s = s.Everyone()
	recorded, err = fileRecorded(ctx, s.pool, path)
	return recorded, interpret(err)
}

func fileRecorded(ctx context.Context, db rowQuerier, path string) (recorded bool, err error) {
	rows, err := db.Query(ctx, `
		SELECT EXISTS (
			SELECT
			FROM medianest.files AS f
			WHERE f.path = @path
		)`,
		pgx.StrictNamedArgs{"path": path})
	if err == nil {
		recorded, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
	}
	if err != nil {
		return false, fmt.Errorf("look for file %q: %w", path, err)
	}
	return recorded, nil
}

// ContentUnfinished reports whether the content's job has not ended: what has been fetched of it may be in use. A
// content that is gone is finished.
func (s *Store) ContentUnfinished(ctx context.Context, id uuid.UUID) (unfinished bool, err error) {
	s = s.Everyone()
	err = s.pool.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT
			FROM medianest.content AS c
			JOIN river.river_job AS j ON j.id = `+currentRow("c.job_id")+`
			WHERE c.id = @id AND j.finalized_at IS NULL
		)`,
		pgx.StrictNamedArgs{"id": id}).Scan(&unfinished)
	if err != nil {
		return false, fmt.Errorf("look for the job of content %s: %w", id, interpret(err))
	}
	return unfinished, nil
}
