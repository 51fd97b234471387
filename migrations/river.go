package migrations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivermigrate"
)

const riverSchema = "river"

// triggers are ours on River's tables, by name: those that feed the outbox, those of admission, the one that
// keeps superseded rows final, and those that keep the pause of a queue.
var triggers = map[string]string{
	"medianest_insert": jobTable, "medianest_update": jobTable, "medianest_delete": jobTable,
	"medianest_keep_superseded": jobTable,
	"medianest_gate_insert":     jobTable, "medianest_gate_update": jobTable,
	"medianest_note_insert": jobTable, "medianest_note_update": jobTable, "medianest_note_delete": jobTable,
	"medianest_queue_insert": queueTable, "medianest_queue_pause": queueTable,
}

const (
	jobTable   = "river.river_job"
	queueTable = "river.river_queue"
)

var triggerNames = slices.Sorted(maps.Keys(triggers))

// quiet keeps River's migrator, which logs "no migrations to apply" and the like, out of our log.
var quiet = slog.New(slog.DiscardHandler)

func triggerComment(script string) string {
	return "medianest " + checksum(script)
}

// upRiver applies River's missing migrations, each in a transaction of its own in which our triggers are away. Nobody
// writes to the job table meanwhile: dropping a trigger locks it until the commit.
func (r *runner) upRiver(ctx context.Context, s *session) error {
	migrator, err := newRiverMigrator()
	if err != nil {
		return err
	}
	for {
		start := time.Now()
		var applied *rivermigrate.MigrateVersion
		err := s.step(ctx, func(tx pgx.Tx) error {
			applied, err = r.upRiverOne(ctx, tx, migrator)
			return err
		})
		if err != nil {
			return fmt.Errorf("River's migrations: %w", err)
		}
		if applied == nil {
			return nil
		}
		r.log.InfoContext(ctx, "migration applied", "migration", fmt.Sprintf("river %03d_%s", applied.Version, applied.Name),
			"duration_ms", time.Since(start).Milliseconds())
	}
}

// upRiverOne applies the next of River's migrations and returns it, nil if there is none.
func (r *runner) upRiverOne(ctx context.Context, tx pgx.Tx, migrator *rivermigrate.Migrator[pgx.Tx]) (*rivermigrate.MigrateVersion, error) {
	version, err := riverVersion(ctx, tx)
	if err != nil {
		return nil, err
	}
	if version >= latestRiver() {
		return nil, nil
	}
	former, err := presentTriggers(ctx, tx)
	if err != nil {
		return nil, err
	}
	if err := dropTriggers(ctx, tx); err != nil {
		return nil, err
	}
	//nolint:staticcheck // deprecated for applying several versions in one transaction, which one step does not
	res, err := migrator.MigrateTx(ctx, tx, rivermigrate.DirectionUp, &rivermigrate.MigrateOpts{MaxSteps: 1})
	if err != nil {
		return nil, err
	}
	if len(res.Versions) == 0 {
		return nil, nil
	}
	// This build's triggers may call what one of our migrations, which follow, brings first.
	for _, t := range former {
		if _, err := tx.Exec(ctx, t.Definition); err != nil {
			return nil, fmt.Errorf("put trigger %s back: %w", t.Name, err)
		}
		if err := markTrigger(ctx, tx, t.Name, t.Comment); err != nil {
			return nil, err
		}
	}
	return &res.Versions[0], nil
}

// trigger is one of ours as it is in the database.
type trigger struct {
	Name       string
	Definition string
	Comment    string
}

// presentTriggers are those of ours that are there; none on a new database, which has no job table yet.
func presentTriggers(ctx context.Context, tx pgx.Tx) ([]trigger, error) {
	rows, err := tx.Query(ctx, `
		SELECT t.tgname AS name, pg_get_triggerdef(t.oid) AS definition,
			coalesce(obj_description(t.oid, 'pg_trigger'), '') AS comment
		FROM pg_trigger AS t
		JOIN pg_class AS c ON c.oid = t.tgrelid
		JOIN pg_namespace AS n ON n.oid = c.relnamespace
		WHERE n.nspname = 'river' AND t.tgname = ANY ($1)
		ORDER BY t.tgname`, triggerNames)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[trigger])
}

// installTriggers makes the triggers and grants anew and proves them. Until it commits, the former ones are in force.
func (r *runner) installTriggers(ctx context.Context, s *session) error {
	err := s.step(ctx, func(tx pgx.Tx) error {
		if err := dropTriggers(ctx, tx); err != nil {
			return err
		}
		if err := r.createTriggers(ctx, tx); err != nil {
			return err
		}
		return canary(ctx, tx)
	})
	if err != nil {
		return err
	}
	r.log.InfoContext(ctx, "triggers installed and proved", "migration", triggersFile)
	return nil
}

func dropTriggers(ctx context.Context, tx pgx.Tx) error {
	present, err := presentTriggers(ctx, tx)
	if err != nil {
		return err
	}
	for _, t := range present {
		if _, err := tx.Exec(ctx, `DROP TRIGGER `+t.Name+` ON `+triggers[t.Name]); err != nil {
			return fmt.Errorf("drop trigger %s: %w", t.Name, err)
		}
	}
	return nil
}

func (r *runner) createTriggers(ctx context.Context, tx pgx.Tx) error {
	if err := runScript(ctx, tx, triggersFile, r.triggers); err != nil {
		return err
	}
	for _, name := range triggerNames {
		if err := markTrigger(ctx, tx, name, triggerComment(r.triggers)); err != nil {
			return err
		}
	}
	return nil
}

// markTrigger says which build's a trigger is.
func markTrigger(ctx context.Context, tx pgx.Tx, name, comment string) error {
	var sql string // COMMENT takes no parameters
	err := tx.QueryRow(ctx, `
		SELECT format('COMMENT ON TRIGGER %I ON %s IS %L', $1::text, $2::text, $3::text)`, name, triggers[name], comment).Scan(&sql)
	if err == nil {
		_, err = tx.Exec(ctx, sql)
	}
	if err != nil {
		return fmt.Errorf("mark trigger %s: %w", name, err)
	}
	return nil
}

// canary puts a job through insert, update and delete, as the role that River's client has, and one with keys, which has
// to wait for admission; it looks for their events and takes all of it back. Triggers that exist but do not work would
// stop the queue or, worse, lose events silently.
func canary(ctx context.Context, tx pgx.Tx) error {
	found, err := canaryEvents(ctx, tx)
	if err != nil {
		return fmt.Errorf("prove triggers by a canary job: %w", err)
	}
	want := []string{" > available", "available > running", "running > deleted", " > pending", "pending > deleted"}
	if !slices.Equal(found, want) {
		return fmt.Errorf("prove triggers by a canary job: its events are %q, want %q", found, want)
	}
	return nil
}

func canaryEvents(ctx context.Context, outer pgx.Tx) (_ []string, err error) {
	tx, err := outer.Begin(ctx) // a savepoint
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Rollback(ctx)) }()

	// Ends with the savepoint, as all of it does.
	if _, err := tx.Exec(ctx, `SET LOCAL ROLE medianest_river`); err != nil {
		return nil, err
	}
	var free, keyed int64
	err = tx.QueryRow(ctx, `
		INSERT INTO river.river_job (args, kind, max_attempts, queue)
		VALUES ('{}', 'medianest_canary', 1, 'medianest_canary')
		RETURNING id`).Scan(&free)
	if err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, `UPDATE river.river_job SET state = 'running' WHERE id = $1`, free); err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM river.river_job WHERE id = $1`, free); err != nil {
		return nil, err
	}
	err = tx.QueryRow(ctx, `
		INSERT INTO river.river_job (args, kind, max_attempts, queue, metadata)
		VALUES ('{}', 'medianest_canary', 1, 'medianest_canary', '{"keys": ["kind:medianest_canary"]}')
		RETURNING id`).Scan(&keyed)
	if err != nil {
		return nil, err
	}
	var waits bool
	err = tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM medianest.admission WHERE row_id = $1 AND admitted_at IS NULL)`, keyed).Scan(&waits)
	if err != nil {
		return nil, err
	}
	if !waits {
		return nil, errors.New("the job with keys does not wait for admission")
	}
	if _, err := tx.Exec(ctx, `DELETE FROM river.river_job WHERE id = $1`, keyed); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, `
		SELECT previous_state || ' > ' || state
		FROM medianest.event
		WHERE job_id IN ($1, $2)
			AND xid = pg_current_xact_id()
		ORDER BY id`, free, keyed)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
