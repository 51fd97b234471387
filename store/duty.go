package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// HoldDuty takes or renews the duty for the holder for ttl, in the database's time, and reports whether the holder has
// it now. It never waits for the end of another's lease. The lease only saves the others idle queries: the work itself
// is made safe by its own locks.
func (s *Store) HoldDuty(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	tag, err := s.pool.Exec(ctx, `
		INSERT INTO medianest.duty AS d (name, holder, expires_at)
		VALUES (@name, @holder, now() + @ttl::interval)
		ON CONFLICT (name) DO UPDATE
		SET holder = excluded.holder, expires_at = excluded.expires_at
		WHERE d.holder = excluded.holder OR d.expires_at <= now()`,
		pgx.StrictNamedArgs{"name": name, "holder": holder, "ttl": ttl})
	if err != nil {
		return false, fmt.Errorf("hold duty %s: %w", name, interpret(err))
	}
	return tag.RowsAffected() == 1, nil
}

// ReleaseDuty gives the duty up, so that another need not wait for the lease to end. It is no error not to have it.
func (s *Store) ReleaseDuty(ctx context.Context, name, holder string) error {
	_, err := s.pool.Exec(ctx, `
		DELETE FROM medianest.duty
		WHERE name = @name AND holder = @holder`,
		pgx.StrictNamedArgs{"name": name, "holder": holder})
	if err != nil {
		return fmt.Errorf("release duty %s: %w", name, interpret(err))
	}
	return nil
}
