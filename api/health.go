package api

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// How a dependency is.
const (
	HealthOK       = "ok"       // works
	HealthDegraded = "degraded" // does not, and the process does without it
	HealthDown     = "down"     // does not, and the process is of no use
)

// Check is how one dependency of the process is.
type Check struct {
	Name   string `json:"name" doc:"What was looked at." example:"postgres"`
	State  string `json:"state" enum:"ok,degraded,down" doc:"ok; degraded: it is away, and is done without; down: it is away, and nothing works without." example:"ok"`
	Detail string `json:"detail,omitempty" doc:"What is wrong with it." example:"no answer within 2 s"`

	// Err is the cause for the log, where Detail, which anyone may read, must not name hosts or users.
	Err error `json:"-"`
}

// Health is how the process is as a whole.
type Health struct {
	State   string  `json:"state" enum:"ok,degraded,down" doc:"The worst of the checks." example:"ok"`
	Version string  `json:"version" doc:"Of the program." example:"v1.2.3"`
	Checks  []Check `json:"checks" nullable:"false" doc:"One for each dependency."`
}

// healthAge is how long an answer is used again: probes come in swarms, and may come from anyone.
const healthAge = time.Second

// health asks the dependencies when somebody asks, and logs when one of them changes.
type health struct {
	checks  func(context.Context) []Check
	version string
	log     *slog.Logger

	mu     sync.Mutex
	last   Health
	at     time.Time
	states map[string]string // of each check, as last logged
}

func newHealth(checks func(context.Context) []Check, version string, log *slog.Logger) *health {
	return &health{checks: checks, version: version, log: log, states: make(map[string]string)}
}

// look returns how the process is, at most healthAge ago. One caller at a time asks; the others wait for its answer.
func (h *health) look(ctx context.Context) Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.at.IsZero() && time.Since(h.at) < healthAge {
		return h.last
	}
	found := Health{State: HealthOK, Version: h.version, Checks: []Check{}}
	if h.checks != nil {
		// Who asks may leave at once; the answer is for the others too.
		found.Checks = append(found.Checks, h.checks(context.WithoutCancel(ctx))...)
	}
	for _, c := range found.Checks {
		found.State = worse(found.State, c.State)
		if before, known := h.states[c.Name]; before != c.State && (known || c.State != HealthOK) {
			level := slog.LevelWarn
			if c.State == HealthOK {
				level = slog.LevelInfo
			}
			h.log.LogAttrs(ctx, level, "dependency changed", slog.String("dependency", c.Name), slog.String("state", c.State),
				slog.String("detail", c.Detail), slog.Any("err", c.Err))
		}
		h.states[c.Name] = c.State
	}
	h.last, h.at = found, time.Now()
	return found
}

func worse(a, b string) string {
	for _, state := range []string{HealthDown, HealthDegraded} {
		if a == state || b == state {
			return state
		}
	}
	return HealthOK
}

// status is the HTTP status of the health. A process that does without something is ready.
func (h Health) status() int {
	if h.State == HealthDown {
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

var livez = described{
	id: "livez", tag: tagHealth, summary: "Is the process alive?", public: true,
	text: "Answers as long as the process can answer, whatever its dependencies do. For liveness probes: a restart would help if this fails.",
}

// Liveness is the answer of a process that lives.
type Liveness struct {
	State   string `json:"state" enum:"ok" doc:"Always ok." example:"ok"`
	Version string `json:"version" doc:"Of the program." example:"v1.2.3"`
}

type livezOutput struct{ Body Liveness }

func (a *API) handleLivez(context.Context, *struct{}) (*livezOutput, error) {
	return &livezOutput{Liveness{State: HealthOK, Version: a.version}}, nil
}

var readyz = described{
	id: "readyz", tag: tagHealth, summary: "Can the process do its work?", public: true,
	text: "Each dependency with its state. Without Postgres, or on a schema that is too old, the process is `down` (503) and should get no requests; without Redis it is `degraded` (200): progress pauses, all else works. Answers may be a second old.",
}

type readyzOutput struct {
	Status int
	Body   Health
}

func (a *API) handleReadyz(ctx context.Context, _ *struct{}) (*readyzOutput, error) {
	found := a.health.look(ctx)
	return &readyzOutput{Status: found.status(), Body: found}, nil
}
