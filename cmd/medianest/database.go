package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"medianest/migrations"
	"medianest/store"
	"medianest/store/pgserver"
)

const (
	// databaseName is the embedded server's database.
	databaseName = "medianest"
	// waitEvery is how often a database that is not there yet is tried, sayEvery how often a person is told.
	waitEvery = 250 * time.Millisecond
	sayEvery  = 5 * time.Second
)

// startPostgres starts the private server of `up`, restarted when it dies, and makes its database.
func startPostgres(ctx context.Context, c Config, log *slog.Logger) (*pgserver.Server, error) {
	server, err := pgserver.Start(ctx, pgserver.Options{
		BinDir:  c.PostgresBin,
		DataDir: filepath.Join(c.DataDir, "postgres"),
		Restart: true,
		Logger:  log.With(slog.String("part", "postgres")),
	})
	if err != nil {
		return nil, fmt.Errorf("%w (or set MEDIANEST_DATABASE_URL to use a server of your own, MEDIANEST_POSTGRES_BIN to name the programs' folder)", err)
	}
	if err := ensureDatabase(ctx, server.URL("postgres")); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		return nil, errors.Join(err, server.Stop(stop))
	}
	return server, nil
}

func ensureDatabase(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("create database %s: %w", databaseName, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, databaseName).Scan(&exists); err != nil {
		return fmt.Errorf("look for database %s: %w", databaseName, err)
	}
	if exists {
		return nil
	}
	if _, err := conn.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{databaseName}.Sanitize()); err != nil {
		return fmt.Errorf("create database %s: %w", databaseName, err)
	}
	return nil
}

// waitForDatabase returns when the database answers. It says that it waits, for up to the start timeout, while the
// database is away; what waiting cannot mend ends it at once.
func waitForDatabase(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration, log *slog.Logger) error {
	begin := time.Now()
	said := begin
	ticker := time.NewTicker(waitEvery)
	defer ticker.Stop()
	st := store.New(pool)
	for {
		err := st.Ping(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for the database: %w", ctx.Err())
		case !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded):
			return databaseError(err)
		case time.Since(begin) >= timeout:
			return fmt.Errorf("the database does not answer; MEDIANEST_DATABASE_URL says where it is looked for, MEDIANEST_START_TIMEOUT how long: %w", err)
		}
		if now := time.Now(); said.Equal(begin) || now.Sub(said) >= sayEvery {
			log.WarnContext(ctx, "waiting for the database", slog.Any("err", err), slog.Duration("at_most", timeout-now.Sub(begin)))
			said = now
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// databaseError says what to do about a database that answers, with a refusal.
func databaseError(err error) error {
	refusal, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return fmt.Errorf("connect to the database (MEDIANEST_DATABASE_URL): %w", err)
	}
	switch refusal.Code {
	case "22023", "42704": // the role that the connection asks for does not exist
		return fmt.Errorf("%w: %w", migrations.ErrSchemaOld, err)
	case "42501":
		return fmt.Errorf("the database user may not take this process's role; `medianest migrate up` as the same user grants it: %w", err)
	case "28P01", "28000":
		return fmt.Errorf("the database refuses user or password of MEDIANEST_DATABASE_URL: %w", err)
	case "3D000":
		return fmt.Errorf("the database that MEDIANEST_DATABASE_URL names does not exist; create it: %w", err)
	}
	return fmt.Errorf("connect to the database (MEDIANEST_DATABASE_URL): %w", err)
}
