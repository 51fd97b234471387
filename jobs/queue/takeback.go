package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"medianest/jobs/reason"
)

// takeBackSQL ends the attempts of a dead client as River's rescuer would, hours later: each is a failed attempt, tried
// again at once, from the job's old place in the queue; the last one ends the job, and so does a cancel that was asked
// for.
const takeBackSQL = `
	UPDATE river.river_job
	SET state = CASE
			WHEN metadata ? 'cancel_attempted_at' THEN 'cancelled'
			WHEN attempt >= max_attempts THEN 'discarded'
			ELSE 'available'
		END::river.river_job_state,
		finalized_at = CASE WHEN metadata ? 'cancel_attempted_at' OR attempt >= max_attempts THEN now() END,
		errors = array_append(errors, jsonb_build_object('at', now(), 'attempt', attempt, 'error', 'The worker died.', 'trace', '')),
		metadata = metadata || CASE
			WHEN attempt >= max_attempts THEN jsonb_build_object('reason', $2::text, 'reason_attempt', attempt::text)
			ELSE '{}'
		END
	WHERE state = 'running'
		AND attempted_by[array_upper(attempted_by, 1)] = $1`

// TakeBack puts back into the queue what a client with this client's ID was working when it died. Only who knows that
// no other process has the ID may call it, and before Start: a process that holds a lock on the ID, for one. It returns
// how many jobs there were.
func (c *Client) TakeBack(ctx context.Context) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started {
		return 0, errors.New("take back jobs: the client has started")
	}
	tag, err := c.pool.Exec(ctx, takeBackSQL, c.ID(), string(reason.PoisonPill))
	if err != nil {
		return 0, fmt.Errorf("take back jobs of client %s: %w", c.ID(), err)
	}
	n := int(tag.RowsAffected())
	if n > 0 {
		c.log.WarnContext(ctx, "jobs taken back from a process that died", slog.Int("jobs", n), slog.String("client_id", c.ID()))
	}
	return n, nil
}
