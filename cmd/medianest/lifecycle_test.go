package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// diary notes what happens in a process, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines, ", ")
}

// obedient is a unit that ends when it is told to, and notes it.
func (d *diary) obedient(name string) unit {
	return unit{
		name: name,
		run: func(ctx context.Context) error {
			<-ctx.Done()
			d.note("end " + name)
			return ctx.Err()
		},
		stop: func(context.Context) error { d.note("stop " + name); return nil },
	}
}

// operated runs build in a process of its own, in a bubble of fake time.
func operated(t *testing.T, build func(context.Context, *lifecycle) error) (signals chan<- os.Signal, finished func() error) {
	t.Helper()
	s := make(chan os.Signal, 2)
	result := make(chan error, 1)
	go func() {
		result <- operate(t.Context(), slog.New(slog.DiscardHandler), s, 25*time.Second, build)
	}()
	synctest.Wait()
	return s, func() error { return <-result }
}

func TestLifecycleStopsInOppositeOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d diary
		signals, finished := operated(t, func(_ context.Context, l *lifecycle) error {
			for _, name := range []string{"database", "queue", "http"} {
				l.start(d.obedient(name))
			}
			return nil
		})
		signals <- syscall.SIGTERM
		require.NoError(t, finished())
		require.Equal(t, "stop http, end http, stop queue, end queue, stop database, end database", d.String())
	})
}

func TestLifecycleBringsDownAllWhenAPartFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d diary
		_, finished := operated(t, func(_ context.Context, l *lifecycle) error {
			l.start(d.obedient("database"))
			l.start(unit{name: "http", run: func(context.Context) error { return errors.New("port is gone") }})
			return nil
		})
		require.EqualError(t, finished(), "http: port is gone")
		require.Equal(t, "stop database, end database", d.String())
	})
}

func TestLifecycleStopsWhatAFailedStartLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d diary
		_, finished := operated(t, func(_ context.Context, l *lifecycle) error {
			l.start(d.obedient("database"))
			return errors.New("no schema")
		})
		require.EqualError(t, finished(), "no schema")
		require.Equal(t, "stop database, end database", d.String())
	})
}

func TestLifecycleGivesUpAStartWhenAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		signals, finished := operated(t, func(ctx context.Context, _ *lifecycle) error {
			<-ctx.Done()
			return errors.New("wait for the database: " + ctx.Err().Error())
		})
		signals <- os.Interrupt
		require.NoError(t, finished(), "who stops a start wants no error")
	})
}

// A second signal does not wait for anything but a part's last words.
func TestLifecycleSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		signals, finished := operated(t, func(_ context.Context, l *lifecycle) error {
			l.start(unit{
				name: "queue",
				run:  func(ctx context.Context) error { <-ctx.Done(); return nil },
				stop: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			})
			return nil
		})
		signals <- syscall.SIGTERM
		synctest.Wait()
		signals <- syscall.SIGTERM
		var exit *exitError
		require.ErrorAs(t, finished(), &exit)
		require.Equal(t, exitFailure, exit.code)
		require.Zero(t, time.Since(begin))
	})
}

func TestLifecycleEndsAPartThatDoesNotStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		release := make(chan struct{})
		signals, finished := operated(t, func(_ context.Context, l *lifecycle) error {
			l.start(unit{name: "stubborn", run: func(context.Context) error { <-release; return nil }})
			return nil
		})
		signals <- syscall.SIGTERM
		require.ErrorContains(t, finished(), "did not stop within 25s (MEDIANEST_STOP_TIMEOUT)")
		require.Equal(t, 25*time.Second+lastWords, time.Since(begin))
		close(release)
	})
}
