package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Reasons that a collection has of its own, and what is said with them.
const (
	reasonChildrenFailed     = "children_failed"
	reasonSomeChildrenFailed = "some_children_failed"

	detailChildrenFailed     = "None of the items could be downloaded."
	detailSomeChildrenFailed = "Some of the items could not be downloaded."
)

// deriveCollections brings the collections, which the caller has locked together with the collections above them, into
// the state that their children's states make: running while any is not final, then completed, cancelled or failed; what
// was left out when they were expanded counts like a child that failed beside others that completed. It leaves alone a
// collection whose own job is still to come (its children are about to change), one that its user cancelled, and one that
// ended and lost its last child since.
func deriveCollections(ctx context.Context, tx pgx.Tx, ids []uuid.UUID) error {
	// A collection may lie in another: a changed one makes those above it worth a look.
	for len(ids) > 0 {
		rows, err := tx.Query(ctx, `
			WITH counted AS (
				SELECT p.id,
					count(c.id) AS total,
					count(c.id) FILTER (WHERE c.state = ANY(@active)) AS active,
					count(c.id) FILTER (WHERE c.state = 'completed') AS completed,
					count(c.id) FILTER (WHERE c.state = 'failed') AS failed
				FROM medianest.downloads AS p
				LEFT JOIN medianest.downloads AS c ON c.parent_id = p.id
				WHERE p.id = ANY(@ids)
					AND p.is_collection
					AND p.cancelled_at IS NULL
					AND NOT EXISTS (SELECT FROM river.river_job AS j WHERE j.id = `+currentRow("p.job_id")+` AND j.finalized_at IS NULL)
				GROUP BY p.id
			), judged AS (
				SELECT n.id, p.left_out,
					CASE
						WHEN n.active > 0 THEN 'running'
						WHEN n.completed > 0 THEN 'completed'
						WHEN n.failed > 0 THEN 'failed'
						ELSE 'cancelled'
					END AS state,
					CASE
						WHEN n.active > 0 THEN ''
						WHEN n.completed > 0 AND (n.failed > 0 OR p.left_out <> '') THEN @some_failed
						WHEN n.completed = 0 AND n.failed > 0 THEN @all_failed
						ELSE ''
					END AS reason,
					n.failed
				FROM counted AS n
				JOIN medianest.downloads AS p ON p.id = n.id
				WHERE n.total > 0 OR p.state = ANY(@active)
			), derived AS (
				SELECT j.id, j.state, j.reason,
					CASE
						WHEN j.reason = @all_failed THEN @all_failed_detail
						WHEN j.reason = @some_failed AND j.failed = 0 THEN j.left_out
						WHEN j.reason = @some_failed THEN rtrim(@some_failed_detail || ' ' || j.left_out)
						ELSE ''
					END AS detail
				FROM judged AS j
			)
			UPDATE medianest.downloads AS p
			SET state = n.state,
				waiting_on = '',
				next_try_at = NULL,
				failure_reason = n.reason,
				failure_detail = n.detail,
				started_at = coalesce(p.started_at, now()),
				finished_at = CASE WHEN n.state <> 'running' THEN coalesce(p.finished_at, now()) END
			FROM derived AS n
			WHERE p.id = n.id AND (p.state, p.failure_reason, p.failure_detail) IS DISTINCT FROM (n.state, n.reason, n.detail)
			RETURNING p.parent_id`,
			pgx.StrictNamedArgs{
				"ids": ids, "active": activeStates,
				"some_failed": reasonSomeChildrenFailed, "some_failed_detail": detailSomeChildrenFailed,
				"all_failed": reasonChildrenFailed, "all_failed_detail": detailChildrenFailed,
			})
		if err != nil {
			return fmt.Errorf("derive collections: %w", err)
		}
		parents, err := pgx.CollectRows(rows, pgx.RowTo[*uuid.UUID])
		if err != nil {
			return fmt.Errorf("derive collections: %w", err)
		}
		ids = ids[:0:0]
		for _, p := range parents {
			if p != nil {
				ids = append(ids, *p)
			}
		}
	}
	return nil
}
