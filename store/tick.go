package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// trimEventBatch is how many ticks or events one statement removes.
const trimEventBatch = 5000

// AdvanceTick stores a tick if there is news, which ends a batch of events that all readers agree on. Any number of
// processes may call it at any time; one at a time is at it, the others return at once. It begins a new history when the
// old one is of another epoch.
func (s *Store) AdvanceTick(ctx context.Context) (tick int64, ticked bool, err error) {
	var id *int64
	// One statement, outside of a transaction: it must see what other holders of its lock have committed.
	if err := s.pool.QueryRow(ctx, `SELECT medianest.advance_tick()`).Scan(&id); err != nil {
		return 0, false, fmt.Errorf("advance tick: %w", interpret(err))
	}
	if id == nil {
		return 0, false, nil
	}
	return *id, true, nil
}

// TrimEvents removes ticks older than retention, but for what durable consumers have yet to read, and the events that
// no tick is left for. It works in batches and returns how many rows went.
func (s *Store) TrimEvents(ctx context.Context, retention time.Duration) (removed int64, err error) {
	// Ticks first: a cursor whose events are going to be removed must count as expired before.
	for {
		n, more, err := s.trimTicks(ctx, retention)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("trim ticks: %w", interpret(err))
		}
		if !more {
			break
		}
	}
	for {
		tag, err := s.pool.Exec(ctx, `
			WITH oldest AS MATERIALIZED (
				SELECT k.snapshot
				FROM medianest.tick AS k
				ORDER BY k.id
				LIMIT 1
			)
			DELETE FROM medianest.event
			WHERE ctid = ANY(ARRAY(
				SELECT e.ctid
				FROM medianest.event AS e
				WHERE e.xid < (SELECT pg_snapshot_xmax(o.snapshot) FROM oldest AS o)
					AND pg_visible_in_snapshot(e.xid, (SELECT o.snapshot FROM oldest AS o))
				ORDER BY e.xid
				LIMIT @batch
			))`,
			pgx.StrictNamedArgs{"batch": trimEventBatch})
		removed += tag.RowsAffected()
		if err != nil {
			return removed, fmt.Errorf("trim events: %w", interpret(err))
		}
		if tag.RowsAffected() < trimEventBatch {
			return removed, nil
		}
	}
}

// trimTicks looks at the oldest ticks and removes those that are too old but for the last of them, which stays as what
// later events are told apart by. The consumers' next tick needs the one before it.
func (s *Store) trimTicks(ctx context.Context, retention time.Duration) (removed int64, more bool, err error) {
	tag, err := s.pool.Exec(ctx, `
		DELETE FROM medianest.tick
		WHERE id < (
			SELECT max(k.id)
			FROM (SELECT t.id, t.at FROM medianest.tick AS t ORDER BY t.id LIMIT @batch) AS k
			WHERE k.at < now() - @retention::interval
				AND k.id < ALL (
					SELECT c.tick
					FROM medianest.consumer AS c
					JOIN medianest.epoch AS e ON e.history = c.epoch
				)
		)`,
		pgx.StrictNamedArgs{"batch": trimEventBatch, "retention": retention})
	if err != nil {
		return 0, false, err
	}
	return tag.RowsAffected(), tag.RowsAffected() == trimEventBatch-1, nil
}
