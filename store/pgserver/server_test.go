package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestStartMakesAClusterAndKeepsIt(t *testing.T) {
	t.Parallel()
	home := filepath.Join(tempDir(t), "home") // as root's: nobody else may pass through
	require.NoError(t, os.Mkdir(home, 0o700))
	opts := Options{DataDir: filepath.Join(home, "media nest", "pg")}

	s := start(t, opts)
	for setting, want := range map[string]string{
		"server_encoding":    "UTF8",
		"listen_addresses":   "",
		"fsync":              "on",
		"synchronous_commit": "on",
		"full_page_writes":   "on",
		"data_checksums":     "on",
		"max_connections":    "100",
		"shared_buffers":     "64MB",
		"TimeZone":           "UTC",
	} {
		assert.Equal(t, want, query(t, s, `SELECT current_setting('`+setting+`')`), setting)
	}
	require.Equal(t, "C", query(t, s, `SELECT datcollate FROM pg_database WHERE datname = 'postgres'`))
	// Ctrl-C at a terminal signals the foreground group, which the server must not be in.
	pgid, err := syscall.Getpgid(s.PID())
	require.NoError(t, err)
	require.Equal(t, s.PID(), pgid)
	keep(t, s)
	stop(t, s)
	stop(t, s)
	require.NoError(t, s.Err())

	s = start(t, opts)
	requireKept(t, s)
	require.NoFileExists(t, s.dataDir+".init")
}

func TestStartInitializesAgainAfterACutOffInit(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(tempDir(t), "pg")
	require.NoError(t, os.MkdirAll(filepath.Join(dir+".init", "base"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir+".init", "PG_VERSION"), []byte("15\n"), 0o600))
	require.NoError(t, os.Mkdir(dir, 0o755)) // by somebody who prepared the path

	s := start(t, Options{DataDir: dir, NoSync: true})
	keep(t, s)
	require.Equal(t, "off", query(t, s, `SHOW fsync`))
}

func TestStartRefusesWhatIsNoCluster(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(tempDir(t), "photos")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cat.jpg"), []byte("meow"), 0o600))

	_, err := Start(context.Background(), Options{DataDir: dir})
	require.ErrorContains(t, err, "neither empty nor a Postgres cluster")
	require.FileExists(t, filepath.Join(dir, "cat.jpg"))
	_, err = Start(context.Background(), Options{})
	require.ErrorContains(t, err, "no data directory")
}

func TestStartRefusesAnotherVersionsCluster(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	binDir, err := FindBinDir("")
	require.NoError(t, err)
	for _, tc := range []struct{ version, binDir, want string }{
		{"99\n", binDir, "was made by PostgreSQL 99, but " + binDir + " is PostgreSQL"},
		{"99\n", "", "apt-get install postgresql-99"},
		{"12\n", "", "made by PostgreSQL 12, which is too old"},
		{"x\n", "", "read version of data directory"},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "PG_VERSION"), []byte(tc.version), 0o600))
		_, err := Start(context.Background(), Options{DataDir: dir, BinDir: tc.binDir})
		require.ErrorContains(t, err, tc.want)
	}
}

func TestStartTellsWhyTheServerDoesNot(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	conf, err := os.OpenFile(filepath.Join(dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = conf.WriteString("shared_buffers = 'many'\n")
	require.NoError(t, err)
	require.NoError(t, conf.Close())

	_, err = Start(context.Background(), Options{DataDir: dir, NoSync: true})
	require.ErrorContains(t, err, "shared_buffers")
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Start(ctx, Options{DataDir: dir, NoSync: true})
	require.ErrorIs(t, err, context.Canceled)
	requireNoProcess(t, dir)

	start(t, Options{DataDir: dir, NoSync: true}) // nothing is held any more
}

func TestOperatorsSettingsWinExceptFixedOnes(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	conf, err := os.OpenFile(filepath.Join(dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = conf.WriteString("max_connections = 33\nlisten_addresses = '*'\nlog_statement = 'all'\n")
	require.NoError(t, err)
	require.NoError(t, conf.Close())

	s := start(t, Options{DataDir: dir, NoSync: true})
	require.Equal(t, "33", query(t, s, `SHOW max_connections`))
	require.Equal(t, "", query(t, s, `SHOW listen_addresses`))
	require.Equal(t, "none", query(t, s, `SHOW log_statement`))
}

func TestSocketOfALongPathIsElsewhere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{strings.Repeat("long", 40), "with,comma"} {
		template := newCluster(t)
		dir := filepath.Join(filepath.Dir(template), name)
		require.NoError(t, os.Rename(template, dir))

		s := start(t, Options{DataDir: dir, NoSync: true})
		require.NotEqual(t, s.dataDir, s.socketDir)
		fi, err := os.Stat(s.socketDir)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o700), fi.Mode().Perm())
		stop(t, s)
		require.NoDirExists(t, s.socketDir)
	}
}

func TestSocketDirIsTheOneAskedFor(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	socketDir := filepath.Join(tempDir(t), "run", "pg")
	s := start(t, Options{DataDir: dir, SocketDir: socketDir, NoSync: true})
	require.FileExists(t, filepath.Join(socketDir, ".s.PGSQL.5432.lock"))
	require.Equal(t, "1", query(t, s, `SELECT '1'`))

	_, err := Start(context.Background(), Options{DataDir: newCluster(t), SocketDir: strings.Repeat("/long", 30)})
	require.ErrorContains(t, err, "too long")
	file := filepath.Join(tempDir(t), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Start(context.Background(), Options{DataDir: newCluster(t), SocketDir: file})
	require.ErrorContains(t, err, "belongs to another user")
}

func TestStopIsImmediateWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	s := start(t, Options{DataDir: newCluster(t), NoSync: true})
	keep(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.NoError(t, s.Stop(ctx))
	requireNoProcess(t, s.dataDir)

	s = start(t, Options{DataDir: s.dataDir, NoSync: true})
	requireKept(t, s)
}

func TestStartsAgainWhenKilled(t *testing.T) {
	t.Parallel()
	var deaths, restarts atomic.Int32
	s := start(t, Options{
		DataDir: newCluster(t), NoSync: true, Restart: true,
		OnDeath:   func(err error) { assert.ErrorContains(t, err, "killed"); deaths.Add(1) },
		OnRestart: func() { restarts.Add(1) },
	})
	keep(t, s)
	for round := range int32(2) {
		// A backend that never looks up does not notice its postmaster's death, and would corrupt the data beside a
		// new one; Postgres refuses to start while it lives.
		endBusy := busyBackend(t, s)
		require.NoError(t, syscall.Kill(s.PID(), syscall.SIGKILL))
		require.Eventually(t, func() bool { return restarts.Load() == round+1 }, 20*time.Second, 5*time.Millisecond)
		require.Error(t, endBusy())
		requireKept(t, s)
	}
	require.Equal(t, int32(2), deaths.Load())
	select {
	case <-s.Done():
		t.Fatal("done although it runs")
	default:
	}
}

// busyBackend occupies a backend with a loop that checks for nothing, and returns how to wait for its end.
func busyBackend(t *testing.T, s *Server) (wait func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, `SELECT count(*) FROM generate_series(1, 1000000000000) n`)
		_ = conn.Close(ctx)
		done <- err
	}()
	require.Eventually(t, func() bool {
		n, err := tryQuery(s, `SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE 'SELECT count(*) FROM generate_series%' AND state = 'active'`)
		return err == nil && n == "1"
	}, 10*time.Second, 5*time.Millisecond)
	return func() error { return <-done }
}

func TestDeathIsTheEndWithoutRestart(t *testing.T) {
	t.Parallel()
	s := start(t, Options{DataDir: newCluster(t), NoSync: true})
	require.NoError(t, syscall.Kill(s.PID(), syscall.SIGKILL))
	<-s.Done()
	require.ErrorContains(t, s.Err(), "postgres died: signal: killed")
	requireNoProcess(t, s.dataDir)
}

func TestStopOvertakesARestart(t *testing.T) {
	t.Parallel()
	died := make(chan struct{})
	s := start(t, Options{DataDir: newCluster(t), NoSync: true, Restart: true, OnDeath: func(error) { close(died) }})
	require.NoError(t, syscall.Kill(s.PID(), syscall.SIGKILL))
	<-died
	stop(t, s)
	require.NoError(t, s.Err())
}

func TestServerEndsWithItsOwner(t *testing.T) {
	t.Parallel()
	for _, scratch := range []bool{false, true} {
		dir, scratchDir := newCluster(t), ""
		if scratch {
			scratchDir = filepath.Dir(dir)
		}
		o := startOwner(t, dir, scratchDir)
		o.kill(t)
		require.Eventually(t, func() bool {
			left, err := serverProcesses(dir)
			return err == nil && len(left) == 0
		}, 20*time.Second, 10*time.Millisecond)
		if scratch {
			require.Eventually(t, func() bool { return !exists(scratchDir) }, 20*time.Second, 10*time.Millisecond)
		} else {
			start(t, Options{DataDir: dir, NoSync: true})
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

func TestStartStopsAServerLeftRunning(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	o := startOwner(t, dir, "")

	_, err := Start(context.Background(), Options{DataDir: dir})
	require.ErrorContains(t, err, fmt.Sprintf("in use by process %d", o.cmd.Process.Pid))

	o.killWithWatch(t)
	left, err := serverProcesses(dir)
	require.NoError(t, err)
	require.Contains(t, left, o.postmaster)

	var log recorder
	s := start(t, Options{DataDir: dir, NoSync: true, Logger: log.logger()})
	require.NotEqual(t, o.postmaster, s.PID())
	require.Contains(t, log.String(), "stopping the postgres that a killed process left")
	require.NotContains(t, log.String(), "database system was not properly shut down")
}

func TestStartEndsBackendsWithoutAPostmaster(t *testing.T) {
	t.Parallel()
	s := start(t, Options{DataDir: newCluster(t), NoSync: true})
	keep(t, s)
	dir := s.dataDir
	stop(t, s)

	// kill -9 of everything but a backend that does not look up.
	o := startOwner(t, dir, "")
	wait := busyBackend(t, &Server{socketDir: dir})
	watch := childNamed(t, o.cmd.Process.Pid, "deathwatch")
	require.NoError(t, syscall.Kill(watch, syscall.SIGKILL))
	require.NoError(t, syscall.Kill(o.cmd.Process.Pid, syscall.SIGSTOP)) // it would clean up
	require.NoError(t, syscall.Kill(o.postmaster, syscall.SIGKILL))
	o.kill(t)

	s = start(t, Options{DataDir: dir, NoSync: true})
	require.Error(t, wait())
	requireKept(t, s)
}

func TestStartIgnoresAPIDFileThatNamesAnotherProcess(t *testing.T) {
	t.Parallel()
	dir := newCluster(t)
	// After a reboot, or in a container started again, the number is somebody else's.
	other := exec.Command("sleep", "60")
	require.NoError(t, other.Start())
	t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	})
	content := fmt.Sprintf("%d\n%s\n1700000000\n5432\n%s\n\n  1 1\nready\n", other.Process.Pid, dir, dir)
	for _, name := range []string{"postmaster.pid", ".s.PGSQL.5432.lock"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	start(t, Options{DataDir: dir, NoSync: true})
	require.NoError(t, other.Process.Signal(syscall.Signal(0)), "the other process is left alone")
}

func TestSetuidWhereNamespacesAreOff(t *testing.T) {
	t.Parallel()
	// The server's user must get through to the directory: everything above it is open, the parent is not yet.
	opts := Options{DataDir: newCluster(t), NoSync: true, forceSetuid: true}
	s := start(t, opts)
	keep(t, s)
	fi, err := os.Stat(fmt.Sprintf("/proc/%d", s.PID()))
	require.NoError(t, err)
	require.NotZero(t, ownerOf(fi), "postgres runs as root")
	stop(t, s)

	// Further up than its own parent, a directory that is shut stays shut.
	require.NoError(t, os.Chmod(filepath.Dir(opts.DataDir), 0o700))
	shut := opts
	shut.DataDir = filepath.Join(filepath.Dir(opts.DataDir), "deeper", "pg")
	_, err = Start(context.Background(), shut)
	if os.Geteuid() == 0 {
		require.ErrorContains(t, err, "may not pass through "+filepath.Dir(opts.DataDir))
	}

	// Namespaces come and go with kernels and containers; the files follow.
	for _, setuid := range []bool{false, true} {
		opts.forceSetuid = setuid
		s := start(t, opts)
		requireKept(t, s)
		stop(t, s)
	}
}

func TestLogHoldsNoValues(t *testing.T) {
	t.Parallel()
	var log recorder
	s := start(t, Options{DataDir: newCluster(t), NoSync: true, Logger: log.logger()})
	_, err := tryQuery(s, `SELECT 'hunter2' FROM nowhere`)
	require.Error(t, err)
	keep(t, s)
	query(t, s, `ALTER TABLE kept ADD UNIQUE (v)`)
	_, err = tryQuery(s, `INSERT INTO kept VALUES ('value') RETURNING v`)
	require.Error(t, err)
	stop(t, s)
	require.Contains(t, log.String(), "sqlstate=42P01")
	require.Contains(t, log.String(), "sqlstate=23505")
	require.NotContains(t, log.String(), "hunter2")
	require.NotContains(t, log.String(), "(value)")
}

func TestURLReachesTheDatabaseNamed(t *testing.T) {
	t.Parallel()
	s := start(t, Options{DataDir: newCluster(t), NoSync: true})
	query(t, s, `CREATE DATABASE "odd name"`)
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, s.URL("odd name"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(ctx)) })
	var name string
	require.NoError(t, conn.QueryRow(ctx, `SELECT current_database() || ' ' || current_user`).Scan(&name))
	require.Equal(t, "odd name medianest", name)
	require.Equal(t, strconv.Itoa(port), conn.Config().RuntimeParams["port"]+strconv.Itoa(int(conn.Config().Port)))
}
