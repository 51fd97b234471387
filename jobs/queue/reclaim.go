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
)

// verdict is what became of a row whose worker was lost, as a metric label.
type verdict string

const (
	resumed     verdict = "resumed"     // goes on as a successor
	stopped     verdict = "cancelled"   // its cancel had been asked for
	quarantined verdict = "quarantined" // lost too many workers
	dropped     verdict = "dropped"     // was superseded already: nobody misses it
)

// reclaimSQL ends up to @batch running rows that no live worker claims, or those of the process @only, and lets their
// jobs go on as successors. The row's id is the fencing token: whatever the lost worker still writes meets a final row,
// while the job's public id stays. A row of a live worker is unclaimed when the worker had it for a TTL at its last
// renewal without naming it, as when the answer to its fetch was lost.
//
// A loss costs no attempt: the successor has one less, and the next fetch counts it again. Losses of the same attempt
// in a row are counted apart.
const reclaimSQL = `
	WITH live AS MATERIALIZED (
		SELECT id, renewed_at, held
		FROM medianest.worker
		WHERE expires_at > now()
	), unclaimed AS (
		SELECT j.id, j.attempt, j.metadata, j.unique_key,
			coalesce(j.attempted_by[array_upper(j.attempted_by, 1)], '') AS worker,
			CASE
				WHEN j.metadata ->> 'lost_attempt' = j.attempt::text AND j.metadata ->> 'losses' ~ '^[0-9]{1,6}$'
				THEN (j.metadata ->> 'losses')::integer + 1
				ELSE 1
			END AS losses
		FROM river.river_job AS j
		LEFT JOIN live AS w ON w.id = j.attempted_by[array_upper(j.attempted_by, 1)]
		WHERE j.state = 'running'
			AND CASE
				WHEN @only::text IS NOT NULL THEN j.attempted_by[array_upper(j.attempted_by, 1)] = @only
				ELSE w.id IS NULL
					OR j.attempted_at < w.renewed_at - make_interval(secs => @ttl) AND NOT j.id = ANY (w.held)
			END
		ORDER BY j.id
		LIMIT @batch
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
			FROM unclaimed
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
		WHERE j.id = g.id
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
				'public_id', medianest.public_id(e.id, e.metadata)::text, 'losses', e.losses, 'lost_attempt', e.attempt),
			e.priority, e.queue, 'available', least(e.scheduled_at, now()), e.tags, e.only_key, e.unique_states
		FROM ended AS e
		WHERE e.verdict = 'resumed'
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

// lostWorker is a process whose presence was taken away.
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

// reclaim has a batch of jobs whose worker was lost go on, and takes the presence of lost workers away. With own, it
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

// reclaimOthers leaves it to another process if one is at it.
func (p *presence) reclaimOthers(ctx context.Context, tx pgx.Tx) ([]reclaimed, []lostWorker, error) {
	var mine bool
	err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, int64(reclaimLock)).Scan(&mine)
	if err != nil || !mine {
		return nil, nil, err
	}
	// The transaction's beginning may have been on its way through an outage: then its now() is of a moment when everybody
	// seems lost, and what was found before it was sent holds no more.
	if !p.isSteady(sinceBoot()) {
		return nil, nil, nil
	}
	jobs, err := p.reclaimRows(ctx, tx, nil)
	if err != nil {
		return nil, nil, err
	}
	lost, err := p.bury(ctx, tx, `DELETE FROM medianest.worker WHERE expires_at <= now() RETURNING id, mode, host`)
	return jobs, lost, err
}

func (p *presence) reclaimOwn(ctx context.Context, tx pgx.Tx) ([]reclaimed, []lostWorker, error) {
	jobs, err := p.reclaimRows(ctx, tx, &p.id)
	if err != nil {
		return nil, nil, err
	}
	// Lost, not left: its row has to have expired.
	_, err = tx.Exec(ctx, `UPDATE medianest.worker SET expires_at = least(expires_at, now()) WHERE id = $1`, p.id)
	if err != nil {
		return nil, nil, err
	}
	lost, err := p.bury(ctx, tx, `DELETE FROM medianest.worker WHERE id = $1 RETURNING id, mode, host`, p.id)
	return jobs, lost, err
}

func (p *presence) reclaimRows(ctx context.Context, tx pgx.Tx, only *string) ([]reclaimed, error) {
	rows, err := tx.Query(ctx, reclaimSQL, pgx.StrictNamedArgs{
		"only": only, "ttl": p.TTL.Seconds(), "batch": reclaimBatch, "max_losses": p.MaxLosses,
		"poison_pill": string(reason.PoisonPill),
		"quarantined": string(reason.PoisonPill) + ": " + reason.PoisonPill.Sentence(),
	})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[reclaimed])
}

func (p *presence) bury(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]lostWorker, error) {
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
