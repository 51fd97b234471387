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

	reclaimed *prometheus.CounterVec
	fences    prometheus.Counter
	trips     *prometheus.CounterVec
	unlogged  prometheus.Counter
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
		reclaimed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_jobs_reclaimed_total",
			Help: "Jobs of lost workers that this process had go on (resumed), ended (cancelled, quarantined) or forgot (dropped).",
		}, []string{"verdict"}),
		fences: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "medianest_fences_total",
			Help: "How often this process stopped its jobs because it could not renew its presence in the database.",
		}),
		trips: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_breaker_trips_total",
			Help: "How often attempts in this process tripped a breaker, or led one up its ladder, by reason.",
		}, []string{"reason"}),
		unlogged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "medianest_job_log_lines_lost_total",
			Help: "Lines of jobs' logs that this process could not write.",
		}),
	}
}

func (m *metrics) register(r prometheus.Registerer, presence *presence, depth *depth) error {
	age := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "medianest_presence_age_seconds",
		Help: "How long ago this process began its last successful renewal of its presence; 0 if it has none.",
	}, func() float64 { return presence.age().Seconds() })
	return errors.Join(r.Register(m.jobs), r.Register(m.running), r.Register(m.run), r.Register(m.wait),
		r.Register(m.reclaimed), r.Register(m.fences), r.Register(m.trips), r.Register(m.unlogged), r.Register(age), r.Register(depth))
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

// admissionMetrics are of the rounds that this process takes part in.
type admissionMetrics struct {
	rounds   *prometheus.CounterVec
	duration prometheus.Histogram
	moved    *prometheus.CounterVec
}

func newAdmissionMetrics() *admissionMetrics {
	return &admissionMetrics{
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_admission_rounds_total",
			Help: "Rounds of admission in this process: decided, standby while another process decides, failed.",
		}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "medianest_admission_round_seconds",
			Help:    "How long the rounds took that this process decided.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}),
		moved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_admission_jobs_total",
			Help: "Jobs that rounds of this process admitted, took back before they began (demoted), or looked at (examined).",
		}, []string{"action"}),
	}
}

func (m *admissionMetrics) note(outcome string, took time.Duration, d decision) {
	m.rounds.WithLabelValues(outcome).Inc()
	if outcome != "decided" {
		return
	}
	m.duration.Observe(took.Seconds())
	m.moved.WithLabelValues("admitted").Add(float64(d.admitted))
	m.moved.WithLabelValues("demoted").Add(float64(d.demoted))
	m.moved.WithLabelValues("examined").Add(float64(d.examined))
}

// Register exposes the metrics of the rounds.
func (a *Admission) Register(r prometheus.Registerer) error {
	return errors.Join(r.Register(a.metrics.rounds), r.Register(a.metrics.duration), r.Register(a.metrics.moved))
}
