package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Session is a browser, or another program, that is signed in.
type Session struct {
	ID         uuid.UUID
	UserID     uuid.UUID
	TokenID    *uuid.UUID // the API token that it began with, and ends with
	Method     string     // password, token, invitation, plex, oidc
	Remember   bool
	Client     string // address at sign-in
	UserAgent  string
	CreatedAt  time.Time
	LastUsedAt time.Time // when it was renewed last
	ExpiresAt  time.Time // unless it is renewed before
	EndsAt     time.Time // whatever is renewed
}

// How long a session lasts without being renewed, and in all. A browser renews it by itself whenever it is used.
const (
	sessionIdle     = 24 * time.Hour
	sessionAge      = 30 * 24 * time.Hour
	rememberedIdle  = 30 * 24 * time.Hour
	rememberedAge   = 90 * 24 * time.Hour
	maxUserAgent    = 500
	maxNameBytes    = 255
	maxSessionsUser = 100
)

// refreshGrace is how long after its use a refresh token may come again without being taken for stolen: the requests of
// two tabs, or of a page that loads much at once. It gets no successor then.
const refreshGrace = 10 * time.Second

const sessionColumns = `s.id, s.user_id, s.token_id, s.method, s.remember, s.client, s.user_agent, s.created_at, s.last_used_at,
	s.expires_at, s.ends_at`

// liveSession says of a session s and its user u that it counts.
const liveSession = `s.revoked_at IS NULL AND least(s.expires_at, s.ends_at) > now() AND u.disabled_at IS NULL AND u.erased_at IS NULL`

func (s *Session) targets() []any {
	return []any{
		&s.ID, &s.UserID, &s.TokenID, &s.Method, &s.Remember, &s.Client, &s.UserAgent, &s.CreatedAt, &s.LastUsedAt,
		&s.ExpiresAt, &s.EndsAt,
	}
}

// NewSession is what CreateSession is given.
type NewSession struct {
	UserID    uuid.UUID
	TokenID   *uuid.UUID
	Method    string
	Remember  bool
	Client    string
	UserAgent string
	Refresh   [32]byte // SHA-256 of the first refresh token
}

// CreateSession begins a session. A user's oldest one ends when there are too many.
func (s *Store) CreateSession(ctx context.Context, n NewSession) (Session, error) {
	s = s.Everyone() // a policy looks for the session of a refresh token, which comes to be with it
	idle, age := sessionIdle, sessionAge
	if n.Remember {
		idle, age = rememberedIdle, rememberedAge
	}
	var session Session
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
			WITH s AS (
				INSERT INTO medianest.session (id, user_id, token_id, method, remember, client, user_agent, expires_at, ends_at)
				VALUES (@id, @user_id, @token_id, @method, @remember, @client, @user_agent, now() + @idle::interval, now() + @age::interval)
				RETURNING *
			), r AS (
				INSERT INTO medianest.refresh_token (hash, session_id)
				SELECT @refresh, s.id
				FROM s
			)
			SELECT `+sessionColumns+`
			FROM s`,
			pgx.StrictNamedArgs{
				"id": uuid.Must(uuid.NewV7()), "user_id": n.UserID, "token_id": n.TokenID, "method": n.Method, "remember": n.Remember,
				"client": n.Client, "user_agent": cleanText(n.UserAgent, maxUserAgent), "idle": idle, "age": age, "refresh": n.Refresh[:],
			}).Scan(session.targets()...)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			UPDATE medianest.session
			SET revoked_at = now(), revoked_for = 'revoked'
			WHERE id IN (
				SELECT s.id
				FROM medianest.session AS s
				WHERE s.user_id = @user_id AND s.revoked_at IS NULL AND s.expires_at > now()
				ORDER BY s.last_used_at DESC, s.id DESC
				OFFSET @most
			)`,
			pgx.StrictNamedArgs{"user_id": n.UserID, "most": maxSessionsUser})
		return err
	})
	if err != nil {
		return Session{}, fmt.Errorf("create session of user %s: %w", n.UserID, err)
	}
	return session, nil
}

// Renewal is what came of a refresh token.
type Renewal struct {
	Session Session
	Rotated bool // the successor counts from now on; else the token came twice at once, and its first bearer has it
}

// RenewSession takes a refresh token, which is good once, and puts its successor in its place. ErrNotFound if the token is
// unknown or its session has ended. ErrReused if it was used before: whoever else holds it, or its successors, is signed
// out with this bearer, since one of them stole it.
func (s *Store) RenewSession(ctx context.Context, refresh, successor [32]byte) (Renewal, error) {
	s = s.Everyone()
	var (
		r      Renewal
		reused bool
	)
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		var (
			usedAt *time.Time
			recent bool
		)
		// The session's row is the lock: two bearers of one token come one after the other.
		err := tx.QueryRow(ctx, `
			SELECT s.id
			FROM medianest.session AS s
			WHERE s.id = (SELECT t.session_id FROM medianest.refresh_token AS t WHERE t.hash = @hash)
			FOR UPDATE`,
			pgx.StrictNamedArgs{"hash": refresh[:]}).Scan(&r.Session.ID)
		if err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `
			SELECT `+sessionColumns+`, t.used_at, coalesce(t.used_at > now() - @grace::interval, false)
			FROM medianest.refresh_token AS t
			JOIN medianest.session AS s ON s.id = t.session_id
			JOIN medianest.users AS u ON u.id = s.user_id
			WHERE t.hash = @hash AND `+liveSession,
			pgx.StrictNamedArgs{"hash": refresh[:], "grace": refreshGrace}).Scan(append(r.Session.targets(), &usedAt, &recent)...)
		switch {
		case err != nil:
			return err
		case recent:
			return nil
		case usedAt != nil:
			reused = true
			_, err := tx.Exec(ctx, `
				UPDATE medianest.session
				SET revoked_at = now(), revoked_for = 'reuse'
				WHERE id = @id`,
				pgx.StrictNamedArgs{"id": r.Session.ID})
			return err
		}
		r.Rotated = true
		idle := sessionIdle
		if r.Session.Remember {
			idle = rememberedIdle
		}
		// Predecessors are kept for as long as they could come again.
		return tx.QueryRow(ctx, `
			WITH used AS (
				UPDATE medianest.refresh_token
				SET used_at = now()
				WHERE hash = @hash
			), next AS (
				INSERT INTO medianest.refresh_token (hash, session_id)
				VALUES (@successor, @id)
			), s AS (
				UPDATE medianest.session
				SET last_used_at = now(), expires_at = least(ends_at, now() + @idle::interval)
				WHERE id = @id
				RETURNING *
			)
			SELECT `+sessionColumns+`
			FROM s`,
			pgx.StrictNamedArgs{"hash": refresh[:], "successor": successor[:], "id": r.Session.ID, "idle": idle}).Scan(r.Session.targets()...)
	})
	if err == nil && reused {
		err = ErrReused
	}
	if err != nil {
		return Renewal{Session: r.Session}, fmt.Errorf("renew session: %w", err)
	}
	return r, nil
}

// ListSessions returns the user's sessions that count, the one used last first.
func (s *Store) ListSessions(ctx context.Context, userID uuid.UUID) ([]Session, error) {
	s = s.asUser(userID)
	rows, err := s.pool.Query(ctx, `
		SELECT `+sessionColumns+`
		FROM medianest.session AS s
		JOIN medianest.users AS u ON u.id = s.user_id
		WHERE s.user_id = @user_id AND `+liveSession+`
		ORDER BY s.last_used_at DESC, s.id DESC`,
		pgx.StrictNamedArgs{"user_id": userID})
	if err != nil {
		return nil, fmt.Errorf("list sessions of user %s: %w", userID, interpret(err))
	}
	sessions, err := pgx.CollectRows(rows, pgx.RowToStructByName[Session])
	if err != nil {
		return nil, fmt.Errorf("list sessions of user %s: %w", userID, interpret(err))
	}
	return sessions, nil
}

// RevokeSession ends a session of the user's, for every replica at once. ErrNotFound if there is none that counts.
func (s *Store) RevokeSession(ctx context.Context, id, userID uuid.UUID, why string) error {
	s = s.asUser(userID)
	tag, err := s.pool.Exec(ctx, `
		UPDATE medianest.session
		SET revoked_at = now(), revoked_for = @why
		WHERE id = @id AND user_id = @user_id AND revoked_at IS NULL AND expires_at > now()`,
		pgx.StrictNamedArgs{"id": id, "user_id": userID, "why": why})
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("revoke session %s: %w", id, interpret(err))
	}
	return nil
}

// RevokeSessions ends all of the user's sessions but one, which may be nil, and returns how many.
func (s *Store) RevokeSessions(ctx context.Context, userID uuid.UUID, but *uuid.UUID, why string) (int64, error) {
	s = s.asUser(userID)
	tag, err := s.pool.Exec(ctx, `
		UPDATE medianest.session
		SET revoked_at = now(), revoked_for = @why
		WHERE user_id = @user_id AND id IS DISTINCT FROM @but AND revoked_at IS NULL AND expires_at > now()`,
		pgx.StrictNamedArgs{"user_id": userID, "but": but, "why": why})
	if err != nil {
		return 0, fmt.Errorf("revoke sessions of user %s: %w", userID, interpret(err))
	}
	return tag.RowsAffected(), nil
}

// trimSessions removes what has ended long ago: sessions, codes, failures to sign in, and people who are gone and have no
// file any more.
func (s *Store) trimSessions(ctx context.Context) (total int64, err error) {
	if total, err = s.eraseGone(ctx); err != nil {
		return total, err
	}
	for _, sql := range []string{
		`DELETE FROM medianest.session WHERE id IN (
			SELECT s.id FROM medianest.session AS s
			WHERE least(s.expires_at, s.revoked_at) < now() - interval '30 days' LIMIT @batch)`,
		`DELETE FROM medianest.one_time WHERE hash IN (
			SELECT o.hash FROM medianest.one_time AS o WHERE o.expires_at < now() LIMIT @batch)`,
		`DELETE FROM medianest.sign_in_failure WHERE key IN (
			SELECT f.key FROM medianest.sign_in_failure AS f WHERE f.last_at < now() - interval '1 day' LIMIT @batch)`,
		`DELETE FROM medianest.users WHERE id IN (
			SELECT u.id FROM medianest.users AS u
			WHERE u.erased_at IS NOT NULL
				AND NOT EXISTS (SELECT FROM medianest.downloads AS d WHERE d.user_id = u.id)
				AND NOT EXISTS (SELECT FROM medianest.files AS f WHERE f.user_id = u.id)
			LIMIT @batch)`,
	} {
		n, err := s.trimInBatches(ctx, sql, pgx.StrictNamedArgs{"batch": trimBatch})
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}
