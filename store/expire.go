package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// reasonExpired is why a download was cancelled that had not begun by its StartBy.
const reasonExpired = "expired"

// expireBatch is how many downloads one transaction drops.
const expireBatch = 100

// ExpireDownloads cancels the downloads that were to begin by now, which nil means is the database's time, and have not: the
// wish, as its user would, so that a job which others wish for goes on. One whose job has begun meanwhile, or has been put
// off since, stays. It may be called at any time by any number of processes.
func (s *Store) ExpireDownloads(ctx context.Context, now *time.Time) (expired int, err error) {
	s = s.Everyone()
	for {
		rows, err := s.pool.Query(ctx, `
			SELECT d.id
			FROM medianest.downloads AS d
			WHERE d.start_by <= coalesce(@now, now()) AND d.started_at IS NULL AND d.finished_at IS NULL
			ORDER BY d.start_by
			LIMIT @batch`,
			pgx.StrictNamedArgs{"now": now, "batch": expireBatch})
		if err != nil {
			return expired, fmt.Errorf("find downloads that expire: %w", interpret(err))
		}
		due, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return expired, fmt.Errorf("find downloads that expire: %w", interpret(err))
		}
		if len(due) == 0 {
			return expired, nil
		}
		err = s.inTx(ctx, func(tx pgx.Tx) error {
			dropped, err := s.cancelTrees(ctx, tx, due, reasonExpired)
			if err != nil {
				return err
			}
			expired += len(dropped)
			// What has begun is not looked at again, if its start has not been noted by then.
			_, err = tx.Exec(ctx, `
				UPDATE medianest.downloads
				SET start_by = NULL
				WHERE id = ANY(@ids) AND finished_at IS NULL`,
				pgx.StrictNamedArgs{"ids": due})
			return err
		})
		if err != nil {
			return expired, fmt.Errorf("drop downloads that expire: %w", err)
		}
	}
}
