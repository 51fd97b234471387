package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/stretchr/testify/require"

	"medianest/api/client"
	"medianest/store"
	"medianest/store/storetest"
)

// Four worker processes of twenty slots, and 2,000 jobs of ten hosts and ten users, all with limits from 1 to 3. Every
// tenth job fails and is retried, by the API and by River UI; one process is killed and one stands still. Counted from
// outside: never over a limit, never a job twice at a time, none lost.
func TestLimitsHoldWhateverHappens(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	utilisation := manyJobs(t, 2000, 50*time.Millisecond)
	t.Logf("utilisation %.3f", utilisation)
	require.Greater(t, utilisation, 0.2, "of what limits and slots allow; how much exactly is for the benchmark to say")
}

// manyJobs has so many jobs run, and returns the time that they ran, of that in which limits and slots allowed it.
func manyJobs(t testing.TB, jobs int, lasts time.Duration) (utilisation float64) {
	t.Helper()
	const processes = 4
	var limits [syntheticKeys]int
	for n := range limits {
		limits[n] = 1 + n%3
	}
	count, err := newCounter(jobs, processes*crewSlots, lasts, limits)
	require.NoError(t, err)
	t.Cleanup(count.close)

	databaseURL := storetest.DB(t)
	f := startFleet(t, databaseURL, storetest.Redis(t), 1, 0)
	c := f.client(0)
	pool := storetest.OpenPool(t, databaseURL, "")
	for n, most := range limits {
		_, err := pool.Exec(t.Context(), `INSERT INTO medianest.users (id, name, role) VALUES ($1, $2, 'member')`, syntheticUser(n), fmt.Sprint("user-", n))
		require.NoError(t, err)
		for _, key := range []string{fmt.Sprintf("host:h%d.test", n), "user:" + syntheticUser(n)} {
			most := int64(most)
			answer, err := c.SetLimitWithResponse(t.Context(), key, client.LimitRequest{MaxRunning: &most})
			require.NoError(t, err)
			require.NoError(t, client.Fault(answer))
		}
	}
	crews := make([]*child, processes)
	for n := range crews {
		crews[n] = startChild(t, []string{beMedianest + "=", beCrew + "=" + count.address()}, crewName(n), databaseURL)
		crews[n].await(crews[n].stdout, "ready")
	}
	insertSynthetic(t, storetest.OpenPool(t, databaseURL, store.RoleRiver), jobs)
	begun := time.Now()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var byAPI, byRiverUI atomic.Int64
	var retrying sync.WaitGroup
	for range 4 {
		retrying.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case n := <-count.failed:
					if !retry(ctx, t, f, pool, n, &byAPI, &byRiverUI) {
						return
					}
					count.retried(n)
				}
			}
		})
	}
	awaitEnds := func(n int) {
		t.Helper()
		require.Eventually(t, func() bool {
			ends, _, faults := count.look()
			require.Empty(t, faults)
			return ends >= n
		}, patience, 10*time.Millisecond, "%d runs never ended", n)
	}
	awaitEnds(jobs / 4)
	crews[0].kill()
	awaitEnds(jobs / 2)
	require.NoError(t, crews[1].command.Process.Signal(syscall.SIGSTOP))
	stood := count.stopped(crewName(1))
	awaitEnds(jobs * 3 / 4)
	require.Eventually(t, func() bool {
		_, done, faults := count.look()
		require.Empty(t, faults)
		return done == jobs
	}, 2*patience, 50*time.Millisecond, "all jobs are done")
	took := time.Since(begun)
	require.Eventually(t, func() bool {
		return countRows(t, pool, `SELECT count(*) FROM river.river_job WHERE state = 'completed'`) == jobs
	},
		patience, 50*time.Millisecond, "and recorded")
	require.NoError(t, crews[1].command.Process.Signal(syscall.SIGCONT))
	require.Equal(t, exitOverslept, crews[1].exit())
	cancel()
	retrying.Wait()
	require.Zero(t, countRows(t, pool, `SELECT count(*) FROM river.river_job WHERE state NOT IN ('completed', 'discarded')`))
	require.Zero(t, countRows(t, pool, `SELECT count(*) FROM river.river_job WHERE state = 'discarded' AND NOT metadata ? 'superseded_by'`))
	require.Zero(t, countRows(t, pool, `SELECT count(*) FROM medianest.admission`))
	_, _, faults := count.look()
	require.Empty(t, faults)
	t.Logf("%d jobs of %s in %s; at most %d at a time; retried by the API %d, by River UI %d; %d stood still",
		jobs, lasts, took.Round(10*time.Millisecond), count.peak, byAPI.Load(), byRiverUI.Load(), stood)
	require.Greater(t, byAPI.Load(), int64(jobs/40))
	require.Greater(t, byRiverUI.Load(), int64(jobs/40))
	return count.utilisation()
}

func crewName(n int) string { return fmt.Sprintf("crew-%d", n) }

func insertSynthetic(t testing.TB, pool *pgxpool.Pool, jobs int) {
	t.Helper()
	queue, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: "river"})
	require.NoError(t, err)
	params := make([]river.InsertManyParams, jobs)
	for n := range params {
		args := synthetic{n}
		params[n] = river.InsertManyParams{Args: args, InsertOpts: &river.InsertOpts{
			Queue: "synthetic", MaxAttempts: 5,
			Metadata: fmt.Appendf(nil, `{"keys": ["kind:synthetic", "host:h%d.test", "user:%s"]}`, args.host(), syntheticUser(args.user())),
		}}
	}
	_, err = queue.InsertMany(t.Context(), params)
	require.NoError(t, err)
}

// retry has a job that failed tried again, by the API or as River UI's button does it. It returns false when ctx ends.
func retry(ctx context.Context, t testing.TB, f *fleet, pool *pgxpool.Pool, n int, byAPI, byRiverUI *atomic.Int64) bool {
	for {
		var row, id int64
		var state string
		err := pool.QueryRow(ctx, `
			SELECT j.id, coalesce(m.public_id, j.id), j.state::text
			FROM river.river_job AS j
			LEFT JOIN medianest.job_map AS m ON m.row_id = j.id
			WHERE (j.args ->> 'n')::int = $1 AND NOT j.metadata ? 'superseded_by'`, n).Scan(&row, &id, &state)
		switch {
		case ctx.Err() != nil:
			return false
		case err != nil:
			t.Errorf("job %d: %v", n, err)
			return false
		case state == "completed": // its process was killed before the failure was recorded
			return true
		case state == "retryable" && n%20 < 10:
			answer, err := f.client(0).RetryJobWithResponse(ctx, fmt.Sprint(id))
			if err == nil {
				err = client.Fault(answer)
			}
			if err != nil {
				t.Errorf("retry job %d: %v", n, err)
				return false
			}
			byAPI.Add(1)
			return true
		case state == "retryable":
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, f.urls[0]+"/river/api/jobs/retry", strings.NewReader(fmt.Sprintf(`{"ids":["%d"]}`, row)))
			if err != nil {
				t.Error(err)
				return false
			}
			token, err := os.ReadFile(f.home.data() + "/" + adminTokenFile)
			if err != nil {
				t.Error(err)
				return false
			}
			request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
			request.Header.Set("Content-Type", "application/json")
			answer, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Errorf("retry job %d: %v", n, err)
				return false
			}
			_ = answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				t.Errorf("retry job %d: %s", n, answer.Status)
				return false
			}
			byRiverUI.Add(1)
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func countRows(t testing.TB, pool *pgxpool.Pool, sql string) (n int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

// How much of what limits and slots allow is used, with everything that happens meanwhile.
func BenchmarkLimitsUtilisation(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(manyJobs(b, 1000, 500*time.Millisecond), "utilisation")
	}
}
