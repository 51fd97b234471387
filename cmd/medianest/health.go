package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"medianest/api"
)

const (
	checkTimeout = 2 * time.Second
	// checkAge is how long an answer of the checks is good for, so that nobody can make the process busy by asking.
	checkAge = time.Second
)

// check is one dependency.
type check struct {
	name string
	// optional: the process does without it, degraded.
	optional bool
	// detail is what anyone may read when the probe fails; the probe's own error, which may name hosts, goes to the log.
	detail string
	probe  func(ctx context.Context) error
}

// health answers whether the process can do its work.
type health struct {
	up *prometheus.GaugeVec

	ready atomic.Bool // false while starting and stopping

	mu     sync.Mutex // held during a round, so that there is one at a time
	checks []check
	at     time.Time
	found  []api.Check
}

func newHealth(registry prometheus.Registerer) *health {
	h := &health{up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "medianest_dependency_up",
		Help: "Whether a dependency worked the last time it was looked at.",
	}, []string{"dependency"})}
	registry.MustRegister(h.up)
	return h
}

func (h *health) add(checks ...check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = append(h.checks, checks...)
	h.found = nil
}

// look runs all checks at once, or returns what they found a moment ago. While the process starts or stops, that comes
// first.
func (h *health) look(ctx context.Context) []api.Check {
	var states []api.Check
	if !h.ready.Load() {
		states = append(states, api.Check{Name: "process", State: api.HealthDown, Detail: "is starting or stopping"})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.found == nil || time.Since(h.at) >= checkAge {
		h.found, h.at = h.round(ctx), time.Now()
	}
	return append(states, h.found...)
}

func (h *health) round(ctx context.Context) []api.Check {
	// A caller that leaves must not make everybody else read "context canceled".
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	found := make([]api.Check, len(h.checks))
	var wg sync.WaitGroup
	for i, c := range h.checks {
		wg.Go(func() { found[i] = c.look(ctx) })
	}
	wg.Wait()
	for _, c := range found {
		up := 0.0
		if c.State == api.HealthOK {
			up = 1
		}
		h.up.WithLabelValues(c.Name).Set(up)
	}
	return found
}

func (c check) look(ctx context.Context) api.Check {
	err := c.probe(ctx)
	if err == nil {
		return api.Check{Name: c.name, State: api.HealthOK}
	}
	found := api.Check{Name: c.name, State: api.HealthDown, Detail: c.detail, Err: err}
	if c.optional {
		found.State = api.HealthDegraded
	}
	if errors.Is(err, context.DeadlineExceeded) {
		found.Detail = "no answer within " + checkTimeout.String()
	}
	return found
}

// adminHandler is what machines ask: metrics, and whether the process lives and is ready. The paths and answers are
// those of the API, which a worker does not have.
func adminHandler(registry *prometheus.Registry, h *health, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		Registry: registry, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, api.Liveness{State: api.HealthOK, Version: buildVersion()})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		whole := api.Health{State: api.HealthOK, Version: buildVersion(), Checks: h.look(r.Context())}
		for _, c := range whole.Checks {
			if c.State == api.HealthDown || c.State == api.HealthDegraded && whole.State == api.HealthOK {
				whole.State = c.State
			}
		}
		code := http.StatusOK
		if whole.State == api.HealthDown {
			code = http.StatusServiceUnavailable
		}
		answer(w, code, whole)
	})
	return mux
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // a reader that left needs no answer
}
