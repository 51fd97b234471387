package queue

import (
	"context"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// maxNeeded bounds the waiting jobs of a queue that are found to be able to begin, and maxSighted those that are looked
	// at for it: a fleet that needs more is told so, and asks again when it has grown.
	maxNeeded  = 10_000
	maxSighted = 20_000
)

// startable is how many of a queue's waiting jobs with keys could begin now, were there slots for all.
type startable struct {
	jobs  int
	isCut bool // there may be more
}

// countStartable decides as a round of admission would that has slots for all, and writes nothing. What a round has found to
// be blocked is not looked at, so it costs by what can begin and by what has come since the last round, not by what waits.
func countStartable(ctx context.Context, pool *pgxpool.Pool) (map[string]startable, error) {
	found := map[string]startable{}
	readOnly := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, pool, readOnly, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true)`); err != nil {
			return err
		}
		t, sources, err := read(ctx, tx)
		if err != nil {
			return err
		}
		for _, queue := range slices.Sorted(maps.Keys(sources)) {
			t.free[queue] = maxNeeded
			if found[queue], err = sight(ctx, tx, t, queue, sources[queue]); err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

// sight is fill without the writing.
func sight(ctx context.Context, tx pgx.Tx, t *table, queue string, keys []string) (found startable, err error) {
	if !t.room("queue:" + queue) {
		return found, nil
	}
	seen := map[int64]bool{}
	for each, last := 1, 0; t.free[queue] > 0; {
		keys = slices.DeleteFunc(keys, func(key string) bool { return key != "" && !t.room(key) })
		if len(keys) == 0 {
			return found, nil
		}
		jobs, err := heads(ctx, tx, queue, keys, each)
		if err != nil {
			return found, err
		}
		all := len(jobs)
		jobs = slices.DeleteFunc(jobs, func(w waiting) bool { return seen[w.RowID] })
		if len(jobs) == 0 && all <= last {
			return found, nil
		}
		last = all
		for _, w := range jobs {
			seen[w.RowID] = true
		}
		t.choose(queue, jobs)
		found.jobs += len(t.admitted)
		t.admitted, t.blocked = nil, map[int64]string{}
		next := max(1, min(8*each, maxSighted/max(1, all/each)))
		if len(seen) >= maxSighted || next <= each && len(jobs) == 0 {
			break
		}
		each = max(each, next)
	}
	found.isCut = true
	return found, nil
}
