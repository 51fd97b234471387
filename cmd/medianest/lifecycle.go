package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lastWords is what a part gets to end by itself after it was told to end at once.
const lastWords = 3 * time.Second

var (
	errAskedToStop = errors.New("asked to stop")
	errPartFailed  = errors.New("a part of the process failed")
)

// unit is one long-lived part of a process.
type unit struct {
	name string
	// run works until its context ends or stop was called. Returning before that, with or without an error, brings the
	// process down.
	// nil: the unit has only something to stop.
	run func(ctx context.Context) error
	// stop is called before run's context ends, for parts that have a gentler way, and returns when that is done. Its
	// context ends when there is no more time, which may be before the call: then stop ends the part by force, within
	// lastWords. nil: the end of run's context is the way.
	stop func(ctx context.Context) error
}

// lifecycle starts units in order, watches them, and stops them in the opposite order, each wholly before the one it
// rests on.
type lifecycle struct {
	log *slog.Logger

	// asked ends when the process is asked to stop, or a unit has failed: what is still starting gives up.
	asked     context.Context
	ask       context.CancelCauseFunc
	hard      context.Context // ends when there is no more time: every unit's context is made of it
	hardStop  context.CancelCauseFunc
	running   []*runningUnit
	firstFail error
	mu        sync.Mutex // guards firstFail
}

type runningUnit struct {
	unit
	cancel   context.CancelFunc
	stopping atomic.Bool   // from then on run may return
	done     chan struct{} // closed when run has returned
	err      error         // of run; read after done
}

// operate builds a process out of units and runs it until it is asked to stop: the first signal stops it gracefully
// within stopTimeout, a second one at once. build starts units as it goes; what it started is stopped even when it fails.
func operate(ctx context.Context, log *slog.Logger, signals <-chan os.Signal, stopTimeout time.Duration, build func(ctx context.Context, l *lifecycle) error) error {
	l := &lifecycle{log: log}
	l.asked, l.ask = context.WithCancelCause(ctx)
	defer l.ask(nil)
	l.hard, l.hardStop = context.WithCancelCause(context.WithoutCancel(ctx))
	defer l.hardStop(nil)

	finished := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		l.watch(signals, stopTimeout, finished)
	}()

	buildErr := build(l.asked, l)
	if buildErr == nil {
		<-l.asked.Done()
	} else {
		l.ask(buildErr) // starts the clock
	}
	stopErr := l.stop()
	close(finished)
	<-watched
	return l.verdict(ctx, buildErr, stopErr)
}

// verdict picks what there is to say at the end.
func (l *lifecycle) verdict(ctx context.Context, buildErr, stopErr error) error {
	askedFirst := errors.Is(context.Cause(l.asked), errAskedToStop) || ctx.Err() != nil
	switch {
	case l.firstFail != nil:
		return errors.Join(l.firstFail, stopErr)
	case buildErr != nil && askedFirst:
		return stopErr // the start was given up because somebody said so
	case buildErr != nil:
		return errors.Join(buildErr, stopErr)
	}
	return stopErr
}

// watch turns signals and time into the ends of contexts until the process has stopped.
func (l *lifecycle) watch(signals <-chan os.Signal, stopTimeout time.Duration, finished <-chan struct{}) {
	asked := l.asked.Done()
	var deadline <-chan time.Time
	for {
		select {
		case <-finished:
			return
		case s := <-signals:
			if l.asked.Err() == nil {
				l.log.Info("stopping", slog.String("signal", s.String()), slog.Duration("at_most", stopTimeout))
				l.ask(errAskedToStop)
				continue
			}
			l.log.Warn("stopping at once", slog.String("signal", s.String()))
			l.hardStop(&exitError{code: exitFailure, text: "stopped at once by a second " + s.String() + "; work in progress is taken up again at the next start"})
		case <-asked:
			asked = nil
			timer := time.NewTimer(stopTimeout)
			defer timer.Stop()
			deadline = timer.C
		case <-deadline:
			l.hardStop(fmt.Errorf("did not stop within %s (MEDIANEST_STOP_TIMEOUT) and was ended", stopTimeout))
		}
	}
}

// start begins a unit. Its context carries no deadline and ends when the unit is stopped.
func (l *lifecycle) start(u unit) {
	ctx, cancel := context.WithCancel(l.hard)
	r := &runningUnit{unit: u, cancel: cancel, done: make(chan struct{})}
	l.running = append(l.running, r)
	if u.run == nil {
		close(r.done)
		return
	}
	go func() {
		defer close(r.done)
		r.err = u.run(ctx)
		if r.stopping.Load() || ctx.Err() != nil {
			if errors.Is(r.err, context.Canceled) {
				r.err = nil
			}
			return
		}
		l.fail(u.name, r.err)
		r.err = nil // told already
	}()
}

// fail records the first unit that ended on its own and has the process stop.
func (l *lifecycle) fail(name string, err error) {
	if err == nil {
		err = errors.New("ended unexpectedly")
	}
	l.mu.Lock()
	if l.firstFail == nil {
		l.firstFail = fmt.Errorf("%s: %w", name, err)
	}
	l.mu.Unlock()
	l.ask(errPartFailed)
}

// stop ends all units, the last one started first, and says what went wrong on the way.
func (l *lifecycle) stop() error {
	var errs []error
	for i := len(l.running) - 1; i >= 0; i-- {
		r := l.running[i]
		begin := time.Now()
		r.stopping.Store(true)
		if r.stop != nil {
			if err := r.stop(l.hard); err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", r.name, err))
			}
		}
		r.cancel()
		switch {
		case !l.ended(r):
			errs = append(errs, fmt.Errorf("stop %s: it does not end", r.name))
		case r.err != nil:
			errs = append(errs, fmt.Errorf("stop %s: %w", r.name, r.err))
		}
		l.log.Debug("stopped", slog.String("unit", r.name), slog.Int64("duration_ms", time.Since(begin).Milliseconds()))
	}
	l.mu.Lock() // a unit that does not end may still fail
	defer l.mu.Unlock()
	if cause := context.Cause(l.hard); cause != nil {
		return cause // the reason for everything that went wrong after it
	}
	return errors.Join(errs...)
}

// ended waits for a unit's run to return; after the hard end it gets its last words and no more.
func (l *lifecycle) ended(r *runningUnit) bool {
	select {
	case <-r.done:
		return true
	case <-l.hard.Done():
	}
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case <-r.done:
		return true
	case <-timer.C:
		return false
	}
}

// untilSignal returns a context for a command that does one thing and can be broken off: it ends with the first signal.
func untilSignal(ctx context.Context, signals <-chan os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case s := <-signals:
			cancel(&exitError{code: exitInterrupted, text: "broken off by " + s.String()})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}
