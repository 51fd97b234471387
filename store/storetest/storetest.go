// Package storetest gives tests real databases: one private Postgres server a test binary, started by the code that `up`
// uses when the first test asks, a migrated template database, and clones of it that cost tens of milliseconds.
//
// Nothing is left behind, also by a test binary that panics, times out or is killed: a watch beside it stops the server
// and removes its files. Product code never imports this package.
package storetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"medianest/migrations"
	"medianest/store"
	"medianest/store/internal/scratch"
	"medianest/store/pgserver"
)

const (
	templateDB = "template_medianest"

	// startTimeout is generous: a machine that runs many test binaries is slow.
	startTimeout = 2 * time.Minute
	stepTimeout  = time.Minute
)

// shared is the binary's server. It starts when first asked for, so that tests without a database cost nothing.
var shared struct {
	once   sync.Once
	server *pgserver.Server
	dir    string
	admin  *pgxpool.Pool // on database postgres, to create and drop the others
	err    error
}

var databases atomic.Int64

// Main runs the tests of a package and stops the server if they used it. It is all that a TestMain needs:
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }
//
// When the tests have passed, a goroutine that still runs is a failure.
func Main(m *testing.M, opts ...goleak.Option) int {
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "stop test database:", err)
		code = cmp.Or(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(opts...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// DB returns the URL, for the owner, of a migrated database that is this test's own. It is dropped at the test's end.
func DB(t testing.TB) string {
	t.Helper()
	return database(t, "TEMPLATE "+templateDB+" STRATEGY FILE_COPY")
}

// EmptyDB is DB without migrations.
func EmptyDB(t testing.TB) string {
	t.Helper()
	return database(t, "")
}

// database creates a database and has it dropped at the test's end.
func database(t testing.TB, options string) string {
	t.Helper()
	server := Server(t)
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()

	name := "test_" + strconv.FormatInt(databases.Add(1), 10)
	if _, err := shared.admin.Exec(ctx, `CREATE DATABASE `+name+` `+options); err != nil {
		t.Fatalf("create test database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		defer cancel()
		// FORCE: a test that failed may have left connections.
		if _, err := shared.admin.Exec(ctx, `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Errorf("drop test database: %v", err)
		}
	})
	return server.URL(name)
}

// Pool returns a pool on a database of the test's own, in a role of store's, or "" for the owner.
func Pool(t testing.TB, role string) *pgxpool.Pool {
	t.Helper()
	return OpenPool(t, DB(t), role)
}

// OpenPool returns a pool on the database at url, closed at the test's end. Several tests of one database in several
// roles take DB's URL.
func OpenPool(t testing.TB, databaseURL, role string) *pgxpool.Pool {
	t.Helper()
	pool, err := store.OpenPool(context.Background(), store.PoolOptions{URL: databaseURL, Role: role, AppName: t.Name()})
	if err != nil {
		t.Fatalf("open pool: %v", err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// New returns a store on a database of the test's own, as the owner. Tests of what a role may do, or that need the pool
// besides, use OpenPool and store.New.
func New(t testing.TB) *store.Store {
	t.Helper()
	return store.New(Pool(t, ""))
}

// Server returns the binary's server, which every test shares: it must not be stopped.
func Server(t testing.TB) *pgserver.Server {
	t.Helper()
	shared.once.Do(func() { shared.err = startShared() })
	if shared.err != nil {
		t.Fatalf("start test database: %v", shared.err)
	}
	return shared.server
}

func startShared() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()

	shared.dir, err = os.MkdirTemp(scratch.Root(), "medianest-test-")
	if err != nil {
		return err
	}
	shared.server, err = pgserver.Start(ctx, pgserver.Options{ScratchDir: shared.dir, NoSync: true, Logger: testLogger()})
	if err != nil {
		return errors.Join(err, os.RemoveAll(shared.dir))
	}
	shared.admin, err = store.OpenPool(ctx, store.PoolOptions{URL: shared.server.URL("postgres"), AppName: "storetest", MaxConns: 4})
	if err != nil {
		return err
	}
	if _, err := shared.admin.Exec(ctx, `CREATE DATABASE `+templateDB); err != nil {
		return fmt.Errorf("create template database: %w", err)
	}
	return migrate(ctx, shared.server.URL(templateDB))
}

func stopShared() error {
	if shared.admin != nil {
		shared.admin.Close()
	}
	if shared.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	return errors.Join(shared.server.Stop(ctx), os.RemoveAll(shared.dir))
}

// createDatabase creates an empty database through another one of its server.
func createDatabase(ctx context.Context, adminURL, name string) error {
	conn, err := pgx.Connect(ctx, adminURL)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{name}.Sanitize())
	return errors.Join(err, conn.Close(ctx))
}

// migrate brings a database up and leaves no connection to it, since a template must have none. The limits that a new
// platform has are deleted: a test says itself what is limited.
func migrate(ctx context.Context, databaseURL string) error {
	pool, err := store.OpenPool(ctx, store.PoolOptions{URL: databaseURL, AppName: "storetest", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Up(ctx, pool, testLogger()); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `DELETE FROM medianest.limits`)
	return err
}

// testLogger shows what a person must see of a test's server.
func testLogger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}
