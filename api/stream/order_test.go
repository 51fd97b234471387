package stream_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/api/stream"
	"medianest/store"
)

// writers change the states of jobs as an unruly world does: some take a transaction id long before they write, some
// hold the rows of several jobs and commit late, some roll back, and some jobs lose their worker.
type writers struct {
	b       *bundle
	jobs    []int64
	changes atomic.Int64 // committed
	goal    int64
}

func (w *writers) run(n int, seed uint64) {
	w.b.t.Helper()
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			for w.changes.Load() < w.goal {
				if err := w.transaction(random, i%2 == 0); err != nil {
					w.b.t.Errorf("writer %d: %v", i, err)
					return
				}
			}
		})
	}
	group.Wait()
}

var errChangedMind = errors.New("changed its mind")

func (w *writers) transaction(random *rand.Rand, unruly bool) error {
	changes := 0
	err := pgx.BeginFunc(context.Background(), w.b.pool, func(tx pgx.Tx) error {
		exec := func(sql string, args ...any) (int, error) {
			tag, err := tx.Exec(context.Background(), sql, args...)
			return int(tag.RowsAffected()), err
		}
		pause := func() error {
			_, err := exec(`SELECT pg_sleep($1)`, random.Float64()*0.012)
			return err
		}
		if unruly {
			if _, err := exec(`SELECT pg_current_xact_id()`); err != nil {
				return err
			}
			if err := pause(); err != nil {
				return err
			}
		}
		first := random.IntN(len(w.jobs))
		for range 1 + random.IntN(4) {
			if first >= len(w.jobs) {
				break
			}
			sql := moveOn
			if random.IntN(4) == 0 {
				sql = reclaim
			}
			changed, err := exec(sql, w.jobs[first])
			if err != nil {
				return err
			}
			changes += changed
			first += 1 + random.IntN(3) // by id: no circles
			if unruly {
				if err := pause(); err != nil {
					return err
				}
			}
		}
		if random.IntN(10) == 0 {
			return errChangedMind
		}
		return nil
	})
	if errors.Is(err, errChangedMind) {
		return nil
	}
	w.changes.Add(int64(changes))
	return err
}

// moveOn changes the state of a job's present row: of none if another one becomes that meanwhile.
const moveOn = `
	UPDATE river.river_job
	SET state = CASE state WHEN 'available' THEN 'running' WHEN 'running' THEN 'retryable' ELSE 'available' END::river.river_job_state
	WHERE id = coalesce((SELECT m.row_id FROM medianest.job_map AS m WHERE m.public_id = $1), $1)
		AND NOT metadata ? 'superseded_by'`

// record is a line of a client's log.
type record struct{ id, job, state, previous string }

func recordsOf(epoch string, events []store.Event) []record {
	var records []record
	for _, e := range events {
		if e.Topic == store.TopicJobState {
			id := stream.Position{Epoch: epoch, Cursor: e.Cursor}.String()
			records = append(records, record{id: id, job: fmt.Sprint(e.JobID), state: e.State, previous: e.PreviousState})
		}
	}
	return records
}

// A client that is cut off again and again sees every change exactly once and in order. Its connections go to two
// replicas in turn, one of which is always a little ahead.
func TestEveryChangeOnceAndInOrder(t *testing.T) {
	t.Parallel()
	const (
		changes = 2000
		cuts    = 50
	)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	b := setup(t)
	hubs := []*hub{b.hub(), b.hub(func(o *stream.Options) { o.PollInterval = 40 * time.Millisecond; o.Buffer = 8; o.PageSize = 50 })}
	b.outbox(hubs[0])
	w := &writers{b: b, jobs: b.jobs(60), goal: changes}
	b.settle()

	watcher := hubs[1].readNow("")
	start, err := stream.ParsePosition(watcher.opened)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.run(8, seed)
	}()

	var (
		log    []record
		cut    int
		lastID = start.String()
		random = rand.New(rand.NewPCG(seed, 99))
		end    string // the whole's last id, once it is known
	)
	for n := 0; lastID != end; n++ {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		h := hubs[n%2]
		r, err := open(ctx, h.server.Client(), h.server.URL, "?topic=job.state", lastID)
		require.NoError(t, err)
		// Cut off after some messages, or after some time in the middle of whatever is going on.
		left := 1 + random.IntN(changes/(cuts+1)) // so that there are cuts enough
		timer := time.AfterFunc(time.Duration(20+random.IntN(60))*time.Millisecond, r.cancel)
		for ; left > 0 && r.lastID != end; left-- {
			m, err := r.next()
			if err != nil {
				break
			}
			require.Equal(t, store.TopicJobState, m.Event, "%s", m.Data)
			p := m.payload(t)
			log = append(log, record{id: m.ID, job: p.JobID, state: p.State, previous: *p.PreviousState})
		}
		timer.Stop()
		lastID = r.lastID
		r.close()
		cancel()
		cut++
		select {
		case <-done:
			if end == "" {
				b.settle()
				all := recordsOf(start.Epoch, b.whole(start))
				end = all[len(all)-1].id
			}
		default:
		}
	}

	whole := recordsOf(start.Epoch, b.whole(start))
	t.Logf("%d changes, %d cuts", len(whole), cut)
	require.GreaterOrEqual(t, cut, cuts)
	require.GreaterOrEqual(t, len(whole), changes)
	require.Equal(t, whole, log)
	last := make(map[string]string)
	for _, e := range log {
		if before, ok := last[e.job]; ok {
			require.Equal(t, before, e.previous, "job %s at %s", e.job, e.id)
		}
		last[e.job] = e.state
	}
	var committed int
	b.scan(&committed, `SELECT count(*) FROM medianest.event WHERE topic = 'job.state' AND previous_state <> ''`)
	require.Equal(t, int(w.changes.Load()), committed)
	require.Len(t, whole, committed)
	var lost int
	b.scan(&lost, `SELECT count(*) FROM river.river_job WHERE metadata ? 'superseded_by'`)
	require.Greater(t, lost, 10, "workers that were lost")

	// A client that was never cut off saw the same, though its buffer ran over all the time.
	for _, e := range whole {
		require.Equal(t, e.id, watcher.want(store.TopicJobState).ID)
	}
}
