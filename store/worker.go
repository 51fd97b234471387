package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// States of a worker.
const (
	WorkerRunning  = "running"
	WorkerDraining = "draining" // it takes no more jobs and hands over those that it has
	WorkerDrained  = "drained"  // it has none, and takes none
	WorkerLost     = "lost"     // it has not renewed its presence in time
)

// Worker is a process that serves or works, as it last said.
type Worker struct {
	ID        string
	Mode      string // up, serve, work
	Host      string
	Version   string
	Volume    string         // the media volume's id; "" where it sees none
	Queues    map[string]int // those that it works, and how many jobs at a time
	Running   int            // jobs that it has
	StartedAt time.Time
	RenewedAt time.Time
	ExpiresAt time.Time // when it counts as lost unless it renews its presence
	State     string
}

const workerColumns = `w.id, w.mode, w.host, w.version, w.volume, w.queues, w.running,
			w.started_at, w.renewed_at, w.expires_at,
			CASE
				WHEN w.expires_at <= now() THEN 'lost'
				WHEN w.drained_at IS NOT NULL THEN 'drained'
				WHEN w.drain_asked_at IS NOT NULL THEN 'draining'
				ELSE 'running'
			END AS state`

// ListWorkers returns the processes that are not gone, oldest first. One whose presence has run out is lost; it is gone
// as soon as another process takes note of that.
func (s *Store) ListWorkers(ctx context.Context) ([]Worker, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+workerColumns+`
		FROM medianest.worker AS w
		WHERE w.gone_at IS NULL
		ORDER BY w.started_at, w.id`)
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", interpret(err))
	}
	workers, err := pgx.CollectRows(rows, pgx.RowToStructByName[Worker])
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", interpret(err))
	}
	return workers, nil
}

// AskDrain asks a worker to hand its jobs over and take no more; it finds the request with its next renewal. Asking
// again changes nothing. ErrNotFound if there is no such process (any more), ErrConflict if it works no jobs.
func (s *Store) AskDrain(ctx context.Context, id string) (Worker, error) {
	rows, err := s.pool.Query(ctx, `
		WITH asked AS (
			UPDATE medianest.worker AS w
			SET drain_asked_at = coalesce(w.drain_asked_at, now())
			WHERE w.id = @id AND w.gone_at IS NULL AND w.mode <> 'serve'
			RETURNING w.*
		)
		SELECT `+workerColumns+`
		FROM asked AS w
		UNION ALL
		SELECT `+workerColumns+`
		FROM medianest.worker AS w
		WHERE w.id = @id AND w.gone_at IS NULL AND w.mode = 'serve'`,
		pgx.StrictNamedArgs{"id": id})
	if err != nil {
		return Worker{}, fmt.Errorf("drain worker %q: %w", id, interpret(err))
	}
	w, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Worker])
	if err != nil {
		return Worker{}, fmt.Errorf("drain worker %q: %w", id, interpret(err))
	}
	if w.Mode == "serve" {
		return Worker{}, fmt.Errorf("drain worker %q: it works no jobs: %w", id, ErrConflict)
	}
	return w, nil
}
