package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"medianest/jobs/egress"
	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// DownloadArgs are the arguments of a job that brings a content into the library, for all users who wish for it.
//
// Run twice, it fetches nothing the second time: it links what is there for those who lack it. Cut off at any point, it
// has left nothing in the library but whole files, which the next attempt takes over, and nothing in the database but
// what it found out about the content. What it has fetched stays in its staging folder, and the next attempt goes on
// with it in one of its own, on whichever worker sees the volume; workers that do not leave the job to those who do for
// a while. Cancelled, it is over when yt-dlp's process group is gone, and has left nothing.
type DownloadArgs struct {
	ContentID uuid.UUID `json:"content_id"`
}

// Kind implements river.JobArgs.
func (DownloadArgs) Kind() string { return "download" }

// InsertOpts implements river.JobArgsWithInsertOpts. That a content has one job at a time is kept by the lock on its
// row, not by River's uniqueness: a second wish must be tied to the job that runs, not refused.
func (DownloadArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueDownload, MaxAttempts: 8, Priority: store.PriorityNormal}
}

// Extractor finds out what is behind an address and fetches it. *ytdlp.Runner is one.
type Extractor interface {
	Probe(ctx context.Context, req ytdlp.ProbeRequest) (ytdlp.Probe, error)
	Fetch(ctx context.Context, req ytdlp.FetchRequest) (ytdlp.Media, error)
}

// ProgressSink takes reports of how far jobs have come. *store.ProgressBus is one. Neither method may take longer than a
// second, and an error of either changes nothing.
type ProgressSink interface {
	Publish(ctx context.Context, p store.Progress) error
	Clear(ctx context.Context, jobID int64) error
}

const (
	downloadTimeout = 12 * time.Hour

	// probeFresh is for how long what an extractor said is used again. Sites' addresses are good for six hours or so.
	probeFresh = 3 * time.Hour

	// maxPublishing must be less than the connections of the worker's pool.
	maxPublishing = 2

	// retryJitter spreads retries by a fifth either way, so that a host which came back is not met by all at once.
	retryJitter = 0.2
)

// retryPauses are the pauses after the first, second, ... failed attempt; the last one repeats.
var retryPauses = []time.Duration{
	10 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour,
}

// DownloadWorker works jobs of kind download.
type DownloadWorker struct {
	river.WorkerDefaults[DownloadArgs]

	store      *store.Store
	extractor  Extractor
	library    Library
	guard      *egress.Guard
	proxy      *egress.Proxy
	progress   ProgressSink
	log        *slog.Logger
	retryScale float64
	wait       time.Duration // for a worker that sees what is staged

	// publishing holds as many as publish now. Each has a transaction open and a connection, and may need a second one,
	// for what the library asks of the store: if all connections were in such transactions, none would end.
	publishing chan struct{}
}

// Timeout implements river.Worker.
func (w *DownloadWorker) Timeout(*river.Job[DownloadArgs]) time.Duration { return downloadTimeout }

// NextRetry implements river.Worker.
func (w *DownloadWorker) NextRetry(job *river.Job[DownloadArgs]) time.Time {
	pause := retryPauses[min(max(job.Attempt, 1), len(retryPauses))-1]
	spread := 1 + retryJitter*(2*rand.Float64()-1) //nolint:gosec // nobody gains by guessing it
	return time.Now().Add(time.Duration(float64(pause) * spread * w.retryScale))
}

// Work implements river.Worker.
func (w *DownloadWorker) Work(ctx context.Context, job *river.Job[DownloadArgs]) error {
	public := queue.PublicID(job.JobRow)
	a := &attempt{
		DownloadWorker: w, job: job, row: store.JobRow(job.ID), publicID: public,
		report: startReport(ctx, w.progress, public), log: w.log.With("job_id", public),
	}
	if public != job.ID {
		a.log = a.log.With("row_id", job.ID)
	}
	defer a.report.stop(ctx)
	verdict := classify(ctx, job.JobRow, a.run(ctx))
	// Not when it panics: whether somebody still writes to the staging folder is not known then.
	a.leave(ctx, verdict)
	a.conclude(ctx, verdict)
	return verdict
}

// conclude keeps what is to be told of a failure before River makes it known.
func (a *attempt) conclude(ctx context.Context, verdict error) {
	failure := reason.Find(verdict)
	if failure == nil || failure.Reason == reason.Cancelled {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	err := a.store.SaveFailure(ctx, a.job.Args.ContentID, a.fetch.Generation, failure.Describe())
	if err != nil && !errors.Is(err, store.ErrSuperseded) {
		a.log.WarnContext(ctx, "failure's detail not kept", "err", err)
	}
}

// attempt is one run of the worker.
type attempt struct {
	*DownloadWorker

	job      *river.Job[DownloadArgs]
	row      store.JobRow // the job's id, as the store must know it
	publicID int64        // as everybody else does
	report   *report
	log      *slog.Logger // of the job
	fetch    store.Fetch
	dir      string       // the staging folder, once there is one
	fetched  bool         // something may be in it that is worth keeping
	placed   []store.File // in the library, by the last try to publish
}

func (a *attempt) run(ctx context.Context) (err error) {
	a.fetch, err = a.store.BeginFetch(ctx, store.BeginFetchParams{
		ContentID: a.job.Args.ContentID, Row: a.row, Volume: a.library.Volume(), Wait: a.wait,
	})
	if errors.Is(err, store.ErrNotFound) {
		return &reason.Error{Reason: reason.Cancelled, Detail: "Nobody asks for it any more.", Err: err}
	}
	if errors.Is(err, store.ErrOtherJob) {
		return &reason.Error{Reason: reason.Cancelled, Detail: "Another job fetches the same.", Err: err}
	}
	if err != nil {
		return err
	}
	if err := a.linkExisting(ctx); !errors.Is(err, errNotThere) {
		return err
	}
	profile, err := profileOf(a.fetch.Content.Profile)
	if err != nil {
		return err
	}
	if err := a.guard.CheckURL(ctx, a.fetch.Content.URL); err != nil {
		return err
	}
	if err := a.stage(ctx); err != nil {
		return err
	}
	session := a.proxy.Session()
	defer session.Close()
	// yt-dlp takes its time to stop. What it would not keep is not fetched meanwhile.
	defer context.AfterFunc(ctx, session.Close)()
	probe, err := a.probe(ctx, session)
	if err != nil {
		return a.blame(session, err)
	}
	if probe.IsCollection {
		return a.expand(ctx, probe)
	}
	media, err := a.fetchMedia(ctx, session, probe, profile)
	if err != nil {
		return a.blame(session, err)
	}
	return a.publishFetched(ctx, probe, media)
}

// blame returns what the proxy refused instead of how yt-dlp put it.
func (a *attempt) blame(session *egress.Session, err error) error {
	if denied := session.Denied(); denied != nil {
		return denied
	}
	return err
}

// complete ends the job in the transaction that records its result. River reports a job that is not running any more,
// or that another attempt runs, without an error: it is told by the row.
func (a *attempt) complete(ctx context.Context, tx pgx.Tx) error {
	done, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, a.job)
	if errors.Is(err, rivertype.ErrNotFound) {
		return fmt.Errorf("complete job %d: it is gone: %w", a.job.ID, store.ErrSuperseded)
	}
	if err != nil {
		return fmt.Errorf("complete job %d: %w", a.job.ID, err)
	}
	if done.State != rivertype.JobStateCompleted || done.Attempt != a.job.Attempt {
		return fmt.Errorf("complete job %d: it is %s in attempt %d: %w", a.job.ID, done.State, done.Attempt, store.ErrSuperseded)
	}
	return nil
}
