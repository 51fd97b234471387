package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"medianest/migrations"
	"medianest/store"
)

// migrateCommand changes the schema, or says where it is.
type migrateCommand struct{}

func (*migrateCommand) flags(*flag.FlagSet) {}

func (m *migrateCommand) run(ctx context.Context, p process, args []string) error {
	n := 0
	switch {
	case len(args) == 1 && (args[0] == "up" || args[0] == "status"):
	case len(args) == 2 && args[0] == "down":
		var err error
		if n, err = strconv.Atoi(args[1]); err != nil || n < 1 {
			return usageError("migrate down takes how many migrations to take back, not %q", args[1])
		}
	default:
		return usageError("migrate takes up, down N or status")
	}
	c, err := loadConfig(p, modeMigrate)
	if err != nil {
		return err
	}
	log := newLogger(p.stderr, c)
	ctx, stop := untilSignal(ctx, p.signals)
	defer stop()
	pool, err := store.OpenPool(ctx, store.PoolOptions{URL: c.DatabaseURL.reveal(), AppName: "medianest-migrate"})
	if err != nil {
		return usageError("MEDIANEST_DATABASE_URL: %v", err)
	}
	defer pool.Close()
	if err := waitForDatabase(ctx, pool, c.StartTimeout, log); err != nil {
		return err
	}
	switch args[0] {
	case "status":
		return m.status(ctx, p, pool)
	case "down":
		return migrations.Down(ctx, pool, n, log)
	}
	if err := migrations.Up(ctx, pool, log); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, "the schema is up to date")
	return m.firstAdmin(ctx, p, c, store.New(pool))
}

// firstAdmin makes the user admin where there is none yet. An admin that exists keeps its tokens: a migration that is
// run from another machine makes no new one.
func (*migrateCommand) firstAdmin(ctx context.Context, p process, c Config, st *store.Store) error {
	if c.SecretKeys == "" {
		if err := openDataDir(c.DataDir); err != nil {
			return err
		}
		if _, err := secretKeys(c, true); err != nil {
			return err
		}
	}
	_, err := st.FindUserByName(ctx, store.AdminName)
	if err == nil {
		if _, statErr := os.Stat(filepath.Join(c.DataDir, adminTokenFile)); !errors.Is(statErr, fs.ErrNotExist) {
			return nil
		}
		fmt.Fprintf(p.stdout, "the user %s exists\n", store.AdminName)
		return nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err := openDataDir(c.DataDir); err != nil {
		return err
	}
	path, err := ensureAdmin(ctx, st, c.DataDir)
	if err != nil {
		return err
	}
	code, err := ensureSetupCode(ctx, st, c.DataDir)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "the user %s is ready; its API token is in %s, the code that sets its password in %s\n", store.AdminName, path, code)
	return nil
}

// status prints the migrations, one a line.
func (*migrateCommand) status(ctx context.Context, p process, pool *pgxpool.Pool) error {
	state, err := migrations.Status(ctx, pool)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	for _, m := range state.Migrations {
		applied := "not applied"
		if m.AppliedAt != nil {
			applied = "applied " + m.AppliedAt.UTC().Format(time.RFC3339)
		}
		switch {
		case m.Unknown:
			applied += ", by a newer build"
		case m.Changed:
			applied += ", but its file has changed since"
		}
		fmt.Fprintf(table, "%s\t%s\n", m.Name, applied)
	}
	fmt.Fprintf(table, "river\tversion %d of %d\n", state.RiverVersion, state.RiverLatest)
	triggers := "this build's"
	switch {
	case !state.TriggersPresent:
		triggers = "missing"
	case !state.TriggersCurrent:
		triggers = "of another build"
	}
	fmt.Fprintf(table, "triggers\t%s\n", triggers)
	if err := table.Flush(); err != nil {
		return err
	}
	if !state.UpToDate() {
		fmt.Fprintln(p.stdout, "not up to date: run `medianest migrate up`")
	}
	return nil
}
