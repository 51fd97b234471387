package jobs_test

import (
	"context"
	"encoding/hex"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/jobs/egress"
	"medianest/jobs/guard"
	"medianest/jobs/media"
	"medianest/jobs/queue"
	"medianest/jobs/ytdlp"
	"medianest/jobs/ytdlp/ytdlptest"
	"medianest/store"
	"medianest/store/storetest"
)

func TestMain(m *testing.M) {
	guard.Main()
	os.Exit(storetest.Main(m))
}

const patience = 90 * time.Second // the machine may be busy

// bundle is a small platform: a database, a store as the API has it, a worker with everything it needs, a site to
// download from, and a library of its own.
type bundle struct {
	url      string // of the database
	api      *store.Store
	queue    *queue.Client
	owner    *pgxpool.Pool
	site     *ytdlptest.Site
	siteURL  string
	root     string // of the library
	progress *progressLog
	log      *slog.Logger
}

// setting changes what a bundle's worker is made of.
type setting func(deps *jobs.Deps, options *queue.Options, runner *ytdlp.Options)

// with replaces the extractor.
func with(e jobs.Extractor) setting {
	return func(deps *jobs.Deps, _ *queue.Options, _ *ytdlp.Options) { deps.Extractor = e }
}

func setup(t *testing.T, settings ...setting) *bundle {
	t.Helper()
	return setupAt(t, t.TempDir(), settings...)
}

// setupAt is setup with the library at root.
func setupAt(t *testing.T, root string, settings ...setting) *bundle {
	t.Helper()
	url := storetest.DB(t)
	b := &bundle{
		url: url, owner: storetest.OpenPool(t, url, ""), root: root, progress: &progressLog{},
		log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	var err error
	b.site, err = ytdlptest.New(t.Context(), "", tool(t, "ffmpeg"))
	require.NoError(t, err)
	server := httptest.NewServer(b.site)
	t.Cleanup(server.Close)
	b.siteURL = server.URL
	b.queue, b.api = b.build(t, root, t.Name(), settings...)
	b.consume(t)
	b.start(t, b.queue)
	return b
}

// another starts another worker, with the library at root.
func (b *bundle) another(t *testing.T, root, id string, settings ...setting) *queue.Client {
	t.Helper()
	client, _ := b.build(t, root, id, settings...)
	b.start(t, client)
	return client
}

// build makes a worker, and a store of the API that enqueues with its client.
func (b *bundle) build(t *testing.T, root, id string, settings ...setting) (*queue.Client, *store.Store) {
	t.Helper()
	allow, err := egress.ParseAllow("127.0.0.0/8")
	require.NoError(t, err)
	network := egress.NewGuard(egress.Options{Policy: allow, Logger: b.log})
	proxy, err := network.StartProxy(t.Context())
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	worker := store.New(storetest.OpenPool(t, b.url, store.RoleWorker))
	library, err := media.Open(media.Options{Root: root, FFprobe: tool(t, "ffprobe"), Claimed: worker.FileRecorded, Logger: b.log})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, library.Close()) })

	log := b.log.With("worker", id)
	deps := jobs.Deps{Library: library, Guard: network, Proxy: proxy, Progress: b.progress, Logger: log, RetryScale: 0.001}
	options := queue.Options{
		Pool: storetest.OpenPool(t, b.url, store.RoleRiver), Logger: log, ID: id, StopTimeout: 50 * time.Millisecond,
		Queues: map[string]int{jobs.QueueDownload: 4, jobs.QueueLibrary: 2}, Workers: river.NewWorkers(),
		Presence: queue.Presence{Volume: library.Volume()},
	}
	runner := ytdlp.Options{
		Path: tool(t, "yt-dlp"), FFmpeg: tool(t, "ffmpeg"), Logger: log, Retries: 1, SocketTimeout: 3 * time.Second,
	}
	for _, set := range settings {
		set(&deps, &options, &runner)
	}
	if deps.Extractor == nil {
		deps.Extractor, err = ytdlp.New(runner)
		require.NoError(t, err)
	}

	// The client works with the store, which enqueues with the client.
	client, err := queue.New(options)
	require.NoError(t, err)
	enqueuer := jobs.NewEnqueuer(client)
	keys, err := store.ParseKeyring(store.NewKey())
	require.NoError(t, err)
	deps.Store = worker.WithQueue(enqueuer).WithKeys(keys)
	require.NoError(t, jobs.Register(options.Workers, deps))
	return client, store.New(storetest.OpenPool(t, b.url, store.RoleAPI)).WithQueue(enqueuer)
}

// start starts a worker, and stops it at the test's end.
func (b *bundle) start(t *testing.T, client *queue.Client) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	require.NoError(t, client.Start(ctx))
	t.Cleanup(func() {
		defer stop()
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := client.Stop(bounded); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
}

// consume moves the downloads' states after their jobs', and admits jobs, until the test's end.
func (b *bundle) consume(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	admission := queue.NewAdmission(storetest.OpenPool(t, b.url, store.RoleRiver), b.log)
	outbox := store.NewOutbox(store.OutboxOptions{Store: b.api, Logger: b.log, Holder: t.Name(), OnTick: admission.Ring})
	var running sync.WaitGroup
	running.Go(func() { _ = outbox.Run(ctx) })
	running.Go(func() { _ = admission.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := ytdlptest.Tool(name)
	require.NoError(t, err)
	return path
}

func (b *bundle) user(t *testing.T, name string) store.User {
	t.Helper()
	u, err := b.api.CreateUser(t.Context(), store.NewUser{Name: name, Role: store.UserMember})
	require.NoError(t, err)
	return u
}

// wish posts an address, of the site if it begins with a slash.
func (b *bundle) wish(t *testing.T, u store.User, address string) store.Download {
	t.Helper()
	if strings.HasPrefix(address, "/") {
		address = b.siteURL + address
	}
	key, url, err := media.ContentKey("best", address)
	require.NoError(t, err)
	d, _, err := b.api.CreateDownload(t.Context(), store.NewDownload{UserID: u.ID, URL: url, ContentKey: key, Profile: "best"})
	require.NoError(t, err)
	return d
}

func (b *bundle) find(t *testing.T, id uuid.UUID) store.Download {
	t.Helper()
	d, err := b.api.FindDownload(t.Context(), id, store.Viewer{Admin: true})
	require.NoError(t, err)
	return d
}

// wait waits until the download has ended and returns it.
func (b *bundle) wait(t *testing.T, id uuid.UUID) store.Download {
	t.Helper()
	var d store.Download
	require.Eventually(t, func() bool {
		d = b.find(t, id)
		return slices.Contains([]string{store.StateCompleted, store.StateFailed, store.StateCancelled}, d.State)
	}, patience, 20*time.Millisecond, "download did not end")
	return d
}

// waitState waits until the download is in the state.
func (b *bundle) waitState(t *testing.T, id uuid.UUID, state string) store.Download {
	t.Helper()
	var d store.Download
	require.Eventually(t, func() bool {
		d = b.find(t, id)
		return d.State == state
	}, patience, 20*time.Millisecond, "download never was %s", state)
	return d
}

func (b *bundle) children(t *testing.T, id uuid.UUID) []store.Download {
	t.Helper()
	list, _, err := b.api.ListDownloads(t.Context(), store.DownloadFilter{Viewer: store.Viewer{Admin: true}, ParentID: &id, Limit: 200})
	require.NoError(t, err)
	return list
}

func (b *bundle) job(t *testing.T, id *int64) store.Job {
	t.Helper()
	require.NotNil(t, id)
	job, err := b.api.FindJob(t.Context(), *id, store.Viewer{Admin: true})
	require.NoError(t, err)
	return job
}

// reasons are those in the events of the job's ends of attempts, in order.
func (b *bundle) reasons(t *testing.T, jobID *int64) []string {
	t.Helper()
	require.NotNil(t, jobID)
	rows, err := b.owner.Query(t.Context(), `
		SELECT reason
		FROM medianest.event
		WHERE topic = 'job.state' AND job_id = $1 AND previous_state = 'running'
		ORDER BY id`, *jobID)
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return found
}

// files are what is in the library, staging included, with the slashes of a path relative to its root. The volume's id
// and the notes of who writes to a staging folder are not among them.
func (b *bundle) files(t *testing.T) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(b.root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && entry.Name() != "volume" && entry.Name() != ".boot" {
			rel, relErr := filepath.Rel(b.root, path)
			require.NoError(t, relErr)
			found = append(found, filepath.ToSlash(rel))
		}
		return err
	})
	require.NoError(t, err)
	return found
}

// requireLibrary asserts that the library holds these files and nothing else, staging included.
func (b *bundle) requireLibrary(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	require.Equal(t, want, b.files(t))
}

// requireFile asserts that the download has one file, which is the site's, and returns it.
func (b *bundle) requireFile(t *testing.T, d store.Download, sample string) store.File {
	t.Helper()
	require.Equal(t, store.StateCompleted, d.State, "%s: %s", d.FailureReason, d.FailureDetail)
	require.Len(t, d.Files, 1)
	want, err := b.site.SHA256(sample)
	require.NoError(t, err)
	require.Equal(t, want, hex.EncodeToString(d.Files[0].SHA256))
	info, err := os.Stat(filepath.Join(b.root, filepath.FromSlash(d.Files[0].Path)))
	require.NoError(t, err)
	require.Equal(t, d.Files[0].SizeBytes, info.Size())
	return d.Files[0]
}

// processes are the command lines of those that were started for this bundle's library: HOME names their staging
// folder in their environment, which yt-dlp hands on to ffmpeg.
func (b *bundle) processes(t *testing.T) []string {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	var found []string
	for _, path := range environments {
		content, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(content), b.root) {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil && len(line) > 0 {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// progressLog is a sink that keeps what it is told.
type progressLog struct {
	mu      sync.Mutex
	reports []store.Progress
	cleared []int64
}

func (p *progressLog) Publish(_ context.Context, r store.Progress) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reports = append(p.reports, r)
	return nil
}

func (p *progressLog) Clear(_ context.Context, jobID int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleared = append(p.cleared, jobID)
	return nil
}

// of returns the job's reports so far.
func (p *progressLog) of(jobID int64) []store.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.reports), func(r store.Progress) bool { return r.JobID != jobID })
}

// phases are the job's phases in order.
func (p *progressLog) phases(jobID int64) []string {
	var found []string
	for _, r := range p.of(jobID) {
		if len(found) == 0 || found[len(found)-1] != r.Phase {
			found = append(found, r.Phase)
		}
	}
	return found
}

func (b *bundle) removeByHand(t *testing.T, rel string) {
	t.Helper()
	require.NoError(t, os.Remove(filepath.Join(b.root, filepath.FromSlash(rel))))
}
