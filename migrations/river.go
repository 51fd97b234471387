package migrations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivermigrate"
)

const riverSchema = "river"

// triggerNames are the triggers on river.river_job that feed the outbox.
var triggerNames = []string{"medianest_delete", "medianest_insert", "medianest_update"}

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
	// On a new database there is no job table yet, or nothing that a trigger could call.
	ready, err := triggersPossible(ctx, tx)
	if err != nil {
		return nil, err
	}
	if ready {
		if err := r.createTriggers(ctx, tx); err != nil {
			return nil, err
		}
	}
	return &res.Versions[0], nil
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
	exists, err := tableExists(ctx, tx, "river.river_job")
	if err != nil || !exists {
		return err
	}
	for _, name := range triggerNames {
		if _, err := tx.Exec(ctx, `DROP TRIGGER IF EXISTS `+name+` ON river.river_job`); err != nil {
			return fmt.Errorf("drop trigger %s: %w", name, err)
		}
	}
	return nil
}

func (r *runner) createTriggers(ctx context.Context, tx pgx.Tx) error {
	if err := runScript(ctx, tx, triggersFile, r.triggers); err != nil {
		return err
	}
	for _, name := range triggerNames {
		// COMMENT takes no parameters; a checksum needs no quoting.
		if _, err := tx.Exec(ctx, `COMMENT ON TRIGGER `+name+` ON river.river_job IS '`+triggerComment(r.triggers)+`'`); err != nil {
			return fmt.Errorf("mark trigger %s: %w", name, err)
		}
	}
	return nil
}

func triggersPossible(ctx context.Context, tx pgx.Tx) (possible bool, err error) {
	err = tx.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_class c WHERE c.relname = 'river_job' AND c.relnamespace = 'river'::regnamespace)
			AND 3 = (
				SELECT count(*)
				FROM pg_proc p
				WHERE p.pronamespace = 'medianest'::regnamespace
					AND p.proname IN ('on_job_insert', 'on_job_update', 'on_job_delete'))`).Scan(&possible)
	return possible, err
}

// canary puts a job through insert, update and delete, as the role that River's client has, looks for its events, and
// takes all of it back. Triggers that exist but do not work would stop the queue or, worse, lose events silently.
func canary(ctx context.Context, tx pgx.Tx) error {
	found, err := canaryEvents(ctx, tx)
	if err != nil {
		return fmt.Errorf("prove triggers by a canary job: %w", err)
	}
	want := []string{" > available", "available > running", "running > deleted"}
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
	var id int64
	err = tx.QueryRow(ctx, `
		INSERT INTO river.river_job (args, kind, max_attempts, queue)
		VALUES ('{}', 'medianest_canary', 1, 'medianest_canary')
		RETURNING id`).Scan(&id)
	if err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, `UPDATE river.river_job SET state = 'running' WHERE id = $1`, id); err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM river.river_job WHERE id = $1`, id); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, `
		SELECT previous_state || ' > ' || state
		FROM medianest.event
		WHERE job_id = $1
			AND xid = pg_current_xact_id()
		ORDER BY id`, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
