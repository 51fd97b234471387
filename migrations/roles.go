package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// roles are groups without login. Whoever is a member takes one when it connects.
var roles = []string{"medianest_api", "medianest_worker", "medianest_river"}

// roleAttempts is how often a role is tried. Roles belong to the whole server, and our lock to one database: another
// MediaNest on the same server may be making the same roles now.
const roleAttempts = 10

// prepare makes what the migrations take for granted: roles, schemas, the table that records them.
func (r *runner) prepare(ctx context.Context, conn *pgx.Conn) error {
	for _, role := range roles {
		if err := ensureRole(ctx, conn, role); err != nil {
			return err
		}
	}
	for _, statement := range []string{
		`CREATE SCHEMA IF NOT EXISTS medianest`,
		`CREATE SCHEMA IF NOT EXISTS river`,
		`CREATE TABLE IF NOT EXISTS medianest.migration (
			number integer PRIMARY KEY,
			name text NOT NULL,
			checksum text NOT NULL,
			applied_at timestamptz NOT NULL DEFAULT now())`,
		`GRANT USAGE ON SCHEMA medianest TO medianest_api, medianest_worker, medianest_river`,
		`GRANT SELECT ON medianest.migration TO medianest_api, medianest_worker, medianest_river`,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("prepare schemas: %w", err)
		}
	}
	return nil
}

// ensureRole makes a role and lets the migrating user take it. A user that may not is told what an administrator must do.
func ensureRole(ctx context.Context, conn *pgx.Conn, role string) error {
	for attempt := 1; ; attempt++ {
		err := ensureRoleOnce(ctx, conn, role)
		pgErr, ok := errors.AsType[*pgconn.PgError](err)
		switch {
		case err == nil:
			return nil
		case ok && pgErr.Code == "42501":
			return fmt.Errorf("make role %s: %w; let an administrator run: CREATE ROLE %s NOLOGIN; GRANT %s TO %s",
				role, err, role, role, pgx.Identifier{conn.Config().User}.Sanitize())
		case !ok || attempt == roleAttempts || !lostRoleRace(pgErr):
			return fmt.Errorf("make role %s: %w", role, err)
		}
		if err := sleep(ctx, time.Duration(attempt)*10*time.Millisecond); err != nil {
			return err
		}
	}
}

// lostRoleRace reports whether another session made or granted the role at the same time.
func lostRoleRace(err *pgconn.PgError) bool {
	switch err.Code {
	case "42710", "23505": // made
		return true
	case "XX000": // granted: "tuple concurrently updated"
		return true
	}
	return false
}

func ensureRoleOnce(ctx context.Context, conn *pgx.Conn, role string) error {
	var exists bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, role).Scan(&exists)
	if err != nil {
		return err
	}
	if !exists {
		if _, err := conn.Exec(ctx, `CREATE ROLE `+role+` NOLOGIN`); err != nil {
			return err
		}
	}
	// From 16 on being a member does not mean that one may take the role; its creator is a member of that kind.
	var mayTake bool
	err = conn.QueryRow(ctx, `
		SELECT pg_has_role($1, CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END)`,
		role).Scan(&mayTake)
	if err != nil || mayTake {
		return err
	}
	_, err = conn.Exec(ctx, `GRANT `+role+` TO CURRENT_USER`)
	return err
}
