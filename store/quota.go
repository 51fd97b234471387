package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Quota is how much a user may have. What is nil is not bounded, or not said.
type Quota struct {
	Bytes     *int64 // of files in the library
	Downloads *int   // asked for within 24 hours
}

func (q Quota) validate() error {
	if q.Bytes != nil && *q.Bytes < 0 {
		return &InvalidError{Field: "quota_bytes", Reason: "is negative"}
	}
	if q.Downloads != nil && *q.Downloads < 0 {
		return &InvalidError{Field: "quota_downloads", Reason: "is negative"}
	}
	return nil
}

// Usage is what a user has of what a quota bounds.
type Usage struct {
	Bytes     int64 // of files in the library
	Downloads int   // asked for within the last 24 hours
}

// FindUsage returns what the user has, and what the user may have: the user's own quota, else the role's.
func (s *Store) FindUsage(ctx context.Context, userID uuid.UUID) (u Usage, q Quota, err error) {
	s = s.asUser(userID)
	u, q, err = findUsage(ctx, s.pool, userID)
	if err != nil {
		return Usage{}, Quota{}, fmt.Errorf("load usage of user %s: %w", userID, interpret(err))
	}
	return u, q, nil
}

// oneQuerier is a pool or a transaction.
type oneQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func findUsage(ctx context.Context, db oneQuerier, userID uuid.UUID) (u Usage, q Quota, err error) {
	err = db.QueryRow(ctx, `
		SELECT coalesce(u.quota_bytes, r.bytes), coalesce(u.quota_downloads, r.downloads),
			(SELECT coalesce(sum(f.size_bytes), 0) FROM medianest.files AS f WHERE f.user_id = u.id)::bigint,
			(SELECT count(*) FROM medianest.downloads AS d
				WHERE d.user_id = u.id AND d.parent_id IS NULL AND d.created_at > now() - interval '24 hours')
		FROM medianest.users AS u
		LEFT JOIN medianest.role_quota AS r ON r.role = u.role
		WHERE u.id = @id`,
		pgx.StrictNamedArgs{"id": userID}).Scan(&q.Bytes, &q.Downloads, &u.Bytes, &u.Downloads)
	return u, q, err
}

// QuotaError is an ErrQuota that says which bound is reached.
type QuotaError struct {
	What  string // "bytes" or "downloads"
	Most  int64
	Taken int64
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("quota of %d %s is reached: %d", e.Most, e.What, e.Taken)
}

// Unwrap makes errors.Is(err, ErrQuota) hold.
func (e *QuotaError) Unwrap() error { return ErrQuota }

// checkQuota refuses one more download of the user, who has as much as they may have. What runs is not stopped: a quota is
// exceeded by what was under way when it was reached, and no more.
func checkQuota(ctx context.Context, db oneQuerier, userID uuid.UUID) error {
	// Most users have none: then nothing is counted.
	var bounded bool
	err := db.QueryRow(ctx, `
		SELECT coalesce(u.quota_bytes, r.bytes) IS NOT NULL OR coalesce(u.quota_downloads, r.downloads) IS NOT NULL
		FROM medianest.users AS u
		LEFT JOIN medianest.role_quota AS r ON r.role = u.role
		WHERE u.id = @id`, pgx.StrictNamedArgs{"id": userID}).Scan(&bounded)
	if err != nil || !bounded {
		return err
	}
	u, q, err := findUsage(ctx, db, userID)
	if err != nil {
		return err
	}
	if q.Downloads != nil && u.Downloads >= *q.Downloads {
		return &QuotaError{"downloads", int64(*q.Downloads), int64(u.Downloads)}
	}
	if q.Bytes != nil && u.Bytes >= *q.Bytes {
		return &QuotaError{"bytes", *q.Bytes, u.Bytes}
	}
	return nil
}

// RoleQuotas are what users of each role may have, unless it is said of the user.
func (s *Store) RoleQuotas(ctx context.Context) (map[string]Quota, error) {
	rows, err := s.pool.Query(ctx, `SELECT r.role, r.bytes, r.downloads FROM medianest.role_quota AS r`)
	if err != nil {
		return nil, fmt.Errorf("load quotas of roles: %w", interpret(err))
	}
	quotas := map[string]Quota{}
	var (
		role string
		q    Quota
	)
	_, err = pgx.ForEachRow(rows, []any{&role, &q.Bytes, &q.Downloads}, func() error {
		quotas[role] = q
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load quotas of roles: %w", interpret(err))
	}
	return quotas, nil
}

// SetRoleQuota says what users of the role may have from now on.
func (s *Store) SetRoleQuota(ctx context.Context, role string, q Quota) error {
	if err := checkRole(role); err != nil {
		return err
	}
	if err := q.validate(); err != nil {
		return err
	}
	_, err := s.pool.Exec(ctx, `
		INSERT INTO medianest.role_quota (role, bytes, downloads)
		VALUES (@role, @bytes, @downloads)
		ON CONFLICT (role) DO UPDATE
		SET bytes = excluded.bytes, downloads = excluded.downloads`,
		pgx.StrictNamedArgs{"role": role, "bytes": q.Bytes, "downloads": q.Downloads})
	if err != nil {
		return fmt.Errorf("set quota of role %s: %w", role, interpret(err))
	}
	return nil
}
