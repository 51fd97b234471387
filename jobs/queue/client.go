// Package queue is River as this platform runs it: how clients are put together, stopped, drained, watched and
// measured, how the reason of each attempt gets into the job's row, and how a job goes on when its worker is lost. It
// knows no kind of job.
package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
	"github.com/riverqueue/rivercontrib/otelriver"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// Schema is where River's tables live.
const Schema = "river"

const (
	// notifyWindow is how long after one insert notification of a queue this client sends no other. River has no
	// trailing edge there: an insert inside the window of another, which a worker has already fetched, waits for the
	// workers' poll. So it is as short as makes sense; the bench has what it costs.
	notifyWindow = 2 * time.Millisecond

	// fetchCooldown and fetchPoll are of each queue. A queue starts at most its number of workers per cooldown.
	fetchCooldown = 10 * time.Millisecond
	fetchPoll     = 250 * time.Millisecond

	// Rows of ended jobs are kept for operators, not for history (that is in the domain's own rows): the table that is
	// fetched from stays small.
	completedRetention = 6 * time.Hour
	cancelledRetention = 24 * time.Hour
	discardedRetention = 7 * 24 * time.Hour

	defaultStopTimeout = 25 * time.Second

	// hardStopBound is what jobs whose context was cancelled, and River's last writes, get before Stop gives up.
	hardStopBound = 15 * time.Second
)

// DefaultRescueAfter is how long a job may run before River's own rescuer takes it from its worker: a last resort, for
// what the presence of workers does not show, such as a job that ignores its timeout.
const DefaultRescueAfter = 13 * time.Hour

// Options say what a client is. Pool and Logger are required.
type Options struct {
	// Pool connects as role river. It is River's own: its leader election and completions must not wait behind
	// requests. A working client takes one more connection, for LISTEN, from it for good.
	Pool   *pgxpool.Pool
	Logger *slog.Logger

	// ID names this client in attempts and in leader election; unique among live processes. Empty: River makes one
	// of host and time.
	ID string

	// Queues to work, with how many jobs of each at a time in this process. None: the client inserts, cancels and
	// retries, but works nothing and leads nothing.
	Queues  map[string]int
	Workers *river.Workers

	// StopTimeout is how long running jobs may go on after Stop before their contexts are cancelled. Zero means 25 s,
	// negative means no time at all.
	StopTimeout time.Duration

	// RescueAfter is how long a job may run before River's own rescuer takes it from its worker. It must be longer than
	// the longest timeout of any kind. Zero means DefaultRescueAfter.
	RescueAfter time.Duration

	// RetryScale multiplies the waits of breakers; tests make them short. 0 means 1.
	RetryScale float64

	// OnFree is called when a job that holds keys has ended here: others may be admitted. It must not block. Optional;
	// an admission that is not rung finds out by itself.
	OnFree func()

	// Presence says how this process proves to others that it lives.
	Presence Presence

	// Wake is what the pools of this process ask before each use of a connection (Fit in package store), so that nothing
	// is written between the moment at which it wakes too late and the one at which it notices. Optional.
	Wake *Wake

	// Registerer takes the queue's metrics. Nil: they are not exposed.
	Registerer prometheus.Registerer
	// TracerProvider and MeterProvider of OpenTelemetry. Nil: neither spans nor metrics that way.
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
}

// Client is a River client with this platform's settings. Its methods are safe for concurrent use.
type Client struct {
	river       *river.Client[pgx.Tx]
	pool        *pgxpool.Pool
	log         *slog.Logger
	presence    *presence
	depth       *depth
	breakers    *breakers
	working     bool
	stopTimeout time.Duration

	mu       sync.Mutex
	started  bool
	stops    int
	stopping chan struct{} // closed by the first Stop
	drained  chan struct{} // closed when a drain is done
	stopped  chan struct{} // closed when the client has stopped for good
}

// New assembles a client. It makes no connection.
func New(o Options) (*Client, error) {
	if o.Pool == nil || o.Logger == nil {
		return nil, errors.New("assemble queue client: Pool and Logger are required")
	}
	working := len(o.Queues) > 0
	if working && o.Workers == nil {
		return nil, errors.New("assemble queue client: Queues need Workers")
	}

	settings, err := o.Presence.withDefaults(working)
	if err != nil {
		return nil, fmt.Errorf("assemble queue client: %w", err)
	}
	if o.OnFree == nil {
		o.OnFree = func() {}
	}
	metrics := newMetrics()
	c := &Client{
		pool:        o.Pool,
		log:         o.Logger,
		presence:    newPresence(o, settings, metrics),
		breakers:    newBreakers(o.Pool, o.Logger, cmp.Or(o.RetryScale, 1), metrics.trips),
		working:     working,
		stopTimeout: cmp.Or(o.StopTimeout, defaultStopTimeout),
		stopping:    make(chan struct{}),
		drained:     make(chan struct{}),
		stopped:     make(chan struct{}),
	}

	attempts := &attempts{
		log: o.Logger, metrics: metrics, presence: c.presence, breakers: c.breakers, onFree: o.OnFree,
	}
	attempts.ends.all = attempts.freeAll
	config := &river.Config{
		ID:     o.ID,
		Schema: Schema,
		// River tells of each failed attempt at info; the attempts middleware does so in this platform's terms.
		Logger:        slog.New(quieter{o.Logger.Handler()}),
		FetchCooldown: notifyWindow,
		Plugins:       append(telemetry(o), attempts),
	}
	if working {
		config.Workers = o.Workers
		config.Queues = make(map[string]river.QueueConfig, len(o.Queues))
		for name, workers := range o.Queues {
			config.Queues[name] = river.QueueConfig{MaxWorkers: workers, FetchCooldown: fetchCooldown, FetchPollInterval: fetchPoll}
		}
		config.ErrorHandler = &errorHandler{log: o.Logger}
		config.RescueStuckJobsAfter = cmp.Or(o.RescueAfter, DefaultRescueAfter)
		config.CompletedJobRetentionPeriod = completedRetention
		config.CancelledJobRetentionPeriod = cancelledRetention
		config.DiscardedJobRetentionPeriod = discardedRetention
		config.SoftStopTimeout = max(c.stopTimeout, time.Nanosecond) // River takes zero for "without end"
		// REINDEX wants ownership of the tables, which role river does not have, and its indexes have their own
		// autovacuum settings.
		config.ReindexerSchedule = river.NeverSchedule()
		// During a rolling deployment an old worker leaves the new kinds to new workers.
		config.FetchOnlyKnownKinds = true
	}

	if c.river, err = river.NewClient(riverpgxv5.New(o.Pool), config); err != nil {
		return nil, fmt.Errorf("assemble queue client: %w", err)
	}
	c.presence.id = c.ID()
	c.depth = newDepth(o.Pool, o.Logger)
	if o.Registerer != nil {
		if err := metrics.register(o.Registerer, c.presence, c.depth); err != nil {
			return nil, fmt.Errorf("register queue metrics: %w", err)
		}
	}
	return c, nil
}

// telemetry is River's part in OpenTelemetry: the span of an attempt is linked to the one that enqueued the job, whose id
// travels in the metadata. Where nobody looks it is left out: it takes apart each job's metadata.
func telemetry(o Options) []rivertype.Plugin {
	_, noTraces := o.TracerProvider.(tracenoop.TracerProvider)
	if (o.TracerProvider == nil || noTraces) && o.MeterProvider == nil {
		return nil
	}
	config := &otelriver.MiddlewareConfig{
		EnableTracePropagation: true, EnableWorkSpanJobKindSuffix: true,
		TracerProvider: o.TracerProvider, MeterProvider: o.MeterProvider,
	}
	if config.TracerProvider == nil { // the plugin would take the process's
		config.TracerProvider = tracenoop.NewTracerProvider()
	}
	if config.MeterProvider == nil {
		config.MeterProvider = metricnoop.NewMeterProvider()
	}
	return []rivertype.Plugin{otelriver.NewMiddleware(config)}
}

// River is the client itself, for what River's own tools need and for inserting.
func (c *Client) River() *river.Client[pgx.Tx] { return c.river }

// ID names this client in attempts.
func (c *Client) ID() string { return c.river.ID() }

// Start makes this process known to the others, begins to work the queues if there are any, and returns; jobs run until
// Stop, or until somebody asks in the database for a drain. A context that ends stops the client as Stop does.
func (c *Client) Start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started {
		return errors.New("start queue client: it was started before")
	}
	// Whoever fetches a job must be known: it would be taken for a dead one's.
	if err := c.presence.join(ctx); err != nil {
		return fmt.Errorf("start queue client: %w", err)
	}
	var riverStopped <-chan struct{} // stays nil where River does not run
	if c.working {
		if err := c.river.Start(ctx); err != nil {
			c.presence.leave(ctx)
			return fmt.Errorf("start queue client: %w", err)
		}
		riverStopped = c.river.Stopped()
	}
	c.started = true
	// The presence lasts for as long as jobs may run, which is longer than ctx.
	presenceCtx, stopPresence := context.WithCancel(context.WithoutCancel(ctx))
	present := make(chan struct{})
	go func() {
		defer close(present)
		c.presence.run(presenceCtx)
	}()
	go func() {
		defer close(c.stopped)
		c.untilStopped(ctx, riverStopped)
		stopPresence()
		<-present
		c.presence.leave(presenceCtx)
		c.log.InfoContext(presenceCtx, "queue client stopped", "client_id", c.ID())
	}()
	c.log.InfoContext(ctx, "queue client started", "client_id", c.ID())
	return nil
}

// untilStopped returns when River has stopped for good, or where it does not run when the client is to stop. A drain
// stops River and leaves the client.
func (c *Client) untilStopped(ctx context.Context, riverStopped <-chan struct{}) {
	if c.working {
		select {
		case <-riverStopped:
			return
		case <-c.presence.drainAsked:
		}
		c.log.InfoContext(ctx, "asked to drain; jobs are handed over and no more are taken", "client_id", c.ID())
		_ = c.river.Stop(context.WithoutCancel(ctx)) // cancels the jobs' contexts itself after StopTimeout
		<-riverStopped
		c.presence.setDrained()
		close(c.drained)
		c.log.InfoContext(ctx, "drained", "client_id", c.ID())
	}
	select {
	case <-c.stopping:
	case <-ctx.Done():
	}
}

// Stop takes no more jobs and waits for the running ones; after StopTimeout their contexts are cancelled, and those
// that return a context error go back to the queue without having spent an attempt. A second call, while the first
// waits, cancels them at once. Both return when everything has ended and the presence is taken back, with an error when
// ctx ends or jobs ignore their cancelled contexts for 15 s: such jobs stay "running" until others find this process
// lost.
func (c *Client) Stop(ctx context.Context) error {
	c.mu.Lock()
	if !c.started {
		c.mu.Unlock()
		return nil
	}
	c.stops++
	first := c.stops == 1
	if first {
		close(c.stopping)
	}
	c.mu.Unlock()

	grace := hardStopBound
	if first && c.stopTimeout > 0 {
		grace += c.stopTimeout
	}
	if c.working {
		// River's Stop holds a lock until it returns, on which its StopAndCancel waits after it has cancelled: neither is
		// waited for here, but the end that both bring about.
		go func(ctx context.Context) {
			if first && c.stopTimeout > 0 {
				_ = c.river.Stop(ctx)
			} else {
				_ = c.river.StopAndCancel(ctx)
			}
		}(context.WithoutCancel(ctx))
	}

	select {
	case <-c.stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop queue client: %w", context.Cause(ctx))
	case <-time.After(grace):
		return fmt.Errorf("stop queue client: jobs still run %s after they should have ended", hardStopBound)
	}
}

// Stopped is closed when the client, once started, has stopped for good. A drain does not stop it.
func (c *Client) Stopped() <-chan struct{} { return c.stopped }

// Drained is closed when somebody asked in the database for a drain and it is done: this process has no jobs and takes
// none any more. It goes on otherwise, with its presence.
func (c *Client) Drained() <-chan struct{} { return c.drained }

// Health says whether the queue can be used: its database answers and, in a client that works, River runs. It waits no
// longer than ctx, or the database's own time-outs.
func (c *Client) Health(ctx context.Context) error {
	if c.working {
		c.mu.Lock()
		started := c.started
		c.mu.Unlock()
		if !started {
			return errors.New("queue client has not started")
		}
		select {
		case <-c.stopped:
			return errors.New("queue client has stopped")
		default:
		}
	}
	if err := c.pool.Ping(ctx); err != nil {
		return fmt.Errorf("ping the queue's database: %w", err)
	}
	return nil
}

// quieter passes on what River says from warnings up.
type quieter struct{ slog.Handler }

func (q quieter) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && q.Handler.Enabled(ctx, level)
}

func (q quieter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quieter{q.Handler.WithAttrs(attrs)}
}

func (q quieter) WithGroup(name string) slog.Handler { return quieter{q.Handler.WithGroup(name)} }
