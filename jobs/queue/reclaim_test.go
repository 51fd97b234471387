package queue_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
)

// run makes rows running ones, of the workers named.
func (b *bundle) run(t *testing.T, id int64, attempt int, by ...string) {
	t.Helper()
	b.exec(t, `UPDATE river.river_job SET state = 'running', attempt = $2, attempted_at = now(), attempted_by = $3 WHERE id = $1`, id, attempt, by)
}

// note merges metadata into a row.
func (b *bundle) note(t *testing.T, id int64, metadata string) {
	t.Helper()
	b.exec(t, `UPDATE river.river_job SET metadata = metadata || $2::jsonb WHERE id = $1`, id, metadata)
}

// current is the row that stands for the job with the public id.
func (b *bundle) current(t *testing.T, public int64) *rivertype.JobRow {
	t.Helper()
	row := public
	err := b.owner.QueryRow(t.Context(), `SELECT row_id FROM medianest.job_map WHERE public_id = $1`, public).Scan(&row)
	if err != nil {
		require.ErrorIs(t, err, pgx.ErrNoRows)
	}
	return b.job(t, row)
}

// waitCurrent waits until the row that stands for a job is in the state.
func (b *bundle) waitCurrent(t *testing.T, public int64, state rivertype.JobState) *rivertype.JobRow {
	t.Helper()
	var row *rivertype.JobRow
	require.Eventually(t, func() bool {
		row = b.current(t, public)
		return row.State == state
	}, 90*time.Second, 10*time.Millisecond, "job %d never was %s", public, state) // one that is stopped in a transaction holds its locks for 30 s
	return row
}

func metadata(t *testing.T, row *rivertype.JobRow) map[string]any {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal(row.Metadata, &m))
	return m
}

// topics are the workers' events, in order.
func (b *bundle) topics(t *testing.T) []string {
	t.Helper()
	rows, err := b.owner.Query(t.Context(), `
		SELECT topic || ' ' || (worker ->> 'id')
		FROM medianest.event
		WHERE topic LIKE 'worker.%'
		ORDER BY id`)
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return found
}

// A process that was killed left its jobs running; the next one with its ID has them go on at once.
func TestTakeBack(t *testing.T) {
	t.Parallel()

	registry := prometheus.NewRegistry()
	b := assemble(t, func(context.Context, *river.Job[synthetic]) error { return nil },
		func(o *queue.Options) { o.Registerer = registry })
	b.exec(t, `
		INSERT INTO medianest.worker (id, mode, host, version, expires_at)
		VALUES ($1, 'up', 'here', 'v1', now() + interval '20 s'), ('somebody', 'work', 'there', 'v1', now() + interval '20 s')`, t.Name())

	ids := b.insert(t, river.InsertOpts{MaxAttempts: 3, Priority: 2, Tags: []string{"kept"}}, make([]synthetic, 9)...)
	fresh, last, cancelled, others, waiting, often := ids[0], ids[1], ids[2], ids[3], ids[4], ids[5]
	again, retried, seldom := ids[6], ids[7], ids[8]
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	b.run(t, fresh, 1, "somebody", t.Name())
	b.note(t, fresh, `{"checkpoint": 7, "reason": "disk_full", "reason_attempt": "1"}`)
	b.exec(t, `UPDATE river.river_job SET unique_key = 'key', unique_states = B'11111111' WHERE id = $1`, fresh)
	b.run(t, last, 3, t.Name())
	b.run(t, cancelled, 1, t.Name())
	b.note(t, cancelled, `{"cancel_attempted_at": "2026-01-01T00:00:00Z"}`)
	b.run(t, others, 1, t.Name(), "somebody")
	b.run(t, often, 2, t.Name())
	b.note(t, often, fmt.Sprintf(`{"losses": 4, "lost_attempt": 2, "lost_at": %d}`, ago(50*time.Minute)))
	b.run(t, again, 2, t.Name())
	b.note(t, again, fmt.Sprintf(`{"losses": 4, "lost_attempt": 1, "lost_at": %d}`, ago(time.Minute))) // of another attempt
	b.run(t, seldom, 2, t.Name())
	b.note(t, seldom, fmt.Sprintf(`{"losses": 4, "lost_attempt": 2, "lost_at": %d}`, ago(70*time.Minute)))
	b.run(t, retried, 1, t.Name())
	b.note(t, retried, `{"superseded_by": "1"}`) // made available by hand, and fetched

	before := b.job(t, fresh)
	n, err := b.TakeBack(t.Context())
	require.NoError(t, err)
	require.Equal(t, 7, n)

	old, next := b.job(t, fresh), b.current(t, fresh)
	require.NotEqual(t, old.ID, next.ID)
	require.Equal(t, rivertype.JobStateDiscarded, old.State)
	require.NotNil(t, old.FinalizedAt)
	require.Equal(t, strconv.FormatInt(next.ID, 10), metadata(t, old)["superseded_by"])
	require.Nil(t, old.UniqueKey)
	require.Equal(t, rivertype.JobStateAvailable, next.State)
	require.Nil(t, next.FinalizedAt)
	require.Zero(t, next.Attempt)
	require.Equal(t, before.UniqueKey, next.UniqueKey)
	told := metadata(t, next)
	require.InDelta(t, time.Now().Unix(), told["lost_at"], 60)
	require.Equal(t, map[string]any{
		"public_id": strconv.FormatInt(fresh, 10), "losses": 1.0, "lost_attempt": 1.0, "lost_at": told["lost_at"], "checkpoint": 7.0,
	}, told)
	require.Len(t, next.Errors, 1)
	require.Equal(t, "worker_lost: The worker "+t.Name()+" was lost; the job goes on elsewhere.", next.Errors[0].Error)
	require.Equal(t, 1, next.Errors[0].Attempt)
	require.JSONEq(t, string(before.EncodedArgs), string(next.EncodedArgs))
	require.Equal(t,
		[]any{before.Kind, before.Queue, 2, 3, before.Tags, before.CreatedAt, before.ScheduledAt, before.AttemptedBy},
		[]any{next.Kind, next.Queue, next.Priority, next.MaxAttempts, next.Tags, next.CreatedAt, next.ScheduledAt, next.AttemptedBy})
	require.Equal(t, []event{{"available", 0, ""}, {"running", 1, ""}, {"available", 0, ""}}, b.events(t, fresh))
	require.Empty(t, b.events(t, next.ID), "nobody sees the row's number")

	require.Equal(t, 2, b.current(t, last).Attempt, "a loss costs no attempt, not even the last one")
	require.Equal(t, rivertype.JobStateCancelled, b.current(t, cancelled).State)
	require.Equal(t, cancelled, b.current(t, cancelled).ID)
	require.Equal(t, event{"cancelled", 1, string(reason.Cancelled)}, b.events(t, cancelled)[2])
	require.Equal(t, rivertype.JobStateRunning, b.current(t, others).State)
	require.Equal(t, rivertype.JobStateAvailable, b.job(t, waiting).State)
	require.Equal(t, often, b.current(t, often).ID)
	require.Equal(t, event{"discarded", 2, string(reason.PoisonPill)}, b.events(t, often)[2])
	require.Equal(t, "poison_pill: "+reason.PoisonPill.Sentence(), b.job(t, often).Errors[0].Error)
	require.Equal(t, 1.0, metadata(t, b.current(t, again))["losses"])
	require.Equal(t, 1.0, metadata(t, b.current(t, seldom))["losses"], "the last loss is long ago")
	require.Equal(t, retried, b.current(t, retried).ID, "a superseded row has no further successor")
	require.Equal(t, rivertype.JobStateDiscarded, b.job(t, retried).State)

	require.Equal(t, []string{"worker.joined " + t.Name(), "worker.joined somebody", "worker.lost " + t.Name()}, b.topics(t))
	require.Equal(t, map[string]float64{"resumed": 4, "cancelled": 1, "quarantined": 1, "dropped": 1},
		gather(t, registry, "medianest_jobs_reclaimed_total"))
	lines := b.logs.find("worker lost")
	require.Len(t, lines, 1)
	require.Equal(t, slog.LevelWarn, lines[0].level)
	require.Equal(t, []any{t.Name(), "up", "here", int64(7)},
		[]any{lines[0].attrs["client_id"], lines[0].attrs["mode"], lines[0].attrs["host"], lines[0].attrs["jobs"]})
	require.Equal(t, []int64{fresh, last, cancelled, often, again, retried, seldom}, lines[0].attrs["job_ids"])

	// Lost once more, the job is still the one that it was.
	b.run(t, next.ID, 1, t.Name())
	n, err = b.TakeBack(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	third := b.current(t, fresh)
	require.NotEqual(t, next.ID, third.ID)
	require.Equal(t, fresh, queue.PublicID(third))
	require.Equal(t, 2.0, metadata(t, third)["losses"])

	n, err = b.TakeBack(t.Context())
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, b.Start(t.Context()))
	require.Equal(t, 1, b.waitCurrent(t, fresh, rivertype.JobStateCompleted).Attempt)
	require.Equal(t, 3, b.waitCurrent(t, last, rivertype.JobStateCompleted).Attempt)
	for _, l := range b.logs.find("job ended") {
		if l.attrs["job_id"] == fresh {
			require.Equal(t, third.ID, l.attrs["row_id"])
		}
	}
	_, err = b.TakeBack(t.Context())
	require.Error(t, err)
	require.NoError(t, b.Stop(t.Context()))
}

// More than fit into one transaction.
func TestTakeBackOfMany(t *testing.T) {
	t.Parallel()

	b := assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers = nil, nil })
	b.exec(t, `
		INSERT INTO river.river_job (kind, args, queue, state, attempt, attempted_at, attempted_by)
		SELECT 'synthetic', '{}'::jsonb, 'test', 'running', 1, now(), ARRAY[$1] FROM generate_series(1, 1200)`, t.Name())
	n, err := b.TakeBack(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1200, n)
	var available, mapped int
	require.NoError(t, b.owner.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM river.river_job WHERE state = 'available'), (SELECT count(*) FROM medianest.job_map)`).Scan(&available, &mapped))
	require.Equal(t, []int{1200, 1200}, []int{available, mapped})
}

// River UI and others let one retry a superseded row, as they do any. It stays as it is: available again, it would become
// a twin of its job.
func TestSupersededRowStaysFinal(t *testing.T) {
	t.Parallel()

	b := assemble(t, nil, nil)
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	b.run(t, id, 1, t.Name())
	_, err := b.TakeBack(t.Context())
	require.NoError(t, err)
	old, events := b.job(t, id), b.events(t, id)
	row, err := b.River().JobRetry(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, old, row, "as it is, and no error")
	row, err = b.River().JobCancel(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, rivertype.JobStateDiscarded, row.State)
	// By hand, with what else River would not do; among others, which it does not keep from anything.
	other := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	for _, state := range []string{"available", "pending", "scheduled", "retryable", "running", "completed"} {
		b.exec(t, `UPDATE river.river_job SET state = $1::text::river.river_job_state,
			finalized_at = CASE WHEN $1 = 'completed' THEN now() END WHERE id = ANY ($2)`, state, []int64{id, other})
		require.Equal(t, old, b.job(t, id), state)
		require.EqualValues(t, state, b.job(t, other).State)
	}
	require.Equal(t, events, b.events(t, id))
	// It goes when its time has come.
	row, err = b.River().JobDelete(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, id, row.ID)
}

// A row that became available before the database kept superseded ones final is not worked.
func TestSupersededRowIsNotWorked(t *testing.T) {
	t.Parallel()

	worked := make(chan int64, 10)
	b := assemble(t, func(_ context.Context, job *river.Job[synthetic]) error {
		worked <- job.ID
		return nil
	}, nil)
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	b.run(t, id, 1, t.Name())
	_, err := b.TakeBack(t.Context())
	require.NoError(t, err)
	require.NoError(t, pgx.BeginFunc(t.Context(), b.owner, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `SET LOCAL session_replication_role = replica`) // without triggers
		if err == nil {
			_, err = tx.Exec(t.Context(), `UPDATE river.river_job SET state = 'available', finalized_at = NULL WHERE id = $1`, id)
		}
		return err
	}))
	require.NoError(t, b.Start(t.Context()))
	next := b.waitCurrent(t, id, rivertype.JobStateCompleted)
	b.waitState(t, id, rivertype.JobStateCancelled)
	require.Equal(t, next.ID, <-worked)
	require.Empty(t, worked)
	require.Equal(t, []event{
		{"available", 0, ""}, {"running", 1, ""}, {"available", 0, ""}, {"running", 1, ""}, {"completed", 1, ""},
	}, b.events(t, id))
	require.NoError(t, b.Stop(t.Context()))
}

// Jobs are taken from who is known to be gone, and from who has had them for its TTL without naming them: its own TTL,
// which may be another than that of who looks. Of who has no presence nothing is known.
func TestWhoseRowsAreReclaimed(t *testing.T) {
	t.Parallel()

	b := assemble(t, nil, func(o *queue.Options) {
		named("reclaimer")(o)
		o.Queues, o.Workers = nil, nil
	})
	type row struct {
		worker  string
		age     time.Duration
		taken   bool
		running int64
	}
	rows := []row{
		{worker: "older-version", age: 2 * time.Hour},
		{worker: "names-it", age: 2 * time.Hour},
		{worker: "patient", age: 50 * time.Minute},
		{worker: "forgot-it", age: 70 * time.Minute, taken: true},
		{worker: "left", age: time.Minute, taken: true},
		{worker: "lost", age: time.Minute, taken: true},
	}
	ids := b.insert(t, river.InsertOpts{}, make([]synthetic, len(rows))...)
	for i := range rows {
		rows[i].running = ids[i]
		b.run(t, ids[i], 1, rows[i].worker)
		b.exec(t, `UPDATE river.river_job SET attempted_at = now() - $2::interval WHERE id = $1`, ids[i], rows[i].age)
	}
	b.exec(t, `
		INSERT INTO medianest.worker (id, mode, host, version, held, expires_at)
		SELECT w, 'work', 'there', 'v1', CASE WHEN w = 'names-it' THEN ARRAY[$1::bigint] ELSE '{}' END, now() + interval '1 h'
		FROM unnest('{names-it,patient,forgot-it,left,lost}'::text[]) AS w`, rows[1].running)
	b.exec(t, `UPDATE medianest.worker SET gone_at = now() WHERE id = 'left'`)
	b.exec(t, `UPDATE medianest.worker SET renewed_at = now() - interval '1 h', expires_at = now() WHERE id = 'lost'`)
	b.start(t)
	b.waitCurrent(t, rows[5].running, rivertype.JobStateAvailable) // and with it, all that are taken
	for _, r := range rows {
		require.Equal(t, r.taken, b.current(t, r.running).ID != r.running, r.worker)
	}
	topics := b.topics(t)
	require.Equal(t, []string{"worker.joined reclaimer", "worker.lost lost"}, topics[len(topics)-2:])
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM medianest.worker WHERE id = 'lost' AND gone_at IS NOT NULL`))

	// Who leaves has no jobs; those that ignored their end are nobody's. Who went without a word is found out.
	other := assembleAt(t, b.url, nil, func(o *queue.Options) {
		o.ID, o.Queues, o.Workers = "older-version", nil, nil
	})
	require.NoError(t, other.Start(t.Context()))
	require.NoError(t, other.Stop(t.Context()))
	b.waitCurrent(t, rows[0].running, rivertype.JobStateAvailable)
}

// Reclaiming must not read the rows that do not run, and those that do only once, also when the statistics know of none.
func TestReclaimScansNothing(t *testing.T) {
	t.Parallel()

	b := assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers = nil, nil })
	b.exec(t, `ALTER TABLE river.river_job SET (autovacuum_enabled = off)`)
	b.exec(t, `
		INSERT INTO river.river_job (kind, args, queue, state, finalized_at)
		SELECT 'synthetic', '{}'::jsonb, 'test', 'completed'::river.river_job_state, now() FROM generate_series(1, 20000)
		UNION ALL
		SELECT 'synthetic', '{}'::jsonb, 'test', 'available', NULL::timestamptz FROM generate_series(1, 20000)`)
	b.exec(t, `VACUUM ANALYZE river.river_job`)
	const running, workers = 6000, 300
	b.exec(t, `
		WITH made AS (
			INSERT INTO river.river_job (kind, args, queue, state, attempt, attempted_at, attempted_by)
			SELECT 'synthetic', '{}', 'test', 'running', 1, now() - interval '1 h', ARRAY['worker-' || n % $2::int]
			FROM generate_series(1, $1::int) AS n
			RETURNING id, attempted_by[1] AS worker
		)
		INSERT INTO medianest.worker (id, mode, host, version, held, expires_at)
		SELECT worker, 'work', 'host', 'v1', array_agg(id), now() + interval '25 s'
		FROM made
		GROUP BY worker`, running, workers)
	args := func(only any) pgx.StrictNamedArgs {
		return pgx.StrictNamedArgs{
			"only": only, "batch": 500, "max_losses": 5, "poison_pill": "", "quarantined": "", "window": 3600.0,
		}
	}
	check := func(name, sql string, args pgx.StrictNamedArgs, bound float64) {
		t.Helper()
		plan, read := b.explain(t, sql, args)
		require.NotRegexp(t, `"Node Type": "Seq Scan",[^}]*"Relation Name": "river_job"`, plan, name)
		require.LessOrEqual(t, read, bound, "%s: %s", name, plan)
	}
	// Each node of a plan counts what it returns and what it throws away: a handful of nodes see all that runs.
	check("nobody is lost", queue.ReclaimSQL, args(nil), 10*running)
	check("look", queue.LookSQL, pgx.StrictNamedArgs{"rows": []int64{1, 2, 3}, "worker": "w"}, 100)
	check("own", queue.ReclaimSQL, args("worker-7"), 10*running)
	b.exec(t, `UPDATE medianest.worker SET gone_at = now(), expires_at = now()`)
	check("all are lost", queue.ReclaimSQL, args(nil), 10*running)
}

// explain runs a statement to no effect, and returns its plan and how many rows went through the plan's nodes.
func (b *bundle) explain(t *testing.T, sql string, args pgx.StrictNamedArgs) (text string, read float64) {
	t.Helper()
	tx, err := b.owner.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.Background())) }()
	if sql == queue.ReclaimSQL {
		_, err = tx.Exec(t.Context(), queue.PlanSQL)
		require.NoError(t, err)
	}
	require.NoError(t, tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) "+sql, args).Scan(&text))
	type node map[string]any
	var walk func(n node)
	walk = func(n node) {
		loops, _ := n["Actual Loops"].(float64)
		for _, key := range []string{"Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck"} {
			rows, _ := n[key].(float64)
			read += rows * loops
		}
		below, _ := n["Plans"].([]any)
		for _, p := range below {
			walk(p.(map[string]any))
		}
	}
	var plans []struct{ Plan node }
	require.NoError(t, json.Unmarshal([]byte(text), &plans))
	walk(plans[0].Plan)
	return text, read
}

func TestPublicID(t *testing.T) {
	t.Parallel()

	for metadata, want := range map[string]int64{
		`{}`: 7, ``: 7, `{"public_id": "3"}`: 3, `{"public_id": 3}`: 7, `{"public_id": "x"}`: 7, `{"public_id": "-3"}`: 7,
		`{"other": "public_id"}`: 7, `{"public_id": "99999999999999999999"}`: 7, `not json "public_id"`: 7,
	} {
		require.Equal(t, want, queue.PublicID(&rivertype.JobRow{ID: 7, Metadata: []byte(metadata)}), metadata)
	}
}
