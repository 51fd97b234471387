package jobs

import (
	"context"
	"sync"
	"time"

	"medianest/jobs/queue"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// reportInterval is how often progress within a phase is told. A new phase is told at once.
const reportInterval = time.Second

// report tells how far a job has come. Its methods do not wait for the sink: what the sink has not taken yet is
// replaced by what is newer.
type report struct {
	sink ProgressSink
	kept func(bytes int64) // for the job's history
	wake chan struct{}
	done chan struct{}

	mu   sync.Mutex
	last store.Progress
}

// startReport starts to report, until stop.
func startReport(ctx context.Context, sink ProgressSink, jobID int64) *report {
	r := &report{sink: sink, kept: func(n int64) { queue.NoteBytes(ctx, n) }, wake: make(chan struct{}, 1), done: make(chan struct{}), last: store.Progress{JobID: jobID}}
	go func() {
		defer close(r.done)
		r.loop(context.WithoutCancel(ctx))
	}()
	return r
}

// stop ends the report and takes it back: an ended attempt has no progress.
func (r *report) stop(ctx context.Context) {
	close(r.wake)
	<-r.done
	_ = r.sink.Clear(context.WithoutCancel(ctx), r.last.JobID)
}

// phase begins a new phase; what has been counted stays.
func (r *report) phase(name string) {
	r.update(func(p *store.Progress) {
		p.Phase, p.SpeedBytesPerS, p.ETAS = name, 0, 0
		if name == phaseVerifying || name == phasePublishing {
			p.Percent = 100
		}
	})
}

// fetched takes yt-dlp's progress.
func (r *report) fetched(f ytdlp.Progress) {
	r.kept(f.DownloadedBytes)
	r.update(func(p *store.Progress) {
		p.Phase, p.Percent = f.Phase, f.Percent
		p.DownloadedBytes, p.TotalBytes = f.DownloadedBytes, f.TotalBytes
		p.SpeedBytesPerS, p.ETAS = int64(f.SpeedBytesPerS), int64(f.ETAS)
	})
}

func (r *report) update(change func(*store.Progress)) {
	r.mu.Lock()
	change(&r.last)
	r.last.At = time.Now().UTC()
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// loop hands on the latest report: at once if its phase is new, else when a second has passed since the last one.
func (r *report) loop(ctx context.Context) {
	var told store.Progress
	var toldAt time.Time
	due := time.NewTimer(0)
	<-due.C
	defer due.Stop()
	for {
		select {
		case _, ok := <-r.wake:
			if !ok {
				return
			}
		case <-due.C:
		}
		r.mu.Lock()
		latest := r.last
		r.mu.Unlock()
		if latest.At.Equal(told.At) {
			continue
		}
		if wait := reportInterval - time.Since(toldAt); wait > 0 && latest.Phase == told.Phase {
			due.Reset(wait)
			continue
		}
		_ = r.sink.Publish(ctx, latest)
		told, toldAt = latest, time.Now()
	}
}
