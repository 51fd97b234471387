package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// What one-time codes are for.
const (
	CodeInvitation = "invitation"   // lets a person set the user's password
	CodeTicket     = "event_ticket" // opens one event stream
	CodeSignIn     = "sign_in"      // a sign-in that is under way elsewhere
)

// OneTime is a code that is good once, until it expires. Only its SHA-256 is kept.
type OneTime struct {
	Purpose   string
	UserID    *uuid.UUID
	SessionID *uuid.UUID      // that it ends with
	TokenID   *uuid.UUID      // that it ends with
	Detail    json.RawMessage // what whoever takes it needs to know; nil: nothing
	ExpiresAt time.Time
}

// maxCodesPerUser bounds the codes of one purpose that a user has: the oldest go.
const maxCodesPerUser = 100

// AddOneTime keeps a code of this hash.
func (s *Store) AddOneTime(ctx context.Context, hash [32]byte, o OneTime) error {
	if o.Detail == nil {
		o.Detail = json.RawMessage(`{}`)
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO medianest.one_time (hash, purpose, user_id, session_id, token_id, detail, expires_at)
			VALUES (@hash, @purpose, @user_id, @session_id, @token_id, @detail, @expires_at)`,
			pgx.StrictNamedArgs{
				"hash": hash[:], "purpose": o.Purpose, "user_id": o.UserID, "session_id": o.SessionID, "token_id": o.TokenID,
				"detail": o.Detail, "expires_at": o.ExpiresAt,
			})
		if err != nil || o.UserID == nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			DELETE FROM medianest.one_time
			WHERE hash IN (
				SELECT o.hash
				FROM medianest.one_time AS o
				WHERE o.user_id = @user_id AND o.purpose = @purpose
				ORDER BY o.created_at DESC
				OFFSET @most
			)`,
			pgx.StrictNamedArgs{"user_id": o.UserID, "purpose": o.Purpose, "most": maxCodesPerUser})
		return err
	})
	if err != nil {
		return fmt.Errorf("keep a code for %s: %w", o.Purpose, err)
	}
	return nil
}

// ReplaceOneTime keeps a code for the user, and forgets those that the user had for the purpose before.
func (s *Store) ReplaceOneTime(ctx context.Context, hash [32]byte, o OneTime) error {
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			DELETE FROM medianest.one_time
			WHERE user_id = @user_id AND purpose = @purpose`,
			pgx.StrictNamedArgs{"user_id": o.UserID, "purpose": o.Purpose})
		return err
	})
	if err != nil {
		return fmt.Errorf("forget codes for %s: %w", o.Purpose, err)
	}
	return s.AddOneTime(ctx, hash, o)
}

// TakeOneTime returns what a code stands for and forgets it. ErrNotFound if it is unknown, used, expired, or ended with its
// session, token or user.
func (s *Store) TakeOneTime(ctx context.Context, hash [32]byte, purpose string) (OneTime, error) {
	return s.queryOneTime(ctx, purpose, `
		DELETE FROM medianest.one_time AS o
		WHERE o.hash = @hash AND o.purpose = @purpose AND `+usableCode+`
		RETURNING o.purpose, o.user_id, o.session_id, o.token_id, o.detail, o.expires_at`, hash)
}

// PeekOneTime returns what a code stands for and leaves it.
func (s *Store) PeekOneTime(ctx context.Context, hash [32]byte, purpose string) (OneTime, error) {
	return s.queryOneTime(ctx, purpose, `
		SELECT o.purpose, o.user_id, o.session_id, o.token_id, o.detail, o.expires_at
		FROM medianest.one_time AS o
		WHERE o.hash = @hash AND o.purpose = @purpose AND `+usableCode, hash)
}

const usableCode = `o.expires_at > now()
	AND (o.user_id IS NULL OR EXISTS (
		SELECT FROM medianest.users AS u WHERE u.id = o.user_id AND u.disabled_at IS NULL AND u.erased_at IS NULL))
	AND (o.session_id IS NULL OR EXISTS (SELECT FROM medianest.session AS s WHERE s.id = o.session_id AND s.revoked_at IS NULL))
	AND (o.token_id IS NULL OR EXISTS (
		SELECT FROM medianest.tokens AS t WHERE t.id = o.token_id AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())))`

func (s *Store) queryOneTime(ctx context.Context, purpose, sql string, hash [32]byte) (OneTime, error) {
	s = s.Everyone()
	rows, err := s.pool.Query(ctx, sql, pgx.StrictNamedArgs{"hash": hash[:], "purpose": purpose})
	if err != nil {
		return OneTime{}, fmt.Errorf("look up a code for %s: %w", purpose, interpret(err))
	}
	o, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[OneTime])
	if err != nil {
		return OneTime{}, fmt.Errorf("look up a code for %s: %w", purpose, interpret(err))
	}
	return o, nil
}
