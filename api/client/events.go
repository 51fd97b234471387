package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Types of events.
const (
	EventJobState      = "job.state"      // a job changed its state: JobStateEvent
	EventJobProgress   = "job.progress"   // how far a running job is: ProgressEvent
	EventDownloadState = "download.state" // a download changed its state: DownloadStateEvent
	EventWorkerJoined  = "worker.joined"  // a process has begun: WorkerEvent. Admins only, like the next two
	EventWorkerLeft    = "worker.left"    // a process has stopped: WorkerEvent
	EventWorkerLost    = "worker.lost"    // a process has not been heard of for too long: WorkerEvent
	EventOpen          = "open"           // the stream stands, and goes on from this event's ID
	EventReset         = "reset"          // events are missing: load anew what is shown. ResetEvent
)

// Event is one event of the stream.
type Event struct {
	ID   string // the place in the stream; empty for those that are not repeated
	Type string
	Data json.RawMessage
}

// Decode reads the event's data into one of the types below.
func (e Event) Decode(target any) error {
	if err := json.Unmarshal(e.Data, target); err != nil {
		return fmt.Errorf("decode event %s: %w", e.Type, err)
	}
	return nil
}

// JobStateEvent is the data of EventJobState.
type JobStateEvent struct {
	JobID         string    `json:"job_id"`
	Kind          string    `json:"kind"`
	Queue         string    `json:"queue"`
	State         string    `json:"state"`
	PreviousState string    `json:"previous_state"`
	Attempt       int       `json:"attempt"`
	Reason        string    `json:"reason"`
	Subject       *Subject  `json:"subject"`
	At            time.Time `json:"at"`
}

// Subject is what a job is for, as far as the reader may know.
type Subject struct {
	Type string    `json:"type"`
	ID   uuid.UUID `json:"id"`
}

// DownloadStateEvent is the data of EventDownloadState.
type DownloadStateEvent struct {
	DownloadID    uuid.UUID  `json:"download_id"`
	JobID         string     `json:"job_id"`
	ParentID      *uuid.UUID `json:"parent_id"`
	State         string     `json:"state"`
	PreviousState string     `json:"previous_state"`
	Reason        string     `json:"reason"`
	At            time.Time  `json:"at"`
}

// ProgressEvent is the data of EventJobProgress.
type ProgressEvent struct {
	JobID           string    `json:"job_id"`
	Phase           string    `json:"phase"`
	Percent         float64   `json:"percent"`
	DownloadedBytes int64     `json:"downloaded_bytes"`
	TotalBytes      int64     `json:"total_bytes"`
	SpeedBytesPerS  int64     `json:"speed_bytes_per_s"`
	ETAS            int64     `json:"eta_s"`
	Subject         *Subject  `json:"subject"`
	At              time.Time `json:"at"`
}

// WorkerEvent is the data of EventWorkerJoined, EventWorkerLeft and EventWorkerLost.
type WorkerEvent struct {
	WorkerID string    `json:"worker_id"`
	Mode     string    `json:"mode"` // up, serve or work
	Host     string    `json:"host"`
	At       time.Time `json:"at"`
}

// ResetEvent is the data of EventReset.
type ResetEvent struct {
	Reason string `json:"reason"` // cursor_expired, unknown_epoch or invalid_cursor
}

// EventsOptions say which events to read, and how. The zero value reads all, from now on.
type EventsOptions struct {
	Topics, Kinds, Queues, States, JobIDs []string
	DownloadIDs                           []uuid.UUID

	// LastEventID is where to go on: the ID of the last event that was seen.
	LastEventID string

	// IdleTimeout is how long nothing may arrive, not even a heartbeat, before the connection is given up. Default 45 s,
	// three heartbeats; negative: for ever.
	IdleTimeout time.Duration

	// MaxRetry bounds the growing pauses between attempts to connect. Default 30 s. The first pause is what the server
	// asks for.
	MaxRetry time.Duration

	// OnConnected is called each time the stream stands, and OnLost when it breaks, with the cause; both from the
	// goroutine that reads. Optional.
	OnConnected func()
	OnLost      func(error)
}

const (
	defaultRetry       = 3 * time.Second
	defaultIdleTimeout = 45 * time.Second
	defaultMaxRetry    = 30 * time.Second
)

// Streamer is what Events needs of a Client or ClientWithResponses. Its http.Client must have no Timeout, which would
// cut the stream.
type Streamer interface {
	StreamEvents(ctx context.Context, params *StreamEventsParams, editors ...RequestEditorFn) (*http.Response, error)
}

// Events reads the event stream until ctx ends. A connection that breaks, or falls silent, is made again, and goes on
// after the last event, so that every change of state is seen exactly once and in order. Where the server cannot go on
// from there it sends EventReset: what is shown must be loaded anew. An error is the last thing of the sequence, and one that
// trying again cannot mend, such as a *Problem for a token that is not valid.
func Events(ctx context.Context, s Streamer, o EventsOptions) iter.Seq2[Event, error] {
	r := &eventReader{
		streamer: s, options: o, lastID: o.LastEventID, retry: defaultRetry,
		idle: cmp.Or(o.IdleTimeout, defaultIdleTimeout), maxRetry: cmp.Or(o.MaxRetry, defaultMaxRetry),
	}
	return func(yield func(Event, error) bool) {
		for ctx.Err() == nil {
			err := r.connect(ctx, func(e Event) bool { return yield(e, nil) })
			if errors.Is(err, errStopped) || ctx.Err() != nil {
				return
			}
			if permanent, ok := errors.AsType[*permanentError](err); ok {
				yield(Event{}, permanent.err)
				return
			}
			if o.OnLost != nil {
				o.OnLost(err)
			}
			if !r.pause(ctx) {
				return
			}
		}
	}
}

var (
	errStopped = errors.New("the caller has had enough")
	errEnded   = errors.New("the server ended the stream")
	errIdle    = errors.New("nothing arrived for too long")
)

// permanentError is one that trying again cannot mend.
type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// eventReader keeps what must outlive a connection.
type eventReader struct {
	streamer       Streamer
	options        EventsOptions
	idle, maxRetry time.Duration

	lastID     string
	retry      time.Duration // the first pause
	retryAfter time.Duration // what the server asked for this time
	failures   int           // connections in a row that brought nothing
}

// connect reads one connection to its end, which always is an error.
func (r *eventReader) connect(ctx context.Context, yield func(Event) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.failures++
	r.retryAfter = 0
	alive := func() {}
	if r.idle > 0 {
		silence := time.AfterFunc(r.idle, func() { cancel(errIdle) })
		defer silence.Stop()
		alive = func() { silence.Reset(r.idle) }
	}

	response, err := r.streamer.StreamEvents(ctx, r.params(), r.resume)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	defer func() { _ = response.Body.Close() }()
	if err := r.accept(response); err != nil {
		return err
	}
	if r.options.OnConnected != nil {
		r.options.OnConnected()
	}
	err = readEvents(response.Body, func(line eventLine) error {
		r.failures = 0
		alive()
		return r.take(line, yield)
	})
	if errors.Is(err, errStopped) {
		return err
	}
	return cmp.Or(context.Cause(ctx), err, errEnded)
}

// take handles what the parser found.
func (r *eventReader) take(line eventLine, yield func(Event) bool) error {
	if line.retry > 0 {
		r.retry = line.retry
	}
	if line.event == nil {
		return nil
	}
	switch {
	case line.event.ID != "":
		r.lastID = line.event.ID
	case line.event.Type == EventReset:
		r.lastID = "" // the server cannot go on from it
	}
	if len(line.event.Data) > 0 && !yield(*line.event) {
		return errStopped
	}
	return nil
}

// accept tells whether the answer is a stream.
func (r *eventReader) accept(response *http.Response) error {
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10)) //nolint:errcheck // what there is of it
		err := cmp.Or(fault(response.StatusCode, body), fmt.Errorf("HTTP %d", response.StatusCode))
		switch {
		case response.StatusCode == http.StatusTooManyRequests, response.StatusCode == http.StatusRequestTimeout,
			response.StatusCode >= http.StatusInternalServerError:
			if seconds, parseErr := strconv.Atoi(response.Header.Get("Retry-After")); parseErr == nil && seconds > 0 {
				r.retryAfter = time.Duration(min(seconds, 3600)) * time.Second
			}
			return err
		}
		return &permanentError{err}
	}
	if kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type")); kind != "text/event-stream" { //nolint:errcheck // no type is none
		return &permanentError{fmt.Errorf("the server answers with %q instead of an event stream", kind)}
	}
	return nil
}

func (r *eventReader) params() *StreamEventsParams {
	list := func(values []string) *[]string {
		if len(values) == 0 {
			return nil
		}
		return &values
	}
	downloads := make([]string, len(r.options.DownloadIDs))
	for i, id := range r.options.DownloadIDs {
		downloads[i] = id.String()
	}
	return &StreamEventsParams{
		Topic: list(r.options.Topics), Kind: list(r.options.Kinds), Queue: list(r.options.Queues),
		State: list(r.options.States), JobID: list(r.options.JobIDs), DownloadID: list(downloads),
	}
}

func (r *eventReader) resume(_ context.Context, request *http.Request) error {
	request.Header.Set("Accept", "text/event-stream")
	if r.lastID != "" {
		request.Header.Set("Last-Event-ID", r.lastID)
	}
	return nil
}

// pause waits before the next attempt: what the server asked for, doubled for each attempt that brought nothing, less a
// random part, so that readers who were cut off together do not come back together. It returns false if ctx ends.
func (r *eventReader) pause(ctx context.Context) bool {
	wait := min(r.maxRetry, r.retry<<min(max(0, r.failures-1), 10))
	wait = max(wait/2+rand.N(wait/2+1), r.retryAfter) //nolint:gosec // no secret
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
