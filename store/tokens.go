package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// tokenUseGrain is how exact last_used_at is: a token in use is written once in that time, not at every request.
const tokenUseGrain = time.Minute

// Token lets its bearer act as a user. The secret is not kept, only its SHA-256.
type Token struct {
	ID         uuid.UUID
	UserID     uuid.UUID
	Name       string
	CreatedAt  time.Time
	ExpiresAt  *time.Time // nil: does not expire
	LastUsedAt *time.Time // to the minute; nil: never
	RevokedAt  *time.Time
}

const tokenColumns = `t.id, t.user_id, t.name, t.created_at, t.expires_at, t.last_used_at, t.revoked_at`

// usableToken says of a token t and its user u that the bearer may come in.
const usableToken = `t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()) AND u.disabled_at IS NULL`

// NewToken is what CreateToken is given.
type NewToken struct {
	UserID    uuid.UUID
	Name      string
	Hash      [32]byte   // SHA-256 of the secret
	ExpiresAt *time.Time // nil: never
}

// CreateToken adds a token; ErrConflict if the hash or the user is not usable.
func (s *Store) CreateToken(ctx context.Context, n NewToken) (Token, error) {
	if err := checkText("name", n.Name, 255); err != nil {
		return Token{}, err
	}
	rows, err := s.pool.Query(ctx, `
		INSERT INTO medianest.tokens AS t (id, user_id, name, hash, expires_at)
		VALUES (@id, @user_id, @name, @hash, @expires_at)
		RETURNING `+tokenColumns,
		pgx.StrictNamedArgs{
			"id": uuid.Must(uuid.NewV7()), "user_id": n.UserID, "name": n.Name, "hash": n.Hash[:], "expires_at": n.ExpiresAt,
		})
	if err != nil {
		return Token{}, fmt.Errorf("create token for user %s: %w", n.UserID, interpret(err))
	}
	token, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Token])
	if err != nil {
		return Token{}, fmt.Errorf("create token for user %s: %w", n.UserID, interpret(err))
	}
	return token, nil
}

// RevokeToken ends a token of the viewer's, or any as an admin; ErrConflict if it was revoked before.
func (s *Store) RevokeToken(ctx context.Context, id uuid.UUID, v Viewer) error {
	var changed bool
	err := s.pool.QueryRow(ctx, `
		WITH revoked AS (
			UPDATE medianest.tokens
			SET revoked_at = now()
			WHERE id = @id AND revoked_at IS NULL AND (@admin OR user_id = @user_id)
			RETURNING id
		)
		SELECT t.id IN (SELECT r.id FROM revoked AS r)
		FROM medianest.tokens AS t
		WHERE t.id = @id AND (@admin OR t.user_id = @user_id)`,
		pgx.StrictNamedArgs{"id": id, "admin": v.Admin, "user_id": v.UserID}).Scan(&changed)
	if err != nil {
		return fmt.Errorf("revoke token %s: %w", id, interpret(err))
	}
	if !changed {
		return fmt.Errorf("revoke token %s: revoked before: %w", id, ErrConflict)
	}
	return nil
}

// FindUserByToken returns whom the token with this hash stands for, and notes its use. ErrNotFound if there is none,
// or it is expired or revoked, or its user is disabled: the bearer is not told which.
func (s *Store) FindUserByToken(ctx context.Context, hash [32]byte) (User, Token, error) {
	var (
		u     User
		t     Token
		stale bool
	)
	err := s.pool.QueryRow(ctx, `
		SELECT `+userColumns+`, `+tokenColumns+`,
			coalesce(t.last_used_at < now() - @grain::interval, true) AS stale
		FROM medianest.tokens AS t
		JOIN medianest.users AS u ON u.id = t.user_id
		WHERE t.hash = @hash AND `+usableToken,
		pgx.StrictNamedArgs{"hash": hash[:], "grain": tokenUseGrain}).Scan(
		&u.ID, &u.Name, &u.Role, &u.CreatedAt, &u.DisabledAt,
		&t.ID, &t.UserID, &t.Name, &t.CreatedAt, &t.ExpiresAt, &t.LastUsedAt, &t.RevokedAt, &stale)
	if err != nil {
		return User{}, Token{}, fmt.Errorf("find user by token: %w", interpret(err))
	}
	if stale {
		if err := s.noteTokenUse(ctx, t.ID); err != nil {
			return User{}, Token{}, err
		}
	}
	return u, t, nil
}

// noteTokenUse sets last_used_at, once for many requests at the same time: those that find the row locked leave it to
// the one that holds it.
func (s *Store) noteTokenUse(ctx context.Context, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE medianest.tokens
		SET last_used_at = now()
		WHERE id = (
			SELECT t.id
			FROM medianest.tokens AS t
			WHERE t.id = @id AND coalesce(t.last_used_at < now() - @grain::interval, true)
			FOR UPDATE SKIP LOCKED
		)`,
		pgx.StrictNamedArgs{"id": id, "grain": tokenUseGrain})
	if err != nil {
		return fmt.Errorf("note use of token %s: %w", id, interpret(err))
	}
	return nil
}
