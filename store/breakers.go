package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// States of a breaker. One that is closed has no row.
const (
	BreakerOpen    = "open"    // nothing begins under its key
	BreakerDue     = "due"     // the wait is over: the next job that can begin is the probe
	BreakerProbing = "probing" // the probe is under way; nothing else begins
)

// Breaker is a key whose breaker has tripped: what stands behind it asked for less.
type Breaker struct {
	Key       string
	State     string
	Step      int       // on the ladder of waits, from 0
	OpenUntil time.Time // no probe before
	TrippedAt time.Time // last
	Trips     int       // since it was last closed
	ProbeJob  *int64    // public id of the probe that is under way
	Reason    string    // of the failure that tripped it last
}

// ListBreakers returns a page by key, and the cursor of the next one, or "" after the last.
func (s *Store) ListBreakers(ctx context.Context, cursor string, limit int) (page []Breaker, next string, err error) {
	if limit, err = pageSize(limit); err != nil {
		return nil, "", err
	}
	after, err := keyOfCursor(cursor)
	if err != nil {
		return nil, "", err
	}
	rows, err := s.pool.Query(ctx, `
		SELECT b.key,
			CASE WHEN p.probing THEN 'probing' WHEN b.open_until > now() THEN 'open' ELSE 'due' END AS state,
			b.step, b.open_until, b.tripped_at, b.trips, CASE WHEN p.probing THEN b.probe_job END AS probe_job, b.reason
		FROM medianest.breaker AS b
		CROSS JOIN LATERAL (
			SELECT EXISTS (
				SELECT
				FROM medianest.admission AS a
				WHERE a.row_id = `+currentRow("b.probe_job")+` AND a.admitted_at IS NOT NULL
			) AS probing
		) AS p
		WHERE b.key > @after
		ORDER BY b.key
		LIMIT @limit`,
		pgx.StrictNamedArgs{"after": after, "limit": limit + 1})
	if err != nil {
		return nil, "", fmt.Errorf("list breakers: %w", interpret(err))
	}
	page, err = pgx.CollectRows(rows, pgx.RowToStructByName[Breaker])
	if err != nil {
		return nil, "", fmt.Errorf("list breakers: %w", interpret(err))
	}
	if len(page) > limit {
		page = page[:limit]
		next = cursorOfKey(page[limit-1].Key)
	}
	return page, next, nil
}

// ResetBreaker closes the key's breaker as if it had never tripped. ErrNotFound if it has not.
func (s *Store) ResetBreaker(ctx context.Context, key string) error {
	err := checkKey(key)
	if err == nil {
		tag, execErr := s.pool.Exec(ctx, `DELETE FROM medianest.breaker WHERE key = @key`, pgx.StrictNamedArgs{"key": key})
		if err = interpret(execErr); err == nil && tag.RowsAffected() == 0 {
			err = ErrNotFound
		}
	}
	if err != nil {
		return fmt.Errorf("reset breaker of %q: %w", key, err)
	}
	return nil
}
