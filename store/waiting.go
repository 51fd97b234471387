package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Why a job waits that could be worked now.
const (
	WaitsForPause   = "paused"  // somebody has paused one of its keys
	WaitsForWindow  = "window"  // one of its keys is not open at this time of the day
	WaitsForLimit   = "limit"   // as many as are allowed at a time hold one of its keys
	WaitsForPace    = "pace"    // one of its keys has begun too much of late
	WaitsForBreaker = "breaker" // what stands behind one of its keys fails, and is asked by one job at a time
	WaitsForSlots   = "slots"   // all workers are busy, or there is none; or it has only just come
)

// maxPosition bounds the place in line that is counted. A job behind it says so.
const maxPosition = 1000

// Waiting says what a job waits for that is neither scheduled nor running.
//
// It is looked up when somebody asks, and not kept with downloads or told by events: what blocks a job changes whenever
// any other begins or ends, and a limit that is lifted would need an event for each of the thousands that waited for it.
// Looked up, it is true at that moment whatever changed last: a limit, a pace, or who holds the key.
type Waiting struct {
	Key       string     // the first of its keys that has no room; "" with slots. Another user's is shown to admins only
	Reason    string     // one of the above
	Position  int        // 1 is next, maxPosition is that or more; 0: not counted, as in lists
	NotBefore *time.Time // when it may begin at the earliest, if that is known
}

// held reports whether one of its keys and not the want of slots holds the job back.
func (w Waiting) held() bool { return w.Reason != WaitsForSlots }

// gate is a key that has a limit of its own, or no room now.
type gate struct {
	Key     string
	Own     bool
	Paused  bool
	Shut    bool // outside of its windows
	Full    bool
	Broken  bool       // its breaker waits, or its probe is under way
	OpensAt *time.Time // by its windows, pace and breaker; nil: now
}

func (g gate) closed() bool { return g.Paused || g.Full || g.Broken || g.OpensAt != nil }

func (g gate) reason() string {
	switch {
	case g.Paused:
		return WaitsForPause
	case g.Shut:
		return WaitsForWindow
	case g.Full:
		return WaitsForLimit
	case g.Broken:
		return WaitsForBreaker
	}
	return WaitsForPace
}

// gates are the keys that matter for who may begin now, by key.
type gates map[string]gate

// gatesSQL evaluates limits and breakers as a round of admission does. A key has room unless something has happened to
// it, and of those there are few, however many keys jobs name: it is held or was begun under, has tripped, is paused, or has
// a limit of its own. The exception are the keys of a form of which none may begin: the form's own row stands for them.
var gatesSQL = `
		WITH held AS (` + heldSQL + `
		), candidate AS (
			SELECT l.key
			FROM medianest.limits AS l
			UNION
			SELECT h.key
			FROM held AS h
			UNION
			SELECT u.key
			FROM medianest.limit_use AS u
			UNION
			SELECT b.key
			FROM medianest.breaker AS b
			UNION
			SELECT p.key
			FROM medianest.pause AS p
		), gate AS (
			SELECT c.key, coalesce(l.key = c.key, false) AS own,
				EXISTS (
					SELECT
					FROM medianest.pause AS p
					WHERE p.key IN (c.key, split_part(c.key, ':', 1) || ':*')
				) AS paused,
				w.opens_at IS NOT NULL AS shut,
				coalesce(coalesce(h.n, 0) >= l.max_running, false) AS full,
				b.open_until > now() OR coalesce(b.probing, false) AS broken,
				greatest(
					CASE WHEN l.max_starts IS NOT NULL OR l.spacing_s > 0 OR l.jitter_s > 0 THEN
						greatest(
							-- a spacing that was changed holds for the start that is past, too
							u.last_at + make_interval(secs => l.spacing_s),
							least(u.next_at, u.last_at + make_interval(secs => l.spacing_s + l.jitter_s)),
							u.starts[cardinality(u.starts) - l.max_starts + 1] + make_interval(secs => l.period_s))
					END,
					b.open_until, w.opens_at) AS opens_at
			FROM candidate AS c
			LEFT JOIN LATERAL (
				SELECT l.*
				FROM medianest.limits AS l
				WHERE l.key IN (c.key, split_part(c.key, ':', 1) || ':*')
				ORDER BY l.key = c.key DESC
				LIMIT 1
			) AS l ON true
			CROSS JOIN LATERAL (SELECT medianest.window_opens_at(l.windows, l.timezone, now()) AS opens_at) AS w
			LEFT JOIN held AS h ON h.key = c.key
			LEFT JOIN medianest.limit_use AS u ON u.key = c.key
			LEFT JOIN LATERAL (
				SELECT b.open_until, EXISTS (
						SELECT
						FROM medianest.admission AS a
						WHERE a.row_id = ` + currentRow("b.probe_job") + ` AND a.admitted_at IS NOT NULL
					) AS probing
				FROM medianest.breaker AS b
				WHERE b.key = c.key
			) AS b ON true
		)
		SELECT g.key, g.own, g.paused, g.shut, g.full, coalesce(g.broken, false) AS broken, CASE WHEN g.opens_at > now() THEN g.opens_at END AS opens_at
		FROM gate AS g
		WHERE g.own OR g.paused OR g.full OR g.broken OR g.opens_at > now()`

func queryGates(ctx context.Context, db rowQuerier) (gates, error) {
	rows, err := db.Query(ctx, gatesSQL)
	if err != nil {
		return nil, fmt.Errorf("look at limits: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByName[gate])
	if err != nil {
		return nil, fmt.Errorf("look at limits: %w", err)
	}
	found := make(gates, len(list))
	for _, g := range list {
		found[g.Key] = g
	}
	return found, nil
}

// of is the gate of a key.
func (g gates) of(key string) gate {
	if own, ok := g[key]; ok {
		return own
	}
	form, _, _ := strings.Cut(key, ":")
	return g[form+":"+anyOfForm]
}

// limited is the condition that the job, given an expression of its public id, waits for a limit, and its arguments.
// It is "false" where no key is without room.
func (g gates) limited(publicID string, args pgx.StrictNamedArgs) string {
	keys, forms, exempt := []string{}, []string{}, []string{}
	for key, gate := range g {
		if gate.Own {
			exempt = append(exempt, key)
		}
		form, isForm := strings.CutSuffix(key, ":"+anyOfForm)
		switch {
		case !gate.closed():
		case isForm:
			forms = append(forms, form)
		default:
			keys = append(keys, key)
		}
	}
	if len(keys)+len(forms) == 0 {
		return "false"
	}
	args["closed_keys"], args["closed_forms"], args["exempt_keys"] = keys, forms, exempt
	return `EXISTS (
				SELECT
				FROM medianest.admission AS a
				CROSS JOIN unnest(a.keys || ('queue:' || a.queue)) AS k (key)
				WHERE a.row_id = ` + currentRow(publicID) + ` AND a.admitted_at IS NULL
					AND (k.key = ANY(@closed_keys)
						OR split_part(k.key, ':', 1) = ANY(@closed_forms) AND k.key <> ALL(@exempt_keys))
			)`
}

// waiter is a job in the line.
type waiter struct {
	JobID       int64
	RowID       int64
	Queue       string
	Priority    int16
	Keys        []string
	UserKey     string
	ScheduledAt time.Time
	IsPutOff    bool // scheduled_at is to come
	BlockedOn   string
}

// waiting is what the job waits for.
func (g gates) waiting(w waiter, v Viewer) Waiting {
	found := Waiting{Reason: WaitsForSlots}
	if w.IsPutOff {
		found.NotBefore = &w.ScheduledAt
	}
	for _, key := range append(slices.Clone(w.Keys), "queue:"+w.Queue) {
		gate := g.of(key)
		if gate.OpensAt != nil && (found.NotBefore == nil || found.NotBefore.Before(*gate.OpensAt)) {
			found.NotBefore = gate.OpensAt
		}
		if !gate.closed() || found.held() {
			continue
		}
		found.Key, found.Reason = shownKey(key, v), gate.reason()
	}
	return found
}

// shownKey is the key as the viewer may see it: who else uses the platform, and with which accounts, is for admins.
func shownKey(key string, v Viewer) string {
	form, _, _ := strings.Cut(key, ":")
	if v.Admin || form != "user" && form != "cookie" || key == "user:"+v.UserID.String() {
		return key
	}
	return form + ":" + anyOfForm
}

// queryWaiting finds out what those of the jobs wait for that wait for admission, by public id. With ofOne, also where
// in line, which takes a look at the others.
func queryWaiting(ctx context.Context, db rowQuerier, ids []int64, v Viewer, ofOne bool) (map[int64]Waiting, gates, error) {
	if len(ids) == 0 {
		return nil, nil, nil
	}
	rows, err := db.Query(ctx, `
		SELECT n.id AS job_id, a.row_id, a.queue, a.priority, a.keys, a.user_key, a.scheduled_at,
			a.scheduled_at > now() AS is_put_off, a.blocked_on
		FROM unnest(@ids::bigint[]) AS n (id)
		LEFT JOIN medianest.job_map AS m ON m.public_id = n.id
		JOIN medianest.admission AS a ON a.row_id = coalesce(m.row_id, n.id)
		WHERE a.admitted_at IS NULL`,
		pgx.StrictNamedArgs{"ids": ids})
	if err != nil {
		return nil, nil, fmt.Errorf("look at the line: %w", err)
	}
	waiters, err := pgx.CollectRows(rows, pgx.RowToStructByName[waiter])
	if err != nil {
		return nil, nil, fmt.Errorf("look at the line: %w", err)
	}
	if len(waiters) == 0 {
		return nil, nil, nil
	}
	g, err := queryGates(ctx, db)
	if err != nil {
		return nil, nil, err
	}
	found := make(map[int64]Waiting, len(waiters))
	for _, w := range waiters {
		waiting := g.waiting(w, v)
		if ofOne {
			if waiting.Position, err = queryPosition(ctx, db, w); err != nil {
				return nil, nil, err
			}
		}
		found[w.JobID] = waiting
	}
	return found, g, nil
}

// positionSQL counts who is served before a job among those that wait for the same as it did when they were looked at
// last, as rounds serve them: by priority, and within one always a job of the user who has least running. A user's n-th
// waiting job thus has the level of n-1 more than that user's running ones, and is served with the others of that level.
//
// Users are visited by index probes; of each, no more is read than can be before the job, and no more than @most in all.
const positionSQL = `
		WITH RECURSIVE held AS (
			SELECT coalesce(jsonb_object_agg(h.user_key, h.n), '{}') AS by_user
			FROM (
				SELECT a.user_key, count(*) AS n
				FROM medianest.admission AS a
				WHERE a.admitted_at IS NOT NULL
				GROUP BY a.user_key
			) AS h
		), higher AS (
			SELECT count(*) AS n
			FROM (
				SELECT
				FROM medianest.admission AS a
				WHERE a.admitted_at IS NULL AND a.queue = @queue AND a.blocked_on = @blocked_on AND a.priority < @priority
				LIMIT @most
			) AS a
		), own AS (
			SELECT count(*) AS n
			FROM (
				SELECT
				FROM medianest.admission AS a
				WHERE a.admitted_at IS NULL AND a.queue = @queue AND a.blocked_on = @blocked_on AND a.priority = @priority
					AND a.user_key = @user_key AND (a.scheduled_at, a.row_id) < (@scheduled_at, @row_id)
				LIMIT @most
			) AS a
		), me AS (
			SELECT o.n + coalesce((h.by_user ->> @user_key)::bigint, 0) AS level, h.by_user,
				coalesce((SELECT u.last_at FROM medianest.limit_use AS u WHERE u.key = @user_key), '-infinity') AS last_at
			FROM own AS o
			CROSS JOIN held AS h
		), line AS (
			SELECT f.user_key, 1 AS users, 0::bigint AS ahead, f.user_key AS next
			FROM (
				SELECT a.user_key
				FROM medianest.admission AS a
				WHERE a.admitted_at IS NULL AND a.queue = @queue AND a.blocked_on = @blocked_on AND a.priority = @priority
				ORDER BY a.user_key
				LIMIT 1
			) AS f
			UNION ALL
			SELECT l.next, l.users + 1, l.ahead + c.n, n.user_key
			FROM line AS l
			CROSS JOIN me
			CROSS JOIN LATERAL (
				SELECT coalesce((me.by_user ->> l.next)::bigint, 0) AS running,
					coalesce((SELECT u.last_at FROM medianest.limit_use AS u WHERE u.key = l.next), '-infinity') AS last_at
			) AS u
			CROSS JOIN LATERAL (
				SELECT count(*) AS n
				FROM (
					SELECT a.scheduled_at, a.row_id, u.running - 1 + row_number() OVER (ORDER BY a.scheduled_at, a.row_id) AS level
					FROM medianest.admission AS a
					WHERE a.admitted_at IS NULL AND a.queue = @queue AND a.blocked_on = @blocked_on AND a.priority = @priority
						AND a.user_key = l.next
					ORDER BY a.scheduled_at, a.row_id
					LIMIT greatest(0, me.level - u.running + 1)
				) AS a
				WHERE l.next <> @user_key
					AND (a.level < me.level OR (u.last_at, a.scheduled_at, a.row_id) < (me.last_at, @scheduled_at, @row_id))
			) AS c
			LEFT JOIN LATERAL (
				SELECT a.user_key
				FROM medianest.admission AS a
				WHERE a.admitted_at IS NULL AND a.queue = @queue AND a.blocked_on = @blocked_on AND a.priority = @priority
					AND a.user_key > l.next
				ORDER BY a.user_key
				LIMIT 1
			) AS n ON true
			WHERE l.next IS NOT NULL AND l.ahead < @most AND l.users <= @most
		)
		SELECT least(@most, 1 + (SELECT h.n FROM higher AS h) + (SELECT o.n FROM own AS o) + coalesce(max(l.ahead), 0))
		FROM line AS l`

func (w waiter) positionArgs() pgx.StrictNamedArgs {
	return pgx.StrictNamedArgs{
		"queue": w.Queue, "blocked_on": w.BlockedOn, "priority": w.Priority, "user_key": w.UserKey,
		"scheduled_at": w.ScheduledAt, "row_id": w.RowID, "most": int64(maxPosition),
	}
}

func queryPosition(ctx context.Context, db rowQuerier, w waiter) (int, error) {
	rows, err := db.Query(ctx, positionSQL, w.positionArgs())
	if err != nil {
		return 0, fmt.Errorf("count the line: %w", err)
	}
	position, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
	if err != nil {
		return 0, fmt.Errorf("count the line: %w", err)
	}
	return position, nil
}

// queryLimited counts, of each of the collections, the queued children that wait for a limit.
func queryLimited(ctx context.Context, db rowQuerier, g gates, collections []uuid.UUID) (map[uuid.UUID]int, error) {
	args := pgx.StrictNamedArgs{"parents": collections}
	limited := g.limited("c.job_id", args)
	if limited == "false" || len(collections) == 0 {
		return nil, nil
	}
	rows, err := db.Query(ctx, `
		SELECT c.parent_id, count(*)
		FROM medianest.downloads AS c
		WHERE c.parent_id = ANY(@parents) AND c.state = 'queued' AND `+limited+`
		GROUP BY c.parent_id`, args)
	if err != nil {
		return nil, fmt.Errorf("count what waits for limits: %w", err)
	}
	found := map[uuid.UUID]int{}
	var (
		parent uuid.UUID
		n      int
	)
	_, err = pgx.ForEachRow(rows, []any{&parent, &n}, func() error { found[parent] = n; return nil })
	if err != nil {
		return nil, fmt.Errorf("count what waits for limits: %w", err)
	}
	return found, nil
}
