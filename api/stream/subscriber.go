package stream

import (
	"sync"

	"medianest/store"
)

// subscriber is a stream as the hub sees it: what it wants, and a buffer between the hub, which never waits, and the
// goroutine that writes.
type subscriber struct {
	Subscription

	limit int           // of pending
	wake  chan struct{} // one slot: something is there to take

	// The hub's, under its lock.
	attached bool
	touched  bool         // something was pushed since it was woken last
	lagging  bool         // the buffer has run over since
	after    store.Cursor // events up to here it has had

	mu       sync.Mutex
	pending  []*frame
	progress map[int64][]byte // the latest of each job
	detached detachment
}

// detachment says why the hub hands a stream no more events.
type detachment struct {
	lagging bool         // the buffer ran over
	resume  store.Cursor // where to go on then
	reset   string       // or: the history that the stream was in has ended, for this reason
}

func (d detachment) isSet() bool { return d.lagging || d.reset != "" }

// push adds an event. It reports false if the buffer has run over: then it is dropped, and the stream has to go on from
// before what was in it.
func (s *subscriber) push(f *frame) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.progress, f.jobID) // older than this state
	if len(s.pending) < s.limit {
		s.pending = append(s.pending, f)
		return true
	}
	first := s.pending[0].at
	s.detached = detachment{lagging: true, resume: store.Cursor{Tick: first.Tick, ID: first.ID - 1}}
	s.pending, s.progress = nil, nil
	return false
}

func (s *subscriber) pushProgress(jobID int64, message []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.progress == nil {
		s.progress = make(map[int64][]byte)
	}
	s.progress[jobID] = message
}

func (s *subscriber) detach(d detachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detached = d
}

// take empties the buffer.
func (s *subscriber) take() (events []*frame, progress map[int64][]byte, d detachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events, progress, d = s.pending, s.progress, s.detached
	s.pending, s.progress, s.detached = nil, nil, detachment{}
	return events, progress, d
}

// isEmpty reports whether everything pushed was taken, and the stream not detached.
func (s *subscriber) isEmpty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending) == 0 && !s.detached.isSet()
}

func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
