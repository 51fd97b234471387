package stream

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"os"
	"sync"
	"time"

	"medianest/store"
)

// How a stream ended; the label of a metric.
var (
	errClientLeft = errors.New("client")
	errSlow       = errors.New("slow")
	errAge        = errors.New("age")
	errShutdown   = errors.New("shutdown")
)

const (
	// gatherBytes is how much is written at a time of what is more than the server's own buffer holds.
	gatherBytes = 16 << 10
	serverBytes = 2 << 10
)

// Serve answers r with a stream that lasts until the client leaves, does not keep up with reading, or the stream's time
// has come. The header Last-Event-ID goes before the subscription's. It fails only before anything is written:
// ErrTooManyStreams.
func (h *Hub) Serve(w http.ResponseWriter, r *http.Request, sub Subscription) error {
	open, err := h.enter(sub.Viewer.UserID)
	if err != nil {
		return err
	}
	sub.LastEventID = cmp.Or(r.Header.Get("Last-Event-ID"), sub.LastEventID)
	st := &connection{
		hub: h,
		w:   w,
		rc:  http.NewResponseController(w),
		sub: &subscriber{Subscription: sub, limit: h.o.Buffer, wake: make(chan struct{}, 1)},
	}
	if !open { // the process ends: a client that is told so by an error status would not come back
		_ = st.begin()
		_ = st.write(encodeRetry(h.retryAfter()))
		return nil
	}
	defer h.leave(st.sub)
	if h.o.MaxAge > 0 {
		st.end = time.Now().Add(jitter(h.o.MaxAge))
	}
	st.heartbeat = time.NewTimer(jitter(h.o.Heartbeat))
	defer st.heartbeat.Stop()
	h.metrics.ended.WithLabelValues(st.run(r.Context()).Error()).Inc()
	return nil
}

// connection is a stream as its reader sees it.
type connection struct {
	hub *Hub
	w   http.ResponseWriter
	rc  *http.ResponseController
	sub *subscriber

	place     Position // what came before was written, as far as it concerns the reader
	told      Position // the last place that the reader was told
	isLive    bool     // what comes next is in the buffer
	heartbeat *time.Timer
	end       time.Time // zero: never
}

// run returns how the stream ended.
func (c *connection) run(ctx context.Context) error {
	err := c.begin()
	if err == nil {
		err = c.follow(ctx)
	}
	switch {
	case errors.Is(err, errAge):
		_ = c.write(encodeRetry(c.hub.o.Retry / 10))
	case errors.Is(err, errShutdown):
		_ = c.write(encodeRetry(c.hub.retryAfter()))
	}
	return err
}

// begin sends the headers and what a client needs before anything else.
func (c *connection) begin() error {
	header := c.w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", "no-store, no-cache, no-transform")
	header.Set("X-Accel-Buffering", "no") // nginx would keep events until its buffer is full
	// The server's time-out for reading the request would end the stream.
	_ = c.rc.SetReadDeadline(time.Time{})
	c.w.WriteHeader(http.StatusOK)
	return c.write(encodeRetry(c.hub.o.Retry))
}

// follow is attached, replays up to there, and writes what the hub hands out, as often as the stream is detached.
func (c *connection) follow(ctx context.Context) error {
	reset, err := c.findPlace(ctx)
	if err != nil {
		return err
	}
	for {
		var to store.Cursor
		if reset == "" && c.place.Epoch != "" {
			to, reset = c.hub.attach(c.sub, c.place)
		}
		if reset == "" && c.place.Epoch != "" {
			if reset, err = c.replay(ctx, to); err != nil {
				return err
			}
			if reset != "" {
				c.hub.detach(c.sub)
				continue
			}
		} else if err := c.beginNow(reset); err != nil {
			return err
		}
		d, err := c.live(ctx)
		if err != nil {
			return err
		}
		if reset = d.reset; d.lagging {
			c.place.Cursor = d.resume
		}
	}
}

// findPlace waits until the hub knows where it is, and finds out where the stream begins: at c.place, or now if that is
// not set, after a reset if one is named.
func (c *connection) findPlace(ctx context.Context) (reset string, err error) {
	for {
		ready := c.hub.whenReady()
		select {
		case <-ready:
		default:
			if err := c.pause(ctx, ready); err != nil {
				return "", err
			}
			continue
		}
		if c.sub.LastEventID == "" {
			return "", nil
		}
		place, err := ParsePosition(c.sub.LastEventID)
		if err != nil {
			return resetInvalidCursor, nil
		}
		if c.hub.holds(place) {
			c.place = place
			return "", nil
		}
		// The client may know better than the hub: another process was a tick ahead, or the database is another one since.
		head, err := c.hub.look(ctx)
		if err == nil && head.Epoch == place.Epoch {
			switch err := head.Check(place.Cursor); {
			case errors.Is(err, store.ErrCursorExpired):
				return resetCursorExpired, nil
			case err != nil:
				return resetInvalidCursor, nil
			}
			if c.hub.isIn(place.Epoch) {
				c.place = place
				return "", nil
			}
		} else if err == nil && c.hub.isIn(head.Epoch) {
			return resetUnknownEpoch, nil
		}
		// The hub is about to learn of the new epoch, or the database does not answer.
		c.hub.Ring()
		if err := c.sleep(ctx, 2*c.hub.o.PollInterval); err != nil {
			return "", err
		}
	}
}

// beginNow attaches the stream at the present, and tells the client where that is.
func (c *connection) beginNow(reset string) error {
	c.place = c.hub.attachNow(c.sub)
	c.told = c.place
	if reset == "" {
		return c.write(encodeOpen(c.place))
	}
	c.hub.metrics.resets.WithLabelValues(reset).Inc()
	return c.write(encodeReset(c.place, reset))
}

// replay writes what lies between the stream's place and to. It returns why that is not to be had, if so.
func (c *connection) replay(ctx context.Context, to store.Cursor) (reset string, err error) {
	for c.place.Compare(to) < 0 {
		lastTick := to.Tick
		if to.ID == 0 {
			lastTick--
		}
		q := store.EventQuery{
			Epoch:  c.place.Epoch,
			After:  c.place.Cursor,
			ToTick: min(lastTick, c.place.Tick+replayTicks),
			Limit:  max(1, c.hub.o.PageSize/5),
			UserID: c.sub.userID(),
		}
		if err := c.awaitTurn(ctx); err != nil {
			return "", err
		}
		events, err := c.read(ctx, q)
		<-c.hub.replays
		if errors.Is(err, store.ErrCursorExpired) {
			return resetCursorExpired, nil
		}
		if err != nil {
			// The database is away. The place is kept, and so is the client, until it is back.
			if err := c.sleep(ctx, maxErrorPause/2); err != nil {
				return "", err
			}
			continue
		}
		next := store.Cursor{Tick: q.ToTick + 1}
		if len(events) == q.Limit {
			next = events[len(events)-1].Cursor
		}
		if next.Compare(to) > 0 {
			next = to
		}
		var frames []*frame
		for i := range events {
			e := &events[i]
			if e.Compare(to) > 0 {
				break // the hub hands it out
			}
			if f := c.frame(e); f != nil {
				frames = append(frames, f)
			}
		}
		if err := c.writeEvents(frames, nil); err != nil {
			return "", err
		}
		c.place.Cursor = next
	}
	return "", nil
}

// frame is the event as the stream sees it, or nil.
func (c *connection) frame(e *store.Event) *frame {
	subject, ok := c.sub.wants(e)
	if !ok {
		return nil
	}
	return encodeEvent(c.place.Epoch, e, subject)
}

// read reads from the database when it is the stream's turn.
func (c *connection) read(ctx context.Context, q store.EventQuery) ([]store.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	events, err := c.hub.o.Source.EventsAfter(ctx, q)
	c.hub.metrics.replayed.Add(float64(len(events)))
	return events, err
}

// awaitTurn waits for a slot to read from the database, which the caller gives back.
func (c *connection) awaitTurn(ctx context.Context) error {
	for {
		select {
		case c.hub.replays <- struct{}{}:
			return nil
		case <-ctx.Done():
			return errClientLeft
		case <-c.hub.draining:
			return errShutdown
		case <-c.heartbeat.C:
			if err := c.ping(); err != nil {
				return err
			}
		}
	}
}

// live writes what the hub hands out until the hub detaches the stream.
func (c *connection) live(ctx context.Context) (detachment, error) {
	c.isLive = true
	defer func() { c.isLive = false }()
	for {
		events, reports, d := c.sub.take()
		if err := c.writeEvents(events, reports); err != nil {
			return detachment{}, err
		}
		if d.isSet() {
			return d, nil
		}
		if err := c.pause(ctx, c.sub.wake); err != nil {
			return detachment{}, err
		}
	}
}

// pause waits for wake, keeps the connection alive meanwhile, and returns how the stream ended, if it did.
func (c *connection) pause(ctx context.Context, wake <-chan struct{}) error {
	for {
		select {
		case <-wake:
			return nil
		case <-ctx.Done():
			return errClientLeft
		case <-c.hub.draining:
			return c.flush()
		case <-c.heartbeat.C:
			if err := c.ping(); err != nil {
				return err
			}
		}
	}
}

// sleep is pause for a time, more or less.
func (c *connection) sleep(ctx context.Context, d time.Duration) error {
	over := make(chan struct{})
	timer := time.AfterFunc(jitter(d), func() { close(over) })
	defer timer.Stop()
	return c.pause(ctx, over)
}

// flush ends a stream with what is in its buffer, if that is what comes next.
func (c *connection) flush() error {
	if c.isLive {
		events, _, _ := c.sub.take()
		if err := c.writeEvents(events, nil); err != nil {
			return err
		}
	}
	return errShutdown
}

// ping tells the client that the stream is alive, and the place to go on from if that has moved. A stream that is too old
// ends here.
func (c *connection) ping() error {
	if !c.end.IsZero() && time.Now().After(c.end) {
		return errAge
	}
	if c.isLive {
		c.place.Cursor = c.hub.placeOf(c.sub, c.place.Cursor)
	}
	if c.place.Epoch == "" || c.place == c.told {
		return c.write(encodePing(nil))
	}
	c.told = c.place
	return c.write(encodePing(&c.place))
}

// writeEvents writes events and then reports.
func (c *connection) writeEvents(events []*frame, reports map[int64][]byte) error {
	if len(events) == 0 && len(reports) == 0 {
		return nil
	}
	parts := make([][]byte, 0, len(events)+len(reports))
	for _, f := range events {
		parts = append(parts, f.bytes)
	}
	for _, message := range reports {
		parts = append(parts, message)
	}
	if err := c.write(parts...); err != nil {
		return err
	}
	if len(events) > 0 {
		c.place.Cursor = events[len(events)-1].at
		c.told = c.place
	}
	c.hub.metrics.count(events, len(reports))
	return nil
}

var gather = sync.Pool{New: func() any { b := make([]byte, 0, gatherBytes); return &b }}

// write writes all parts and flushes once. Each write has a deadline of its own, which a reader that takes anything at
// all within it meets.
func (c *connection) write(parts ...[]byte) error {
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	var err error
	if total <= serverBytes || len(parts) == 1 {
		c.setDeadline()
		for _, p := range parts {
			if _, err = c.w.Write(p); err != nil {
				break
			}
		}
	} else {
		err = c.writeGathered(parts)
	}
	if err == nil {
		err = c.rc.Flush()
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errSlow
		}
		return errClientLeft
	}
	_ = c.rc.SetWriteDeadline(time.Time{}) // over HTTP/2 it would end an idle stream
	if c.heartbeat != nil {
		c.heartbeat.Reset(jitter(c.hub.o.Heartbeat))
	}
	return nil
}

// writeGathered writes many parts in few pieces.
func (c *connection) writeGathered(parts [][]byte) error {
	buffer := gather.Get().(*[]byte)
	defer gather.Put(buffer)
	piece := (*buffer)[:0]
	for _, p := range parts {
		if len(piece)+len(p) > gatherBytes && len(piece) > 0 {
			c.setDeadline()
			if _, err := c.w.Write(piece); err != nil {
				return err
			}
			piece = piece[:0]
		}
		piece = append(piece, p...)
	}
	*buffer = piece[:0]
	c.setDeadline()
	_, err := c.w.Write(piece)
	return err
}

func (c *connection) setDeadline() {
	// A writer that has no deadlines, as in a test, is only not protected from slow readers.
	_ = c.rc.SetWriteDeadline(time.Now().Add(c.hub.o.WriteTimeout))
}
