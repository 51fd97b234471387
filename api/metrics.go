package api

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests by route template: a label never holds what a client made up.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	signIns  *prometheus.CounterVec
	limited  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_http_requests_total",
			Help: "Requests answered, by route template and status; 499 is a client that left before the answer.",
		}, []string{"method", "route", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "medianest_http_request_duration_seconds",
			Help:    "Time from a request's header to the end of its answer, without event streams.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"method", "route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "medianest_http_requests_in_flight",
			Help: "Requests that are being answered now, open event streams among them.",
		}),
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "medianest_http_sign_ins_total",
			Help: "Attempts to sign in, by result: ok, refused, slowed_down, or reused for a refresh token that came again.",
		}, []string{"result"}),
	}
	m.limited = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "medianest_http_rate_limited_total",
		Help: "Requests refused for being too many, by class of route.",
	}, []string{"class"})
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.inFlight, m.signIns, m.limited} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

var knownMethods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
}

func (m *metrics) observe(method, route string, status int, took time.Duration, streamed bool) {
	if !slices.Contains(knownMethods, method) {
		method = "other"
	}
	if route == "" {
		route = "none"
	}
	m.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	if !streamed {
		m.duration.WithLabelValues(method, route).Observe(took.Seconds())
	}
}
