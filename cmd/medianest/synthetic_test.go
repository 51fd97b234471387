package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/riverqueue/river"

	"medianest/jobs/queue"
	"medianest/store"
)

// beCrew in the environment makes this test binary a worker process of a synthetic kind, which costs nothing but time.
// Its value is the address where what runs is counted.
const beCrew = "TEST_BINARY_IS_CREW"

// synthetic is a job whose number says which host and which user it is of.
type synthetic struct {
	N int `json:"n"`
}

func (synthetic) Kind() string { return "synthetic" }

// What a synthetic job shares with others: each of ten hosts with each of ten users.
const syntheticKeys = 10

func (s synthetic) host() int { return s.N % syntheticKeys }
func (s synthetic) user() int { return s.N / syntheticKeys % syntheticKeys }

// keys is the job with the least number that has the same keys.
func (s synthetic) keys() synthetic { return synthetic{s.N % (syntheticKeys * syntheticKeys)} }

// syntheticUser is the id of one of the users.
func syntheticUser(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// syntheticWorker runs for as long as the counter keeps it, and ends as the counter says.
type syntheticWorker struct {
	river.WorkerDefaults[synthetic]

	counter, process string
}

// NextRetry leaves a job that failed to whoever retries it.
func (w *syntheticWorker) NextRetry(*river.Job[synthetic]) time.Time {
	return time.Now().Add(24 * time.Hour)
}

// Timeout leaves the end to the counter.
func (w *syntheticWorker) Timeout(*river.Job[synthetic]) time.Duration { return -1 }

func (w *syntheticWorker) Work(ctx context.Context, job *river.Job[synthetic]) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.counter)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintln(conn, w.process, job.Args.N); err != nil {
		return err
	}
	end, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if strings.TrimSpace(end) != "completed" {
		return errors.New("as the counter says")
	}
	return nil
}

// crew is a worker process that works queue "synthetic" with 20 slots, put together as the program's own are.
func crew(counter string, args []string) int {
	id, url := args[0], args[1]
	ctx := context.Background()
	wake := &queue.Wake{}
	pool, err := store.OpenPool(ctx, store.PoolOptions{URL: url, Role: store.RoleRiver, Fit: wake.Err})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailure
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	admission := queue.NewAdmission(pool, log)
	workers := river.NewWorkers()
	river.AddWorker(workers, &syntheticWorker{counter: counter, process: id})
	client, err := queue.New(queue.Options{
		Pool: pool, Logger: log, ID: id, OnFree: admission.Ring, Wake: wake,
		Queues: map[string]int{"synthetic": crewSlots}, Workers: workers, StopTimeout: -1,
		Presence: queue.Presence{
			Mode: "work", Host: "h", Version: "v", TTL: crashTTL, Beat: crashTTL / 6,
			OnOverslept: func(time.Duration) { os.Exit(exitOverslept) },
		},
	})
	if err == nil {
		err = client.Start(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailure
	}
	fmt.Println("ready")
	_ = admission.Run(ctx)
	return exitOK
}

const crewSlots = 20

// States of a synthetic job, as the counter has them.
const (
	mayRun = iota // nothing but limits and slots keeps it from running
	runs
	isLost // its process is gone or stands still: to the platform it runs, until it is seen to run elsewhere
	hasFailed
	isDone
)

// counter counts, outside of the platform, what runs: a job that runs is a connection. It knows the limits, and so what
// might run besides at each moment.
type counter struct {
	listener net.Listener
	lasts    time.Duration      // of each run
	limits   [syntheticKeys]int // of hosts and of users, by their number
	slots    int                // of all processes
	serving  sync.WaitGroup
	failed   chan int // numbers of jobs that failed

	mu       sync.Mutex
	state    []int             // by the job's number
	runs     map[int]*counted  // by the job's number
	waiting  map[synthetic]int // that may run, by the least number with the same keys
	ends     int               // runs that ended
	faults   []string          // what must not be
	peak     int               // the most that ran at a time
	at       time.Time         // until when it is accounted for
	used     time.Duration     // of all runs
	possible time.Duration     // had all begun at once that could
	fails    map[int]bool      // which have failed once
}

// counted is one run of a job.
type counted struct {
	process string
	conn    net.Conn
}

func newCounter(jobs, slots int, lasts time.Duration, limits [syntheticKeys]int) (*counter, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &counter{
		listener: listener, lasts: lasts, limits: limits, slots: slots, failed: make(chan int, jobs),
		state: make([]int, jobs), runs: map[int]*counted{}, waiting: map[synthetic]int{}, fails: map[int]bool{},
	}
	for n := range jobs {
		c.waiting[synthetic{n}.keys()]++
	}
	c.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			c.serving.Go(func() { c.serve(conn) })
		}
	})
	return c, nil
}

func (c *counter) address() string { return c.listener.Addr().String() }

// close ends what still runs.
func (c *counter) close() {
	_ = c.listener.Close()
	c.mu.Lock()
	for _, r := range c.runs {
		_ = r.conn.Close()
	}
	c.mu.Unlock()
	c.serving.Wait()
}

// serve is one run: from when the job says that it runs until it has been told how it is to end, or its process is gone.
func (c *counter) serve(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	process, number, _ := strings.Cut(strings.TrimSpace(line), " ")
	n, parseErr := strconv.Atoi(number)
	if err != nil || parseErr != nil {
		return
	}
	mine := &counted{process, conn}
	c.enter(n, mine)
	gone := make(chan struct{})
	c.serving.Go(func() {
		defer close(gone)
		_, _ = conn.Read(make([]byte, 1))
	})
	timer := time.NewTimer(c.lasts)
	defer timer.Stop()
	select {
	case <-gone:
		c.lose(n, mine)
	case <-timer.C:
		if end := c.leave(n, mine); end != "" {
			_, _ = fmt.Fprintln(conn, end)
		}
		<-gone // a process that stood still ends
	}
}

func (c *counter) enter(n int, mine *counted) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.account()
	if other := c.runs[n]; other != nil {
		c.faults = append(c.faults, fmt.Sprintf("job %d runs in %s and in %s", n, other.process, mine.process))
	}
	job := synthetic{n}
	if c.state[n] == mayRun {
		c.waiting[job.keys()]--
	}
	c.state[n], c.runs[n] = runs, mine
	c.peak = max(c.peak, len(c.runs))
	hosts, users := c.held(runs)
	if hosts[job.host()] > c.limits[job.host()] || users[job.user()] > c.limits[job.user()] {
		c.faults = append(c.faults, fmt.Sprintf("job %d: %d run of host %d, %d of user %d", n, hosts[job.host()], job.host(), users[job.user()], job.user()))
	}
}

// leave notes the end of a run and says how it is to end. Every tenth job fails once.
func (c *counter) leave(n int, mine *counted) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runs[n] != mine {
		return ""
	}
	c.account()
	c.ends++
	delete(c.runs, n)
	if job := (synthetic{n}); !c.fails[n] && job.host() == job.user() {
		c.fails[n], c.state[n] = true, hasFailed
		c.failed <- n
		return "failed"
	}
	c.state[n] = isDone
	return "completed"
}

func (c *counter) lose(n int, mine *counted) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runs[n] == mine {
		c.account()
		delete(c.runs, n)
		c.state[n] = isLost
	}
}

// stopped takes note that a process stands still: what it runs does not run.
func (c *counter) stopped(process string) (jobs int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.account()
	for n, r := range c.runs {
		if r.process == process {
			delete(c.runs, n)
			c.state[n] = isLost
			jobs++
		}
	}
	return jobs
}

// retried takes note that a job that failed may run again.
func (c *counter) retried(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state[n] == hasFailed { // or it is at it already
		c.account()
		c.state[n] = mayRun
		c.waiting[synthetic{n}.keys()]++
	}
}

// held counts the jobs of each host and user that are in one of the states.
func (c *counter) held(states ...int) (hosts, users [syntheticKeys]int) {
	for n, state := range c.state {
		if slices.Contains(states, state) {
			hosts[synthetic{n}.host()]++
			users[synthetic{n}.user()]++
		}
	}
	return hosts, users
}

// account adds the time since the last change to what was used, and to what was possible: what ran, and what could have
// been begun besides.
func (c *counter) account() {
	now := time.Now()
	if !c.at.IsZero() {
		hosts, users := c.held(runs, isLost)
		used, more := 0, 0
		for _, n := range hosts {
			used += n
		}
		for keys, n := range c.waiting {
			for ; n > 0 && used+more < c.slots && hosts[keys.host()] < c.limits[keys.host()] && users[keys.user()] < c.limits[keys.user()]; n-- {
				hosts[keys.host()]++
				users[keys.user()]++
				more++
			}
		}
		c.used += time.Duration(used) * now.Sub(c.at)
		c.possible += time.Duration(used+more) * now.Sub(c.at)
	}
	c.at = now
}

// look returns how many runs have ended and how many jobs are done, and what must not be.
func (c *counter) look() (ends, done int, faults []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, state := range c.state {
		if state == isDone {
			done++
		}
	}
	return c.ends, done, slices.Clone(c.faults)
}

// utilisation is the time that jobs ran, of that in which limits and slots allowed it.
func (c *counter) utilisation() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used.Seconds() / c.possible.Seconds()
}
