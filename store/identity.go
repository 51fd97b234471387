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

// Identity is who comes in, by which right, and on what conditions.
type Identity struct {
	User    User
	Token   *Token      // that was shown, or that the session began with; nil: the user in person
	Session *Session    // nil: no browser's
	Rules   []Condition // that the user's use of scopes is bound to
}

// Condition is an access rule as it stands for one user at this moment.
type Condition struct {
	Rule     string
	Scopes   []string
	Networks []netip.Prefix // nil: from anywhere
	OpensAt  *time.Time     // when a window opens; nil: one is open, or there are none
}

// The rules of a user u, as an array of JSON would be: one round trip with the rest, since they are asked for with every
// request, and are to hold at once.
const conditionColumns = `coalesce((
		SELECT jsonb_agg(jsonb_build_object('Rule', r.name, 'Scopes', r.scopes, 'Networks', r.networks,
			'OpensAt', medianest.window_opens_at(r.windows, r.timezone, now())) ORDER BY r.name)
		FROM medianest.access_rule AS r
		WHERE u.role = ANY(r.roles) OR u.id = ANY(r.user_ids)
	), '[]')`

// IdentifyToken returns whom the token with this hash stands for, and notes its use. ErrNotFound if there is none, or it
// is expired or revoked, or its user is disabled: the bearer is not told which.
func (s *Store) IdentifyToken(ctx context.Context, hash [32]byte) (Identity, error) {
	return s.identifyToken(ctx, `t.hash = @which`, hash[:])
}

// IdentifyCode returns whom a code stands for that was made with a session or a token: ErrNotFound if that has ended.
func (s *Store) IdentifyCode(ctx context.Context, o OneTime) (Identity, error) {
	switch {
	case o.SessionID != nil:
		return s.IdentifySession(ctx, *o.SessionID)
	case o.TokenID != nil:
		return s.identifyToken(ctx, `t.id = @which`, *o.TokenID)
	}
	return Identity{}, fmt.Errorf("identify by code: %w", ErrNotFound)
}

func (s *Store) identifyToken(ctx context.Context, where string, which any) (Identity, error) {
	s = s.Everyone()
	var (
		i     Identity
		t     Token
		stale bool
	)
	err := s.pool.QueryRow(ctx, `
		SELECT `+userColumns+`, `+tokenColumns+`, `+conditionColumns+`,
			coalesce(t.last_used_at < now() - @grain::interval, true) AS stale
		FROM medianest.tokens AS t
		JOIN medianest.users AS u ON u.id = t.user_id
		WHERE `+where+` AND `+usableToken,
		pgx.StrictNamedArgs{"which": which, "grain": tokenUseGrain}).Scan(
		append(append(i.User.targets(), t.targets()...), &i.Rules, &stale)...)
	if err != nil {
		return Identity{}, fmt.Errorf("identify by token: %w", interpret(err))
	}
	i.Token = &t
	if stale {
		if err := s.noteTokenUse(ctx, t.ID); err != nil {
			return Identity{}, err
		}
	}
	return i, nil
}

// IdentifySession returns whose session it is. ErrNotFound if there is none, or it has ended, or the token that it began
// with has, or its user is disabled.
func (s *Store) IdentifySession(ctx context.Context, id uuid.UUID) (Identity, error) {
	s = s.Everyone()
	var (
		i       Identity
		session Session
	)
	rows, err := s.pool.Query(ctx, `
		SELECT `+userColumns+`, `+sessionColumns+`, `+conditionColumns+`
		FROM medianest.session AS s
		JOIN medianest.users AS u ON u.id = s.user_id
		WHERE s.id = @id AND `+liveSession,
		pgx.StrictNamedArgs{"id": id})
	if err != nil {
		return Identity{}, fmt.Errorf("identify by session: %w", interpret(err))
	}
	_, err = pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (struct{}, error) {
		return struct{}{}, row.Scan(append(append(i.User.targets(), session.targets()...), &i.Rules)...)
	})
	if err != nil {
		return Identity{}, fmt.Errorf("identify by session: %w", interpret(err))
	}
	i.Session = &session
	if session.TokenID != nil {
		if i.Token, err = s.usableTokenByID(ctx, *session.TokenID); err != nil {
			return Identity{}, fmt.Errorf("identify by session: %w", err)
		}
	}
	return i, nil
}

// usableTokenByID is for sessions that began with a token: they may no more than it, and end with it.
func (s *Store) usableTokenByID(ctx context.Context, id uuid.UUID) (*Token, error) {
	s = s.Everyone()
	var t Token
	err := s.pool.QueryRow(ctx, `
		SELECT `+tokenColumns+`
		FROM medianest.tokens AS t
		JOIN medianest.users AS u ON u.id = t.user_id
		WHERE t.id = @id AND `+usableToken,
		pgx.StrictNamedArgs{"id": id}).Scan(t.targets()...)
	if err != nil {
		return nil, interpret(err)
	}
	return &t, nil
}

func (t *Token) targets() []any {
	return []any{&t.ID, &t.UserID, &t.Name, &t.Scopes, &t.Networks, &t.CreatedAt, &t.ExpiresAt, &t.LastUsedAt, &t.RevokedAt}
}

// ExternalIdentity is who somebody is at a provider of identities.
type ExternalIdentity struct {
	Provider string // "plex", or an issuer
	Subject  string // the provider's id of the person, which never changes
	Name     string // as the provider calls them
}

// FindUserByIdentity returns the user that the provider's person is, and notes the use. ErrNotFound if there is none.
func (s *Store) FindUserByIdentity(ctx context.Context, e ExternalIdentity) (User, error) {
	s = s.Everyone()
	user, err := s.queryUser(ctx, `
		WITH used AS (
			UPDATE medianest.user_identity
			SET last_used_at = now(), name = @name
			WHERE provider = @provider AND subject = @subject
			RETURNING user_id
		)
		SELECT `+userColumns+`
		FROM medianest.users AS u
		JOIN used ON used.user_id = u.id`,
		pgx.StrictNamedArgs{"provider": e.Provider, "subject": e.Subject, "name": cleanText(e.Name, maxNameBytes)})
	if err != nil {
		return User{}, fmt.Errorf("find user by identity: %w", err)
	}
	return user, nil
}

// LinkIdentity ties a person at a provider to the user. ErrConflict if that person is another user.
func (s *Store) LinkIdentity(ctx context.Context, userID uuid.UUID, e ExternalIdentity) error {
	s = s.asUser(userID)
	if err := errors.Join(checkText("provider", e.Provider, maxNameBytes), checkText("subject", e.Subject, maxNameBytes)); err != nil {
		return err
	}
	tag, err := s.pool.Exec(ctx, `
		INSERT INTO medianest.user_identity AS i (provider, subject, user_id, name, last_used_at)
		VALUES (@provider, @subject, @user_id, @name, now())
		ON CONFLICT (provider, subject) DO UPDATE
		SET last_used_at = now(), name = excluded.name
		WHERE i.user_id = excluded.user_id`,
		pgx.StrictNamedArgs{"provider": e.Provider, "subject": e.Subject, "user_id": userID, "name": cleanText(e.Name, maxNameBytes)})
	if err != nil {
		return fmt.Errorf("link identity to user %s: %w", userID, interpret(err))
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("link identity to user %s: it is another user's: %w", userID, ErrConflict)
	}
	return nil
}
