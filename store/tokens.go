package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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
	Scopes     []string       // of those that the user's role has; nil: all
	Networks   []netip.Prefix // from which it is taken; nil: from anywhere
	CreatedAt  time.Time
	ExpiresAt  *time.Time // nil: does not expire
	LastUsedAt *time.Time // to the minute; nil: never
	RevokedAt  *time.Time
}

const tokenColumns = `t.id, t.user_id, t.name, t.scopes, t.networks, t.created_at, t.expires_at, t.last_used_at, t.revoked_at` // #nosec G101 -- columns

// usableToken says of a token t and its user u that the bearer may come in.
const usableToken = `t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()) AND u.disabled_at IS NULL` // #nosec G101 -- a condition

// NewToken is what CreateToken is given.
type NewToken struct {
	UserID    uuid.UUID
	Name      string
	Hash      [32]byte       // SHA-256 of the secret
	Scopes    []string       // nil: all that the user's role has
	Networks  []netip.Prefix // nil: from anywhere
	ExpiresAt *time.Time     // nil: never
}

const (
	maxTokensPerUser = 100
	maxNetworks      = 50
)

// CreateToken adds a token; ErrConflict if the hash or the user is not usable, or the user has too many.
func (s *Store) CreateToken(ctx context.Context, n NewToken) (Token, error) {
	s = s.asUser(n.UserID)
	if err := errors.Join(checkText("name", n.Name, maxNameBytes), checkNetworks(n.Networks)); err != nil {
		return Token{}, err
	}
	if n.ExpiresAt != nil && !n.ExpiresAt.After(time.Now()) {
		return Token{}, &InvalidError{Field: "expires_at", Reason: "is not to come"}
	}
	rows, err := s.pool.Query(ctx, `
		INSERT INTO medianest.tokens AS t (id, user_id, name, hash, scopes, networks, expires_at)
		SELECT @id, @user_id, @name, @hash, @scopes, @networks, @expires_at
		WHERE (SELECT count(*) FROM medianest.tokens AS o WHERE o.user_id = @user_id AND o.revoked_at IS NULL) < @most
		RETURNING `+tokenColumns,
		pgx.StrictNamedArgs{
			"id": uuid.Must(uuid.NewV7()), "user_id": n.UserID, "name": n.Name, "hash": n.Hash[:], "scopes": n.Scopes,
			"networks": n.Networks, "expires_at": n.ExpiresAt, "most": maxTokensPerUser,
		})
	if err != nil {
		return Token{}, fmt.Errorf("create token for user %s: %w", n.UserID, interpret(err))
	}
	token, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Token])
	if errors.Is(err, pgx.ErrNoRows) {
		return Token{}, fmt.Errorf("create token for user %s: there are %d: %w", n.UserID, maxTokensPerUser, ErrConflict)
	}
	if err != nil {
		return Token{}, fmt.Errorf("create token for user %s: %w", n.UserID, interpret(err))
	}
	return token, nil
}

func checkNetworks(networks []netip.Prefix) error {
	if len(networks) > maxNetworks {
		return &InvalidError{Field: "networks", Reason: fmt.Sprintf("are more than %d", maxNetworks)}
	}
	for _, n := range networks {
		if !n.IsValid() || n != n.Masked() {
			return &InvalidError{Field: "networks", Reason: "has one that is no network, such as 192.168.1.0/24"}
		}
	}
	return nil
}

// ListTokens returns the user's tokens that work or did within a month, newest first.
func (s *Store) ListTokens(ctx context.Context, userID uuid.UUID) ([]Token, error) {
	s = s.asUser(userID)
	rows, err := s.pool.Query(ctx, `
		SELECT `+tokenColumns+`
		FROM medianest.tokens AS t
		WHERE t.user_id = @user_id AND coalesce(t.revoked_at, t.expires_at, now()) > now() - interval '30 days'
		ORDER BY t.id DESC
		LIMIT 500`,
		pgx.StrictNamedArgs{"user_id": userID})
	if err != nil {
		return nil, fmt.Errorf("list tokens of user %s: %w", userID, interpret(err))
	}
	tokens, err := pgx.CollectRows(rows, pgx.RowToStructByName[Token])
	if err != nil {
		return nil, fmt.Errorf("list tokens of user %s: %w", userID, interpret(err))
	}
	return tokens, nil
}

// RevokeToken ends a token of the viewer's, or any as an admin; ErrConflict if it was revoked before.
func (s *Store) RevokeToken(ctx context.Context, id uuid.UUID, v Viewer) error {
	s = s.as(v)
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

// noteTokenUse sets last_used_at, once for many requests at the same time: those that find the row locked leave it to
// the one that holds it.
func (s *Store) noteTokenUse(ctx context.Context, id uuid.UUID) error {
	s = s.Everyone()
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
