package store

import (
	"context"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// idempotencyWindow is how long a key is remembered.
const idempotencyWindow = 24 * time.Hour

// claimKey takes the user's key for a request that makes the resource, in the transaction that makes it. Of requests
// with the same key at the same time one goes on and the others wait for its end. If the key was taken before by the
// same request, claimed is false and resource is what that made; by another request, it is ErrIdempotencyMismatch.
func claimKey(ctx context.Context, tx pgx.Tx, userID uuid.UUID, key string, fingerprint [32]byte, made uuid.UUID) (resource uuid.UUID, claimed bool, err error) {
	// A key past its time is as good as gone, whether or not retention has come by.
	tag, err := tx.Exec(ctx, `
		INSERT INTO medianest.idempotency AS i (user_id, key, fingerprint, resource_id)
		VALUES (@user_id, @key, @fingerprint, @resource_id)
		ON CONFLICT (user_id, key) DO UPDATE
		SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id, created_at = excluded.created_at
		WHERE i.created_at < now() - @window::interval`,
		pgx.StrictNamedArgs{
			"user_id": userID, "key": key, "fingerprint": fingerprint[:], "resource_id": made, "window": idempotencyWindow,
		})
	if err != nil {
		return uuid.UUID{}, false, fmt.Errorf("claim idempotency key: %w", err)
	}
	if tag.RowsAffected() == 1 {
		return made, true, nil
	}
	var before []byte
	err = tx.QueryRow(ctx, `
		SELECT i.fingerprint, i.resource_id
		FROM medianest.idempotency AS i
		WHERE i.user_id = @user_id AND i.key = @key`,
		pgx.StrictNamedArgs{"user_id": userID, "key": key}).Scan(&before, &resource)
	if err != nil {
		return uuid.UUID{}, false, fmt.Errorf("load idempotency key: %w", err)
	}
	if subtle.ConstantTimeCompare(before, fingerprint[:]) == 0 {
		return uuid.UUID{}, false, ErrIdempotencyMismatch
	}
	return resource, false, nil
}

// answerKey makes another resource the answer to a key that this transaction claimed.
func answerKey(ctx context.Context, tx pgx.Tx, userID uuid.UUID, key string, resource uuid.UUID) error {
	_, err := tx.Exec(ctx, `
		UPDATE medianest.idempotency
		SET resource_id = @resource_id
		WHERE user_id = @user_id AND key = @key`,
		pgx.StrictNamedArgs{"user_id": userID, "key": key, "resource_id": resource})
	if err != nil {
		return fmt.Errorf("answer idempotency key: %w", err)
	}
	return nil
}
