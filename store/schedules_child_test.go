package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

// beScheduler, as the first argument, makes the test binary a process that attends to schedules until it is killed.
const beScheduler = "be-a-scheduler-of-the-store-tests"

// scheduleAsChild is that process. Its arguments are the database and a name.
func scheduleAsChild(args []string) int {
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	pool, err := store.OpenPool(ctx, store.PoolOptions{URL: args[0], Role: store.RoleWorker, AppName: args[1]})
	if err != nil {
		log.Error("open pool", "err", err)
		return 1
	}
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Schema: "river", Logger: log})
	if err != nil {
		log.Error("make client", "err", err)
		return 1
	}
	scheduler := store.NewScheduler(store.SchedulerOptions{
		Store: store.New(pool).WithQueue(scheduleQueue{riverQueue{client: client}}), Logger: log, Interval: 5 * time.Millisecond,
		Now: func() time.Time { return testClock(ctx, pool) },
	})
	if err := scheduler.Run(ctx); err != nil {
		log.Error("run", "err", err)
	}
	return 1
}

func testClock(ctx context.Context, pool *pgxpool.Pool) (now time.Time) {
	if err := pool.QueryRow(ctx, `SELECT at FROM public.test_clock`).Scan(&now); err != nil {
		return time.Time{} // nothing is due then
	}
	return now
}

// Three processes attend. At each tick the one that is at it is killed: before the commit, and with the commit on its
// way. Each tick is one run with one job all the same.
func TestScheduleTicksOutliveTheirProcess(t *testing.T) {
	t.Parallel()
	const ticks = 24
	b := setupSchedules(t)
	spec := minutely("a")
	s := b.schedule(spec)
	b.exec(`CREATE TABLE public.test_clock AS SELECT $1::timestamptz AS at`, s.NextTick.Add(-time.Second))
	b.exec(`GRANT SELECT ON public.test_clock TO PUBLIC`)
	// Whoever makes a run is held up: at even minutes before its statements end, at odd ones in its commit.
	b.exec(`
		CREATE FUNCTION public.hold_up() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF extract(minute FROM NEW.tick)::integer % 2 = TG_ARGV[0]::integer THEN
				PERFORM pg_sleep(0.1);
			END IF;
			RETURN NULL;
		END
		$$`)
	b.exec(`CREATE TRIGGER early AFTER INSERT ON medianest.schedule_run FOR EACH ROW EXECUTE FUNCTION public.hold_up(0)`)
	b.exec(`
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON medianest.schedule_run DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION public.hold_up(1)`)

	children := map[string]*exec.Cmd{}
	born := 0
	start := func() {
		exe, err := os.Executable()
		require.NoError(t, err)
		born++
		name := fmt.Sprintf("child-%d", born)
		cmd := exec.Command(exe, beScheduler, b.url, name)
		cmd.Stderr = t.Output()
		require.NoError(t, cmd.Start())
		children[name] = cmd
	}
	kill := func(name string) {
		require.NoError(t, children[name].Process.Kill())
		_ = children[name].Wait() // it says that it was killed
		delete(children, name)
	}
	t.Cleanup(func() {
		for name := range children {
			kill(name)
		}
	})
	for range 3 {
		start()
	}

	killed := 0
	for tick := range ticks {
		now := s.NextTick.Add(time.Duration(tick) * time.Minute)
		b.exec(`UPDATE public.test_clock SET at = $1`, now)
		mayDie := true
		require.Eventually(t, func() bool {
			if mayDie {
				var holder string
				err := b.pool.QueryRow(t.Context(), `
					SELECT coalesce(max(application_name), '')
					FROM pg_stat_activity
					WHERE datname = current_database() AND wait_event = 'PgSleep'`).Scan(&holder)
				if err == nil && children[holder] != nil {
					mayDie = false
					killed++
					kill(holder)
					start()
				}
			}
			return b.reload(s).NextTick.After(now)
		}, time.Minute, 2*time.Millisecond, "tick %d", tick)
		b.setJob(b.lastJob(s), "completed")
	}
	t.Logf("%d of %d ticks had their process killed", killed, ticks)
	require.Greater(t, killed, ticks/2)
	require.Equal(t, ticks, b.count(`SELECT count(*) FROM medianest.schedule_run WHERE job_id IS NOT NULL`))
	require.Equal(t, ticks, b.count(`SELECT count(DISTINCT tick) FROM medianest.schedule_run`))
	require.Equal(t, ticks, b.jobs())
}
