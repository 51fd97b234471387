package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// State is how far a database is.
type State struct {
	Migrations []Migration

	// RiverVersion is the newest of River's migrations that is applied, 0 for none; RiverLatest the newest that this
	// build knows.
	RiverVersion int
	RiverLatest  int

	// TriggersPresent says that River's job table feeds the outbox; TriggersCurrent, that it does so by this build's
	// triggers.
	TriggersPresent bool
	TriggersCurrent bool
}

// Migration is one of ours: this build's, or one that a newer build applied.
type Migration struct {
	Number int
	Name   string

	// AppliedAt is nil for one that is not applied.
	AppliedAt *time.Time

	// Changed says that the file is not what it was when it was applied.
	Changed bool

	// Unknown says that this build does not have it.
	Unknown bool
}

// UpToDate reports whether Up has nothing to do. Triggers of a newer build are left as they are.
func (st State) UpToDate() bool {
	newer := st.RiverVersion > st.RiverLatest
	for _, m := range st.Migrations {
		if m.AppliedAt == nil {
			return false
		}
		newer = newer || m.Unknown
	}
	return st.RiverVersion >= st.RiverLatest && st.TriggersPresent && (st.TriggersCurrent || newer)
}

// schema returns the number of the newest migration applied, 0 for none.
func (st State) schema() int {
	newest := 0
	for _, m := range st.Migrations {
		if m.AppliedAt != nil {
			newest = max(newest, m.Number)
		}
	}
	return newest
}

// querier is a pool or a connection.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func (r *runner) state(ctx context.Context, q querier) (State, error) {
	st := State{RiverLatest: latestRiver()}
	applied, err := appliedMigrations(ctx, q)
	if err != nil {
		return State{}, fmt.Errorf("read migrations applied: %w", err)
	}
	for _, m := range r.migrations {
		row, ok := applied[m.number]
		delete(applied, m.number)
		st.Migrations = append(st.Migrations, Migration{
			Number: m.number, Name: m.name, AppliedAt: row.AppliedAt, Changed: ok && row.Checksum != checksum(m.up),
		})
	}
	// Numbers have no gaps, so a newer build's follow ours.
	for n := len(r.migrations) + 1; len(applied) > 0; n++ {
		if row, ok := applied[n]; ok {
			st.Migrations = append(st.Migrations, Migration{Number: n, Name: row.Name, AppliedAt: row.AppliedAt, Unknown: true})
		}
		delete(applied, n)
	}
	if st.RiverVersion, err = riverVersion(ctx, q); err != nil {
		return State{}, fmt.Errorf("read River's version: %w", err)
	}
	if st.TriggersPresent, st.TriggersCurrent, err = r.triggersInstalled(ctx, q); err != nil {
		return State{}, fmt.Errorf("look for triggers: %w", err)
	}
	return st, nil
}

// appliedRow is a row of medianest.migration.
type appliedRow struct {
	Number    int
	Name      string
	Checksum  string
	AppliedAt *time.Time
}

func appliedMigrations(ctx context.Context, q querier) (map[int]appliedRow, error) {
	exists, err := tableExists(ctx, q, "medianest.migration")
	if err != nil || !exists {
		return nil, err
	}
	rows, err := q.Query(ctx, `
		SELECT number, name, checksum, applied_at
		FROM medianest.migration
		WHERE number > 0`)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[appliedRow])
	if err != nil {
		return nil, err
	}
	applied := make(map[int]appliedRow, len(list))
	for _, row := range list {
		applied[row.Number] = row
	}
	return applied, nil
}

func riverVersion(ctx context.Context, q querier) (version int, err error) {
	exists, err := tableExists(ctx, q, "river.river_migration")
	if err != nil || !exists {
		return 0, err
	}
	// Not by line: early versions of the table have no such column, and other lines are not in this build.
	err = q.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM river.river_migration`).Scan(&version)
	return version, err
}

func latestRiver() int {
	migrator, err := newRiverMigrator()
	if err != nil {
		return 0
	}
	all := migrator.AllVersions()
	return all[len(all)-1].Version
}

func newRiverMigrator() (*rivermigrate.Migrator[pgx.Tx], error) {
	migrator, err := rivermigrate.New(riverpgxv5.New(nil), &rivermigrate.Config{Schema: riverSchema, Logger: quiet})
	if err != nil {
		return nil, fmt.Errorf("load River's migrations: %w", err)
	}
	return migrator, nil
}

// triggersInstalled looks for the triggers on River's tables. Their comment names the file they are from.
func (r *runner) triggersInstalled(ctx context.Context, q querier) (present, current bool, err error) {
	var enabled, ours int
	err = q.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE t.tgenabled IN ('O', 'A')),
			count(*) FILTER (WHERE obj_description(t.oid, 'pg_trigger') = $1)
		FROM pg_trigger t
		JOIN pg_class c ON c.oid = t.tgrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $2
			AND NOT t.tgisinternal
			AND t.tgname = ANY ($3)`, triggerComment(r.triggers), riverSchema, triggerNames).Scan(&enabled, &ours)
	if err != nil {
		return false, false, err
	}
	return enabled == len(triggerNames), ours == len(triggerNames), nil
}

func tableExists(ctx context.Context, q querier, name string) (bool, error) {
	var exists bool
	err := q.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT
			FROM pg_class c
			JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname || '.' || c.relname = $1)`, name).Scan(&exists)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return exists, err
}
