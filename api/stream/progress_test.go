package stream_test

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api/stream"
	"medianest/store"
	"medianest/store/storetest"
)

// fakeProgress hands reports to the hub at once.
type fakeProgress struct{ fn chan func(store.Progress) }

func newFakeProgress() *fakeProgress { return &fakeProgress{fn: make(chan func(store.Progress), 1)} }

func (f *fakeProgress) Subscribe(ctx context.Context, fn func(store.Progress)) error {
	f.fn <- fn
	<-ctx.Done()
	return nil
}

func TestProgressIsMixedIn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client, err := store.OpenRedis(storetest.Redis(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	bus := store.NewProgressBus(client, quiet())
	ada, bob := b.user("ada"), b.user("bob")
	h := b.hub(func(o *stream.Options) { o.Progress = bus })
	b.outbox(h)
	d := b.downloads(nil, ada)[0]
	b.setJob(d.jobID, "running")
	b.settle()
	job := strconv.FormatInt(d.jobID, 10)

	mine, admin := h.readNow("?topic=job.progress&user="+ada.String()), h.readNow("?topic=job.progress&kind=download&queue=download&state=running")
	byDownload := h.readNow("?topic=job.progress&download_id=" + d.id.String())
	none := []*reading{
		h.readNow("?topic=job.progress&user=" + bob.String()), h.readNow("?topic=job.state"), h.readNow("?topic=job.progress&kind=scan"),
		h.readNow("?topic=job.progress&state=completed"), h.readNow("?topic=job.progress" + jobIDs(-1)),
	}
	report := store.Progress{JobID: d.jobID, Phase: "downloading", Percent: 41.2, DownloadedBytes: 4321, TotalBytes: 10485, SpeedBytesPerS: 1200, ETAS: 5, At: time.Now().UTC()}
	// Redis may take a moment to subscribe: what is reported before is nobody's.
	require.Eventually(t, func() bool {
		require.NoError(t, bus.Publish(t.Context(), report))
		return len(mine.messages) > 0 && len(admin.messages) > 0 && len(byDownload.messages) > 0
	}, 10*time.Second, 20*time.Millisecond)
	for _, g := range []*reading{mine, admin, byDownload} {
		m := g.want("job.progress")
		require.Equal(t, g.opened, m.ID, "progress has no place in the stream")
		p := m.payload(t)
		require.Equal(t, job, p.JobID)
		require.InDelta(t, 41.2, p.Percent, 0)
		require.Equal(t, d.id.String(), p.Subject.ID)
		require.Contains(t, m.Data, `"phase":"downloading"`)
		require.Contains(t, m.Data, `"downloaded_bytes":4321,"total_bytes":10485,"speed_bytes_per_s":1200,"eta_s":5`)
	}
	for _, g := range none {
		require.Empty(t, g.messages)
	}
}

// Of progress only the latest of each job is kept, and none that is older than a job's end.
func TestProgressIsReplacedNotQueued(t *testing.T) {
	t.Parallel()
	b := setup(t)
	source := newFakeProgress()
	h := b.hub(func(o *stream.Options) { o.Progress = source; o.ProgressInterval = 200 * time.Millisecond })
	b.outbox(h)
	publish := <-source.fn
	jobs := b.jobs(2)
	for _, id := range jobs {
		b.setJob(id, "running")
	}
	b.settle()
	g := h.readNow("")

	const reports = 1000
	for i := range reports {
		for _, id := range jobs {
			publish(store.Progress{JobID: id, Percent: float64(i + 1)})
		}
	}
	last := map[string]float64{}
	received := 0
	for last[strconv.FormatInt(jobs[0], 10)] < reports || last[strconv.FormatInt(jobs[1], 10)] < reports {
		p := g.want("job.progress").payload(t)
		require.Greater(t, p.Percent, last[p.JobID])
		last[p.JobID] = p.Percent
		received++
	}
	require.Less(t, received, 20)

	b.setJob(jobs[0], "completed")
	g.wantState(store.TopicJobState, "completed")
	publish(store.Progress{JobID: jobs[0], Percent: 99}) // late
	publish(store.Progress{JobID: jobs[1], Percent: 100})
	require.Equal(t, fmt.Sprint(jobs[1]), g.want("job.progress").payload(t).JobID)

	// It runs again, and is heard again.
	b.setJob(jobs[0], "available")
	b.setJob(jobs[0], "running")
	g.wantState(store.TopicJobState, "available")
	g.wantState(store.TopicJobState, "running")
	publish(store.Progress{JobID: jobs[0], Percent: 1})
	require.Equal(t, fmt.Sprint(jobs[0]), g.want("job.progress").payload(t).JobID)
	require.Empty(t, g.messages)
}

// Who joins a running job sees its progress from then on.
func TestProgressReachesWhoJoins(t *testing.T) {
	t.Parallel()
	b := setup(t)
	source := newFakeProgress()
	ada, bob := b.user("ada"), b.user("bob")
	h := b.hub(func(o *stream.Options) { o.Progress = source })
	b.outbox(h)
	publish := <-source.fn
	d := b.downloads(nil, ada)[0]
	b.setJob(d.jobID, "running")
	b.settle()
	mine, theirs := h.readNow("?topic=job.progress&user="+ada.String()), h.readNow("?user="+bob.String())
	publish(store.Progress{JobID: d.jobID, Percent: 1})
	mine.want("job.progress")
	b.exec(`
		WITH viewer AS (INSERT INTO medianest.job_viewer (job_id, user_id, download_id) VALUES ($2, $1, gen_random_uuid()))
		INSERT INTO medianest.downloads (id, user_id, content_id, url, profile, state, job_id)
		SELECT gen_random_uuid(), $1, content_id, url, profile, 'running', job_id FROM medianest.downloads`, bob, d.jobID)
	theirs.wantState(store.TopicDownloadState, "running")
	publish(store.Progress{JobID: d.jobID, Percent: 2})
	require.InDelta(t, 2, theirs.want("job.progress").payload(t).Percent, 0)
}
