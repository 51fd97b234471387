package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// admissionLock is what processes agree on that decide about admission. Arbitrary; must never change.
	admissionLock = 7239610442311

	// maxExamined bounds the waiting jobs that one round looks at, besides the first of each user, and with them how
	// long it takes. The next one follows at once where there are more. maxEach bounds those of one user that are read
	// at a time.
	maxExamined = 2000
	maxEach     = 500

	// maxForgotten bounds the uses that one round deletes.
	maxForgotten = 1000

	admissionTimeout = 10 * time.Second
	admissionIdle    = time.Second           // between rounds that nobody asked for
	admissionBusy    = 25 * time.Millisecond // before the next try when another process decides
	admissionPause   = 5 * time.Millisecond  // after each round: what rings meanwhile is one round

	// admissionStall is how long the database waits for the next statement of a round: a process that was stopped in its
	// midst must not keep the others from deciding.
	admissionStall = "3s"
)

// Admission decides which of the waiting jobs that name keys become available: never more than their keys' limits allow
// at a time or per period, in fair order, and no more than the fleet has free slots for. Every process may run one; a
// lock in the database has them decide one after the other, each on what is there then. A process that dies or stalls
// in a round leaves nothing of it behind.
//
// A round costs by the number of keys and users with jobs that wait, and of jobs that it admits, not by how many wait.
type Admission struct {
	pool    *pgxpool.Pool
	log     *slog.Logger
	bell    chan struct{}
	metrics *admissionMetrics
}

// NewAdmission returns an admission that decides when Run runs. The pool connects as role river.
func NewAdmission(pool *pgxpool.Pool, log *slog.Logger) *Admission {
	return &Admission{pool: pool, log: log, bell: make(chan struct{}, 1), metrics: newAdmissionMetrics()}
}

// Ring has the next round begin now: there is news. It never blocks.
func (a *Admission) Ring() {
	select {
	case a.bell <- struct{}{}:
	default:
	}
}

// Run decides, when rung, when something becomes possible by time, and now and then, until ctx ends. It returns nil.
func (a *Admission) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.bell:
		case <-timer.C:
		}
		again, err := a.round(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			if !failing {
				a.log.WarnContext(ctx, "admission fails, trying again", "err", err)
			}
			failing = true
		case failing && err == nil:
			a.log.InfoContext(ctx, "admission works again")
			failing = false
		}
		timer.Reset(admissionPause)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		timer.Reset(max(again-admissionPause, 0))
	}
}

// round decides once, and returns after how long the next round has something to do at the latest.
func (a *Admission) round(ctx context.Context) (time.Duration, error) {
	ctx, stop := context.WithTimeoutCause(ctx, admissionTimeout, errTooLong)
	defer stop()
	begun := time.Now()
	var d decision
	err := pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) (err error) {
		d, err = decide(ctx, tx)
		return err
	})
	switch {
	case errors.Is(err, errNotUs):
		a.metrics.note("standby", time.Since(begun), decision{})
		return admissionBusy, nil
	case err != nil:
		a.metrics.note("failed", time.Since(begun), decision{})
		return admissionIdle, fmt.Errorf("admit jobs: %w", err)
	}
	a.metrics.note("decided", time.Since(begun), d)
	return min(d.again, admissionIdle), nil
}

// decision is what a round did.
type decision struct {
	again    time.Duration // when the next one has something to do, by what is known now
	admitted int
	demoted  int
	examined int
}

var errNotUs = errors.New("another process decides")

// decide is a round in its transaction.
func decide(ctx context.Context, tx pgx.Tx) (d decision, err error) {
	t, sources, err := look(ctx, tx)
	if err != nil {
		return d, err
	}
	if d.demoted, err = demote(ctx, tx, t); err != nil {
		return d, err
	}
	more := false
	for queue, keys := range sources {
		admitted, examined, err := fill(ctx, tx, t, queue, keys)
		if err != nil {
			return d, err
		}
		d.admitted += admitted
		d.examined += examined
		more = more || examined >= maxExamined
	}
	if err := forget(ctx, tx, t); err != nil {
		return d, err
	}
	d.again = admissionIdle
	switch {
	case more:
		d.again = 0
	case !t.wake.IsZero():
		d.again = t.wake.Sub(t.now)
	}
	return d, nil
}

// fill fills a queue's free slots from the jobs that are blocked on none of the keys, or on one that has room.
func fill(ctx context.Context, tx pgx.Tx, t *table, queue string, keys []string) (admitted, examined int, err error) {
	if t.free[queue] <= 0 || !t.room("queue:"+queue) {
		return 0, 0, nil
	}
	// What is held by somebody else stays where it was, and is not looked at again in this round.
	seen := map[int64]bool{}
	for each, last := 1, 0; t.free[queue] > 0 && len(seen) < maxExamined; {
		keys = slices.DeleteFunc(keys, func(key string) bool { return key != "" && !t.room(key) })
		if len(keys) == 0 {
			break
		}
		found, err := heads(ctx, tx, queue, keys, each)
		if err != nil {
			return admitted, len(seen), err
		}
		all := len(found)
		found = slices.DeleteFunc(found, func(w waiting) bool { return seen[w.RowID] })
		if len(found) == 0 && (all <= last || each == maxEach) {
			break
		}
		last = all
		for _, w := range found {
			seen[w.RowID] = true
		}
		t.choose(queue, found)
		n, err := promote(ctx, tx, t)
		if err != nil {
			return admitted, len(seen), err
		}
		admitted += n
		// One of each user is enough where there are many of them. Where what was read did not fill the slots, more of
		// each are read, as long as all of them together are no more than may be examined.
		each = max(1, min(8*each, maxEach, maxExamined/max(1, all/each)))
	}
	return admitted, len(seen), nil
}

// beginSQL takes the lock, and says so. The settings are this transaction's: it may make jobs available; it reads by
// index, whatever the statistics say of tables that are empty at times.
const beginSQL = `
	SELECT CASE
		WHEN pg_try_advisory_xact_lock($1) THEN concat(
			set_config('medianest.admit', 'on', true), set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
			set_config('idle_in_transaction_session_timeout', $2, true)) <> ''
		ELSE false
	END`

// offeredSQL are the slots of queues that workers offer who are there and take jobs: q.value of q.key.
const offeredSQL = `FROM medianest.worker AS w
			CROSS JOIN jsonb_each_text(w.queues) AS q
			WHERE w.expires_at > now() AND w.drain_asked_at IS NULL`

// stateSQL is what a round knows of the fleet: how many slots each queue has, and what holds each key. Workers that
// take no more jobs, and paused queues, have no slots.
const stateSQL = `
	SELECT clock_timestamp() AS now,
		(SELECT coalesce(jsonb_object_agg(s.queue, s.slots), '{}')
		FROM (
			SELECT q.key AS queue, sum(q.value::integer) AS slots
			` + offeredSQL + `
				AND NOT EXISTS (SELECT FROM river.river_queue AS p WHERE p.name = q.key AND p.paused_at IS NOT NULL)
			GROUP BY q.key
		) AS s) AS slots,
		(SELECT coalesce(jsonb_object_agg(h.key, h.n), '{}')
		FROM (
			SELECT k.key, count(*) AS n
			FROM medianest.admission AS a
			CROSS JOIN unnest(
				a.keys || ('queue:' || a.queue) || CASE WHEN a.user_key = '' THEN '{""}'::text[] ELSE '{}' END) AS k (key)
			WHERE a.admitted_at IS NOT NULL
			GROUP BY k.key
		) AS h) AS running`

// sourcesSQL lists, of each queue, the keys that waiting jobs are blocked on, by one index probe each.
const sourcesSQL = `
	WITH RECURSIVE source AS (
		(
			SELECT a.queue, a.blocked_on
			FROM medianest.admission AS a
			WHERE a.admitted_at IS NULL
			ORDER BY a.queue, a.blocked_on
			LIMIT 1
		)
		UNION ALL
		SELECT n.queue, n.blocked_on
		FROM source AS s
		CROSS JOIN LATERAL (
			SELECT a.queue, a.blocked_on
			FROM medianest.admission AS a
			WHERE a.admitted_at IS NULL AND (a.queue, a.blocked_on) > (s.queue, s.blocked_on)
			ORDER BY a.queue, a.blocked_on
			LIMIT 1
		) AS n
	)
	SELECT queue, blocked_on
	FROM source`

const (
	limitsSQL = `
		SELECT key, max_running, max_starts, period_s, spacing_s, jitter_s, medianest.window_opens_at(windows, timezone, now()) AS opens_at
		FROM medianest.limits`
	pausesSQL = `SELECT key FROM medianest.pause`
	usesSQL   = `SELECT key, last_at, next_at, starts FROM medianest.limit_use`
)

// look takes the lock and reads the state. errNotUs if another process is at it.
func look(ctx context.Context, tx pgx.Tx) (*table, map[string][]string, error) {
	var mine bool
	if err := tx.QueryRow(ctx, beginSQL, int64(admissionLock), admissionStall).Scan(&mine); err != nil {
		return nil, nil, err
	}
	if !mine {
		return nil, nil, errNotUs
	}
	return read(ctx, tx)
}

// read reads the state, and which keys waiting jobs are blocked on, by queue.
func read(ctx context.Context, tx pgx.Tx) (*table, map[string][]string, error) {
	t := &table{
		limits: map[string]Limit{}, uses: map[string]*use{}, breakers: map[string]*breaker{},
		paused: map[string]bool{},
		free:   map[string]int{}, blocked: map[int64]string{},
	}
	sources := map[string][]string{}
	var slots map[string]int
	// Statements of their own after the lock: they see what the last holder has committed.
	batch := &pgx.Batch{}
	batch.Queue(stateSQL).QueryRow(func(row pgx.Row) error {
		t.read = time.Now()
		return row.Scan(&t.now, &slots, &t.running)
	})
	batch.Queue(limitsSQL).Query(func(rows pgx.Rows) error {
		list, err := pgx.CollectRows(rows, pgx.RowToStructByName[Limit])
		for _, l := range list {
			t.limits[l.Key] = l
		}
		return err
	})
	batch.Queue(usesSQL).Query(func(rows pgx.Rows) error {
		list, err := pgx.CollectRows(rows, pgx.RowToAddrOfStructByName[use])
		for _, u := range list {
			t.uses[u.Key] = u
		}
		return err
	})
	batch.Queue(breakersSQL).Query(func(rows pgx.Rows) error {
		list, err := pgx.CollectRows(rows, pgx.RowToAddrOfStructByName[breaker])
		for _, b := range list {
			t.breakers[b.Key] = b
		}
		return err
	})
	batch.Queue(pausesSQL).Query(func(rows pgx.Rows) error {
		var key string
		_, err := pgx.ForEachRow(rows, []any{&key}, func() error { t.paused[key] = true; return nil })
		return err
	})
	batch.Queue(sourcesSQL).Query(func(rows pgx.Rows) error {
		var queue, key string
		_, err := pgx.ForEachRow(rows, []any{&queue, &key}, func() error {
			sources[queue] = append(sources[queue], key)
			return nil
		})
		return err
	})
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return nil, nil, err
	}
	for queue, n := range slots {
		t.free[queue] = n - t.running["queue:"+queue]
	}
	for key, n := range t.running {
		if queue, ok := strings.CutPrefix(key, "queue:"); ok && slots[queue] == 0 {
			t.free[queue] = -n // nobody works it
		}
	}
	return t, sources, nil
}

// headsSQL returns the first waiting jobs of each user and priority among those blocked on one of @sources, by two
// index probes for each user.
const headsSQL = `
	WITH RECURSIVE lane AS (
		SELECT f.blocked_on, f.priority, f.user_key
		FROM unnest(@sources::text[]) AS s (key)
		CROSS JOIN LATERAL (
			SELECT a.blocked_on, a.priority, a.user_key
			FROM medianest.admission AS a
			WHERE a.admitted_at IS NULL AND a.queue = @queue AND a.blocked_on = s.key
			ORDER BY a.priority, a.user_key
			LIMIT 1
		) AS f
		UNION ALL
		SELECT l.blocked_on, n.priority, n.user_key
		FROM lane AS l
		CROSS JOIN LATERAL (
			SELECT a.priority, a.user_key
			FROM medianest.admission AS a
			WHERE a.admitted_at IS NULL AND a.queue = @queue AND a.blocked_on = l.blocked_on
				AND (a.priority, a.user_key) > (l.priority, l.user_key)
			ORDER BY a.priority, a.user_key
			LIMIT 1
		) AS n
	)
	SELECT h.row_id, @queue AS queue, l.priority, h.keys, l.user_key, h.scheduled_at, l.blocked_on
	FROM lane AS l
	CROSS JOIN LATERAL (
		SELECT a.row_id, a.keys, a.scheduled_at
		FROM medianest.admission AS a
		WHERE a.admitted_at IS NULL AND a.queue = @queue AND a.blocked_on = l.blocked_on
			AND a.priority = l.priority AND a.user_key = l.user_key AND a.scheduled_at <= now()
		ORDER BY a.scheduled_at, a.row_id
		LIMIT @each
	) AS h`

func heads(ctx context.Context, tx pgx.Tx, queue string, sources []string, each int) ([]waiting, error) {
	rows, err := tx.Query(ctx, headsSQL, pgx.StrictNamedArgs{"queue": queue, "sources": sources, "each": each})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[waiting])
}

const (
	// promoteSQL leaves rows for a later round that somebody holds, or that do not wait any more: nobody is waited for.
	promoteSQL = `
		UPDATE river.river_job
		SET state = 'available'
		WHERE id IN (
			SELECT id
			FROM river.river_job
			WHERE id = ANY ($1) AND state = 'pending'
			ORDER BY id
			FOR NO KEY UPDATE SKIP LOCKED
		)
		RETURNING id`

	markSQL = `
		UPDATE medianest.admission AS a
		SET blocked_on = n.key
		FROM unnest($1::bigint[], $2::text[]) AS n (row_id, key)
		WHERE a.row_id = n.row_id
			AND a.row_id IN (
				SELECT l.row_id
				FROM medianest.admission AS l
				WHERE l.row_id = ANY ($1) AND l.admitted_at IS NULL
				ORDER BY l.row_id
				FOR NO KEY UPDATE SKIP LOCKED
			)`

	noteUsesSQL = `
		INSERT INTO medianest.limit_use AS u (key, last_at, next_at, starts)
		VALUES ($1, $2, $3, $4)
		ON CONFLICT (key) DO UPDATE
		SET last_at = excluded.last_at, next_at = excluded.next_at, starts = excluded.starts`
)

// promote makes available what was chosen, as far as it is to be had, writes down the rest of what was found, and
// returns how many jobs it made available.
func promote(ctx context.Context, tx pgx.Tx, t *table) (admitted int, err error) {
	chosen, blocked := t.admitted, t.blocked
	t.admitted, t.blocked = nil, map[int64]string{}
	batch := &pgx.Batch{}
	had := map[int64]bool{}
	if len(chosen) > 0 {
		ids := make([]int64, len(chosen))
		for i, w := range chosen {
			ids[i] = w.RowID
		}
		batch.Queue(promoteSQL, ids).Query(func(rows pgx.Rows) error {
			var id int64
			_, err := pgx.ForEachRow(rows, []any{&id}, func() error { had[id] = true; return nil })
			return err
		})
	}
	if len(blocked) > 0 {
		rows := slices.Sorted(maps.Keys(blocked))
		keys := make([]string, len(rows))
		for i, row := range rows {
			keys[i] = blocked[row]
		}
		batch.Queue(markSQL, rows, keys)
	}
	if batch.Len() == 0 {
		return 0, nil
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return 0, err
	}
	queues := map[string]bool{}
	for _, w := range chosen {
		if had[w.RowID] {
			queues[w.Queue] = true
		} else {
			t.undo(w)
		}
	}
	return len(had), note(ctx, tx, t, queues)
}

// note writes down what the jobs that became available mean for their keys, and tells the workers of their queues.
func note(ctx context.Context, tx pgx.Tx, t *table, queues map[string]bool) error {
	batch := &pgx.Batch{}
	for _, u := range t.stamp() {
		batch.Queue(noteUsesSQL, u.Key, u.LastAt, u.NextAt, append([]time.Time{}, u.Starts...))
	}
	for _, b := range t.breakers {
		if b.changed {
			b.changed = false
			batch.Queue(probeSQL, b.Key, b.probe)
		}
	}
	for queue := range queues {
		payload, err := json.Marshal(map[string]string{"queue": queue})
		if err != nil {
			return err
		}
		batch.Queue(`SELECT pg_notify($1, $2)`, Schema+".river_insert", string(payload))
	}
	if batch.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, batch).Close()
}

// forget deletes what is known of keys and users that have not been used for long.
func forget(ctx context.Context, tx pgx.Tx, t *table) error {
	keys := t.stale()
	if len(keys) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `DELETE FROM medianest.limit_use WHERE key = ANY ($1)`, keys[:min(len(keys), maxForgotten)])
	return err
}

// demote takes back what was admitted and has not begun, where a limit was lowered, a breaker tripped, a key was paused, a
// window has closed, a queue is worked by fewer, or nobody works it any more: it must not hold its keys for nothing. What
// runs goes on.
func demote(ctx context.Context, tx pgx.Tx, t *table) (demoted int, err error) {
	take := func(key string, n int) error {
		taken, err := takeBack(ctx, tx, t, key, n)
		demoted += taken
		return err
	}
	for queue, free := range t.free {
		if free < 0 {
			if err := take("queue:"+queue, -free); err != nil {
				return demoted, err
			}
		}
	}
	for key, n := range t.running {
		l, ok := t.limit(key)
		if n > 0 && (l.OpensAt != nil || t.isPaused(key)) {
			if err := take(key, n); err != nil {
				return demoted, err
			}
			continue
		}
		if ok && l.MaxRunning != nil && n > *l.MaxRunning {
			if err := take(key, n-*l.MaxRunning); err != nil {
				return demoted, err
			}
		}
	}
	for key, b := range t.breakers {
		if n := t.running[key]; n > 0 && !b.Probing {
			if err := take(key, n); err != nil {
				return demoted, err
			}
		}
	}
	return demoted, nil
}

const takeBackSQL = `
	UPDATE river.river_job AS u
	SET state = 'pending'
	FROM (
		SELECT j.id, a.queue, a.keys, a.user_key
		FROM medianest.admission AS a
		JOIN river.river_job AS j ON j.id = a.row_id
		WHERE a.admitted_at IS NOT NULL AND @value = ANY (a.keys || ('queue:' || a.queue)) AND j.state = 'available'
		ORDER BY a.priority DESC, a.admitted_at DESC, a.row_id DESC
		LIMIT @n
		FOR NO KEY UPDATE OF j SKIP LOCKED
	) AS b
	WHERE u.id = b.id
	RETURNING b.queue, b.keys, b.user_key`

// takeBack has up to n of the jobs wait again that hold the key and have not begun, those that would be the last first.
func takeBack(ctx context.Context, tx pgx.Tx, t *table, key string, n int) (taken int, err error) {
	rows, err := tx.Query(ctx, takeBackSQL, pgx.StrictNamedArgs{"value": key, "n": n})
	if err != nil {
		return 0, err
	}
	var (
		queue, userKey string
		keys           []string
	)
	_, err = pgx.ForEachRow(rows, []any{&queue, &keys, &userKey}, func() error {
		taken++
		t.free[queue]++
		for _, k := range holds(queue, keys, userKey) {
			t.running[k]--
		}
		return nil
	})
	return taken, err
}
