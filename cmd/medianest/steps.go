package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"riverqueue.com/riverui"

	"medianest/api"
	"medianest/api/stream"
	"medianest/jobs"
	"medianest/jobs/guard"
	"medianest/jobs/queue"
	"medianest/migrations"
	"medianest/store"
)

// The steps that make a process; assembly.steps has their order.

// lockData takes the data directory for this process alone.
func (a *assembly) lockData(context.Context) error {
	if err := openDataDir(a.config.DataDir); err != nil {
		return err
	}
	release, err := lockDataDir(a.config.DataDir)
	if err != nil {
		return err
	}
	a.life.start(unit{name: "lock on the data directory", stop: func(context.Context) error { release(); return nil }})
	a.queueID, err = instanceID(a.config.DataDir)
	return err
}

// listenAPI takes the API's address before anything that takes time is done, so that a port in use is told at once. It
// serves only when all is there.
func (a *assembly) listenAPI(ctx context.Context) (err error) {
	if a.apiListener, err = listen(ctx, "MEDIANEST_LISTEN", a.config.Listen); err != nil {
		return err
	}
	a.life.start(unit{name: "listener", stop: func(context.Context) error {
		_ = a.apiListener.Close() // closed already, unless the start was given up
		return nil
	}})
	return nil
}

// listenAdmin starts the admin listener: it is there first and goes last, to tell how the rest is.
func (a *assembly) listenAdmin(ctx context.Context) (err error) {
	if a.config.AdminListen == off {
		return nil
	}
	if a.adminListener, err = listen(ctx, "MEDIANEST_ADMIN_LISTEN", a.config.AdminListen); err != nil {
		return err
	}
	a.life.start(httpUnit("admin listener", a.adminListener, nil, adminHandler(a.telemetry.registry, a.health, a.log), a.log, nil))
	a.log.InfoContext(ctx, "admin listener started", slog.String("address", a.adminListener.Addr().String()))
	return nil
}

// embedPostgres starts the private server unless one is named.
func (a *assembly) embedPostgres(ctx context.Context) error {
	if a.config.DatabaseURL != "" {
		return nil
	}
	server, err := startPostgres(ctx, a.config, a.log)
	if err != nil {
		return err
	}
	a.life.start(unit{name: "embedded postgres", stop: server.Stop})
	a.databaseURL = server.URL(databaseName)
	return nil
}

// Connections of the pools. The embedded server takes 100 in all, and each process of a fleet has its own.
const (
	apiConns    = 12
	workerConns = 8
	riverConns  = 8
)

// openPools opens a pool for each role that this process acts in.
func (a *assembly) openPools(ctx context.Context) error {
	if a.databaseURL == "" {
		a.databaseURL = a.config.DatabaseURL.reveal()
	}
	var fit func() error
	if a.works() {
		fit = a.wake.Err
	}
	open := func(pool **pgxpool.Pool, role string, conns int32) error {
		opened, err := store.OpenPool(ctx, store.PoolOptions{
			URL: a.databaseURL, Role: role, MaxConns: conns,
			AppName: "medianest-" + string(a.mode) + "-" + role, Tracer: a.telemetry.queryTracer(), Fit: fit,
		})
		if err != nil {
			return usageError("MEDIANEST_DATABASE_URL: %v", err)
		}
		*pool = opened
		a.life.start(unit{name: "database pool " + role, stop: func(context.Context) error { opened.Close(); return nil }})
		return nil
	}
	var err error
	if a.serves() {
		err = open(&a.apiPool, store.RoleAPI, apiConns)
	}
	if a.works() {
		err = errors.Join(err, open(&a.workerPool, store.RoleWorker, workerConns))
	}
	return errors.Join(err, open(&a.riverPool, store.RoleRiver, riverConns))
}

// anyPool is a pool for what does not depend on the role.
func (a *assembly) anyPool() *pgxpool.Pool {
	if a.serves() {
		return a.apiPool
	}
	return a.workerPool
}

// migrate brings the schema up and makes the admin: what `up` does by itself and a fleet by `medianest migrate up`.
func (a *assembly) migrate(ctx context.Context) error {
	owner, err := store.OpenPool(ctx, store.PoolOptions{URL: a.databaseURL, MaxConns: 2, AppName: "medianest-up-owner"})
	if err != nil {
		return usageError("MEDIANEST_DATABASE_URL: %v", err)
	}
	defer owner.Close()
	if err := waitForDatabase(ctx, owner, a.config.StartTimeout, a.log); err != nil {
		return err
	}
	if err := migrations.Up(ctx, owner, a.log); err != nil {
		return err
	}
	a.addDatabaseChecks()
	if a.tokenPath, err = ensureAdmin(ctx, store.New(owner), a.config.DataDir); err != nil {
		return err
	}
	a.setupCodePath, err = ensureSetupCode(ctx, store.New(owner), a.config.DataDir)
	return err
}

// findKeys reads the secret keys, which migrations make where there are none.
func (a *assembly) findKeys(context.Context) (err error) {
	a.keys, err = secretKeys(a.config, a.mode == modeUp)
	return err
}

// checkSchema waits for the database and refuses a schema that this build cannot work with.
func (a *assembly) checkSchema(ctx context.Context) error {
	if err := waitForDatabase(ctx, a.anyPool(), a.config.StartTimeout, a.log); err != nil {
		return err
	}
	if err := migrations.Check(ctx, a.anyPool()); err != nil {
		return err
	}
	a.addDatabaseChecks()
	return nil
}

func (a *assembly) addDatabaseChecks() {
	a.health.add(
		check{name: "postgres", detail: "the database does not answer", probe: store.New(a.anyPool()).Ping},
		check{name: "schema", detail: "the database's schema is too old, or cannot be read", probe: func(ctx context.Context) error {
			return migrations.Check(ctx, a.anyPool())
		}},
	)
}

// openRedis opens the client. Redis may be away, now and later: progress pauses, that is all.
func (a *assembly) openRedis(ctx context.Context) (err error) {
	if a.config.RedisURL == "" {
		server, err := startEmbeddedRedis()
		if err != nil {
			return err
		}
		a.life.start(unit{name: "embedded redis", stop: func(context.Context) error { server.close(); return nil }})
		a.redis = server.client()
	} else if a.redis, err = store.OpenRedis(a.config.RedisURL.reveal()); err != nil {
		return usageError("MEDIANEST_REDIS_URL: %v", err)
	}
	client := a.redis
	a.life.start(unit{name: "redis client", stop: func(context.Context) error { return client.Close() }})
	if err := a.telemetry.traceRedis(client); err != nil {
		return err
	}
	a.health.add(check{
		name: "redis", optional: true, detail: "Redis does not answer: live progress pauses",
		probe: func(ctx context.Context) error { return client.Ping(ctx).Err() },
	})
	if err := client.Ping(ctx).Err(); err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "redis does not answer; live progress pauses until it does", slog.Any("err", err))
	}
	return nil
}

// flushTelemetry has the last spans sent after everything that makes some has stopped.
func (a *assembly) flushTelemetry(context.Context) error {
	a.life.start(unit{name: "telemetry", stop: a.telemetry.shutdown})
	return nil
}

// softStopShare is the part of a stop in which jobs may still end by themselves, as a divisor. Short ones do; downloads
// go back to the queue and on elsewhere.
const softStopShare = 10

// makeQueue puts together the River client, which works where this process does and inserts only elsewhere, and the
// stores, which enqueue through it.
func (a *assembly) makeQueue(context.Context) (err error) {
	a.progress = store.NewProgressBus(a.redis, a.log)
	options := queue.Options{
		Pool: a.riverPool, Logger: a.log, Registerer: a.telemetry.registry, TracerProvider: a.telemetry.tracers,
		ID: a.queueID, StopTimeout: a.config.StopTimeout / softStopShare, Presence: a.presence(),
		Wake:       &a.wake,
		RetryScale: a.config.RetryScale,
	}
	a.admission = queue.NewAdmission(a.riverPool, a.log)
	if err := a.admission.Register(a.telemetry.registry); err != nil {
		return err
	}
	options.OnFree = a.admission.Ring
	if a.works() {
		a.workers = river.NewWorkers()
		options.Queues, options.Workers = a.config.WorkerQueues, a.workers
	}
	if a.queue, err = queue.New(options); err != nil {
		return err
	}
	enqueuer := jobs.NewEnqueuer(a.queue)
	if a.serves() {
		a.apiStore = store.New(a.apiPool).WithQueue(enqueuer).WithKeys(a.keys)
	}
	if a.works() {
		a.workerStore = store.New(a.workerPool).WithQueue(enqueuer).WithKeys(a.keys)
	}
	return nil
}

// presence says how this process is known to the others, and has the guards of its children hear of it.
func (a *assembly) presence() queue.Presence {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	p := queue.Presence{
		Mode: string(a.mode), Host: host, Version: buildVersion(),
		TTL: a.config.WorkerTTL, Beat: a.config.WorkerBeat, MaxLosses: a.config.MaxLosses, Alone: a.isAlone(),
	}
	if a.works() {
		a.keeper = guard.New(guard.Options{Lifetime: a.config.WorkerTTL * guardShare / 5})
		p.Volume, p.OnBeat, p.OnOverslept = a.library.Volume(), a.keeper.Beat, a.exitOverslept
	}
	return p
}

// guardShare is the part of the TTL, in fifths, for which children go on without a beat. The last fifth is for a renewal
// that the database has taken and this process has not heard of yet.
const guardShare = 4

// exitOverslept ends a process that was stopped, or whose machine slept, for longer than its presence lasts. Its jobs are
// others' by now. It ends without another word to anybody, as nothing that is still in its memory may be written.
func (a *assembly) exitOverslept(gap time.Duration) {
	a.log.Error("this process has overslept and ends at once; its jobs go on elsewhere", slog.Int64("gap_ms", gap.Milliseconds()))
	os.Exit(exitOverslept)
}

// streamsPerUser bounds the event streams that one user has open at one replica: a household's browsers and scripts,
// with room, and far below what a process has file descriptors for.
const streamsPerUser = 256

// startHub starts what follows the outbox for the readers of the event stream.
func (a *assembly) startHub(context.Context) error {
	a.hub = stream.New(stream.Options{
		Source: a.apiStore, Progress: a.progress, Logger: a.log, Registerer: a.telemetry.registry, MaxPerUser: streamsPerUser,
	})
	drained := make(chan struct{})
	a.drainHub = sync.OnceFunc(func() { close(drained) })
	a.life.start(unit{name: "event stream", run: func(ctx context.Context) error {
		draining, drain := context.WithCancel(ctx)
		defer drain()
		go func() {
			select {
			case <-drained:
				drain()
			case <-draining.Done():
			}
		}()
		if err := a.hub.Run(draining); err != nil && draining.Err() == nil {
			return err
		}
		if draining.Err() != nil {
			<-ctx.Done() // asked to drain: no sudden end
		}
		return nil
	}})
	return nil
}

// startOutbox starts what turns the outbox into ticks, keeps it short and has downloads follow their jobs. Any process
// does; the one on duty works.
func (a *assembly) startOutbox(context.Context) error {
	options := store.OutboxOptions{
		Logger: a.log, Holder: string(a.mode) + "-" + uuid.Must(uuid.NewV7()).String(),
		TickInterval: a.config.TickInterval, Retention: a.config.Retention, Store: a.apiStore,
		TrimInterval: -1, // there are schedules for that
	}
	if a.apiStore == nil {
		options.Store = a.workerStore
	}
	options.OnTick = func() {
		a.admission.Ring()
		if a.hub != nil {
			a.hub.Ring()
		}
	}
	a.life.start(unit{name: "outbox", run: store.NewOutbox(options).Run})
	return nil
}

// startSchedules starts what enqueues the jobs of schedules. Any process may.
func (a *assembly) startSchedules(context.Context) error {
	options := store.SchedulerOptions{Store: a.apiStore, Logger: a.log, Own: jobs.OwnSchedules()}
	if a.apiStore == nil {
		options.Store = a.workerStore
	}
	a.life.start(unit{name: "schedules", run: store.NewScheduler(options).Run})
	return nil
}

// startAdmission starts what decides which of the jobs that wait for limits may begin. Any process does; they take
// turns.
func (a *assembly) startAdmission(context.Context) error {
	a.life.start(unit{name: "admission", run: a.admission.Run})
	return nil
}

// startQueue makes this process known to the others and, where it works, begins to work jobs, with those that a killed
// predecessor on the same data directory was at.
func (a *assembly) startQueue(ctx context.Context) error {
	if a.queueID != "" {
		if _, err := a.queue.TakeBack(ctx); err != nil {
			return err
		}
	}
	// River's own context outlives every other: jobs end by Stop.
	if err := a.queue.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	a.life.start(unit{
		name: "queue",
		run: func(ctx context.Context) error {
			select {
			case <-a.queue.Stopped():
				return nil
			case <-ctx.Done():
				return nil
			}
		},
		stop: func(ctx context.Context) error {
			err := a.queue.Stop(ctx)
			if ctx.Err() == nil {
				return err
			}
			// No time left: the second call cancels the jobs at once, which kills what they run.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			return a.queue.Stop(last)
		},
	})
	return nil
}

// riverUI serves River's own pages to admins.
func (a *assembly) riverUI() (*riverui.Handler, error) {
	handler, err := riverui.NewHandler(&riverui.HandlerOpts{
		Endpoints: riverui.NewEndpoints(a.queue.River(), nil),
		Logger:    a.log,
		Prefix:    a.config.BasePath + "/river",
	})
	if err != nil {
		return nil, fmt.Errorf("assemble river ui: %w", err)
	}
	a.life.start(unit{name: "river ui", run: func(ctx context.Context) error {
		if err := handler.Start(ctx); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}})
	return handler, nil
}

// serveAPI answers requests.
func (a *assembly) serveAPI(ctx context.Context) error {
	ui, err := a.riverUI()
	if err != nil {
		return err
	}
	providers, err := a.providers(ctx)
	if err != nil {
		return err
	}
	handler, err := api.New(api.Options{
		Providers: providers, SignUpRole: a.signUpRole(),
		Store: a.apiStore, Keys: a.keys, RateLimiter: store.NewRateLimiter(a.redis, a.log), Rates: a.config.Rates,
		CORSOrigins: a.config.CORSOrigins, TrustedProxies: a.config.TrustedProxy, Progress: a.progress, Stream: a.hub, RiverUI: ui, Health: a.health.look, OnLimits: a.admission.Ring, Queues: a.queue,
		BasePath: a.config.BasePath, PublicURL: a.config.PublicURL, Version: buildVersion(),
		Logger: a.log, Registerer: a.telemetry.registry, TracerProvider: a.telemetry.tracers,
	})
	if err != nil {
		return err
	}
	a.life.start(httpUnit("http", a.apiListener, a.apiTLS, handler, a.log, a.drainHub))
	a.log.InfoContext(ctx, "listening", slog.String("address", a.apiListener.Addr().String()))
	return nil
}

// setReady says that the process can do its work, and takes it back first of all when it stops.
func (a *assembly) setReady(context.Context) error {
	a.life.start(unit{name: "readiness", stop: func(context.Context) error { a.health.ready.Store(false); return nil }})
	a.health.ready.Store(true)
	return nil
}

// printBanner tells a person who started this at a terminal where everything is. The token itself is never printed.
func (a *assembly) printBanner(ctx context.Context) error {
	url := a.config.scheme(localURL(a.apiListener.Addr().String())) + a.config.BasePath
	if a.config.LogFormat != "text" {
		a.log.InfoContext(ctx, "up", slog.String("url", url), slog.String("token_file", a.tokenPath), slog.String("media_dir", a.config.MediaDir))
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nMediaNest is running at %s\n\n", url)
	line := func(what, where string) { fmt.Fprintf(&b, "  %-11s %s\n", what, where) }
	line("API", url+"/docs")
	line("API token", a.tokenPath+" (user admin)")
	if a.setupCodePath != "" {
		line("password", url+"/invitation, with the code in "+a.setupCodePath)
	}
	line("library", a.config.MediaDir)
	if a.config.DatabaseURL == "" {
		line("database", filepath.Join(a.config.DataDir, "postgres"))
	}
	if a.adminListener != nil {
		line("metrics", localURL(a.adminListener.Addr().String())+"/metrics")
	}
	try := "medianest download URL"
	if url != a.config.Server {
		try += " --server " + url
	}
	fmt.Fprintf(&b, "\nTry it from another terminal: %s\nCtrl-C stops; running downloads go on at the next start.\n\n", try)
	_, _ = io.WriteString(a.process.stdout, b.String()) // in one piece, between the lines of the log; nobody need read it
	return nil
}
