package queue_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
)

// fill puts jobs into the database that wait, of which each has two of 2 × keys keys, so that all pairs differ: user u
// wishes from all hosts in turn, beginning with host u.
func (y *yard) fill(t testing.TB, jobs, keys int) {
	t.Helper()
	// Without triggers, which would take most of the time.
	err := pgx.BeginFunc(t.Context(), y.owner, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `SET LOCAL session_replication_role = replica`)
		if err == nil {
			_, err = tx.Exec(t.Context(), `
				WITH waiting AS (
					INSERT INTO river.river_job (kind, args, queue, state, metadata)
					SELECT 'synthetic', '{"n": 0}', 'test', 'pending', jsonb_build_object('keys', jsonb_build_array(
						format('host:%s', (n + n / $2) % $2), format('user:%s', n % $2)))
					FROM generate_series(0, $1 - 1) AS n
					RETURNING id, queue, priority, scheduled_at, medianest.admission_keys(metadata) AS keys
				)
				INSERT INTO medianest.admission (row_id, queue, priority, keys, user_key, scheduled_at)
				SELECT id, queue, priority, keys, keys[2], scheduled_at FROM waiting`, jobs, keys)
		}
		return err
	})
	require.NoError(t, err)
	y.vacuum(t)
}

func (y *yard) vacuum(t testing.TB) {
	t.Helper()
	_, err := y.owner.Exec(t.Context(), `VACUUM ANALYZE river.river_job, medianest.admission`)
	require.NoError(t, err)
}

// cost is what a statement read, by EXPLAIN (ANALYZE, BUFFERS).
type cost struct {
	Buffers int
	Rows    float64 // the most that any node of the plan returned or threw away, in all of its loops
	Time    time.Duration
	Scans   []string // whole tables read
}

type planNode struct {
	NodeType    string     `json:"Node Type"`
	Relation    string     `json:"Relation Name"`
	Rows        float64    `json:"Actual Rows"`
	Loops       float64    `json:"Actual Loops"`
	Removed     float64    `json:"Rows Removed by Filter"`
	SharedHit   int        `json:"Shared Hit Blocks"`
	SharedRead  int        `json:"Shared Read Blocks"`
	Plans       []planNode `json:"Plans"`
	LocalBlocks int        `json:"Local Hit Blocks"`
}

func explainIn(t *testing.T, tx pgx.Tx, sql string, args ...any) cost {
	t.Helper()
	var raw []byte
	require.NoError(t, tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+sql, args...).Scan(&raw))
	var plans []struct {
		Plan planNode
		Time float64 `json:"Execution Time"`
	}
	require.NoError(t, json.Unmarshal(raw, &plans))
	c := cost{Time: time.Duration(plans[0].Time * float64(time.Millisecond))}
	c.Buffers = plans[0].Plan.SharedHit + plans[0].Plan.SharedRead
	var walk func(n planNode)
	walk = func(n planNode) {
		c.Rows = max(c.Rows, (n.Rows+n.Removed)*n.Loops)
		if n.NodeType == "Seq Scan" && (n.Relation == "river_job" || n.Relation == "admission") {
			c.Scans = append(c.Scans, n.Relation)
		}
		for _, p := range n.Plans {
			walk(p)
		}
	}
	walk(plans[0].Plan)
	return c
}

// With 100,000 jobs waiting over 1,000 keys, what a round reads goes by the keys and users, not by the jobs.
func TestRoundReadsWhatItNeeds(t *testing.T) {
	t.Parallel()

	const jobs, keys, slots = 100_000, 500, 80
	y := setupYard(t)
	y.slots(t, "test", slots)
	y.limit(t, "host:*", 1)
	y.limit(t, "user:*", 1)
	y.fill(t, jobs, keys)
	begun := time.Now()
	d, err := y.admission.Round(t.Context())
	require.NoError(t, err)
	require.Equal(t, slots, d.Admitted)
	t.Logf("first round: %+v in %s", d, time.Since(begun))

	// Each statement of the next round, in which a slot has freed, and what each may read.
	held := y.rows(t, "available")
	y.fetch(t, held[0])
	y.end(t, held[0])
	tx, err := y.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), queue.BeginSQL, int64(1), "3s")
	require.NoError(t, err)
	waiting := y.rows(t, "pending")[:1]
	blocked := y.rows(t, "pending")[100:400]
	marks := make([]string, len(blocked))
	for i := range marks {
		marks[i] = fmt.Sprintf("host:%d", i)
	}
	lanes := func(key string) []any {
		return []any{pgx.StrictNamedArgs{"queue": "test", "sources": []string{key}, "each": 1}}
	}
	for _, c := range []struct {
		name    string
		sql     string
		args    []any
		buffers int
		rows    float64
	}{
		{"state", queue.StateSQL, nil, 400, 4 * slots},
		{"uses", queue.UsesSQL, nil, 200, 2 * keys},
		{"breakers", queue.BreakersSQL, nil, 10, 1},
		{"sources", queue.SourcesSQL, nil, 8 * keys, 2 * keys},
		{"heads", queue.HeadsSQL, lanes(""), 20 * keys, 2 * keys},
		{"heads of one key", queue.HeadsSQL, lanes("host:7"), 20 * keys, 2 * keys},
		{"promote one", queue.PromoteSQL, []any{waiting}, 60, 2},
		{"mark 300", queue.MarkSQL, []any{blocked, marks}, 60 * len(blocked), 2 * float64(len(blocked))},
		{"take back", queue.TakeBackSQL, []any{pgx.StrictNamedArgs{"value": "host:7", "n": 1}}, 600, 2 * slots},
	} {
		got := explainIn(t, tx, c.sql, c.args...)
		t.Logf("%-16s %6d buffers %6.0f rows %s", c.name, got.Buffers, got.Rows, got.Time)
		require.Empty(t, got.Scans, c.name)
		require.LessOrEqual(t, got.Buffers, c.buffers, c.name)
		require.LessOrEqual(t, got.Rows, c.rows, c.name)
	}
	require.NoError(t, tx.Rollback(t.Context()))
	begun = time.Now()
	d, err = y.admission.Round(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, d.Admitted)
	require.Less(t, d.Examined, 2*keys)
	t.Logf("next round: %+v in %s", d, time.Since(begun))

	// All of them blocked, each on its host.
	y.exec(t, `UPDATE medianest.admission SET blocked_on = keys[1] WHERE admitted_at IS NULL`)
	y.vacuum(t)
	y.limit(t, "host:*", 0)
	y.limit(t, "host:7", 1000)
	tx, err = y.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), queue.BeginSQL, int64(1), "3s")
	require.NoError(t, err)
	got := explainIn(t, tx, queue.SourcesSQL)
	t.Logf("sources, all blocked %6d buffers %6.0f rows %s", got.Buffers, got.Rows, got.Time)
	require.Empty(t, got.Scans)
	require.LessOrEqual(t, got.Buffers, 8*keys)
	require.LessOrEqual(t, got.Rows, 2.0*keys)
	require.NoError(t, tx.Rollback(t.Context()))
	y.exec(t, `UPDATE river.river_job SET state = 'cancelled', finalized_at = now() WHERE state = 'available'`)
	begun = time.Now()
	d, err = y.admission.Round(t.Context())
	require.NoError(t, err)
	require.Equal(t, slots, d.Admitted, "of the one host that is open")
	require.LessOrEqual(t, d.Examined, keys)
	t.Logf("round of one host: %+v in %s", d, time.Since(begun))

	tx, err = y.owner.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	got = explainIn(t, tx, queue.WaitingSQL, 10_001)
	require.Empty(t, got.Scans, "the metric reads a bounded part of the index")
	require.LessOrEqual(t, got.Rows, 110_000.0)
}

// Jobs of which nearly none can go are looked at once, a bounded number in each round, and then no more.
func TestBlockedJobsAreLookedAtOnce(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 10)
	y.limit(t, "host:stopped", 0)
	y.exec(t, `
		INSERT INTO river.river_job (kind, args, queue, metadata)
		SELECT 'synthetic', '{"n": 0}', 'test', jsonb_build_object('keys', jsonb_build_array('host:stopped', 'user:1'))
		FROM generate_series(1, 9000)`)
	last := y.add(t, 1, "host:free", "user:1")[0]
	examined, rounds := 0, 0
	for d := (queue.Decision{}); rounds == 0 || d.Again <= 0; rounds++ {
		begun := time.Now()
		var err error
		d, err = y.admission.Round(t.Context())
		require.NoError(t, err)
		require.LessOrEqual(t, d.Examined, 2*queue.MaxExamined)
		examined += d.Examined
		t.Logf("%+v in %s", d, time.Since(begun))
	}
	require.Equal(t, 9001, examined)
	require.Equal(t, []int64{last}, y.rows(t, "available"), "behind all of those")
	d, err := y.admission.Round(t.Context())
	require.NoError(t, err)
	require.Zero(t, d.Examined)
}
