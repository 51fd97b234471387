package stream

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"medianest/store"
)

type metrics struct {
	streams     prometheus.Gauge
	sent        *prometheus.CounterVec
	sentJobs    prometheus.Counter // of sent, as the others below: of those that are many
	sentChanges prometheus.Counter
	sentReports prometheus.Counter
	ended       *prometheus.CounterVec
	lagged      prometheus.Counter
	replayed    prometheus.Counter
	resets      *prometheus.CounterVec
	tickLag     prometheus.Histogram
	pollFailing prometheus.Gauge
}

// newMetrics registers the metrics; with no registerer they count for nobody.
func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	sent := f.NewCounterVec(prometheus.CounterOpts{
		Name: "medianest_stream_events_sent_total",
		Help: "Events written to streams, by event.",
	}, []string{"event"})
	return &metrics{
		streams: f.NewGauge(prometheus.GaugeOpts{
			Name: "medianest_stream_subscribers",
			Help: "Event streams that are open.",
		}),
		sent:        sent,
		sentJobs:    sent.WithLabelValues(store.TopicJobState),
		sentChanges: sent.WithLabelValues(store.TopicDownloadState),
		sentReports: sent.WithLabelValues(TopicJobProgress),
		ended: f.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_stream_ended_total",
			Help: "Streams that ended, by cause: client (the reader left), slow (a write took too long), age, shutdown.",
		}, []string{"cause"}),
		lagged: f.NewCounter(prometheus.CounterOpts{
			Name: "medianest_stream_lagging_total",
			Help: "Times that a stream's buffer ran over, so that it read from the database what it lost.",
		}),
		replayed: f.NewCounter(prometheus.CounterOpts{
			Name: "medianest_stream_replayed_rows_total",
			Help: "Events read from the database for single streams.",
		}),
		resets: f.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_stream_resets_total",
			Help: "Times that a client was told to read anew, by reason.",
		}, []string{"reason"}),
		tickLag: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "medianest_stream_tick_lag_seconds",
			Help:    "From a tick to its events being handed to the streams.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}),
		pollFailing: f.NewGauge(prometheus.GaugeOpts{
			Name: "medianest_stream_stalled",
			Help: "1 while the hub can not read new events.",
		}),
	}
}

// count takes note of what was written to a stream.
func (m *metrics) count(events []*frame, reports int) {
	var jobs, changes int
	for _, f := range events {
		switch f.topic {
		case store.TopicJobState:
			jobs++
		case store.TopicDownloadState:
			changes++
		default:
			m.sent.WithLabelValues(f.topic).Inc()
		}
	}
	m.sentJobs.Add(float64(jobs))
	m.sentChanges.Add(float64(changes))
	m.sentReports.Add(float64(reports))
}
