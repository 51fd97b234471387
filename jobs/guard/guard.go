// Package guard runs programs that must not outlive the process that started them, nor its right to work.
//
// Between a worker and its program stands a guard: the worker's own binary started again, which leads the process group
// that the program is in. It holds the reading end of a pipe. When the worker dies, however it dies, the kernel closes
// the pipe; when the worker is stopped, frozen or cut off, no beat comes through it. Either way the guard kills the
// group, itself included, by one SIGKILL: the program, what the program has started, all at once.
//
// A parent-death signal does less: it reaches one process and not its children, and no stopped parent sends it. Here
// it ties the program to the guard alone. If somebody kills the guard, the worker kills the rest of the group.
package guard

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// name is what a guard is called in a list of processes, and how the binary knows that it is to be one.
const name = "medianest-guard"

// Descriptors of a guard, besides the program's standard ones.
const (
	beatsFD  = 3 // read: times of beats; its end is the worker's
	statusFD = 4 // written: how the program ended
)

// ErrMissedBeats says that a program was killed, or not started, because no beat had come in time.
var ErrMissedBeats = errors.New("no beat came in time")

// ErrSignalled says that a program did not end well after somebody other than its worker had signalled it or its guard:
// a service manager, as a rule, that ends all processes of a service at once. That says nothing about the program.
var ErrSignalled = errors.New("it was signalled from outside")

var errNoMain = errors.New("guard.Main was not called at the start of this program")

// ready is whether Main has been called, and this binary can thereby be a guard.
var ready atomic.Bool

// Main makes the process a guard if it was started as one, and then does not return. It has to be the first statement
// of main, and of the TestMain of every package whose tests use a Keeper.
func Main() {
	if len(os.Args) > 0 && os.Args[0] == name {
		watch(os.Args[1:])
	}
	ready.Store(true)
}

// Options say how long programs may go on without a word.
type Options struct {
	// Lifetime is how long after the last beat programs are killed. 0 means that they need no beats: they end with the
	// process only.
	Lifetime time.Duration
}

// Keeper runs programs under guards. Its methods may be called from several goroutines.
type Keeper struct {
	lifetime time.Duration

	mu    sync.Mutex
	last  time.Duration // of the last beat, by the clock of now
	pipes map[*os.File]struct{}
}

// New returns a Keeper. Its making counts as its first beat.
func New(opts Options) *Keeper {
	return &Keeper{lifetime: opts.Lifetime, last: now(), pipes: map[*os.File]struct{}{}}
}

// Beat lets the programs that run go on for another Lifetime. It never blocks. A beat carries its time: one that a
// guard reads late, since everything stood still in between, is no younger for that.
func (k *Keeper) Beat() {
	at := now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last = at
	for pipe := range k.pipes {
		send(pipe, at)
	}
}

// add makes a pipe one that gets the beats, and returns the time of the last.
func (k *Keeper) add(pipe *os.File) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pipes[pipe] = struct{}{}
	return k.last
}

func (k *Keeper) remove(pipe *os.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pipes, pipe)
}

// late reports whether programs may not run for want of a beat.
func (k *Keeper) late() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lifetime > 0 && now()-k.last >= k.lifetime
}

// Command is a program to be run.
type Command struct {
	Path string   // absolute
	Args []string // without the program's name
	Dir  string
	Env  []string // all of it
	// Stdout and Stderr get the output, and may be the same. Neither must block for ever.
	Stdout, Stderr io.Writer
	// Grace is how long the program may take to stop by itself after SIGINT.
	Grace time.Duration
}

// Exit is how a program ended.
type Exit struct {
	Code   int            // exit status; -1 when a signal ended it
	Signal syscall.Signal // 0 unless a signal ended it
	// Left says that processes of the group were still there after they were killed, which takes one that hangs in the
	// kernel.
	Left bool
}
