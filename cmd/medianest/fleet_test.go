package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/api/client"
	"medianest/store"
	"medianest/store/storetest"
)

// fleet is serve and work as separate processes on servers of their own.
type fleet struct {
	t    testing.TB
	home home
	env  []string
	urls []string
	work []*child
}

// startFleet migrates as an operator does, and starts as many of each.
func startFleet(t testing.TB, databaseURL, redisURL string, serves, works int, env ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, home: newHome(t)}
	f.env = f.home.env(append(env, "MEDIANEST_DATABASE_URL="+databaseURL, "MEDIANEST_REDIS_URL="+redisURL)...)
	migrate := startChild(t, f.env, "migrate", "up")
	require.Equal(t, exitOK, migrate.exit(), migrate.stderr)
	require.Contains(t, migrate.stdout.String(), filepath.Join(f.home.data(), adminTokenFile))
	var starting []*child
	for range serves {
		starting = append(starting, startChild(t, f.env, "serve"))
	}
	for range works {
		f.startWork()
	}
	for _, serve := range starting {
		address := serve.await(serve.stderr, "msg=listening address=")
		f.urls = append(f.urls, "http://"+address)
	}
	return f
}

func (f *fleet) startWork(env ...string) *child {
	f.t.Helper()
	w := startChild(f.t, append(f.env, env...), "work")
	w.await(w.stderr, "msg=ready mode=work")
	f.work = append(f.work, w)
	return w
}

func (f *fleet) client(n int) *client.ClientWithResponses {
	f.t.Helper()
	return newClient(f.t, f.urls[n%len(f.urls)], f.home.token(f.t))
}

// insist creates a download as a client does that does not give up: with a key, until it is accepted.
func (f *fleet) insist(ctx context.Context, n int, url string) (client.Download, error) {
	c := f.client(n)
	key := fmt.Sprintf("key-%d", n)
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		answer, err := c.CreateDownloadWithResponse(attempt, &client.CreateDownloadParams{IdempotencyKey: &key}, client.DownloadRequest{URL: url})
		cancel()
		switch {
		case err == nil && answer.JSON202 != nil:
			return *answer.JSON202, nil
		case err == nil && answer.JSON200 != nil:
			return *answer.JSON200, nil
		case ctx.Err() != nil:
			return client.Download{}, fmt.Errorf("never accepted: %w", ctx.Err())
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// load asks for n films at once, half of them through each replica, and calls between when half are accepted.
func (f *fleet) load(n int, url func(n int) string, between func()) []client.Download {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	downloads, errs := make([]client.Download, n), make([]error, n)
	var wg sync.WaitGroup
	accepted := make(chan struct{}, n)
	for i := range n {
		wg.Go(func() {
			downloads[i], errs[i] = f.insist(ctx, i, url(i))
			accepted <- struct{}{}
		})
		if i == n/2 {
			<-accepted
			between()
		}
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(f.t, err)
	}
	return downloads
}

// requireAllWhole waits for all downloads, and checks that each has its file and that there is no other.
func (f *fleet) requireAllWhole(downloads []client.Download) {
	f.t.Helper()
	files := map[string]bool{}
	for i, d := range downloads {
		d = awaitState(f.t, f.client(i), d, stateCompleted)
		require.Len(f.t, d.Files, 1)
		files[d.Files[0].Path] = true
		info, err := os.Stat(filepath.Join(f.home.media(), d.Files[0].Path))
		require.NoError(f.t, err)
		require.EqualValues(f.t, d.Files[0].SizeBytes, info.Size())
	}
	require.Len(f.t, files, len(downloads))
	entries, err := os.ReadDir(filepath.Join(f.home.media(), "admin"))
	require.NoError(f.t, err)
	require.Len(f.t, entries, len(downloads), "nothing half-written, nothing twice")
}

// filmURL is a different address for each n; the film behind takes about a second.
func filmURL(siteURL string) func(int) string {
	return func(n int) string { return fmt.Sprintf("%s/slow.mp4?rate=200000&n=%d", siteURL, n) }
}

// Postgres is killed under load and comes back: every download that was accepted, before, during and after, ends in
// the library, and no process has to be started again.
func TestFleetSurvivesPostgres(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	_, siteURL, allow := sampleSite(t)
	server := storetest.OwnServer(t, true)
	f := startFleet(t, server.URL(), storetest.Redis(t), 2, 2, allow)
	downloads := f.load(6, filmURL(siteURL), server.Kill)
	f.requireAllWhole(downloads)
	for _, w := range f.work {
		w.stop()
	}
}

// Redis goes away under load and comes back: progress pauses, nothing else happens.
func TestFleetSurvivesRedis(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	_, siteURL, allow := sampleSite(t)
	redis := storetest.RealRedis(t)
	f := startFleet(t, storetest.DB(t), redis.URL(), 1, 1, allow)
	downloads := f.load(3, filmURL(siteURL), redis.Stop)
	require.Eventually(t, func() bool { return strings.Contains(get(t, f.urls[0]+"/readyz"), `"degraded"`) }, patience, 50*time.Millisecond)
	f.requireAllWhole(downloads)
	redis.Start()
	require.Eventually(t, func() bool { return !strings.Contains(get(t, f.urls[0]+"/readyz"), `"degraded"`) }, patience, 50*time.Millisecond)
	d := awaitState(t, f.client(0), ask(t, f.client(0), siteURL+"/slow.mp4?rate=60000&again"), stateRunning)
	require.Eventually(t, func() bool {
		answer, err := f.client(0).FindDownloadWithResponse(t.Context(), d.ID)
		return err == nil && answer.JSON200 != nil && answer.JSON200.Progress != nil
	}, patience, 50*time.Millisecond, "progress is back")
}

// A worker that is stopped hands its download back to the queue, as if it had never taken it.
func TestStoppedWorkerHandsItsDownloadBack(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	_, siteURL, allow := sampleSite(t)
	databaseURL := storetest.DB(t)
	f := startFleet(t, databaseURL, storetest.Redis(t), 1, 1, allow, "MEDIANEST_STOP_TIMEOUT=10s")
	d := ask(t, f.client(0), siteURL+"/slow.mp4?rate=15000")
	awaitState(t, f.client(0), d, stateRunning)
	f.work[0].stop()
	awaitState(t, f.client(0), d, stateQueued)
	state, attempt := jobRow(t, databaseURL, *d.JobID)
	require.Contains(t, []string{"pending", "available"}, state)
	require.Zero(t, attempt, "no attempt is spent")
	require.Empty(t, processesBelow(t, f.home.media()), "yt-dlp is gone")

	f.startWork()
	awaitState(t, f.client(0), d, stateRunning)
}

// A second signal ends the process at once, with the programs that it runs.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	_, siteURL, allow := sampleSite(t)
	f := startFleet(t, storetest.DB(t), storetest.Redis(t), 1, 1, allow, "MEDIANEST_STOP_TIMEOUT=10m")
	d := ask(t, f.client(0), siteURL+"/slow.mp4?rate=5000")
	awaitState(t, f.client(0), d, stateRunning)
	require.Eventually(t, func() bool { return len(processesBelow(t, f.home.media())) > 0 }, patience, 20*time.Millisecond)
	begin := time.Now()
	f.work[0].signal(syscall.SIGTERM)
	f.work[0].await(f.work[0].stderr, "msg=stopping")
	f.work[0].signal(syscall.SIGTERM)
	require.Equal(t, exitFailure, f.work[0].exit())
	require.Less(t, time.Since(begin), 10*time.Second)
	require.Contains(t, f.work[0].stderr.String(), "stopped at once by a second")
	require.Empty(t, processesBelow(t, f.home.media()))
}

// serve and work refuse a database that was not migrated, and say what to do.
func TestOldSchemaIsRefused(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	h := newHome(t)
	env := h.env("MEDIANEST_DATABASE_URL="+storetest.EmptyDB(t), "MEDIANEST_REDIS_URL="+storetest.Redis(t))
	for _, command := range []string{"serve", "work"} {
		c := startChild(t, env, command)
		require.Equal(t, exitFailure, c.exit())
		require.Contains(t, c.stderr.String(), "medianest migrate up")
	}
}

// A process that is started before its database waits for it, and says so.
func TestStartWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	server := storetest.OwnServer(t, false)
	server.Stop()
	h := newHome(t)
	c := startChild(t, h.env("MEDIANEST_DATABASE_URL="+server.URL(), "MEDIANEST_REDIS_URL="+storetest.Redis(t), "MEDIANEST_SECRET_KEYS="+store.NewKey()), "serve")
	c.await(c.stderr, "waiting for the database")
	server.Start()
	c.await(c.stderr, "msg=ready mode=serve")
	c.stop()
}

func TestStartGivesUpOnADatabaseThatNeverComes(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	h := newHome(t)
	c := startChild(t, h.env("MEDIANEST_DATABASE_URL=postgres://u:canary@127.0.0.1:1/x", "MEDIANEST_REDIS_URL=redis://127.0.0.1:1", "MEDIANEST_START_TIMEOUT=1s"), "serve")
	require.Equal(t, exitFailure, c.exit())
	require.Contains(t, c.stderr.String(), "MEDIANEST_DATABASE_URL")
	require.NotContains(t, c.stderr.String(), "canary")
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	h := newHome(t)
	env := h.env("MEDIANEST_DATABASE_URL=" + storetest.EmptyDB(t))
	code, stdout, stderr := invoke(t, env, "migrate", "status")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "not applied")
	code, stdout, stderr = invoke(t, env, "migrate", "up")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "the user admin is ready")
	_, stdout, _ = invoke(t, env, "migrate", "status")
	require.NotContains(t, stdout, "not applied")
	require.NotContains(t, stdout, "not up to date")
	token := h.token(t)
	code, stdout, _ = invoke(t, env, "migrate", "up")
	require.Zero(t, code)
	require.Equal(t, "the schema is up to date\n", stdout)
	require.Equal(t, token, h.token(t))
	for _, args := range [][]string{{"migrate"}, {"migrate", "down"}, {"migrate", "down", "x"}, {"migrate", "sideways"}} {
		code, _, _ = invoke(t, env, args...)
		require.Equal(t, exitUsage, code, args)
	}
	code, _, stderr = invoke(t, env, "migrate", "down", "1")
	require.Zero(t, code, stderr)
	_, stdout, _ = invoke(t, env, "migrate", "status")
	require.Contains(t, stdout, "not up to date")
}

// jobRow reads a job past the API.
func jobRow(t testing.TB, databaseURL, id string) (state string, attempt int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(context.Background()) //nolint:errcheck // read only
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT state, attempt FROM river.river_job WHERE id = $1::text::bigint`, id).Scan(&state, &attempt))
	return state, attempt
}
