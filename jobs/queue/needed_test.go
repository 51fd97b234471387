package queue_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
)

// needed is how many slots would be of use in a queue, as a client says that has not been asked before.
func (y *yard) needed(t *testing.T, name string) (n int64, atLeast bool) {
	t.Helper()
	fresh := assembleAt(t, y.url, nil, func(o *queue.Options) { o.Queues, o.Workers = nil, nil })
	list, err := fresh.Statistics(t.Context())
	require.NoError(t, err)
	for _, q := range list {
		if q.Queue == name {
			return q.NeededSlots, q.AtLeast
		}
	}
	return 0, false
}

// What would be of use is what would run if there were slots for all: it is told before a slot is there, and does not depend
// on how many there are.
func TestNeededSlots(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	requireNeeded := func(want int64, why string) {
		t.Helper()
		n, atLeast := y.needed(t, "test")
		require.Equal(t, want, n, why)
		require.False(t, atLeast)
	}
	requireNeeded(0, "nothing there")
	for host := range 4 {
		y.limit(t, fmt.Sprintf("host:%d", host), host) // 0, 1, 2, 3
	}
	for user := range 3 {
		for host := range 4 {
			y.add(t, 5, fmt.Sprintf("host:%d", host), fmt.Sprintf("user:%d", user))
		}
	}
	requireNeeded(6, "0 + 1 + 2 + 3, and nobody works yet")
	y.limit(t, "user:*", 1)
	requireNeeded(3, "one of each user")
	y.limit(t, "user:2", 9)
	requireNeeded(6, "one of two users, and what is left of hosts for the third")
	y.limit(t, "user:*", -1)
	y.exec(t, `INSERT INTO medianest.pause (key) VALUES ('host:3')`)
	requireNeeded(3, "a paused host")
	y.exec(t, `INSERT INTO medianest.breaker (key, open_until) VALUES ('host:2', now() + interval '1 hour')`)
	requireNeeded(1, "and a tripped one")
	y.exec(t, `UPDATE medianest.breaker SET open_until = now() - interval '1 s'`)
	requireNeeded(2, "whose probe may begin")
	y.exec(t, `DELETE FROM medianest.pause`)
	y.exec(t, `DELETE FROM medianest.breaker`)

	y.slots(t, "test", 4)
	admitted := y.round(t)
	require.Len(t, admitted, 4)
	requireNeeded(6, "those that are about to begin among them")
	y.fetch(t, admitted...)
	requireNeeded(6, "and those that run")
	_, err := y.River().InsertMany(t.Context(), []river.InsertManyParams{
		{Args: synthetic{}, InsertOpts: &river.InsertOpts{Queue: "test"}}, {Args: synthetic{}, InsertOpts: &river.InsertOpts{Queue: "test"}}})
	require.NoError(t, err)
	requireNeeded(8, "jobs without keys")
	y.exec(t, `INSERT INTO medianest.pause (key) VALUES ('queue:test')`)
	requireNeeded(6, "four that run; those without keys are River's to hold")
}

// A queue's numbers cost by what can begin, and a bounded look besides, however many jobs wait.
func TestStatisticsAreCheapAtManyJobs(t *testing.T) {
	t.Parallel()
	const jobs, keys = 100_000, 1000

	y := setupYard(t)
	y.slots(t, "test", 20)
	y.exec(t, `INSERT INTO medianest.limits (key, max_running) VALUES ('host:*', 1)`)
	y.exec(t, `
		INSERT INTO river.river_job (kind, args, queue, state, max_attempts, metadata)
		SELECT 'synthetic', '{}', 'test', 'available', 3, jsonb_build_object('keys', ARRAY['host:' || n % $2::int, 'user:' || n % 50])
		FROM generate_series(1, $1::int) AS n`, jobs, keys)
	y.exec(t, `VACUUM (ANALYZE) medianest.admission, river.river_job`)
	begun := time.Now()
	n, atLeast := y.needed(t, "test")
	took := time.Since(begun)
	t.Logf("%d slots would be of use, found in %s", n, took)
	require.True(t, atLeast, "of the many not all are looked at")
	require.GreaterOrEqual(t, n, int64(keys*8/10), "one of nearly each host")
	require.LessOrEqual(t, n, int64(keys))
	require.Less(t, took, 10*time.Second)

	// Once rounds have seen what is blocked, that is not looked at.
	y.exec(t, `UPDATE medianest.admission SET blocked_on = keys[1] WHERE admitted_at IS NULL AND row_id % 3 <> 0`)
	y.exec(t, `UPDATE medianest.limits SET max_running = 0`)
	n, _ = y.needed(t, "test")
	require.Zero(t, n)
}

func BenchmarkStatistics(b *testing.B) {
	y := newYard(b, assembleBench(b))
	_, err := y.owner.Exec(b.Context(), `INSERT INTO medianest.limits (key, max_running) VALUES ('host:*', 1)`)
	require.NoError(b, err)
	for range 20 { // a statement has half a minute
		_, err = y.owner.Exec(b.Context(), `
			INSERT INTO river.river_job (kind, args, queue, state, max_attempts, metadata)
			SELECT 'synthetic', '{}', 'test', 'available', 3, jsonb_build_object('keys', ARRAY['host:' || n % 1000, 'user:' || n % 50])
			FROM generate_series(1, 50000) AS n`)
		require.NoError(b, err)
	}
	_, err = y.owner.Exec(b.Context(), `VACUUM (ANALYZE) medianest.admission, river.river_job`)
	require.NoError(b, err)
	for b.Loop() {
		_, err := queue.QueryFleet(context.Background(), y.pool)
		require.NoError(b, err)
	}
}
