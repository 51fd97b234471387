package queue

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river/rivertype"
)

// metrics are of the attempts that this process works.
type metrics struct {
	jobs    *prometheus.CounterVec
	running *prometheus.GaugeVec
	run     *prometheus.HistogramVec
	wait    *prometheus.HistogramVec
}

func newMetrics() *metrics {
	return &metrics{
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_jobs_total",
			Help: "Attempts that ended in this process, by kind, by what became of the job, and by the reason if it failed.",
		}, []string{"kind", "outcome", "reason"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "medianest_jobs_running",
			Help: "Attempts that run in this process now.",
		}, []string{"kind"}),
		run: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "medianest_job_run_seconds",
			Help:    "How long attempts ran, from a hundredth of a second to half a day.",
			Buckets: []float64{.01, .05, .1, .5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600},
		}, []string{"kind", "outcome"}),
		wait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "medianest_job_wait_seconds",
			Help:    "How long attempts waited for a worker after they were due.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600},
		}, []string{"kind", "queue"}),
	}
}

func (m *metrics) register(r prometheus.Registerer, depth *depth) error {
	return errors.Join(r.Register(m.jobs), r.Register(m.running), r.Register(m.run), r.Register(m.wait), r.Register(depth))
}

func (m *metrics) begin(job *rivertype.JobRow) {
	m.running.WithLabelValues(job.Kind).Inc()
	if job.AttemptedAt != nil {
		m.wait.WithLabelValues(job.Kind, job.Queue).Observe(max(0, job.AttemptedAt.Sub(job.ScheduledAt).Seconds()))
	}
}

func (m *metrics) end(job *rivertype.JobRow, e end, took time.Duration) {
	m.running.WithLabelValues(job.Kind).Dec()
	m.jobs.WithLabelValues(job.Kind, string(e.outcome), string(e.reason)).Inc()
	m.run.WithLabelValues(job.Kind, string(e.outcome)).Observe(took.Seconds())
}
