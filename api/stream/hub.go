package stream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"medianest/store"
)

// Source is what the hub needs of the store.
type Source interface {
	Head(ctx context.Context) (store.Head, error)
	EventsAfter(ctx context.Context, q store.EventQuery) ([]store.Event, error)
	WatchedJobs(ctx context.Context, jobIDs []int64) (map[int64]store.WatchedJob, error)
}

// ProgressSource is where progress comes from. Subscribe calls fn, one call at a time, until ctx ends.
type ProgressSource interface {
	Subscribe(ctx context.Context, fn func(store.Progress)) error
}

// Options says how a Hub works.
type Options struct {
	Source   Source         // required
	Progress ProgressSource // optional: without it, streams carry states only
	Logger   *slog.Logger   // required

	// Registerer takes the hub's metrics. Optional.
	Registerer prometheus.Registerer

	// PollInterval is how often the hub looks for new ticks while a stream is open. Default: 50 ms.
	PollInterval time.Duration

	// ProgressInterval is the least time between two reports of one job on a stream. Default: 250 ms.
	ProgressInterval time.Duration

	// Heartbeat is after how much silence a stream gets a ping. Default: 15 s.
	Heartbeat time.Duration

	// WriteTimeout is how long a write may take before its reader is disconnected. Default: 10 s.
	WriteTimeout time.Duration

	// Buffer is how many events wait for a stream's writer before the stream reads from the database instead.
	// Default: 256.
	Buffer int

	// Retry is after what time a client that lost its stream is asked to come back. Default: 3 s.
	Retry time.Duration

	// MaxAge is how long a stream lasts, give or take a tenth: then the client comes back at once, and has to show who it
	// is. Default: 30 min. Negative: for ever.
	MaxAge time.Duration

	// MaxPerUser bounds the streams of one user. 0: no bound.
	MaxPerUser int

	// Replays bounds the database reads for single streams that run at a time. Default: 4.
	Replays int

	// PageSize is how many events are read from the database at a time. Default: 5000 by the hub, and a fifth of it for
	// single streams.
	PageSize int
}

const (
	// callTimeout bounds a read from the database.
	callTimeout = 15 * time.Second

	// replayTicks bounds the ticks that one read for a stream looks at, however few events of them concern it.
	replayTicks = 2000

	maxErrorPause = time.Second
)

// ErrTooManyStreams says that the user has as many streams as are allowed.
var ErrTooManyStreams = errors.New("too many streams")

// Hub hands events to streams. See the package's documentation.
type Hub struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	bell    chan struct{} // look for ticks now
	replays chan struct{} // a slot for each read at work

	draining chan struct{} // closed when Run ends

	mu      sync.Mutex
	streams map[uuid.UUID]int // open, by user
	open    int               // their sum
	closed  bool              // draining
	empty   chan struct{}     // closed when draining and none is open

	// Where the hub is. Unknown until ready is closed, and again after a time without any stream.
	ready chan struct{}
	known bool
	head  store.Head
	at    store.Cursor // everything before has been handed out

	// The streams that are attached: of users, and of admins, who see everything.
	users  map[uuid.UUID][]*subscriber
	admins map[*subscriber]struct{}

	touched []*subscriber
	frames  map[uuid.UUID]*frame // of the event at hand, by the download that it is about to the reader

	progress progress
}

// New returns a hub. It hands out events while Run runs.
func New(o Options) *Hub {
	o.PollInterval = cmp.Or(o.PollInterval, 50*time.Millisecond)
	o.ProgressInterval = cmp.Or(o.ProgressInterval, 250*time.Millisecond)
	o.Heartbeat = cmp.Or(o.Heartbeat, 15*time.Second)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, 10*time.Second)
	o.Buffer = cmp.Or(o.Buffer, 256)
	o.Retry = cmp.Or(o.Retry, 3*time.Second)
	o.MaxAge = cmp.Or(o.MaxAge, 30*time.Minute)
	o.Replays = cmp.Or(o.Replays, 4)
	o.PageSize = cmp.Or(o.PageSize, 5000)
	return &Hub{
		o:        o,
		log:      o.Logger,
		metrics:  newMetrics(o.Registerer),
		bell:     make(chan struct{}, 1),
		replays:  make(chan struct{}, o.Replays),
		draining: make(chan struct{}),
		streams:  make(map[uuid.UUID]int),
		empty:    make(chan struct{}),
		ready:    make(chan struct{}),
		users:    make(map[uuid.UUID][]*subscriber),
		admins:   make(map[*subscriber]struct{}),
		frames:   make(map[uuid.UUID]*frame),
		progress: newProgress(),
	}
}

// Ring tells the hub that there may be a new tick. It never blocks.
func (h *Hub) Ring() { ring(h.bell) }

// Run hands out events until ctx ends. Then it asks all clients to come back later, each at another time, ends their
// streams, and returns nil when the last has ended, which takes as long as one write at most.
func (h *Hub) Run(ctx context.Context) error {
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { h.followTicks(running); return nil })
	if h.o.Progress != nil {
		group.Go(func() error { return h.o.Progress.Subscribe(running, h.onProgress) })
		group.Go(func() error { h.sendProgress(running); return nil })
	}
	err := group.Wait()
	h.drain()
	return err
}

func (h *Hub) drain() {
	h.mu.Lock()
	h.closed = true
	if h.open == 0 {
		close(h.empty)
	}
	h.mu.Unlock()
	close(h.draining)
	<-h.empty
}

// enter counts a stream in. It reports whether the hub takes streams at all.
func (h *Hub) enter(user uuid.UUID) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false, nil
	}
	if h.o.MaxPerUser > 0 && h.streams[user] >= h.o.MaxPerUser {
		return false, ErrTooManyStreams
	}
	h.streams[user]++
	h.open++
	h.metrics.streams.Inc()
	if h.open == 1 {
		h.Ring()
	}
	return true, nil
}

func (h *Hub) leave(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(s)
	user := s.Viewer.UserID
	if h.streams[user]--; h.streams[user] == 0 {
		delete(h.streams, user)
	}
	h.open--
	h.metrics.streams.Dec()
	if h.closed && h.open == 0 {
		close(h.empty)
	}
}

// followTicks hands out the events of new ticks while there are streams.
func (h *Hub) followTicks(ctx context.Context) {
	failures := 0
	for {
		pause := h.o.PollInterval
		if h.sleepIfAlone() {
			pause = time.Hour // the bell rings when a stream comes
		} else if err := h.poll(ctx); err != nil && ctx.Err() == nil {
			// A new history is begun by the next tick, as a matter of course.
			if failures++; failures == 1 && !errors.Is(err, store.ErrNoHistory) {
				h.log.Warn("event stream stalls", "err", err)
			}
			h.metrics.pollFailing.Set(1)
			pause = min(h.o.PollInterval<<min(failures, 6), maxErrorPause)
		} else if failures > 0 {
			h.log.Info("event stream goes on", "failures", failures)
			h.metrics.pollFailing.Set(0)
			failures = 0
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-h.bell:
			timer.Stop()
		}
	}
}

// sleepIfAlone forgets where the hub is if no stream is open, and reports whether that is so: it does not look for what
// nobody reads, and begins at the present when somebody does.
func (h *Hub) sleepIfAlone() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open > 0 {
		return false
	}
	if h.known {
		h.known, h.ready = false, make(chan struct{})
	}
	return true
}

// poll hands out what is new.
func (h *Hub) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	asked := time.Now()
	head, err := h.o.Source.Head(ctx)
	if err != nil {
		return err
	}
	at, news := h.moveTo(head)
	if !news {
		return nil
	}
	for at != head.End() {
		events, err := h.o.Source.EventsAfter(ctx, store.EventQuery{Epoch: head.Epoch, After: at, ToTick: head.Newest, Limit: h.o.PageSize})
		if errors.Is(err, store.ErrCursorExpired) {
			// The hub was cut off for longer than events are kept. So were its streams.
			h.beginAnew(head, resetCursorExpired)
			return nil
		}
		if err != nil {
			return err
		}
		at = head.End()
		if len(events) == h.o.PageSize {
			at = events[len(events)-1].Cursor
		}
		h.dispatch(events, at)
	}
	h.metrics.tickLag.Observe((head.Age + time.Since(asked)).Seconds())
	return nil
}

// moveTo takes note of the head, and returns where to read on from, if there is anything to read.
func (h *Hub) moveTo(head store.Head) (at store.Cursor, news bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.known:
		h.head, h.at, h.known = head, head.End(), true
		close(h.ready)
		return h.at, false
	case head.Epoch != h.head.Epoch || head.End().Compare(h.at) < 0:
		h.detachAll(detachment{reset: resetUnknownEpoch})
		h.head, h.at = head, head.End()
		return h.at, false
	}
	h.head = head
	return h.at, h.at != head.End()
}

// beginAnew goes on from head, and has all streams tell their clients that there is a gap.
func (h *Hub) beginAnew(head store.Head, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.detachAll(detachment{reset: reason})
	h.head, h.at = head, head.End()
}

// whenReady is closed while the hub knows where it is.
func (h *Hub) whenReady() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ready
}

// holds reports whether the hub knows that everything after p can be had.
func (h *Hub) holds(p Position) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return p.Epoch == h.head.Epoch && h.head.Check(p.Cursor) == nil
}

func (h *Hub) isIn(epoch string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.head.Epoch == epoch
}

// look asks the database for the head.
func (h *Hub) look(ctx context.Context) (store.Head, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return h.o.Source.Head(ctx)
}

// retryAfter is after what time a client should come back that has to leave with all others: the more there are, the
// more they are spread.
func (h *Hub) retryAfter() time.Duration {
	h.mu.Lock()
	spread := min(max(time.Second, time.Duration(h.open)*2*time.Millisecond), 30*time.Second)
	h.mu.Unlock()
	return h.o.Retry/2 + rand.N(spread)
}

// jitter is d give or take a tenth.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
