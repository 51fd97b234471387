package queue_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
)

// gather reads one metric family as label values (joined by a space) to value; of histograms, the count.
func gather(t *testing.T, r *prometheus.Registry, name string) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	found := make(map[string]float64)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := make([]string, 0, len(m.GetLabel()))
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			found[strings.Join(labels, " ")] = value(m)
		}
	}
	return found
}

func value(m *dto.Metric) float64 {
	switch {
	case m.GetHistogram() != nil:
		return float64(m.GetHistogram().GetSampleCount())
	case m.GetCounter() != nil:
		return m.GetCounter().GetValue()
	}
	return m.GetGauge().GetValue()
}

func TestMetricsOfAttempts(t *testing.T) {
	t.Parallel()

	registry := prometheus.NewRegistry()
	begun, finish := make(chan struct{}), make(chan struct{})
	b := setup(t, func(_ context.Context, job *river.Job[synthetic]) error {
		switch job.Args.N {
		case 1:
			return river.JobCancel(&reason.Error{Reason: reason.Gone})
		case 2:
			close(begun)
			<-finish
		}
		return nil
	}, func(o *queue.Options) { o.Registerer = registry })
	ids := b.insert(t, river.InsertOpts{}, synthetic{}, synthetic{}, synthetic{N: 1}, synthetic{N: 2})
	<-begun
	require.Eventually(t, func() bool { return gather(t, registry, "medianest_jobs_running")["synthetic"] == 1 },
		10*time.Second, 5*time.Millisecond)
	close(finish)
	for _, id := range ids {
		require.Eventually(t, func() bool { return b.job(t, id).FinalizedAt != nil }, 10*time.Second, 5*time.Millisecond)
	}
	require.Equal(t, map[string]float64{"synthetic": 0}, gather(t, registry, "medianest_jobs_running"))
	require.Equal(t, map[string]float64{"synthetic completed ": 3, "synthetic failed gone": 1}, gather(t, registry, "medianest_jobs_total"))
	require.Equal(t, map[string]float64{"synthetic completed": 3, "synthetic failed": 1}, gather(t, registry, "medianest_job_run_seconds"))
	require.Equal(t, map[string]float64{"synthetic test": 4}, gather(t, registry, "medianest_job_wait_seconds"))
}

func TestMetricsOfDepth(t *testing.T) {
	t.Parallel()

	registry := prometheus.NewRegistry()
	b := assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers, o.Registerer = nil, nil, registry })
	b.exec(t, `
		INSERT INTO river.river_job (kind, args, queue, state, priority, scheduled_at, finalized_at)
		SELECT 'synthetic', '{}'::jsonb, 'big', 'available'::river.river_job_state, 1 + n % 4, now() - interval '1 h', NULL::timestamptz FROM generate_series(1, 10050) n
		UNION ALL
		SELECT 'synthetic', '{}'::jsonb, 'big', 'completed', 1, now(), now() FROM generate_series(1, 20000);
		INSERT INTO river.river_job (kind, args, queue, state, priority, scheduled_at, finalized_at)
		VALUES
			('synthetic', '{}', 'small', 'available', 4, now() - interval '10 s', NULL),
			('synthetic', '{}', 'small', 'available', 2, now() - interval '100 s', NULL),
			('synthetic', '{}', 'small', 'running', 1, now(), NULL),
			('synthetic', '{}', 'later', 'scheduled', 1, now() + interval '1 h', NULL),
			('synthetic', '{}', 'later', 'available', 1, now() + interval '1 h', NULL);
		INSERT INTO river.river_queue (name, updated_at) VALUES ('idle', now());
		ANALYZE river.river_job`)

	require.Equal(t, map[string]float64{
		"big available": 10_001, "big pending": 0, "big retryable": 0, "big running": 0, "big scheduled": 0,
		"idle available": 0, "idle pending": 0, "idle retryable": 0, "idle running": 0, "idle scheduled": 0,
		"later available": 1, "later pending": 0, "later retryable": 0, "later running": 0, "later scheduled": 1,
		"small available": 2, "small pending": 0, "small retryable": 0, "small running": 1, "small scheduled": 0,
	}, gather(t, registry, "medianest_queue_jobs"))
	ages := gather(t, registry, "medianest_queue_oldest_age_seconds")
	require.InDelta(t, 3600, ages["big"], 60)
	require.InDelta(t, 100, ages["small"], 60)
	require.Zero(t, ages["later"])
	require.Zero(t, ages["idle"])
	require.Equal(t, map[string]float64{"": 1}, gather(t, registry, "medianest_queue_depth_up"))

	// The answer is kept for a moment.
	b.insert(t, river.InsertOpts{}, synthetic{})
	require.NotContains(t, gather(t, registry, "medianest_queue_jobs"), "test available")
}

// The numbers are read from the index that jobs are fetched by, never from the table as a whole.
func TestDepthScansNothing(t *testing.T) {
	t.Parallel()

	b := assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers = nil, nil })
	b.exec(t, `
		INSERT INTO river.river_job (kind, args, queue, state, finalized_at)
		SELECT 'synthetic', '{}'::jsonb, 'test', 'completed'::river.river_job_state, now() FROM generate_series(1, 20000)
		UNION ALL
		SELECT 'synthetic', '{}'::jsonb, 'test', 'available', NULL::timestamptz FROM generate_series(1, 20000)`)
	b.exec(t, `VACUUM ANALYZE river.river_job`)
	rows, err := b.owner.Query(t.Context(), "EXPLAIN "+queue.DepthSQL, 10_001)
	require.NoError(t, err)
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.NotContains(t, strings.Join(plan, "\n"), "Seq Scan on river_job")
}

func TestDepthWithoutDatabase(t *testing.T) {
	t.Parallel()

	registry := prometheus.NewRegistry()
	b := assemble(t, nil, func(o *queue.Options) { o.Queues, o.Workers, o.Registerer = nil, nil, registry })
	b.exec(t, `REVOKE SELECT ON river.river_job FROM medianest_river`)
	require.Equal(t, map[string]float64{"": 0}, gather(t, registry, "medianest_queue_depth_up"))
	require.Empty(t, gather(t, registry, "medianest_queue_jobs"))
}
