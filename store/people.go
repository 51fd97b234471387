package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ListUsers returns a page of users by name, without those who are gone, and the cursor of the next one, or "".
func (s *Store) ListUsers(ctx context.Context, cursor string, limit int) (page []User, next string, err error) {
	limit, err = pageSize(limit)
	if err != nil {
		return nil, "", err
	}
	if cursor != "" && !userName.MatchString(cursor) {
		return nil, "", &InvalidError{Field: "cursor", Reason: "is not one that a list of this kind gave"}
	}
	rows, err := s.pool.Query(ctx, `
		SELECT `+userColumns+`
		FROM medianest.users AS u
		WHERE u.name > @after AND u.erased_at IS NULL
		ORDER BY u.name
		LIMIT @limit`,
		pgx.StrictNamedArgs{"after": cursor, "limit": limit + 1})
	if err != nil {
		return nil, "", fmt.Errorf("list users: %w", interpret(err))
	}
	page, err = pgx.CollectRows(rows, scanUser)
	if err != nil {
		return nil, "", fmt.Errorf("list users: %w", interpret(err))
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].Name
	}
	return page, next, nil
}

// UserChange is what UpdateUser changes. What is nil stays.
type UserChange struct {
	Role     *string
	Disabled *bool
	Quota    *Quota // both bounds
}

// errLastAdmin keeps the platform manageable.
var errLastAdmin = fmt.Errorf("no admin would be left: %w", ErrConflict)

// UpdateUser changes a user, from their next request on. A user who is disabled is signed out everywhere, and their tokens
// are refused while it lasts. ErrConflict if no admin would be left.
func (s *Store) UpdateUser(ctx context.Context, id uuid.UUID, c UserChange) (User, error) {
	s = s.Everyone()
	var err error
	if c.Role != nil {
		err = checkRole(*c.Role)
	}
	if c.Quota != nil {
		err = errors.Join(err, c.Quota.validate())
	}
	if err != nil {
		return User{}, err
	}
	var (
		user  User
		quota Quota
	)
	if c.Quota != nil {
		quota = *c.Quota
	}
	err = s.changeUsers(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			UPDATE medianest.users AS u
			SET role = coalesce(@role, u.role),
				disabled_at = CASE WHEN @disabled::boolean IS NULL THEN u.disabled_at WHEN @disabled THEN coalesce(u.disabled_at, now()) END,
				quota_bytes = CASE WHEN @quota THEN @bytes ELSE u.quota_bytes END,
				quota_downloads = CASE WHEN @quota THEN @downloads ELSE u.quota_downloads END
			WHERE u.id = @id AND u.erased_at IS NULL
			RETURNING `+userColumns,
			pgx.StrictNamedArgs{
				"id": id, "role": c.Role, "disabled": c.Disabled, "quota": c.Quota != nil, "bytes": quota.Bytes, "downloads": quota.Downloads,
			})
		if err != nil {
			return err
		}
		if user, err = pgx.CollectExactlyOneRow(rows, scanUser); err != nil || user.DisabledAt == nil {
			return err
		}
		return endSessions(ctx, tx, id)
	})
	if err != nil {
		return User{}, fmt.Errorf("update user %s: %w", id, err)
	}
	return user, nil
}

// usersLock is the advisory lock of who changes what users may.
const usersLock = 7239610442312

// changeUsers runs fn, one such change at a time, and takes it back if no admin who can come in is left by it.
func (s *Store) changeUsers(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return s.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(usersLock)); err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			return err
		}
		var left bool
		err := tx.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM medianest.users AS u WHERE u.role = 'admin' AND u.disabled_at IS NULL AND u.erased_at IS NULL)`).Scan(&left)
		if err == nil && !left {
			err = errLastAdmin
		}
		return err
	})
}

func endSessions(ctx context.Context, tx pgx.Tx, userID uuid.UUID) error {
	_, err := tx.Exec(ctx, `
		UPDATE medianest.session
		SET revoked_at = now(), revoked_for = 'revoked'
		WHERE user_id = @id AND revoked_at IS NULL`,
		pgx.StrictNamedArgs{"id": userID})
	return err
}

// eraseBatch is how many downloads of a person who is gone are deleted before it is looked whether there is time for more.
const eraseBatch = 100

// EraseUser removes a person: name, password, tokens, sessions and identities at once and for good; then the downloads,
// as far as ctx allows, whose files jobs remove. Retention does the rest, and removes the last row of the user when the
// last file is gone. What the audit has is
// under an id that names nobody any more, without addresses and details. ErrConflict if no admin would be left.
func (s *Store) EraseUser(ctx context.Context, id uuid.UUID) error {
	s = s.Everyone()
	err := s.changeUsers(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			SELECT medianest.erase_audit(u.id, u.name)
			FROM medianest.users AS u
			WHERE u.id = @id`, pgx.StrictNamedArgs{"id": id}); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			UPDATE medianest.users AS u
			SET name = 'erased-' || replace(u.id::text, '-', ''), password_hash = NULL, disabled_at = coalesce(u.disabled_at, now()),
				erased_at = coalesce(u.erased_at, now())
			WHERE u.id = @id`, pgx.StrictNamedArgs{"id": id})
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return ErrNotFound
		}
		for _, table := range []string{"one_time", "session", "tokens", "user_identity", "idempotency"} {
			sql := `DELETE FROM ` + pgx.Identifier{"medianest", table}.Sanitize() + ` WHERE user_id = @id`
			if _, err := tx.Exec(ctx, sql, pgx.StrictNamedArgs{"id": id}); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, `
			UPDATE medianest.access_rule
			SET user_ids = array_remove(user_ids, @id)
			WHERE @id = ANY(user_ids)`, pgx.StrictNamedArgs{"id": id})
		return err
	})
	if err == nil {
		_, err = s.eraseDownloads(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("erase user %s: %w", id, err)
	}
	return nil
}

// eraseDownloads deletes the user's downloads until none is left or ctx is about to end, which is no error: retention goes
// on with it.
func (s *Store) eraseDownloads(ctx context.Context, userID uuid.UUID) (n int64, err error) {
	for {
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < eraseReserve {
			return n, nil
		}
		rows, err := s.pool.Query(ctx, `
			SELECT d.id
			FROM medianest.downloads AS d
			WHERE d.user_id = @user_id AND d.parent_id IS NULL
			ORDER BY d.id DESC
			LIMIT @batch`, pgx.StrictNamedArgs{"user_id": userID, "batch": eraseBatch})
		if err != nil {
			return n, interpret(err)
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		if err != nil {
			return n, interpret(err)
		}
		for _, id := range ids {
			if err := s.DeleteDownload(ctx, id, Viewer{UserID: userID}); err != nil && !errors.Is(err, ErrNotFound) {
				return n, err
			}
			n++
		}
		if len(ids) < eraseBatch {
			return n, nil
		}
	}
}

// eraseReserve is what is left of a request's time for its answer.
const eraseReserve = 10 * time.Second

// eraseGone deletes what is left of the downloads of people who are gone.
func (s *Store) eraseGone(ctx context.Context) (n int64, err error) {
	rows, err := s.pool.Query(ctx, `SELECT u.id FROM medianest.users AS u WHERE u.erased_at IS NOT NULL`)
	if err != nil {
		return 0, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	for _, id := range ids {
		var erased int64
		if erased, err = s.eraseDownloads(ctx, id); err != nil {
			return n, err
		}
		n += erased
	}
	return n, err
}

// exported is what is kept of a person, a query for each kind of record.
var exported = []struct{ kind, sql string }{
	{"user", `SELECT u.id, u.name, u.role, u.created_at, u.disabled_at, u.quota_bytes, u.quota_downloads
		FROM medianest.users AS u WHERE u.id = @id`},
	{"identity", `SELECT i.provider, i.subject, i.name, i.created_at, i.last_used_at
		FROM medianest.user_identity AS i WHERE i.user_id = @id`},
	{"token", `SELECT t.id, t.name, t.scopes, t.networks, t.created_at, t.expires_at, t.last_used_at, t.revoked_at
		FROM medianest.tokens AS t WHERE t.user_id = @id ORDER BY t.id`},
	{"session", `SELECT s.id, s.method, s.client, s.user_agent, s.created_at, s.last_used_at, s.expires_at, s.revoked_at
		FROM medianest.session AS s WHERE s.user_id = @id ORDER BY s.id`},
	{"download", `SELECT d.id, d.parent_id, d.url, d.profile, d.title, d.state, d.created_at, d.started_at, d.finished_at
		FROM medianest.downloads AS d WHERE d.user_id = @id ORDER BY d.id`},
	{"file", `SELECT f.path, f.size_bytes, encode(f.sha256, 'hex') AS sha256, f.created_at
		FROM medianest.files AS f WHERE f.user_id = @id ORDER BY f.path`},
	{"action", `SELECT a.at, a.action, a.subject, a.detail, a.client, a.status
		FROM medianest.audit AS a WHERE a.actor_id = @id ORDER BY a.id`},
}

// ExportUser gives each what is kept of a person, a JSON object at a time with its kind as "record". It holds no secret,
// nor a hash of one. ErrNotFound if there is no such user.
func (s *Store) ExportUser(ctx context.Context, id uuid.UUID, each func(record json.RawMessage) error) error {
	s = s.asUser(id)
	found := false
	for _, part := range exported {
		rows, err := s.pool.Query(ctx, `
			SELECT jsonb_build_object('record', @kind::text) || to_jsonb(r)
			FROM (`+part.sql+`) AS r`, pgx.StrictNamedArgs{"id": id, "kind": part.kind})
		if err != nil {
			return fmt.Errorf("export user %s: %w", id, interpret(err))
		}
		var record json.RawMessage
		_, err = pgx.ForEachRow(rows, []any{&record}, func() error {
			found = true
			return each(record)
		})
		if err != nil {
			return fmt.Errorf("export user %s: %w", id, interpret(err))
		}
		if !found {
			return fmt.Errorf("export user %s: %w", id, ErrNotFound)
		}
	}
	return nil
}
