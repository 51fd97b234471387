package migrations_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"medianest/migrations"
	"medianest/store"
	"medianest/store/storetest"
)

// upCommand makes the test binary a process that migrates the database named next.
const upCommand = "migrations-up"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == upCommand {
		os.Exit(beMigrator(os.Args[2]))
	}
	os.Exit(storetest.Main(m))
}

func beMigrator(url string) int {
	ctx := context.Background()
	pool, err := store.OpenPool(ctx, store.PoolOptions{URL: url, MaxConns: 1})
	if err == nil {
		defer pool.Close()
		err = migrations.Up(ctx, pool, nil)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// bundle is an empty database and what Up logs.
type bundle struct {
	url  string
	pool *pgxpool.Pool // its owner's
	log  *slog.Logger
	out  *bytes.Buffer
}

func setup(t *testing.T) *bundle {
	t.Helper()
	url := storetest.EmptyDB(t)
	out := new(bytes.Buffer)
	return &bundle{
		url: url, pool: storetest.OpenPool(t, url, ""), out: out,
		log: slog.New(slog.NewTextHandler(out, nil)),
	}
}

func (b *bundle) up(t *testing.T) {
	t.Helper()
	require.NoError(t, migrations.Up(t.Context(), b.pool, b.log))
}

func (b *bundle) status(t *testing.T) migrations.State {
	t.Helper()
	st, err := migrations.Status(t.Context(), b.pool)
	require.NoError(t, err)
	return st
}

func (b *bundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

// events returns the job events that the outbox holds, in order.
func (b *bundle) events(t *testing.T) []string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `
		SELECT job_id || ': ' || previous_state || ' > ' || state
		FROM medianest.event
		WHERE topic = 'job.state'
		ORDER BY id`)
	require.NoError(t, err)
	events, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return events
}

const insertJob = `INSERT INTO river.river_job (args, kind, max_attempts) VALUES ('{}', 'k', 1)`

// holdLock takes the migration lock as another process does, and returns how to release it.
func (b *bundle) holdLock(t *testing.T) (release func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.url)
	require.NoError(t, err)
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, int64(migrations.LockKey))
	require.NoError(t, err)
	release = sync.OnceFunc(func() { _ = conn.Close(context.Background()) })
	t.Cleanup(release)
	return release
}

// with returns the embedded files and others.
func with(t *testing.T, files map[string]string) fs.FS {
	t.Helper()
	all := fstest.MapFS{}
	require.NoError(t, fs.WalkDir(migrations.Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(migrations.Files, path)
		all[path] = &fstest.MapFile{Data: b}
		return err
	}))
	for name, content := range files {
		all[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return all
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := fs.ReadFile(migrations.Files, name)
	require.NoError(t, err)
	return string(b)
}

// next is the number of the migration after the embedded ones, with four digits.
func next(t *testing.T) string {
	t.Helper()
	names, err := fs.Glob(migrations.Files, "*.up.sql")
	require.NoError(t, err)
	return fmt.Sprintf("%04d", len(names)+1)
}

func TestUpFromNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.ErrorIs(t, migrations.Check(t.Context(), b.pool), migrations.ErrSchemaOld)
	st := b.status(t)
	require.False(t, st.UpToDate())
	require.Nil(t, st.Migrations[0].AppliedAt)

	b.up(t)
	st = b.status(t)
	require.True(t, st.UpToDate())
	require.Equal(t, st.RiverLatest, st.RiverVersion)
	require.True(t, st.TriggersPresent)
	for _, m := range st.Migrations {
		require.WithinDuration(t, time.Now(), *m.AppliedAt, time.Minute)
		require.False(t, m.Changed)
		require.Contains(t, b.out.String(), m.Name)
	}
	require.Empty(t, b.events(t), "the canary is taken back")
	for _, role := range []string{"", store.RoleAPI, store.RoleWorker, store.RoleRiver} {
		require.NoError(t, migrations.Check(t.Context(), storetest.OpenPool(t, b.url, role)), role)
	}
}

func TestUpTakesNoLockWhenUpToDate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	b.out.Reset()
	b.holdLock(t)
	b.up(t)
	require.Empty(t, b.out.String())
}

func TestUpWaitsForAnotherProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	release := b.holdLock(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, migrations.Up(ctx, b.pool, b.log), context.DeadlineExceeded)
	require.Contains(t, b.out.String(), "waiting for another process that migrates")
	require.False(t, b.status(t).UpToDate())

	done := make(chan error, 1)
	go func() { done <- migrations.Up(t.Context(), b.pool, nil) }()
	release()
	require.NoError(t, <-done)
}

func TestUpFromManyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			out, err := exec.Command(exe, upCommand, b.url).CombinedOutput()
			if err != nil {
				t.Errorf("migrating process: %v: %s", err, out)
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			if err := migrations.Up(t.Context(), b.pool, nil); err != nil {
				t.Errorf("migrate: %v", err)
			}
		})
	}
	wg.Wait()
	require.True(t, b.status(t).UpToDate())
	var n int
	require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT count(*) FROM medianest.migration`).Scan(&n))
	require.Len(t, b.status(t).Migrations, n)
}

// Roles belong to the whole server, the lock to one database.
func TestUpOfSeveralDatabasesAtOnceMakesRolesOnce(t *testing.T) {
	t.Parallel()
	own := storetest.OwnServer(t, false)
	ctx := t.Context()
	admin := storetest.OpenPool(t, own.URL(), "")
	_, err := admin.Exec(ctx, `DROP SCHEMA medianest, river CASCADE`)
	require.NoError(t, err)
	_, err = admin.Exec(ctx, `DROP ROLE medianest_api, medianest_worker, medianest_river`)
	require.NoError(t, err)

	var wg sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprintf("db%d", i)
		_, err := admin.Exec(ctx, `CREATE DATABASE `+name)
		require.NoError(t, err)
		pool := storetest.OpenPool(t, own.Server().URL(name), "")
		wg.Go(func() {
			if err := migrations.Up(ctx, pool, nil); err != nil {
				t.Errorf("migrate %s: %v", name, err)
			}
		})
	}
	wg.Wait()
}

func TestUpByAnOwnerThatIsNoSuperuser(t *testing.T) {
	t.Parallel()
	own := storetest.OwnServer(t, false)
	ctx := t.Context()
	admin := storetest.OpenPool(t, own.URL(), "")
	run := func(sql string) {
		t.Helper()
		_, err := admin.Exec(ctx, sql)
		require.NoError(t, err)
	}
	run(`DROP SCHEMA medianest, river CASCADE`)
	run(`DROP ROLE medianest_api, medianest_worker, medianest_river`)
	run(`CREATE ROLE plain LOGIN`)
	run(`CREATE ROLE maker LOGIN CREATEROLE`)

	as := func(user string) *bundle {
		run(`CREATE DATABASE ` + user + ` OWNER ` + user)
		url := strings.Replace(own.Server().URL(user), "medianest@", user+"@", 1)
		return &bundle{url: url, pool: storetest.OpenPool(t, url, ""), log: slog.New(slog.DiscardHandler)}
	}
	plain := as("plain")
	err := migrations.Up(ctx, plain.pool, plain.log)
	require.ErrorContains(t, err, `let an administrator run: CREATE ROLE medianest_api NOLOGIN; GRANT medianest_api TO "plain"`)

	maker := as("maker")
	maker.up(t)
	for _, role := range []string{store.RoleAPI, store.RoleWorker, store.RoleRiver} {
		require.NoError(t, migrations.Check(ctx, storetest.OpenPool(t, maker.url, role)), role)
	}
	// The functions run as their owner, who is no superuser either.
	api := storetest.OpenPool(t, maker.url, store.RoleAPI)
	_, err = storetest.OpenPool(t, maker.url, store.RoleRiver).Exec(ctx, insertJob)
	require.NoError(t, err)
	_, err = api.Exec(ctx, `SELECT medianest.stream_epoch(), medianest.advance_tick()`)
	require.NoError(t, err)

	// Made by maker; the administrator has to grant what plain could not take.
	err = migrations.Up(ctx, plain.pool, plain.log)
	require.ErrorContains(t, err, "GRANT medianest_api")
	run(`GRANT medianest_api, medianest_worker, medianest_river TO plain`)
	plain.up(t)
}

func TestFailedMigrationNamesItsFileAndLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	n := next(t)
	broken := with(t, map[string]string{
		n + "_broken.up.sql":   "CREATE TABLE medianest.half (n integer);\n\nSELECT nonsense;\n",
		n + "_broken.down.sql": "DROP TABLE medianest.half;\n",
	})
	err := migrations.UpFrom(t.Context(), broken, b.pool, b.log)
	require.ErrorContains(t, err, "migration "+n+"_broken.up.sql, line 3: ")
	require.ErrorContains(t, err, "nonsense")

	// What came before stays, nothing of the failed one does, and a mended file is applied.
	st, err := migrations.StatusFrom(t.Context(), broken, b.pool)
	require.NoError(t, err)
	last := len(st.Migrations) - 1
	require.NotNil(t, st.Migrations[last-1].AppliedAt)
	require.Nil(t, st.Migrations[last].AppliedAt)
	mended := with(t, map[string]string{
		n + "_broken.up.sql":   "CREATE TABLE medianest.half (n integer);\n",
		n + "_broken.down.sql": "DROP TABLE medianest.half;\n",
	})
	require.NoError(t, migrations.UpFrom(t.Context(), mended, b.pool, b.log))

	// This build, which is older now, finds nothing to do, says what it does not know, and cannot take it back.
	b.up(t)
	require.NoError(t, migrations.Check(t.Context(), b.pool))
	st = b.status(t)
	require.True(t, st.UpToDate())
	require.True(t, st.Migrations[last].Unknown)
	require.ErrorContains(t, migrations.Down(t.Context(), b.pool, 1, b.log), "applied by a newer build")
}

func TestMigrationFilesAreNumberedWithoutGaps(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, want := range map[string]string{
		"9999_gap.up.sql":          "want number",
		"x_what.up.sql":            "want number",
		next(t) + "_alone.up.sql":  "_alone.down.sql",
		"003_three_digits.up.sql":  "want number",
		next(t) + "9_five.up.sql":  "want number",
		"0001_second_first.up.sql": "want number",
	} {
		err := migrations.UpFrom(t.Context(), with(t, map[string]string{name: "SELECT 1"}), b.pool, nil)
		require.ErrorContains(t, err, want, name)
	}
	all := with(t, nil).(fstest.MapFS)
	delete(all, "river/triggers.up.sql")
	require.ErrorContains(t, migrations.UpFrom(t.Context(), all, b.pool, nil), "triggers.up.sql")
}

func TestDownTakesBackAndUpAppliesAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	b.exec(t, insertJob)
	require.Error(t, migrations.Down(t.Context(), b.pool, 0, b.log))

	// The newest, down to admission, whose triggers Check looks for.
	const admission = 5
	since := len(b.status(t).Migrations) - admission + 1
	require.NoError(t, migrations.Down(t.Context(), b.pool, since, b.log))
	st := b.status(t)
	require.Nil(t, st.Migrations[len(st.Migrations)-1].AppliedAt)
	require.NotNil(t, st.Migrations[0].AppliedAt)
	require.ErrorIs(t, migrations.Check(t.Context(), b.pool), migrations.ErrSchemaOld)
	b.exec(t, insertJob) // a queue without an outbox works
	b.up(t)

	require.NoError(t, migrations.Down(t.Context(), b.pool, 100, b.log), "all of them")
	require.Nil(t, b.status(t).Migrations[0].AppliedAt)
	require.NoError(t, migrations.Down(t.Context(), b.pool, 1, b.log), "none is left")
	b.up(t)
	require.True(t, b.status(t).UpToDate())
	b.exec(t, insertJob)
	require.Len(t, b.events(t), 1)
}

func TestChangedMigrationIsShown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	b.exec(t, `UPDATE medianest.migration SET checksum = 'other' WHERE number = 1`)
	st := b.status(t)
	require.True(t, st.Migrations[0].Changed)
	require.False(t, st.Migrations[1].Changed)
}

func TestCheckWantsTriggersInForce(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"missing":  `DROP TRIGGER medianest_update ON river.river_job`,
		"disabled": `ALTER TABLE river.river_job DISABLE TRIGGER medianest_insert`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.up(t)
			b.exec(t, sql)
			require.ErrorIs(t, migrations.Check(t.Context(), b.pool), migrations.ErrSchemaOld)
			b.up(t)
			require.NoError(t, migrations.Check(t.Context(), b.pool))
		})
	}
}

func TestCheckOfADatabaseWithoutRoles(t *testing.T) {
	t.Parallel()
	own := storetest.OwnServer(t, false)
	admin := storetest.OpenPool(t, own.URL(), "")
	_, err := admin.Exec(t.Context(), `DROP SCHEMA medianest, river CASCADE`)
	require.NoError(t, err)
	_, err = admin.Exec(t.Context(), `DROP ROLE medianest_api, medianest_worker, medianest_river`)
	require.NoError(t, err)
	require.ErrorIs(t, migrations.Check(t.Context(), storetest.OpenPool(t, own.URL(), store.RoleAPI)), migrations.ErrSchemaOld)

	own.Stop()
	err = migrations.Check(t.Context(), admin)
	require.Error(t, err)
	require.NotErrorIs(t, err, migrations.ErrSchemaOld, "a database that is away is not old")
}

func TestCanaryRefusesTriggersThatDoNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	b.exec(t, `
		CREATE OR REPLACE FUNCTION medianest.on_job_update() RETURNS trigger LANGUAGE plpgsql
		AS $$ BEGIN RETURN NULL; END $$`)
	b.exec(t, `DROP TRIGGER medianest_insert ON river.river_job`) // so that Up has something to do
	err := migrations.Up(t.Context(), b.pool, b.log)
	require.ErrorContains(t, err, "prove triggers by a canary job")
	require.False(t, b.status(t).TriggersPresent, "nothing of it is committed")
}

func TestCanaryRefusesMissingGrants(t *testing.T) {
	t.Parallel()
	b := setup(t)
	triggers, _, ok := strings.Cut(read(t, "river/triggers.up.sql"), "GRANT")
	require.True(t, ok)
	err := migrations.UpFrom(t.Context(), with(t, map[string]string{"river/triggers.up.sql": triggers}), b.pool, b.log)
	require.ErrorContains(t, err, "permission denied")
}

// An older release left River at an earlier version; jobs are inserted all the while it is brought up to date.
func TestRiverIsMigratedWithoutAMissedEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	require.NoError(t, migrations.RiverDownTo(t.Context(), b.pool, 6))
	require.Equal(t, 6, b.status(t).RiverVersion)
	require.ErrorIs(t, migrations.Check(t.Context(), b.pool), migrations.ErrSchemaOld)

	stop := make(chan struct{})
	inserted := make(chan int, 1)
	started := make(chan struct{})
	go func() {
		n := 0
		for {
			if _, err := b.pool.Exec(context.Background(), insertJob); err != nil {
				t.Errorf("insert while migrating: %v", err)
			}
			if n++; n == 1 {
				close(started)
			}
			select {
			case <-stop:
				inserted <- n
				return
			default:
			}
		}
	}()
	<-started
	b.up(t)
	close(stop)
	n := <-inserted
	require.Len(t, b.events(t), n)
	require.True(t, b.status(t).UpToDate())
	require.Contains(t, b.out.String(), "river 007_")
}

// A table that is in use for long must not be queued for without end: everybody else would queue behind.
func TestStepGivesWayToALongTransaction(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	b.exec(t, `COMMENT ON TRIGGER medianest_insert ON river.river_job IS 'another build''s'`)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), insertJob)
	require.NoError(t, err)

	done := make(chan error, 1)
	go func() { done <- migrations.Up(t.Context(), b.pool, nil) }()
	// Behind the waiting migration this insert waits, and then goes before it.
	require.Eventually(t, func() bool {
		var waiting bool
		err := b.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'river.river_job'::regclass)`).Scan(&waiting)
		return err == nil && waiting
	}, 10*time.Second, 5*time.Millisecond)
	b.exec(t, insertJob)
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-done)
	require.Len(t, b.events(t), 2)
}

func TestUpEndsWhenItsLockIsLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	n := next(t)
	files := with(t, map[string]string{
		n + "_kill.up.sql": `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'medianest-migrate-lock'`,
		n + "_kill.down.sql": "SELECT 1",
	})
	err := migrations.UpFrom(t.Context(), files, b.pool, b.log)
	require.ErrorContains(t, err, "migration lock lost")
}

// An operator may have set time-outs for the database or the role that a migration cannot keep.
func TestUpIsNotBoundByTimeouts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(t, `DO $$ BEGIN
		EXECUTE format('ALTER DATABASE %I SET idle_in_transaction_session_timeout = 50', current_database());
		EXECUTE format('ALTER DATABASE %I SET statement_timeout = 50', current_database());
	END $$`)
	n := next(t)
	files := with(t, map[string]string{n + "_slow.up.sql": "SELECT pg_sleep(0.3)", n + "_slow.down.sql": "SELECT 1"})
	require.NoError(t, migrations.UpFrom(t.Context(), files, b.pool, b.log))
}

func TestLineAt(t *testing.T) {
	t.Parallel()
	const script = "é\n\nSELECT ü;\nlast"
	for position, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 3, 12: 3, 13: 3, 14: 4, 17: 4, 99: 4} {
		require.Equal(t, want, migrations.LineAt(script, position), position)
	}
	require.Equal(t, 1, migrations.LineAt("", 1))
}

// Jobs that went on as other rows go by the ids of those when the migration that gave them one id is taken back.
func TestDownGivesJobsTheirRowsIDs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.up(t)
	b.exec(t, `INSERT INTO medianest.users (id, name, role) VALUES (gen_random_uuid(), 'ann', 'member')`)
	b.exec(t, `INSERT INTO medianest.content (id, key, url, profile, job_id) VALUES (gen_random_uuid(), 'k', 'u', 'p', 5)`)
	b.exec(t, `
		INSERT INTO medianest.downloads (id, user_id, content_id, url, profile, state, job_id)
		SELECT gen_random_uuid(), u.id, c.id, 'u', 'p', 'queued', 5
		FROM medianest.users AS u, medianest.content AS c`)
	b.exec(t, `INSERT INTO medianest.job_viewer (job_id, user_id, download_id) SELECT 5, d.user_id, d.id FROM medianest.downloads AS d`)
	b.exec(t, `INSERT INTO medianest.job_map (public_id, row_id) VALUES (5, 9)`)
	b.exec(t, `
		INSERT INTO river.river_job (id, args, kind, max_attempts, metadata, state, finalized_at)
		VALUES (5, '{}', 'k', 1, '{"superseded_by": "9"}', 'discarded', now()), (9, '{}', 'k', 1, '{"public_id": "5"}', 'available', NULL)`)
	b.exec(t, `INSERT INTO medianest.worker (id, mode, host, version, expires_at) VALUES ('w', 'work', 'h', 'v', now())`)

	require.NoError(t, migrations.Down(t.Context(), b.pool, len(b.status(t).Migrations)-3, b.log))
	var ids []int64
	require.NoError(t, b.pool.QueryRow(t.Context(), `
		SELECT array[c.job_id, d.job_id, v.job_id]
		FROM medianest.content AS c, medianest.downloads AS d, medianest.job_viewer AS v`).Scan(&ids))
	require.Equal(t, []int64{9, 9, 9}, ids)
	b.exec(t, `UPDATE river.river_job SET state = 'running' WHERE id = 9`)
	require.Contains(t, b.events(t), "9: available > running")
	var others int
	require.NoError(t, b.pool.QueryRow(t.Context(), `
		SELECT count(*) FROM medianest.event WHERE topic NOT IN ('job.state', 'download.state')`).Scan(&others))
	require.Zero(t, others, "an older reader knows no others")
	b.up(t)
}
