package storetest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"medianest/store/internal/scratch"
	"medianest/store/pgserver"
)

// Owned is a Postgres server of one test's own, migrated, which may be killed, stopped and started again. Its address
// stays the same.
type Owned struct {
	t    testing.TB
	dir  string
	opts pgserver.Options

	server *pgserver.Server // the running one, or the last
}

// OwnServer starts a server of the test's own and migrates its database "medianest". It costs about two seconds: tests
// that need only a database take DB. With restart, the server starts again by itself when it is killed.
func OwnServer(t testing.TB, restart bool) *Owned {
	t.Helper()
	dir, err := os.MkdirTemp(scratch.Root(), "medianest-test-")
	if err != nil {
		t.Fatalf("make directory for test server: %v", err)
	}
	o := &Owned{t: t, dir: dir, opts: pgserver.Options{
		ScratchDir: dir, DataDir: filepath.Join(dir, "pg"), NoSync: true, Restart: restart,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
	t.Cleanup(func() {
		o.Stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove test server: %v", err)
		}
	})
	o.Start()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := createDatabase(ctx, o.server.URL("postgres"), "medianest"); err != nil {
		t.Fatalf("create database on test server: %v", err)
	}
	if err := migrate(ctx, o.URL()); err != nil {
		t.Fatalf("migrate test server: %v", err)
	}
	return o
}

// URL returns the address of the migrated database, for the owner.
func (o *Owned) URL() string {
	return o.server.URL("medianest")
}

// Server returns the running server, or the last one.
func (o *Owned) Server() *pgserver.Server {
	return o.server
}

// Kill kills the postmaster with SIGKILL. Its backends end by themselves when they notice, which a busy one does late.
func (o *Owned) Kill() {
	o.t.Helper()
	if err := syscall.Kill(o.server.PID(), syscall.SIGKILL); err != nil {
		o.t.Fatalf("kill postmaster: %v", err)
	}
}

// Stop shuts the server down at once, as in an outage; a stopped server is left alone.
func (o *Owned) Stop() {
	o.t.Helper()
	if o.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	if err := o.server.Stop(ctx); err != nil {
		o.t.Errorf("stop test server: %v", err)
	}
}

// Start starts a server that was stopped or killed, on the same files.
func (o *Owned) Start() {
	o.t.Helper()
	if o.server != nil {
		<-o.server.Done()
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	server, err := pgserver.Start(ctx, o.opts)
	if err != nil {
		o.t.Fatalf("start test server: %v", err)
	}
	o.server = server
}
