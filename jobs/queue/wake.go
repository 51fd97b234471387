package queue

import (
	"errors"
	"sync/atomic"
	"time"
)

// ErrOverslept refuses the database to a process that was stopped, or whose machine slept, for longer than its presence
// lasts, until it has noticed.
var ErrOverslept = errors.New("this process did not run for longer than its presence lasts")

// Wake tells whether this process has run without a gap that is as long as its presence lasts. After such a gap others
// may have gone on with its jobs, and what is first to run when it wakes, a fetch or a write whose turn it was, must not
// reach the database: pools ask Err before each use of a connection. What was on its way at that moment is not stopped by
// this; it meets rows that are final.
//
// It is kept by the presence of the client that it is an option of. Before that has started, and where the presence is
// Alone, Err refuses nothing. The zero Wake is ready for use.
type Wake struct {
	seen atomic.Int64 // since boot, in ns; 0: nobody watches
	most atomic.Int64 // the longest gap, in ns
}

// Err returns ErrOverslept after a gap, and nil again when it was noticed and acted upon.
func (w *Wake) Err() error {
	if seen := w.seen.Load(); seen != 0 && int64(sinceBoot())-seen > w.most.Load() {
		return ErrOverslept
	}
	return nil
}

// note says that the process runs at this moment, and has done whatever a gap before it asks for.
func (w *Wake) note(now, most time.Duration) {
	w.most.Store(int64(most))
	w.seen.Store(int64(now))
}

// rest says that nobody watches any more.
func (w *Wake) rest() { w.seen.Store(0) }
