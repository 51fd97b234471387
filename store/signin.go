package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Who fails to sign in has to wait before the next try: nothing for the first few failures, then 1 s, 2 s, 4 s, up to
// longestWait. It is counted per name and per network, for all replicas together, and forgotten after failuresMemory.
const (
	freeFailures   = 3
	longestWait    = 15 * time.Minute
	failuresMemory = time.Hour
)

// SignInWait returns how long a try under these keys has to wait; 0: it may be made.
func (s *Store) SignInWait(ctx context.Context, keys ...string) (time.Duration, error) {
	var seconds float64
	err := s.pool.QueryRow(ctx, `
		SELECT coalesce(max(extract(epoch FROM f.until - clock_timestamp())), 0)::float8
		FROM medianest.sign_in_failure AS f
		WHERE f.key = ANY(@keys)`,
		pgx.StrictNamedArgs{"keys": keys}).Scan(&seconds)
	if err != nil {
		return 0, fmt.Errorf("look up failures to sign in: %w", interpret(err))
	}
	return max(0, time.Duration(seconds*float64(time.Second))), nil
}

// SignInFailed counts a failure under each key.
func (s *Store) SignInFailed(ctx context.Context, keys ...string) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO medianest.sign_in_failure AS f (key, count, last_at, until)
		SELECT k.key, 1, clock_timestamp(), clock_timestamp()
		FROM unnest(@keys::text[]) AS k (key)
		ORDER BY k.key
		ON CONFLICT (key) DO UPDATE
		SET count = CASE WHEN f.last_at < clock_timestamp() - @memory::interval THEN 1 ELSE f.count + 1 END,
			last_at = clock_timestamp(),
			until = CASE WHEN f.last_at < clock_timestamp() - @memory::interval OR f.count < @free THEN clock_timestamp()
				ELSE clock_timestamp() + least(@longest::interval, interval '1 s' * 2 ^ least(f.count - @free, 20)) END`,
		pgx.StrictNamedArgs{"keys": keys, "memory": failuresMemory, "longest": longestWait, "free": freeFailures})
	if err != nil {
		return fmt.Errorf("count a failure to sign in: %w", interpret(err))
	}
	return nil
}

// SignInSucceeded forgets the failures under the keys.
func (s *Store) SignInSucceeded(ctx context.Context, keys ...string) error {
	_, err := s.pool.Exec(ctx, `
		DELETE FROM medianest.sign_in_failure
		WHERE key = ANY(@keys)`,
		pgx.StrictNamedArgs{"keys": keys})
	if err != nil {
		return fmt.Errorf("forget failures to sign in: %w", interpret(err))
	}
	return nil
}

// FindPassword returns the user of the name and the hash of their password. ErrNotFound if there is no such user, or the
// user is disabled or has none.
func (s *Store) FindPassword(ctx context.Context, name string) (User, string, error) {
	if !userName.MatchString(name) {
		return User{}, "", fmt.Errorf("find password: %w", ErrNotFound)
	}
	var (
		u    User
		hash string
	)
	err := s.pool.QueryRow(ctx, `
		SELECT `+userColumns+`, u.password_hash
		FROM medianest.users AS u
		WHERE u.name = @name AND u.password_hash IS NOT NULL AND u.disabled_at IS NULL AND u.erased_at IS NULL`,
		pgx.StrictNamedArgs{"name": name}).Scan(append(u.targets(), &hash)...)
	if err != nil {
		return User{}, "", fmt.Errorf("find password: %w", interpret(err))
	}
	return u, hash, nil
}

// SetPassword sets the hash of the user's password, and ends the user's sessions but one: whoever knew the old password
// is out.
func (s *Store) SetPassword(ctx context.Context, userID uuid.UUID, hash string, but *uuid.UUID) error {
	s = s.asUser(userID)
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			UPDATE medianest.users
			SET password_hash = @hash
			WHERE id = @id AND disabled_at IS NULL AND erased_at IS NULL`,
			pgx.StrictNamedArgs{"id": userID, "hash": hash})
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return ErrNotFound
		}
		_, err = tx.Exec(ctx, `
			UPDATE medianest.session
			SET revoked_at = now(), revoked_for = 'revoked'
			WHERE user_id = @id AND id IS DISTINCT FROM @but AND revoked_at IS NULL`,
			pgx.StrictNamedArgs{"id": userID, "but": but})
		return err
	})
	if err != nil {
		return fmt.Errorf("set password of user %s: %w", userID, err)
	}
	return nil
}

// ReplacePasswordHash stores the same password hashed anew, if it is still the one that was checked.
func (s *Store) ReplacePasswordHash(ctx context.Context, userID uuid.UUID, old, hash string) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE medianest.users
		SET password_hash = @hash
		WHERE id = @id AND password_hash = @old`,
		pgx.StrictNamedArgs{"id": userID, "old": old, "hash": hash})
	if err != nil {
		return fmt.Errorf("hash password of user %s anew: %w", userID, interpret(err))
	}
	return nil
}
