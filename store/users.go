package store

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// What a user may do, from all to least.
const (
	UserAdmin   = "admin"
	UserManager = "manager"
	UserMember  = "member"
	UserViewer  = "viewer"
)

// AdminName is the user that the first start creates.
const AdminName = "admin"

// userName is the check of the column: a name is also a folder of the library.
var userName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// Roles are all there are, from all to least.
var Roles = []string{UserAdmin, UserManager, UserMember, UserViewer}

// User owns downloads, files and tokens.
type User struct {
	ID          uuid.UUID
	Name        string
	Role        string
	Quota       Quota // the user's own; what it does not say is the role's
	HasPassword bool
	CreatedAt   time.Time
	DisabledAt  *time.Time
	ErasedAt    *time.Time // the person is gone, their files are about to be
}

// IsAdmin reports whether the user may see and do everything.
func (u User) IsAdmin() bool { return u.Role == UserAdmin }

// Viewer is the user as the one on whose behalf rows are read.
func (u User) Viewer() Viewer { return Viewer{UserID: u.ID, Admin: u.IsAdmin()} }

const userColumns = `u.id, u.name, u.role, u.quota_bytes, u.quota_downloads, u.password_hash IS NOT NULL AS has_password,
	u.created_at, u.disabled_at, u.erased_at`

func (u *User) targets() []any {
	return []any{&u.ID, &u.Name, &u.Role, &u.Quota.Bytes, &u.Quota.Downloads, &u.HasPassword, &u.CreatedAt, &u.DisabledAt, &u.ErasedAt}
}

func scanUser(row pgx.CollectableRow) (u User, err error) {
	err = row.Scan(u.targets()...)
	return u, err
}

func checkRole(role string) error {
	if !slices.Contains(Roles, role) {
		return &InvalidError{Field: "role", Reason: "is none of " + strings.Join(Roles, ", ")}
	}
	return nil
}

// NewUser is what CreateUser is given.
type NewUser struct {
	Name string // lower case letters, digits, . _ -, at most 63, beginning with a letter or digit
	Role string // one of the role constants
}

// CreateUser adds a user; ErrConflict if the name is taken.
func (s *Store) CreateUser(ctx context.Context, n NewUser) (User, error) {
	if !userName.MatchString(n.Name) {
		return User{}, &InvalidError{Field: "name", Reason: "is not 1 to 63 of a-z 0-9 . _ - beginning with a letter or digit"}
	}
	if err := checkRole(n.Role); err != nil {
		return User{}, err
	}
	user, err := s.queryUser(ctx, `
		INSERT INTO medianest.users AS u (id, name, role)
		VALUES (@id, @name, @role)
		RETURNING `+userColumns,
		pgx.StrictNamedArgs{"id": uuid.Must(uuid.NewV7()), "name": n.Name, "role": n.Role})
	if err != nil {
		return User{}, fmt.Errorf("create user %s: %w", n.Name, err)
	}
	return user, nil
}

// FindUser returns the user, disabled or not.
func (s *Store) FindUser(ctx context.Context, id uuid.UUID) (User, error) {
	user, err := s.queryUser(ctx, `
		SELECT `+userColumns+`
		FROM medianest.users AS u
		WHERE u.id = @id`,
		pgx.StrictNamedArgs{"id": id})
	if err != nil {
		return User{}, fmt.Errorf("load user %s: %w", id, err)
	}
	return user, nil
}

// FindUserByName returns the user, disabled or not.
func (s *Store) FindUserByName(ctx context.Context, name string) (User, error) {
	if !userName.MatchString(name) {
		return User{}, fmt.Errorf("load user by name: %w", ErrNotFound)
	}
	user, err := s.queryUser(ctx, `
		SELECT `+userColumns+`
		FROM medianest.users AS u
		WHERE u.name = @name`,
		pgx.StrictNamedArgs{"name": name})
	if err != nil {
		return User{}, fmt.Errorf("load user %s: %w", name, err)
	}
	return user, nil
}

// EnsureAdmin makes sure that the admin user exists and has the token of this hash, and reports whether that token
// works: one that was revoked stays revoked. It may be called by any number of processes at once, and changes nothing
// the second time.
func (s *Store) EnsureAdmin(ctx context.Context, tokenHash [32]byte) (taken bool, err error) {
	s = s.Everyone()
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			INSERT INTO medianest.users (id, name, role)
			VALUES (@id, @name, @role)
			ON CONFLICT (name) DO NOTHING`,
			pgx.StrictNamedArgs{"id": uuid.Must(uuid.NewV7()), "name": AdminName, "role": UserAdmin}); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
			INSERT INTO medianest.tokens (id, user_id, name, hash)
			SELECT @id, u.id, @name, @hash
			FROM medianest.users AS u
			WHERE u.name = @admin
			ON CONFLICT (hash) DO NOTHING`,
			pgx.StrictNamedArgs{"id": uuid.Must(uuid.NewV7()), "admin": AdminName, "name": "first start", "hash": tokenHash[:]}); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			SELECT EXISTS (
				SELECT
				FROM medianest.tokens AS t
				JOIN medianest.users AS u ON u.id = t.user_id
				WHERE t.hash = @hash AND u.name = @admin AND `+usableToken+`
			)`,
			pgx.StrictNamedArgs{"hash": tokenHash[:], "admin": AdminName}).Scan(&taken)
	})
	if err != nil {
		return false, fmt.Errorf("ensure admin: %w", err)
	}
	return taken, nil
}

func (s *Store) queryUser(ctx context.Context, sql string, args pgx.StrictNamedArgs) (User, error) {
	rows, err := s.pool.Query(ctx, sql, args)
	if err != nil {
		return User{}, interpret(err)
	}
	user, err := pgx.CollectExactlyOneRow(rows, scanUser)
	return user, interpret(err)
}
