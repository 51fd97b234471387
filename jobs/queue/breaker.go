package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// breakerLadder is how long nothing starts under a key after its breaker tripped, by how often a probe has tripped it
// again: the host that answers "too many requests" is asked ever more seldom.
var breakerLadder = []time.Duration{
	0, time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

// breaker is what a round knows of a key that tripped: nothing starts before OpenUntil, and then one job at a time.
type breaker struct {
	Key       string
	OpenUntil time.Time
	Probing   bool // a probe is admitted

	probe   int64 // row of the probe that this round admits
	changed bool
}

// breakersSQL looks for the probe under the row that stands for it now.
const breakersSQL = `
	SELECT b.key, b.open_until, b.probe_job IS NOT NULL AND EXISTS (
			SELECT
			FROM medianest.admission AS a
			WHERE a.row_id = coalesce((SELECT m.row_id FROM medianest.job_map AS m WHERE m.public_id = b.probe_job), b.probe_job)
				AND a.admitted_at IS NOT NULL
		) AS probing
	FROM medianest.breaker AS b`

// probeSQL notes the probe by its job's public id. A breaker that tripped meanwhile stays as it is.
const probeSQL = `
	UPDATE medianest.breaker
	SET probe_job = coalesce((SELECT m.public_id FROM medianest.job_map AS m WHERE m.row_id = $2), $2)
	WHERE key = $1 AND open_until <= clock_timestamp()`

// tripSQL trips a breaker. The first trip puts it at the ladder's foot. After that only the probe leads it up, or who
// is no job where no wait is on: jobs that were running when it tripped find out what is known already.
const tripSQL = `
	INSERT INTO medianest.breaker AS b (key, step, open_until)
	VALUES (@key, 0, now() + make_interval(secs => greatest((@ladder::float8[])[1], @retry_after)))
	ON CONFLICT (key) DO UPDATE
	SET step = CASE WHEN b.probe_job = @job OR @job = 0 AND b.open_until <= now()
			THEN least(b.step + 1, cardinality(@ladder) - 1)
			ELSE b.step
		END,
		open_until = greatest(b.open_until, now() + make_interval(secs => greatest(@retry_after,
			CASE WHEN b.probe_job = @job OR @job = 0 AND b.open_until <= now()
				THEN (@ladder)[least(b.step + 2, cardinality(@ladder))]
				ELSE 0
			END))),
		probe_job = CASE WHEN b.probe_job IS DISTINCT FROM @job THEN b.probe_job END,
		tripped_at = now(),
		trips = b.trips + 1`

// attemptKey is the context key of an attempt's public job id.
type attemptKey struct{}

// Trip has nothing more start under the key for a while: what stands behind it asked for less, or fails. It says how
// long itself by retryAfter, or zero; the wait is that of the breaker's ladder or longer. When it is over, one job at a
// time is admitted under the key, the probe, until one completes, which closes the breaker. A probe that trips it again
// leads it up the ladder. Called with the context of an attempt, whose job then snoozes: it waits for its turn, and no
// attempt is spent.
func (c *Client) Trip(ctx context.Context, key string, retryAfter time.Duration) error {
	job, _ := ctx.Value(attemptKey{}).(int64)
	ladder := make([]float64, len(breakerLadder))
	for i, wait := range breakerLadder {
		ladder[i] = wait.Seconds()
	}
	_, err := c.pool.Exec(ctx, tripSQL, pgx.StrictNamedArgs{
		"key": key, "job": job, "retry_after": max(retryAfter, 0).Seconds(), "ladder": ladder,
	})
	if err != nil {
		return fmt.Errorf("trip the breaker of %s: %w", key, err)
	}
	return nil
}

// Reset closes the key's breaker as if it had never tripped. It reports whether there was one.
func (c *Client) Reset(ctx context.Context, key string) (bool, error) {
	tag, err := c.pool.Exec(ctx, `DELETE FROM medianest.breaker WHERE key = $1`, key)
	if err != nil {
		return false, fmt.Errorf("reset the breaker of %s: %w", key, err)
	}
	return tag.RowsAffected() > 0, nil
}
