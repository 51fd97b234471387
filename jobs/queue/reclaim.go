package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"medianest/jobs/reason"
)

const (
	// reclaimLock is what reclaiming processes agree on. Arbitrary; must never change.
	reclaimLock = 7239610442310

	// reclaimBatch bounds a transaction's rows, and with them how long others wait for it.
	reclaimBatch   = 500
	reclaimTimeout = 10 * time.Second

	// lossWindow is how soon after a loss the next one must come to count together with it. A job that takes days meets
	// restarts and outages; one that kills its workers does so again and again.
	lossWindow = time.Hour
)

// verdict is what became of a row whose worker was lost, as a metric label.
type verdict string

const (
	resumed     verdict = "resumed"     // goes on as a successor
	stopped     verdict = "cancelled"   // its cancel had been asked for
	quarantined verdict = "quarantined" // lost too many workers
	dropped     verdict = "dropped"     // was superseded already: nobody misses it
)

// lostSQL finds out who is lost: who has not renewed its presence in time is gone from now on.
const lostSQL = `
	UPDATE medianest.worker
	SET gone_at = now()
	WHERE gone_at IS NULL AND expires_at <= now()
	RETURNING id, mode, host`

// lostOwnSQL says the same of the process with the id, whatever it promised.
const lostOwnSQL = `
	UPDATE medianest.worker
	SET gone_at = now(), expires_at = least(expires_at, now())
	WHERE gone_at IS NULL AND id = $1
	RETURNING id, mode, host`

// planSQL is for reclaimSQL. Statistics that know of few running rows, or none, would have each of them compared with all
// that is held.
const planSQL = `SET LOCAL enable_nestloop = off`

// reclaimSQL ends up to @batch running rows of processes that are gone, or of the process @only, and lets their jobs go on
// as successors. The row's id is the fencing token: whatever the lost worker still writes meets a final row, while the
// job's public id stays. A row of a process that is present is unclaimed when it had it for its TTL at its last renewal
// without naming it, as when the answer to its fetch was lost. Rows of a process that is not known are left alone: it may
// be one without a presence, and River's rescuer looks after those.
//
// A loss costs no attempt: the successor has one less, and the next fetch counts it again. Losses of the same attempt
// in a row are counted apart, unless the last is long ago.
const reclaimSQL = `
	WITH running AS MATERIALIZED (
		SELECT j.id, j.attempted_at, j.attempted_by[array_upper(j.attempted_by, 1)] AS worker
		FROM river.river_job AS j
		WHERE j.state = 'running'
	), held AS MATERIALIZED (
		SELECT w.id AS worker, h.id
		FROM medianest.worker AS w, unnest(w.held) AS h (id)
		WHERE w.gone_at IS NULL
	), unclaimed AS MATERIALIZED (
		SELECT r.id, r.worker
		FROM running AS r
		LEFT JOIN medianest.worker AS w ON w.id = r.worker
		LEFT JOIN held AS h ON h.id = r.id AND h.worker = r.worker
		WHERE CASE
			WHEN @only::text IS NOT NULL THEN r.worker = @only
			WHEN w.gone_at IS NOT NULL THEN true
			ELSE h.id IS NULL AND r.attempted_at < w.renewed_at - (w.expires_at - w.renewed_at)
		END
		ORDER BY r.id
		LIMIT @batch
	), locked AS MATERIALIZED (
		SELECT j.id, j.attempt, j.metadata, j.unique_key, u.worker,
			CASE
				WHEN j.metadata ->> 'lost_attempt' = j.attempt::text
					AND j.metadata ->> 'losses' ~ '^[0-9]{1,6}$'
					AND j.metadata ->> 'lost_at' ~ '^[0-9]{1,15}$'
				THEN CASE
					WHEN (j.metadata ->> 'lost_at')::bigint > extract(epoch FROM now()) - @window
					THEN (j.metadata ->> 'losses')::integer + 1
					ELSE 1
				END
				ELSE 1
			END AS losses
		FROM unclaimed AS u
		JOIN river.river_job AS j ON j.id = u.id
		-- By the index, where nested loops are off. The rest is asked again of rows that have changed meanwhile.
		WHERE j.id = ANY (ARRAY(SELECT id FROM unclaimed))
			AND j.state = 'running'
			AND j.attempted_by[array_upper(j.attempted_by, 1)] = u.worker
		ORDER BY j.id
		FOR UPDATE OF j SKIP LOCKED
	), judged AS MATERIALIZED (
		SELECT u.*, CASE WHEN u.verdict = 'resumed' THEN nextval('river.river_job_id_seq') END AS successor
		FROM (
			SELECT *, CASE
				WHEN metadata ? 'superseded_by' THEN 'dropped'
				WHEN metadata ? 'cancel_attempted_at' THEN 'cancelled'
				WHEN losses >= @max_losses THEN 'quarantined'
				ELSE 'resumed'
			END AS verdict
			FROM locked
		) AS u
	), ended AS (
		UPDATE river.river_job AS j
		SET state = CASE WHEN g.verdict = 'cancelled' THEN 'cancelled' ELSE 'discarded' END::river.river_job_state,
			finalized_at = now(),
			errors = array_append(j.errors, jsonb_build_object(
				'at', now(), 'attempt', j.attempt, 'trace', '', 'error', CASE g.verdict
					WHEN 'resumed' THEN format('worker_lost: The worker %s was lost; the job goes on elsewhere.', g.worker)
					WHEN 'quarantined' THEN @quarantined::text
					ELSE format('worker_lost: The worker %s was lost.', g.worker)
				END)),
			metadata = j.metadata || CASE g.verdict
				WHEN 'resumed' THEN jsonb_build_object('superseded_by', g.successor::text)
				WHEN 'quarantined' THEN jsonb_build_object('reason', @poison_pill::text, 'reason_attempt', j.attempt::text)
				ELSE '{}'
			END,
			-- The successor is the unique one now, also if somebody makes this row available again.
			unique_key = CASE WHEN g.verdict = 'resumed' THEN NULL ELSE j.unique_key END
		FROM judged AS g
		WHERE j.id = g.id AND j.id = ANY (ARRAY(SELECT id FROM judged))
		RETURNING j.*, g.successor, g.losses, g.worker, g.verdict, g.unique_key AS only_key
	), succeeding AS (
		INSERT INTO river.river_job (
			id, args, attempt, attempted_at, attempted_by, created_at, errors, kind, max_attempts,
			metadata,
			priority, queue, state, scheduled_at, tags, unique_key, unique_states
		)
		SELECT e.successor, e.args, greatest(e.attempt - 1, 0), e.attempted_at, e.attempted_by, e.created_at,
			e.errors, e.kind, e.max_attempts,
			e.metadata - '{superseded_by,cancel_attempted_at,reason,reason_attempt}'::text[] || jsonb_build_object(
				'public_id', medianest.public_id(e.id, e.metadata)::text, 'losses', e.losses,
				'lost_attempt', e.attempt, 'lost_at', extract(epoch FROM now())::bigint),
			e.priority, e.queue, 'available', least(e.scheduled_at, now()), e.tags, e.only_key, e.unique_states
		FROM ended AS e
		WHERE e.verdict = 'resumed'
	), kept AS (
		INSERT INTO medianest.attempt (job_id, attempt, worker, started_at, outcome, reason)
		SELECT medianest.public_id(e.id, e.metadata), e.attempt, e.worker, coalesce(e.attempted_at, now()), 'lost',
			CASE WHEN e.verdict = 'quarantined' THEN @poison_pill::text ELSE '' END
		FROM ended AS e
		WHERE e.verdict <> 'dropped'
	), mapped AS (
		INSERT INTO medianest.job_map (public_id, row_id)
		SELECT medianest.public_id(e.id, e.metadata), e.successor
		FROM ended AS e
		WHERE e.verdict = 'resumed'
		ON CONFLICT (public_id) DO UPDATE SET row_id = excluded.row_id
	)
	SELECT medianest.public_id(e.id, e.metadata) AS public_id, e.worker, e.verdict
	FROM ended AS e
	ORDER BY public_id`

// reclaimed is a row that was ended for its worker.
type reclaimed struct {
	PublicID int64
	Worker   string
	Verdict  verdict
}

// lostWorker is a process that was found lost.
type lostWorker struct {
	ID   string
	Mode string
	Host string
}

// reclaimLost looks for the jobs of lost workers until ctx ends.
func (p *presence) reclaimLost(ctx context.Context) {
	ticker := time.NewTicker(p.ReclaimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		// A full batch leaves more behind.
		for more := true; more && ctx.Err() == nil && p.isSteady(sinceBoot()); {
			n, err := p.reclaim(ctx, false)
			if err != nil && ctx.Err() == nil {
				p.log.WarnContext(ctx, "jobs of lost workers not looked for", "err", err)
			}
			more = err == nil && n == reclaimBatch
		}
	}
}

// reclaim takes note of who is lost, and has a batch of the jobs go on whose worker is gone. With own, it
// takes this process' own id for that of a predecessor that is lost, and looks at nobody else.
func (p *presence) reclaim(ctx context.Context, own bool) (int, error) {
	ctx, stop := context.WithTimeoutCause(ctx, reclaimTimeout, errTooLong)
	defer stop()
	var (
		jobs []reclaimed
		lost []lostWorker
	)
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) (err error) {
		if own {
			jobs, lost, err = p.reclaimOwn(ctx, tx)
		} else {
			jobs, lost, err = p.reclaimOthers(ctx, tx)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	p.tell(ctx, jobs, lost)
	return len(jobs), nil
}

// reclaimOthers leaves it to another process if one is at it. Who is lost is a matter of the database's clock: if that was
// set, or this process would be lost itself, nobody is judged before all have had the time to renew their presence.
func (p *presence) reclaimOthers(ctx context.Context, tx pgx.Tx) ([]reclaimed, []lostWorker, error) {
	var (
		at            = sinceBoot()
		now           time.Time
		mine, present bool
	)
	err := tx.QueryRow(ctx, `
		SELECT now(), pg_try_advisory_xact_lock($1),
			EXISTS (SELECT FROM medianest.worker WHERE id = $2 AND gone_at IS NULL AND expires_at > now())`,
		int64(reclaimLock), p.id).Scan(&now, &mine, &present)
	if err != nil || !mine {
		return nil, nil, err
	}
	astray := !present || p.clockDiffers(at, now)
	switch {
	case !p.isSteady(sinceBoot()):
		// The transaction's beginning may have been on its way through an outage: then its now() is of a moment when
		// everybody seems lost, and what was found before it was sent holds no more. Or a renewal has just found that the
		// clock was set, which is why this comes second.
		return nil, nil, nil
	case astray:
		p.log.WarnContext(ctx, "the database's clock was set, or this process seems lost; nobody is judged for a while",
			"client_id", p.id)
		p.restartGrace(at)
		return nil, nil, nil
	}
	lost, err := bury(ctx, tx, lostSQL)
	if err != nil {
		return nil, nil, err
	}
	jobs, err := p.reclaimRows(ctx, tx, nil)
	return jobs, lost, err
}

func (p *presence) reclaimOwn(ctx context.Context, tx pgx.Tx) ([]reclaimed, []lostWorker, error) {
	lost, err := bury(ctx, tx, lostOwnSQL, p.id)
	if err != nil {
		return nil, nil, err
	}
	jobs, err := p.reclaimRows(ctx, tx, &p.id)
	return jobs, lost, err
}

func (p *presence) reclaimRows(ctx context.Context, tx pgx.Tx, only *string) ([]reclaimed, error) {
	if _, err := tx.Exec(ctx, planSQL); err != nil {
		return nil, err
	}
	// A successor holds the keys that the row held: they are nobody's to take meanwhile.
	if _, err := tx.Exec(ctx, `SELECT set_config('medianest.admit', 'on', true)`); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, reclaimSQL, pgx.StrictNamedArgs{
		"only": only, "batch": reclaimBatch, "max_losses": p.MaxLosses, "window": lossWindow.Seconds(),
		"poison_pill": string(reason.PoisonPill),
		"quarantined": string(reason.PoisonPill) + ": " + reason.PoisonPill.Sentence(),
	})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[reclaimed])
}

func bury(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]lostWorker, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[lostWorker])
}

// tell counts what was reclaimed and writes a line for each worker.
func (p *presence) tell(ctx context.Context, jobs []reclaimed, lost []lostWorker) {
	of := make(map[string][]reclaimed)
	for _, j := range jobs {
		of[j.Worker] = append(of[j.Worker], j)
		p.metrics.reclaimed.WithLabelValues(string(j.Verdict)).Inc()
	}
	for _, w := range lost {
		p.log.WarnContext(ctx, "worker lost",
			append(summary(w.ID, of[w.ID]), slog.String("mode", w.Mode), slog.String("host", w.Host))...)
		delete(of, w.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(of)) {
		p.log.WarnContext(ctx, "jobs reclaimed that their worker does not claim", summary(id, of[id])...)
	}
}

func summary(worker string, jobs []reclaimed) []any {
	counts := make(map[verdict]int)
	ids := make([]int64, len(jobs))
	for i, j := range jobs {
		counts[j.Verdict]++
		ids[i] = j.PublicID
	}
	return []any{
		slog.String("client_id", worker), slog.Int("jobs", len(jobs)), slog.Int("resumed", counts[resumed]),
		slog.Int("cancelled", counts[stopped]), slog.Int("quarantined", counts[quarantined]), slog.Any("job_ids", ids),
	}
}

// TakeBack has the jobs go on that a client with this client's ID was working when it died, as reclaiming would later.
// Only who knows that no other process has the ID may call it, and before Start: a process that holds a lock on the ID,
// for one. It returns how many jobs there were.
func (c *Client) TakeBack(ctx context.Context) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started {
		return 0, errors.New("take back jobs: the client has started")
	}
	total := 0
	for {
		n, err := c.presence.reclaim(ctx, true)
		total += n
		if err != nil {
			return total, fmt.Errorf("take back jobs of client %s: %w", c.ID(), err)
		}
		if n < reclaimBatch {
			return total, nil
		}
	}
}
