package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Secret is what is told of a secret: not its value.
type Secret struct {
	Name      string
	KeyID     string     // of the key that it is sealed under
	UserID    *uuid.UUID // whose it is; nil: the platform's
	UpdatedAt time.Time
	UpdatedBy *uuid.UUID
}

var secretName = regexp.MustCompile(`^[a-z0-9][a-z0-9._:-]{0,199}$`)

const (
	maxSecretBytes = 256 << 10 // a cookie jar has some tens of KiB
	maxSecrets     = 10_000
)

// WithKeys returns a copy of the store that seals and opens with the keys.
func (s *Store) WithKeys(k *Keyring) *Store {
	c := *s
	c.keys = k
	return &c
}

var errNoKeys = errors.New("this process was given no secret keys")

// sealedFor is the context that a secret is sealed with: its place.
func sealedFor(name string) string { return "secret:" + name }

// SetSecret seals a value and keeps it under the name, in place of what was there.
func (s *Store) SetSecret(ctx context.Context, name string, value []byte, userID, by *uuid.UUID) (Secret, error) {
	s = s.Everyone()
	switch {
	case !secretName.MatchString(name):
		return Secret{}, &InvalidError{Field: "name", Reason: "is not 1 to 200 of a-z 0-9 . _ : - beginning with a letter or digit"}
	case len(value) == 0:
		return Secret{}, &InvalidError{Field: "value", Reason: "is empty"}
	case len(value) > maxSecretBytes:
		return Secret{}, &InvalidError{Field: "value", Reason: fmt.Sprintf("is longer than %d bytes", maxSecretBytes)}
	case s.keys == nil:
		return Secret{}, errNoKeys
	}
	rows, err := s.pool.Query(ctx, `
		INSERT INTO medianest.secret AS x (name, sealed, key_id, user_id, updated_by)
		SELECT @name, @sealed, @key_id, @user_id, @by
		WHERE (SELECT count(*) FROM medianest.secret AS o WHERE o.name <> @name) < @most
		ON CONFLICT (name) DO UPDATE
		SET sealed = excluded.sealed, key_id = excluded.key_id, user_id = excluded.user_id, updated_at = now(), updated_by = excluded.updated_by
		RETURNING x.name, x.key_id, x.user_id, x.updated_at, x.updated_by`,
		pgx.StrictNamedArgs{
			"name": name, "sealed": s.keys.Seal(value, sealedFor(name)), "key_id": s.keys.Active(), "user_id": userID, "by": by, "most": maxSecrets,
		})
	if err != nil {
		return Secret{}, fmt.Errorf("set secret %s: %w", name, interpret(err))
	}
	secret, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Secret])
	if errors.Is(err, pgx.ErrNoRows) {
		return Secret{}, fmt.Errorf("set secret %s: there are %d: %w", name, maxSecrets, ErrConflict)
	}
	if err != nil {
		return Secret{}, fmt.Errorf("set secret %s: %w", name, interpret(err))
	}
	return secret, nil
}

// OpenSecret returns a secret's value, for who uses it: ErrNotFound if there is none, ErrSealed if no key opens it.
func (s *Store) OpenSecret(ctx context.Context, name string) ([]byte, error) {
	s = s.Everyone()
	if s.keys == nil {
		return nil, errNoKeys
	}
	var sealed []byte
	err := s.pool.QueryRow(ctx, `
		SELECT x.sealed
		FROM medianest.secret AS x
		WHERE x.name = @name`, pgx.StrictNamedArgs{"name": cleanText(name, maxNameBytes)}).Scan(&sealed)
	if err != nil {
		return nil, fmt.Errorf("open secret %s: %w", name, interpret(err))
	}
	value, err := s.keys.Open(sealed, sealedFor(name))
	if err != nil {
		return nil, fmt.Errorf("open secret %s: %w", name, err)
	}
	return value, nil
}

// ListSecrets tells which secrets there are, by name, after the cursor, and the next cursor, or "".
func (s *Store) ListSecrets(ctx context.Context, cursor string, limit int) (page []Secret, next string, err error) {
	s = s.Everyone()
	if limit, err = pageSize(limit); err != nil {
		return nil, "", err
	}
	rows, err := s.pool.Query(ctx, `
		SELECT x.name, x.key_id, x.user_id, x.updated_at, x.updated_by
		FROM medianest.secret AS x
		WHERE x.name > @after
		ORDER BY x.name
		LIMIT @limit`, pgx.StrictNamedArgs{"after": cleanText(cursor, maxNameBytes), "limit": limit + 1})
	if err != nil {
		return nil, "", fmt.Errorf("list secrets: %w", interpret(err))
	}
	page, err = pgx.CollectRows(rows, pgx.RowToStructByName[Secret])
	if err != nil {
		return nil, "", fmt.Errorf("list secrets: %w", interpret(err))
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].Name
	}
	return page, next, nil
}

// DeleteSecret forgets a secret. ErrNotFound if there is none of the name.
func (s *Store) DeleteSecret(ctx context.Context, name string) error {
	s = s.Everyone()
	tag, err := s.pool.Exec(ctx, `DELETE FROM medianest.secret WHERE name = @name`, pgx.StrictNamedArgs{"name": cleanText(name, maxNameBytes)})
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("delete secret %s: %w", name, interpret(err))
	}
	return nil
}

// Rotation is what came of sealing everything anew.
type Rotation struct {
	Active string   // id of the key that all is under now, but for what is lost
	Sealed int      // secrets that were sealed anew
	Lost   []string // names of those that no key opens: they are left as they are
}

// rotateBatch is how many secrets are sealed anew in one transaction.
const rotateBatch = 100

// RotateSecrets seals anew what is not under the active key. It may be called by any number of processes at once, and
// while secrets are used and set: each opens before and after. Then nothing but what is lost needs the older keys.
func (s *Store) RotateSecrets(ctx context.Context) (Rotation, error) {
	s = s.Everyone()
	if s.keys == nil {
		return Rotation{}, errNoKeys
	}
	r := Rotation{Active: s.keys.Active()}
	for after := ""; ; {
		last := ""
		err := s.inTx(ctx, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `
				SELECT x.name, x.sealed
				FROM medianest.secret AS x
				WHERE x.key_id <> @active AND x.name > @after
				ORDER BY x.name
				LIMIT @batch
				FOR UPDATE`, pgx.StrictNamedArgs{"active": r.Active, "after": after, "batch": rotateBatch})
			if err != nil {
				return err
			}
			type row struct {
				Name   string
				Sealed []byte
			}
			found, err := pgx.CollectRows(rows, pgx.RowToStructByName[row])
			if err != nil {
				return err
			}
			for _, f := range found {
				last = f.Name
				value, err := s.keys.Open(f.Sealed, sealedFor(f.Name))
				if err != nil {
					r.Lost = append(r.Lost, f.Name)
					continue
				}
				_, err = tx.Exec(ctx, `
					UPDATE medianest.secret
					SET sealed = @sealed, key_id = @key_id
					WHERE name = @name`,
					pgx.StrictNamedArgs{"name": f.Name, "sealed": s.keys.Seal(value, sealedFor(f.Name)), "key_id": r.Active})
				if err != nil {
					return err
				}
				r.Sealed++
			}
			return nil
		})
		if err != nil {
			return r, fmt.Errorf("rotate secrets: %w", err)
		}
		if last == "" {
			return r, nil
		}
		after = last
	}
}
