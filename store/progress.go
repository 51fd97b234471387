package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// progressChannel carries every report; progressKey and the job's id hold the last one.
	progressChannel = "medianest:progress"
	progressKey     = "medianest:progress:"
	progressTTL     = time.Hour

	// progressTimeout bounds a report: what a worker does matters more than what is told of it.
	progressTimeout = 500 * time.Millisecond

	// progressPause is for how long nothing is reported after a report that did not arrive.
	progressPause = time.Second
)

// Progress is how far a running job has come.
type Progress struct {
	JobID           int64     `json:"job_id,string"`
	Phase           string    `json:"phase"`
	Percent         float64   `json:"percent"`
	DownloadedBytes int64     `json:"downloaded_bytes"`
	TotalBytes      int64     `json:"total_bytes"` // 0: unknown
	SpeedBytesPerS  int64     `json:"speed_bytes_per_s"`
	ETAS            int64     `json:"eta_s"`
	At              time.Time `json:"at"`
}

// ErrProgressUnavailable says that Redis does not answer. Jobs go on without.
var ErrProgressUnavailable = errors.New("progress unavailable")

// ProgressBus carries progress from workers to streams through Redis: a report reaches whoever listens now, and the
// last one is kept for an hour for whoever asks. Reports may be lost; nothing but what people see depends on them. It
// needs no start: it works whenever Redis does.
type ProgressBus struct {
	client redis.UniversalClient
	log    *slog.Logger

	pausedUntil atomic.Int64 // Unix nanoseconds
	failing     atomic.Bool
}

// NewProgressBus returns a bus over client, which stays the caller's to close.
func NewProgressBus(client redis.UniversalClient, log *slog.Logger) *ProgressBus {
	return &ProgressBus{client: client, log: log}
}

// Publish reports p. It returns within half a second, and at once while Redis is known to be away: the error is
// ErrProgressUnavailable and can be ignored.
func (b *ProgressBus) Publish(ctx context.Context, p Progress) error {
	if time.Now().UnixNano() < b.pausedUntil.Load() {
		return ErrProgressUnavailable
	}
	message, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode progress of job %d: %w", p.JobID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	_, err = b.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		pipe.Set(ctx, lastProgressKey(p.JobID), message, progressTTL)
		pipe.Publish(ctx, progressChannel, message)
		return nil
	})
	if err != nil {
		b.pausedUntil.Store(time.Now().Add(progressPause).UnixNano())
		b.note(err)
		return fmt.Errorf("publish progress of job %d: %w: %w", p.JobID, ErrProgressUnavailable, err)
	}
	b.note(nil)
	return nil
}

// note logs when Redis goes away and when it is back, not each report between.
func (b *ProgressBus) note(err error) {
	switch {
	case err != nil && b.failing.CompareAndSwap(false, true):
		b.log.Warn("progress is not reported: redis does not answer", "err", err)
	case err == nil && b.failing.CompareAndSwap(true, false):
		b.log.Info("progress is reported again")
	}
}

// Last returns the last reports of those of the jobs that have any.
func (b *ProgressBus) Last(ctx context.Context, jobIDs []int64) (map[int64]Progress, error) {
	found := make(map[int64]Progress, len(jobIDs))
	if len(jobIDs) == 0 {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	// Single reads in one go, not MGET: the keys live on different nodes of a cluster.
	replies, err := b.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, id := range jobIDs {
			pipe.Get(ctx, lastProgressKey(id))
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("read progress of %d jobs: %w: %w", len(jobIDs), ErrProgressUnavailable, err)
	}
	for i, reply := range replies {
		message, err := reply.(*redis.StringCmd).Bytes()
		if errors.Is(err, redis.Nil) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read progress of job %d: %w: %w", jobIDs[i], ErrProgressUnavailable, err)
		}
		var p Progress
		if json.Unmarshal(message, &p) != nil {
			continue // another version's
		}
		found[jobIDs[i]] = p
	}
	return found, nil
}

// Clear forgets the last report of a job that has ended. It is bounded as Publish is, and as dispensable: what is not
// cleared goes within the hour.
func (b *ProgressBus) Clear(ctx context.Context, jobID int64) error {
	if time.Now().UnixNano() < b.pausedUntil.Load() {
		return ErrProgressUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	if err := b.client.Del(ctx, lastProgressKey(jobID)).Err(); err != nil {
		return fmt.Errorf("clear progress of job %d: %w: %w", jobID, ErrProgressUnavailable, err)
	}
	return nil
}

// Subscribe calls fn, one call at a time, with each report until ctx ends, and returns nil then. While Redis is away it
// waits for it to come back.
func (b *ProgressBus) Subscribe(ctx context.Context, fn func(Progress)) error {
	sub := b.client.Subscribe(ctx, progressChannel)
	defer sub.Close()
	// The channel's own goroutine connects again, and notices a connection that died silently by its pings.
	messages := sub.Channel(redis.WithChannelSize(1024), redis.WithChannelHealthCheckInterval(3*time.Second))
	for {
		select {
		case <-ctx.Done():
			return nil
		case m, ok := <-messages:
			if !ok {
				return nil
			}
			var p Progress
			if json.Unmarshal([]byte(m.Payload), &p) == nil && p.JobID != 0 {
				fn(p)
			}
		}
	}
}

func lastProgressKey(jobID int64) string { return progressKey + strconv.FormatInt(jobID, 10) }
