package stream

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

const (
	// watchedFor is how long what is known of a job is taken for true. What changes it, a download that joins, is an
	// event, which the hub sees as well.
	watchedFor = 10 * time.Second

	// endedFor is how long reports of a job that has ended are ignored.
	endedFor = time.Minute
)

// progress is the reports that are on their way to the streams.
type progress struct {
	bell chan struct{}

	mu     sync.Mutex
	latest map[int64]store.Progress // of each job, not sent yet
	ended  map[int64]time.Time      // jobs that do not run any more, and since when we know
	jobs   map[int64]watchedJob
}

type watchedJob struct {
	store.WatchedJob

	since time.Time
	found bool
}

func newProgress() progress {
	return progress{
		bell:   make(chan struct{}, 1),
		latest: make(map[int64]store.Progress),
		ended:  make(map[int64]time.Time),
		jobs:   make(map[int64]watchedJob),
	}
}

// note takes note of an event: a report that comes later than the end of its job's run must not bring it back.
func (p *progress) note(e *store.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.jobs, e.JobID)
	if e.Topic != store.TopicJobState {
		return
	}
	if e.State == "running" {
		delete(p.ended, e.JobID)
		return
	}
	delete(p.latest, e.JobID)
	if e.PreviousState == "running" {
		p.ended[e.JobID] = time.Now()
	}
}

// onProgress takes a report. It does not wait for anything.
func (h *Hub) onProgress(r store.Progress) {
	h.mu.Lock()
	alone := h.open == 0
	h.mu.Unlock()
	p := &h.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ended := p.ended[r.JobID]; ended || alone {
		return
	}
	p.latest[r.JobID] = r
	ring(p.bell)
}

// sendProgress hands out the latest reports, a pause between each time.
func (h *Hub) sendProgress(ctx context.Context) {
	pause := time.NewTicker(h.o.ProgressInterval)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.progress.bell:
		}
		if err := h.sendLatest(ctx); err != nil && ctx.Err() == nil {
			h.log.Debug("progress not sent", "err", err) // the stream of states says that the database is away
		}
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

func (h *Hub) sendLatest(ctx context.Context) error {
	reports, unknown := h.progress.take()
	if len(unknown) > 0 {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		jobs, err := h.o.Source.WatchedJobs(ctx, unknown)
		if err != nil {
			return err
		}
		h.progress.learn(unknown, jobs)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, r := range reports {
		if w, ok := h.progress.find(id); ok {
			h.dispatchProgress(r, job{id: id, kind: w.Kind, queue: w.Queue, viewers: w.Viewers})
		}
	}
	h.wake()
	return nil
}

// take takes the reports, and says of which jobs nothing is known. It forgets what is old.
func (p *progress) take() (reports map[int64]store.Progress, unknown []int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.ended, func(_ int64, at time.Time) bool { return time.Since(at) > endedFor })
	maps.DeleteFunc(p.jobs, func(_ int64, w watchedJob) bool { return time.Since(w.since) > watchedFor })
	reports, p.latest = p.latest, make(map[int64]store.Progress)
	for id := range reports {
		if _, ok := p.jobs[id]; !ok {
			unknown = append(unknown, id)
		}
	}
	return reports, unknown
}

func (p *progress) learn(asked []int64, found map[int64]store.WatchedJob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range asked {
		w, ok := found[id]
		p.jobs[id] = watchedJob{WatchedJob: w, since: time.Now(), found: ok}
	}
}

// find returns what is known of a job that runs.
func (p *progress) find(id int64) (store.WatchedJob, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ended := p.ended[id]
	w := p.jobs[id]
	return w.WatchedJob, w.found && !ended
}

func (h *Hub) dispatchProgress(r store.Progress, j job) {
	messages := make(map[uuid.UUID][]byte, 1) // by the download that it is about to the reader
	offer := func(s *subscriber) {
		subject, ok := s.wantsJob(TopicJobProgress, "running", j)
		if !ok {
			return
		}
		var id uuid.UUID
		if subject != nil {
			id = *subject
		}
		if messages[id] == nil {
			messages[id] = encodeProgress(r, subject)
		}
		s.pushProgress(j.id, messages[id])
		h.touch(s)
	}
	for s := range h.admins {
		offer(s)
	}
	users := make([]uuid.UUID, len(j.viewers))
	for i, v := range j.viewers {
		users[i] = v.UserID
	}
	slices.SortFunc(users, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	for _, user := range slices.Compact(users) {
		for _, s := range h.users[user] {
			offer(s)
		}
	}
}
