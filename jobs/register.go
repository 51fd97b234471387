package jobs

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/riverqueue/river"

	"medianest/jobs/egress"
	"medianest/store"
)

// Deps are what the workers need. All but Collector, StagingWait, EventRetention and RetryScale are required.
type Deps struct {
	Store     *store.Store // as role worker, three connections at least, with a queue: a collection enqueues its items
	Extractor Extractor
	Library   Library
	Guard     *egress.Guard
	Proxy     *egress.Proxy // of Guard; what fetches has no other way out
	Progress  ProgressSink
	Logger    *slog.Logger

	// Collector gets the audit. Nil: nobody does.
	Collector Collector

	// StagingWait is for how long a download is left to the workers that see the volume where it was begun; after that
	// it begins anew on another. 0 means 2 min, less than that not at all.
	StagingWait time.Duration

	// EventRetention is for how long the event stream can be resumed. 0 means 24 h.
	EventRetention time.Duration

	// RetryScale multiplies the pauses before retries; tests make them short. 0 means 1.
	RetryScale float64
}

const (
	defaultStagingWait    = 2 * time.Minute
	defaultEventRetention = 24 * time.Hour
)

// Register adds the workers of all kinds.
func Register(workers *river.Workers, d Deps) error {
	if d.Store == nil || d.Extractor == nil || d.Library == nil || d.Guard == nil || d.Proxy == nil || d.Progress == nil || d.Logger == nil {
		return errors.New("register workers: Deps are incomplete")
	}
	scale, retention := cmp.Or(d.RetryScale, 1), cmp.Or(d.EventRetention, defaultEventRetention)
	err := errors.Join(
		river.AddWorkerSafely(workers, &DownloadWorker{
			store: d.Store, extractor: d.Extractor, library: d.Library, guard: d.Guard, proxy: d.Proxy,
			progress: d.Progress, log: d.Logger, retryScale: scale, wait: cmp.Or(d.StagingWait, defaultStagingWait),
			publishing: make(chan struct{}, maxPublishing),
		}),
		river.AddWorkerSafely(workers, &RemoveFilesWorker{store: d.Store, library: d.Library}),
		river.AddWorkerSafely(workers, &TrimEventsWorker{store: d.Store, retention: retention}),
		river.AddWorkerSafely(workers, &TrimDomainWorker{store: d.Store, retention: retention}),
		river.AddWorkerSafely(workers, &SealAuditWorker{store: d.Store, collector: d.Collector}),
		river.AddWorkerSafely(workers, &RotateSecretsWorker{store: d.Store, log: d.Logger}),
		river.AddWorkerSafely(workers, &SweepStagingWorker{store: d.Store, library: d.Library}),
	)
	if err != nil {
		return fmt.Errorf("register workers: %w", err)
	}
	return nil
}
