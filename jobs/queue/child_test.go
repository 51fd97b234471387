package queue_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/store"
)

// beWorker, as the first argument, makes the test binary a worker of the tests: a process of its own, which can be
// stopped and killed.
const beWorker = "be-a-worker-of-the-queue-tests"

// overslept is the exit code of a child that found out.
const overslept = 3

// child is such a process. It says what it does, a line each.
type child struct {
	*os.Process
	lines chan string
	ended chan int // its exit code; -1 for a signal
}

// What a child's job does with its number: wait for the end of its context, or pretend that nothing happened and end well
// as soon as the process goes on after a stop.
const (
	waits = iota
	shrugs
)

// startChild starts a worker on the database. heedless: it goes on although it overslept.
func startChild(t *testing.T, url, id string, heedless bool) *child {
	t.Helper()
	binary, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(binary, beWorker, url, id, fmt.Sprint(heedless))
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	c := &child{Process: cmd.Process, lines: make(chan string, 100), ended: make(chan int, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			c.lines <- scanner.Text()
		}
		_ = cmd.Wait()
		c.ended <- cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		_ = c.Kill()
		<-done
	})
	return c
}

// wait waits for a line that begins so.
func (c *child) wait(t *testing.T, prefix string) string {
	t.Helper()
	for timeout := time.After(30 * time.Second); ; {
		select {
		case line := <-c.lines:
			if strings.HasPrefix(line, prefix) {
				return line
			}
		case <-timeout:
			t.Fatalf("the child never said %q", prefix)
		}
	}
}

func (c *child) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	require.NoError(t, c.Signal(s))
}

func workAsChild(args []string) int {
	url, id, heedless := args[0], args[1], args[2] == "true"
	ctx := context.Background()
	wake := &queue.Wake{}
	pool, err := store.OpenPool(ctx, store.PoolOptions{URL: url, Role: store.RoleRiver, Fit: wake.Err})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(ctx context.Context, job *river.Job[synthetic]) error {
		fmt.Println("begun", job.ID)
		if job.Args.N == shrugs {
			for last := time.Now(); ; last = time.Now() {
				pause := time.NewTimer(10 * time.Millisecond)
				<-pause.C
				if time.Since(last) > quickTTL {
					return nil
				}
			}
		}
		<-ctx.Done()
		fmt.Println("ended", context.Cause(ctx))
		return ctx.Err()
	}))
	options := queue.Options{
		Pool: pool, Logger: slog.New(slog.DiscardHandler), ID: id, Queues: map[string]int{"test": 4}, Workers: workers,
		Wake: wake,
	}
	quick(&options)
	options.Presence.OnOverslept = func(time.Duration) {
		fmt.Println("overslept")
		if !heedless {
			os.Exit(overslept)
		}
	}
	client, err := queue.New(options)
	if err == nil {
		err = client.Start(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	<-client.Stopped()
	return 0
}
