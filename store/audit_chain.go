package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// sealBatch is how many entries are sealed in one transaction.
const sealBatch = 1000

// SealAudit seals what has been written down since, into the chain, and returns how many entries. Any process may; they do
// not get into each other's way.
func (s *Store) SealAudit(ctx context.Context) (total int64, err error) {
	for {
		var n int64
		if err := s.pool.QueryRow(ctx, `SELECT medianest.seal_audit($1)`, sealBatch).Scan(&n); err != nil {
			return total, fmt.Errorf("seal the audit: %w", interpret(err))
		}
		if total += n; n < sealBatch {
			return total, nil
		}
	}
}

// AuditProof is what a look through the chain found.
type AuditProof struct {
	Links int64  // that were looked at
	Last  int64  // number of the last one, or of the first that is at fault
	Hash  string // of that one, in hex: kept elsewhere, it shows later that nothing was replaced
	Fault string // "entry changed", "entry removed", "link removed", "link replaced", or ""
}

// verifyBatch is how many links one statement looks at.
const verifyBatch = 20_000

// VerifyAudit looks through the whole chain, up to the first fault.
func (s *Store) VerifyAudit(ctx context.Context) (AuditProof, error) {
	var p AuditProof
	for {
		var (
			n, links *int64
			hash     []byte
			fault    *string
		)
		err := s.pool.QueryRow(ctx, `SELECT v.n, v.hash, v.checked, v.fault FROM medianest.verify_audit($1, $2) AS v`, p.Last, verifyBatch).Scan(&n, &hash, &links, &fault)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return AuditProof{}, fmt.Errorf("verify the audit: %w", interpret(err))
		}
		if n == nil || err != nil {
			return p, nil // there is none
		}
		again := p.Last == *n // the link that the look began with, and no other
		if p.Links += *links; p.Last != 0 {
			p.Links-- // it was counted before
		}
		p.Last, p.Hash = *n, hex.EncodeToString(hash)
		if fault != nil {
			p.Fault = *fault
		}
		if fault != nil || again || *links <= verifyBatch {
			return p, nil
		}
	}
}

// SealedEntry is an entry with its link, as receivers outside get it.
type SealedEntry struct {
	N         int64           `json:"n"`
	Hash      string          `json:"hash"` // of the link, in hex
	ID        int64           `json:"id"`
	At        time.Time       `json:"at"`
	ActorID   *uuid.UUID      `json:"actor_id,omitempty"`
	Actor     string          `json:"actor,omitempty"`
	Action    string          `json:"action"`
	Subject   string          `json:"subject,omitempty"`
	Detail    json.RawMessage `json:"detail,omitempty"`
	RequestID string          `json:"request_id,omitempty"`
	Client    string          `json:"client,omitempty"`
	Status    *int            `json:"status,omitempty"`
}

// SealedAfter returns entries of the chain after link n, in its order.
func (s *Store) SealedAfter(ctx context.Context, n int64, limit int) ([]SealedEntry, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT s.n, encode(s.hash, 'hex') AS hash, a.id, a.at, a.actor_id, coalesce(u.name, '') AS actor, a.action, a.subject, a.detail,
			a.request_id, a.client, a.status
		FROM medianest.audit_seal AS s
		JOIN medianest.audit AS a ON a.id = s.audit_id
		LEFT JOIN medianest.users AS u ON u.id = a.actor_id
		WHERE s.n > @n
		ORDER BY s.n
		LIMIT @limit`,
		pgx.StrictNamedArgs{"n": n, "limit": limit})
	if err != nil {
		return nil, fmt.Errorf("list sealed entries: %w", interpret(err))
	}
	entries, err := pgx.CollectRows(rows, pgx.RowToStructByName[SealedEntry])
	if err != nil {
		return nil, fmt.Errorf("list sealed entries: %w", interpret(err))
	}
	return entries, nil
}

// forwardBatch is how many entries a receiver gets before it is written down that it has them.
const forwardBatch = 500

// ForwardAudit gives a receiver the chain from where it has it, in its order, each entry at least once: one that fails, or a
// process that is killed, has the last ones come again. It returns how many went through.
func (s *Store) ForwardAudit(ctx context.Context, target string, send func(ctx context.Context, entries []SealedEntry) error) (total int, err error) {
	for {
		sent := 0
		err := s.inTx(ctx, func(tx pgx.Tx) error {
			// The row is the lock: one sender at a time.
			var n int64
			err := tx.QueryRow(ctx, `
				INSERT INTO medianest.audit_forward AS f (target, n)
				VALUES (@target, 0)
				ON CONFLICT (target) DO UPDATE
				SET n = f.n
				RETURNING n`, pgx.StrictNamedArgs{"target": target}).Scan(&n)
			if err != nil {
				return err
			}
			entries, err := s.SealedAfter(ctx, n, forwardBatch)
			if err != nil || len(entries) == 0 {
				return err
			}
			if err := send(ctx, entries); err != nil {
				return err
			}
			sent = len(entries)
			_, err = tx.Exec(ctx, `
				UPDATE medianest.audit_forward
				SET n = @n, updated_at = now()
				WHERE target = @target`, pgx.StrictNamedArgs{"target": target, "n": entries[len(entries)-1].N})
			return err
		})
		if err != nil {
			return total, fmt.Errorf("forward the audit to %s: %w", target, err)
		}
		if total += sent; sent < forwardBatch {
			return total, nil
		}
	}
}
