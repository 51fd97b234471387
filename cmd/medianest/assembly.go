package main

import (
	"context"
	"crypto/tls"
	"flag"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/riverqueue/river"

	"medianest/api/stream"
	"medianest/jobs"
	"medianest/jobs/guard"
	"medianest/jobs/media"
	"medianest/jobs/queue"
	"medianest/store"
)

// defaultQueues are all queues there are, with how many jobs of each one worker works at a time.
var defaultQueues = queueSizes{jobs.QueueDownload: 2, jobs.QueueLibrary: 4}

type upCommand struct{}

func (*upCommand) flags(*flag.FlagSet) {}
func (*upCommand) run(ctx context.Context, p process, _ []string) error {
	return runPlatform(ctx, p, modeUp)
}

type serveCommand struct{}

func (*serveCommand) flags(*flag.FlagSet) {}
func (*serveCommand) run(ctx context.Context, p process, _ []string) error {
	return runPlatform(ctx, p, modeServe)
}

type workCommand struct{}

func (*workCommand) flags(*flag.FlagSet) {}
func (*workCommand) run(ctx context.Context, p process, _ []string) error {
	return runPlatform(ctx, p, modeWork)
}

// runPlatform runs a part of the platform, or all of it, until it is asked to stop.
func runPlatform(ctx context.Context, p process, m mode) error {
	begin := time.Now()
	c, err := loadConfig(p, m)
	if err != nil {
		return err
	}
	t, err := newTelemetry(ctx, p.stderr, c, m)
	if err != nil {
		return err
	}
	return operate(ctx, t.log, p.signals, c.StopTimeout, func(ctx context.Context, l *lifecycle) error {
		a := &assembly{mode: m, config: c, process: p, telemetry: t, log: t.log, life: l, health: newHealth(t.registry)}
		for _, step := range a.steps() {
			if err := step(ctx); err != nil {
				return err
			}
		}
		t.log.Info("ready", slog.String("mode", string(m)), slog.String("version", buildVersion()),
			slog.Int64("duration_ms", time.Since(begin).Milliseconds()))
		return nil
	})
}

// assembly is a process being put together. Each step uses what those before it made, and starts what has to run;
// everything is stopped in the opposite order.
type assembly struct {
	mode      mode
	config    Config
	process   process
	telemetry *telemetry
	log       *slog.Logger
	life      *lifecycle
	health    *health
	tools     tools

	apiListener   net.Listener
	apiTLS        *tls.Config  // nil: plain
	adminListener net.Listener // nil: off
	tokenPath     string       // of the admin's token, in up
	setupCodePath string       // of the code that sets the admin's password, while there is none, in up
	keys          *store.Keyring
	databaseURL   string
	apiPool       *pgxpool.Pool // each pool is there where its role is played
	workerPool    *pgxpool.Pool
	riverPool     *pgxpool.Pool
	redis         redis.UniversalClient
	progress      *store.ProgressBus
	workers       *river.Workers // nil in a process that works nothing
	library       *media.Library
	queueID       string        // of a process that is the only one with it; else River makes one up
	keeper        *guard.Keeper // of yt-dlp's guards
	wake          queue.Wake
	queue         *queue.Client
	admission     *queue.Admission
	apiStore      *store.Store
	workerStore   *store.Store
	hub           *stream.Hub
	drainHub      func() // ends all event streams
}

// steps is the table of contents of a process.
func (a *assembly) steps() []func(context.Context) error {
	switch a.mode {
	case modeUp:
		return []func(context.Context) error{
			a.lockData, a.findKeys, a.useTLS, a.listenAPI, a.listenAdmin, a.findTools, a.openLibrary,
			a.embedPostgres, a.openPools, a.migrate, a.openRedis, a.flushTelemetry,
			a.makeQueue, a.prepareWork, a.startHub, a.startOutbox, a.startAdmission, a.startSchedules, a.startQueue, a.serveAPI,
			a.setReady, a.printBanner,
		}
	case modeServe:
		return []func(context.Context) error{
			a.useTLS, a.listenAPI, a.listenAdmin,
			a.openPools, a.checkSchema, a.findKeys, a.openRedis, a.flushTelemetry,
			a.makeQueue, a.startHub, a.startOutbox, a.startAdmission, a.startSchedules, a.startQueue, a.serveAPI,
			a.setReady,
		}
	default:
		return []func(context.Context) error{
			a.listenAdmin, a.findTools, a.openLibrary,
			a.openPools, a.checkSchema, a.findKeys, a.openRedis, a.flushTelemetry,
			a.makeQueue, a.prepareWork, a.startOutbox, a.startAdmission, a.startSchedules, a.startQueue,
			a.setReady,
		}
	}
}

// isAlone says that no other process can be in this one's database.
func (a *assembly) isAlone() bool { return a.mode == modeUp && a.config.DatabaseURL == "" }

func (a *assembly) serves() bool { return a.mode != modeWork }
func (a *assembly) works() bool  { return a.mode != modeServe }
