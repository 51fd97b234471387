package queue_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"
	"riverqueue.com/riverui"

	"medianest/jobs/queue"
)

// gated is a database with a client that works, in which nothing is admitted but by a round that the test calls.
type gated struct {
	*yard
	begun chan started
	fate  chan error // what the attempt returns that began last
}

func setupGate(t *testing.T, change func(*queue.Options)) *gated {
	t.Helper()
	g := &gated{begun: make(chan started, 10), fate: make(chan error, 10)}
	b := setup(t, func(ctx context.Context, job *river.Job[synthetic]) error {
		g.begun <- started{job.ID, ctx.Done(), func() error { return context.Cause(ctx) }}
		select {
		case err := <-g.fate:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}, func(o *queue.Options) {
		quick(o)
		if change != nil {
			change(o)
		}
	})
	g.yard = newYard(t, b)
	return g
}

// begin inserts a job and has it run.
func (g *gated) begin(t *testing.T) int64 {
	t.Helper()
	id := g.add(t, 1, "host:a")[0]
	require.Equal(t, rivertype.JobStatePending, g.state(t, id))
	g.admit(t, id)
	return id
}

// admit has a round admit the job, which the client begins.
func (g *gated) admit(t *testing.T, id int64) {
	t.Helper()
	d, err := g.admission.Round(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, d.Admitted)
	require.Equal(t, id, (<-g.begun).row)
}

// Every way into available ends as pending, whoever asks, and goes on by a round only.
func TestEveryWayIntoAvailableIsGated(t *testing.T) {
	t.Parallel()

	ui := func(t *testing.T, g *gated, action string, id int64) {
		t.Helper()
		handler, err := riverui.NewHandler(&riverui.HandlerOpts{
			Endpoints: riverui.NewEndpoints(g.River(), nil), Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		require.NoError(t, handler.Start(ctx))
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(
			http.MethodPost, "/api/jobs/"+action, strings.NewReader(fmt.Sprintf(`{"ids":["%d"]}`, id))))
		body, _ := io.ReadAll(answer.Body)
		require.Equal(t, http.StatusOK, answer.Code, string(body))
	}
	ended := func(t *testing.T, g *gated) int64 {
		t.Helper()
		id := g.begin(t)
		g.fate <- river.JobCancel(errors.New("for good"))
		g.waitState(t, id, rivertype.JobStateCancelled)
		return id
	}
	ways := map[string]func(t *testing.T, g *gated) int64{
		"insert": func(t *testing.T, g *gated) int64 {
			r, err := g.River().Insert(t.Context(), synthetic{}, &river.InsertOpts{Queue: "test", Metadata: keyed("host:a")})
			require.NoError(t, err)
			require.Equal(t, rivertype.JobStatePending, r.Job.State)
			return r.Job.ID
		},
		"insert of many, fast": func(t *testing.T, g *gated) int64 {
			_, err := g.River().InsertManyFast(t.Context(), []river.InsertManyParams{
				{Args: synthetic{}, InsertOpts: &river.InsertOpts{Queue: "test", Metadata: keyed("host:a")}},
			})
			require.NoError(t, err)
			return int64(g.count(t, `SELECT max(id) FROM river.river_job`))
		},
		"unique insert": func(t *testing.T, g *gated) int64 {
			opts := &river.InsertOpts{Queue: "test", Metadata: keyed("host:a"), UniqueOpts: river.UniqueOpts{ByArgs: true}}
			first, err := g.River().Insert(t.Context(), synthetic{N: 7}, opts)
			require.NoError(t, err)
			again, err := g.River().Insert(t.Context(), synthetic{N: 7}, opts)
			require.NoError(t, err)
			require.True(t, again.UniqueSkippedAsDuplicate)
			return first.Job.ID
		},
		"scheduler": func(t *testing.T, g *gated) int64 {
			soon := time.Now().Add(200 * time.Millisecond)
			return g.insert(t, river.InsertOpts{Metadata: keyed("host:a"), ScheduledAt: soon}, synthetic{})[0]
		},
		"scheduler after a failure": func(t *testing.T, g *gated) int64 {
			id := g.begin(t)
			g.fate <- errors.New("once") // tried again in a second or so
			return id
		},
		"snooze": func(t *testing.T, g *gated) int64 {
			id := g.begin(t)
			g.fate <- river.JobSnooze(time.Millisecond)
			return id
		},
		"handing back what a stop cuts off": func(t *testing.T, g *gated) int64 {
			id := g.begin(t)
			require.NoError(t, g.Stop(t.Context()))
			return id
		},
		"handing back what a fence cuts off": func(t *testing.T, g *gated) int64 {
			id := g.begin(t)
			_, err := g.pool.Exec(t.Context(), queue.GiveBackSQL, pgx.StrictNamedArgs{
				"rows": []int64{id}, "fetched": []time.Time{*g.job(t, id).AttemptedAt}, "worker": t.Name(),
			})
			require.NoError(t, err)
			return id
		},
		"River's rescuer": func(t *testing.T, g *gated) int64 {
			id := g.begin(t)
			g.exec(t, `UPDATE river.river_job SET state = 'retryable', scheduled_at = now() WHERE id = $1`, id) // as it does
			return id
		},
		"retry": func(t *testing.T, g *gated) int64 {
			id := ended(t, g)
			_, err := g.River().JobRetry(t.Context(), id)
			require.NoError(t, err)
			return id
		},
		"retry by River UI": func(t *testing.T, g *gated) int64 {
			id := ended(t, g)
			ui(t, g, "retry", id)
			return id
		},
		"retry by River UI of what waits": func(t *testing.T, g *gated) int64 {
			id := g.add(t, 1, "host:a")[0]
			ui(t, g, "retry", id)
			return id
		},
		"a statement": func(t *testing.T, g *gated) int64 {
			id := ended(t, g)
			g.exec(t, `UPDATE river.river_job SET state = 'available', finalized_at = NULL WHERE id = $1`, id)
			return id
		},
		"an inserted row": func(t *testing.T, g *gated) (id int64) {
			require.NoError(t, g.owner.QueryRow(t.Context(), `
				INSERT INTO river.river_job (kind, args, queue, state, metadata)
				VALUES ('synthetic', '{}', 'test', 'available', '{"keys": ["host:a"]}')
				RETURNING id`).Scan(&id))
			return id
		},
		"an upsert": func(t *testing.T, g *gated) int64 {
			id := ended(t, g)
			g.exec(t, `
				INSERT INTO river.river_job (id, kind, args, queue, state, metadata)
				VALUES ($1, 'synthetic', '{}', 'test', 'available', '{"keys": ["host:a"]}')
				ON CONFLICT (id) DO UPDATE SET state = 'available', finalized_at = NULL`, id)
			return id
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := setupGate(t, nil)
			id := way(t, g)
			g.waitState(t, id, rivertype.JobStatePending)
			// Due now, whatever the way was.
			g.exec(t, `
				UPDATE river.river_job SET scheduled_at = least(scheduled_at, now())
				WHERE id = $1 AND state = 'pending'`, id)
			require.Empty(t, g.rows(t, "available"))
			require.Zero(t, g.count(t, `SELECT count(*) FROM medianest.admission WHERE admitted_at IS NOT NULL`))

			g.limit(t, "host:a", 0)
			require.Empty(t, g.round(t))
			require.Equal(t, rivertype.JobStatePending, g.state(t, id))
			g.limit(t, "host:a", 1)
			g.slots(t, "test", 1) // also where the client has stopped
			d, err := g.admission.Round(t.Context())
			require.NoError(t, err)
			require.Equal(t, 1, d.Admitted)
		})
	}
}

// Writes that do not make a job available leave an admitted one as it is.
func TestAdmittedJobsStayAdmitted(t *testing.T) {
	t.Parallel()

	y := setupYard(t)
	y.slots(t, "test", 1)
	id := y.add(t, 1, "host:a")[0]
	require.Equal(t, []int64{id}, y.round(t))
	for _, set := range []string{
		`state = state`, `priority = 2`, `metadata = metadata || '{"x": 1}'`, `state = 'available'`,
		`scheduled_at = now() - interval '1 minute'`,
	} {
		y.exec(t, `UPDATE river.river_job SET `+set+` WHERE id = $1`, id)
		require.Equal(t, rivertype.JobStateAvailable, y.state(t, id), set)
	}
	_, err := y.River().JobRetry(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, rivertype.JobStateAvailable, y.state(t, id))
	const holds = `SELECT count(*) FROM medianest.admission WHERE admitted_at IS NOT NULL AND keys = $1`
	require.Equal(t, 1, y.count(t, holds, []string{"host:a"}))
	y.exec(t, `UPDATE river.river_job SET metadata = '{"keys": ["host:b"]}' WHERE id = $1`, id)
	require.Equal(t, 1, y.count(t, holds, []string{"host:b"}))
	y.exec(t, `UPDATE river.river_job SET metadata = '{}' WHERE id = $1`, id)
	require.Zero(t, y.count(t, `SELECT count(*) FROM medianest.admission`))
	y.exec(t, `UPDATE river.river_job SET metadata = '{"keys": ["host:c"]}' WHERE id = $1`, id)
	require.Equal(t, 1, y.count(t, holds, []string{"host:c"}))
}
