package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// AccessRule binds the use of scopes to conditions: whom it names may use them only from its networks and within its
// windows. Several rules must all allow it.
type AccessRule struct {
	Name      string
	Roles     []string    // whom it is for: users of these roles
	UserIDs   []uuid.UUID // and these users
	Scopes    []string
	Networks  []netip.Prefix // from which; none: from anywhere
	Windows   []Window       // when, by the clocks of Timezone; none: at any time
	Timezone  string         // by its IANA name; empty means UTC
	UpdatedAt time.Time
	UpdatedBy *uuid.UUID
}

// RuleSetter is who sets a rule, and from where.
type RuleSetter struct {
	UserID uuid.UUID
	From   netip.Addr
}

var ruleName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

const maxAccessRules = 100

func (r AccessRule) validate() error {
	var err error
	if !ruleName.MatchString(r.Name) {
		err = errors.Join(err, &InvalidError{Field: "name", Reason: "is not 1 to 63 of a-z 0-9 - beginning with a letter or digit"})
	}
	for _, role := range r.Roles {
		err = errors.Join(err, checkRole(role))
	}
	if len(r.Roles) == 0 && len(r.UserIDs) == 0 {
		err = errors.Join(err, &InvalidError{Field: "roles", Reason: "name nobody, nor do user_ids"})
	}
	if len(r.Scopes) == 0 {
		err = errors.Join(err, &InvalidError{Field: "scopes", Reason: "are none"})
	}
	if len(r.Networks) == 0 && len(r.Windows) == 0 {
		err = errors.Join(err, &InvalidError{Field: "networks", Reason: "are none, and there are no windows: the rule would allow everything"})
	}
	if len(r.Windows) > maxWindows {
		err = errors.Join(err, &InvalidError{Field: "windows", Reason: fmt.Sprintf("has more than %d", maxWindows)})
	}
	for _, w := range r.Windows {
		err = errors.Join(err, w.validate())
	}
	return errors.Join(err, checkNetworks(r.Networks))
}

func (r AccessRule) zone() string {
	if r.Timezone == "" {
		return "UTC"
	}
	return r.Timezone
}

const ruleColumns = `r.name, r.roles, r.user_ids, r.scopes, r.networks, r.windows, r.timezone, r.updated_at, r.updated_by`

func scanRule(row pgx.CollectableRow) (r AccessRule, err error) {
	err = row.Scan(&r.Name, &r.Roles, &r.UserIDs, &r.Scopes, &r.Networks, &r.Windows, &r.Timezone, &r.UpdatedAt, &r.UpdatedBy)
	return r, err
}

// ListAccessRules returns all rules by name.
func (s *Store) ListAccessRules(ctx context.Context) ([]AccessRule, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+ruleColumns+`
		FROM medianest.access_rule AS r
		ORDER BY r.name`)
	if err != nil {
		return nil, fmt.Errorf("list access rules: %w", interpret(err))
	}
	rules, err := pgx.CollectRows(rows, scanRule)
	if err != nil {
		return nil, fmt.Errorf("list access rules: %w", interpret(err))
	}
	return rules, nil
}

// SetAccessRule makes or changes the rule of the name: from the next request on, at every replica. ErrConflict if it would
// refuse one of the scopes to the very user who sets it, from where or when they set it: nobody locks themselves out.
func (s *Store) SetAccessRule(ctx context.Context, r AccessRule, by RuleSetter) (AccessRule, error) {
	if err := r.validate(); err != nil {
		return AccessRule{}, err
	}
	var windows json.RawMessage
	if len(r.Windows) > 0 {
		windows, _ = json.Marshal(r.Windows) //nolint:errchkjson // plain strings
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		if err := checkZone(ctx, tx, r.zone()); err != nil {
			return err
		}
		var concerned, shut bool
		err := tx.QueryRow(ctx, `
			SELECT EXISTS (SELECT FROM medianest.users AS u WHERE u.id = @by AND (u.role = ANY(@roles) OR u.id = ANY(@user_ids))),
				medianest.window_opens_at(@windows, @zone, now()) IS NOT NULL`,
			pgx.StrictNamedArgs{"by": by.UserID, "roles": r.Roles, "user_ids": r.UserIDs, "windows": windows, "zone": r.zone()}).Scan(&concerned, &shut)
		if err != nil {
			return err
		}
		outside := len(r.Networks) > 0 && !slices.ContainsFunc(r.Networks, func(n netip.Prefix) bool { return n.Contains(by.From) })
		if concerned && (shut || outside) {
			return fmt.Errorf("the rule would refuse who sets it: %w", ErrConflict)
		}
		rows, err := tx.Query(ctx, `
			INSERT INTO medianest.access_rule AS r (name, roles, user_ids, scopes, networks, windows, timezone, updated_by)
			SELECT @name, coalesce(@roles::text[], '{}'), coalesce(@user_ids::uuid[], '{}'), @scopes, @networks, @windows, @timezone, @updated_by
			WHERE (SELECT count(*) FROM medianest.access_rule AS o WHERE o.name <> @name) < @most
			ON CONFLICT (name) DO UPDATE
			SET roles = excluded.roles, user_ids = excluded.user_ids, scopes = excluded.scopes, networks = excluded.networks,
				windows = excluded.windows, timezone = excluded.timezone, updated_at = now(), updated_by = excluded.updated_by
			RETURNING `+ruleColumns,
			pgx.StrictNamedArgs{
				"name": r.Name, "roles": r.Roles, "user_ids": r.UserIDs, "scopes": r.Scopes, "networks": noneAsNull(r.Networks),
				"windows": windows, "timezone": r.zone(), "updated_by": by.UserID, "most": maxAccessRules,
			})
		if err != nil {
			return err
		}
		r, err = pgx.CollectExactlyOneRow(rows, scanRule)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("there are %d rules: %w", maxAccessRules, ErrConflict)
		}
		return err
	})
	if err != nil {
		return AccessRule{}, fmt.Errorf("set access rule %q: %w", r.Name, err)
	}
	return r, nil
}

func noneAsNull[T any](list []T) any {
	if len(list) == 0 {
		return nil
	}
	return list
}

// DeleteAccessRule takes a rule away. ErrNotFound if there is none of the name.
func (s *Store) DeleteAccessRule(ctx context.Context, name string) error {
	tag, err := s.pool.Exec(ctx, `DELETE FROM medianest.access_rule WHERE name = @name`, pgx.StrictNamedArgs{"name": cleanText(name, maxNameBytes)})
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("delete access rule %q: %w", name, interpret(err))
	}
	return nil
}
