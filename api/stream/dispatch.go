package stream

import (
	"slices"

	"github.com/google/uuid"

	"medianest/store"
)

// attach has the hub hand the stream all events from now on but those that it has had, and returns from where on that
// is. The caller reads from the database what lies between. It returns why there is no going on from after, if so.
func (h *Hub) attach(s *subscriber, after Position) (to store.Cursor, reset string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if after.Epoch != h.head.Epoch {
		return store.Cursor{}, resetUnknownEpoch
	}
	h.add(s, after.Cursor)
	return h.at, ""
}

// attachNow is attach for a stream that begins at the present, which it returns.
func (h *Hub) attachNow(s *subscriber) Position {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.add(s, h.at)
	return Position{Epoch: h.head.Epoch, Cursor: h.at}
}

// detach has the hub forget the stream, and drops what it has handed to it.
func (h *Hub) detach(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(s)
	s.take()
}

// placeOf is where an attached stream is that has written everything it took: where the hub is, if nothing else is
// there to take.
func (h *Hub) placeOf(s *subscriber, place store.Cursor) store.Cursor {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.attached && s.isEmpty() && h.at.Compare(place) > 0 {
		return h.at
	}
	return place
}

func (h *Hub) add(s *subscriber, after store.Cursor) {
	s.attached, s.after = true, after
	if s.Viewer.Admin {
		h.admins[s] = struct{}{}
		return
	}
	h.users[s.Viewer.UserID] = append(h.users[s.Viewer.UserID], s)
}

func (h *Hub) remove(s *subscriber) {
	if !s.attached {
		return
	}
	s.attached = false
	if s.Viewer.Admin {
		delete(h.admins, s)
		return
	}
	user := s.Viewer.UserID
	left := slices.DeleteFunc(h.users[user], func(o *subscriber) bool { return o == s })
	if len(left) == 0 {
		delete(h.users, user)
		return
	}
	h.users[user] = left
}

func (h *Hub) detachAll(d detachment) {
	for s := range h.admins {
		h.touch(s)
	}
	for _, list := range h.users {
		for _, s := range list {
			h.touch(s)
		}
	}
	for _, s := range h.touched {
		s.detach(d)
		h.remove(s)
	}
	h.wake()
}

// dispatch hands out a page of events, which ends at a cursor, and wakes each stream that got something once.
func (h *Hub) dispatch(events []store.Event, end store.Cursor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range events {
		e := &events[i]
		h.progress.note(e)
		clear(h.frames)
		for s := range h.admins {
			h.offer(s, e)
		}
		h.offerUsers(e)
	}
	h.at = end
	h.wake()
}

// offerUsers gives an event to the streams of the users whom it concerns: the owner of a download, and those of the
// downloads that follow or followed a job.
func (h *Hub) offerUsers(e *store.Event) {
	if e.UserID != nil {
		h.offerUser(*e.UserID, e)
	}
	for i, v := range e.Viewers {
		if !slices.ContainsFunc(e.Viewers[:i], func(o store.EventViewer) bool { return o.UserID == v.UserID }) {
			h.offerUser(v.UserID, e)
		}
	}
}

func (h *Hub) offerUser(user uuid.UUID, e *store.Event) {
	for _, s := range h.users[user] {
		h.offer(s, e)
	}
}

// offer gives an event to a stream that wants it. A stream whose buffer has run over gets nothing any more, and is
// removed when all have been offered what there is.
func (h *Hub) offer(s *subscriber, e *store.Event) {
	if s.lagging || e.Compare(s.after) <= 0 {
		return
	}
	f := h.frameFor(&s.Subscription, e)
	if f == nil {
		return
	}
	if !s.push(f) {
		s.lagging = true
		h.metrics.lagged.Inc()
	}
	h.touch(s)
}

// frameFor returns the event as the subscription sees it, or nil.
func (h *Hub) frameFor(sub *Subscription, e *store.Event) *frame {
	subject, ok := sub.wants(e)
	if !ok {
		return nil
	}
	var download uuid.UUID
	if subject != nil {
		download = *subject
	}
	f := h.frames[download]
	if f == nil {
		f = encodeEvent(h.head.Epoch, e, subject)
		h.frames[download] = f
	}
	return f
}

func (h *Hub) touch(s *subscriber) {
	if !s.touched {
		s.touched = true
		h.touched = append(h.touched, s)
	}
}

// wake wakes those that something was pushed to.
func (h *Hub) wake() {
	for i, s := range h.touched {
		if s.lagging {
			h.remove(s)
		}
		s.touched, s.lagging = false, false
		ring(s.wake)
		h.touched[i] = nil
	}
	h.touched = h.touched[:0]
}
