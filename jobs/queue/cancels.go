package queue

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
)

const (
	// cancelPoll is how often cancel requests are looked for in the database. River tells of them by notification and
	// looks itself only once a minute, but a cancel must take effect within two seconds, also when the notification
	// was lost, as it is while the listening connection is being made again.
	cancelPoll        = time.Second
	cancelPollTimeout = 5 * time.Second

	// cancelMinAge is how long an attempt must have run to be asked for: most are over by then, and cost no query.
	cancelMinAge = 200 * time.Millisecond
)

// cancels knows the attempts that run in this process and ends those whose job was asked to be cancelled.
type cancels struct {
	pool *pgxpool.Pool
	log  *slog.Logger

	mu      sync.Mutex
	running map[int64]*attempt
}

type attempt struct {
	begun  time.Time
	cancel context.CancelCauseFunc
	asked  bool
}

func newCancels(pool *pgxpool.Pool, log *slog.Logger) *cancels {
	return &cancels{pool: pool, log: log, running: make(map[int64]*attempt)}
}

// enter notes an attempt. The context it returns also ends when a cancel of the job is found. release forgets the
// attempt and says whether that happened.
func (c *cancels) enter(ctx context.Context, jobID int64) (_ context.Context, release func() (asked bool)) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &attempt{begun: time.Now(), cancel: cancel}
	c.mu.Lock()
	c.running[jobID] = a
	c.mu.Unlock()
	return ctx, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.running[jobID] == a {
			delete(c.running, jobID)
		}
		cancel(nil)
		return a.asked
	}
}

// watch looks for cancel requests until ctx ends.
func (c *cancels) watch(ctx context.Context) {
	ticker := time.NewTicker(cancelPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := c.look(ctx); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "cancel requests not read", "err", err)
		}
	}
}

// look asks once for the attempts that are old enough.
func (c *cancels) look(ctx context.Context) error {
	c.mu.Lock()
	var old []int64
	for id, a := range c.running {
		if !a.asked && time.Since(a.begun) >= cancelMinAge {
			old = append(old, id)
		}
	}
	c.mu.Unlock()
	if len(old) == 0 {
		return nil
	}

	ctx, stop := context.WithTimeoutCause(ctx, cancelPollTimeout, errors.New("the database takes too long"))
	defer stop()
	rows, err := c.pool.Query(ctx, `
		SELECT id
		FROM river.river_job
		WHERE id = ANY ($1)
			AND state = 'running'
			AND metadata ? 'cancel_attempted_at'`, old)
	if err != nil {
		return err
	}
	asked, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range asked {
		if a, ok := c.running[id]; ok {
			a.asked = true
			a.cancel(river.ErrJobCancelledRemotely)
		}
	}
	return nil
}
