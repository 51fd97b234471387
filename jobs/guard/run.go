package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// maxStatus bounds what a guard may say.
const maxStatus = 4 << 10

// status is what a guard says of its program before it ends.
type status struct {
	Code   int  `json:"code"`
	Signal int  `json:"signal,omitempty"`
	Missed bool `json:"missed,omitempty"` // it was killed for a missed beat
	// Signalled says that the guard got a signal before the program ended, and the program did not end well.
	Signalled bool   `json:"signalled,omitempty"`
	Fault     string `json:"fault,omitempty"` // it could not be started
}

// Run runs a program to its end. A context that ends stops it: SIGINT to the whole group, then, after the grace,
// SIGKILL; the error is then the context's cause, wrapped. A program that was killed because no beat came in time gives
// ErrMissedBeats, one that did not end well after its guard was signalled ErrSignalled. When Run returns nobody of the group is left, whatever the outcome.
func (k *Keeper) Run(ctx context.Context, c Command) (Exit, error) {
	if !ready.Load() {
		return Exit{}, errNoMain
	}
	if err := context.Cause(ctx); err != nil {
		return Exit{}, err
	}
	if k.late() {
		return Exit{}, fmt.Errorf("start %s: %w", c.Path, ErrMissedBeats)
	}
	beats, pipe, err := os.Pipe()
	if err != nil {
		return Exit{}, fmt.Errorf("start %s: %w", c.Path, err)
	}
	defer pipe.Close()
	said, says, err := os.Pipe()
	if err != nil {
		return Exit{}, errors.Join(fmt.Errorf("start %s: %w", c.Path, err), beats.Close())
	}
	defer said.Close()
	last := k.add(pipe)
	defer k.remove(pipe)

	// Stopping is done below, for the whole group; the context must not kill the guard.
	command := exec.CommandContext(context.WithoutCancel(ctx), self(), //nolint:gosec // this very binary
		append([]string{k.lifetime.String(), strconv.FormatInt(int64(last), 10), c.Path}, c.Args...)...)
	command.Args[0] = name
	command.Dir, command.Env = c.Dir, c.Env
	if command.Env == nil {
		command.Env = []string{}
	}
	command.Stdout, command.Stderr = c.Stdout, c.Stderr
	command.ExtraFiles = []*os.File{beats, says}
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A grandchild that has left the group could hold the pipes of the output open for ever.
	command.WaitDelay = c.Grace
	err = command.Start()
	// The guard alone may hold these ends, or the worker would wait for itself.
	err = errors.Join(err, beats.Close(), says.Close())
	if command.Process == nil {
		return Exit{}, fmt.Errorf("start %s: %w", c.Path, err)
	}
	group := &group{id: command.Process.Pid}
	words := make(chan []byte, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(said, maxStatus)) // what is cut off is no JSON
		words <- text
	}()
	ended := make(chan error, 1)
	go func() { ended <- await(command, group) }()

	select {
	case err = <-ended:
	case <-ctx.Done():
		group.signal(syscall.SIGINT)
		timer := time.NewTimer(c.Grace)
		select {
		case err = <-ended:
		case <-timer.C:
			group.signal(syscall.SIGKILL)
			err = <-ended
		}
		timer.Stop()
	}
	left := !gone(command.Process.Pid, c.Grace)
	exit, err := result(<-words, err)
	exit.Left = left
	if cause := context.Cause(ctx); cause != nil {
		return exit, cause
	}
	if err != nil {
		return exit, fmt.Errorf("run %s: %w", c.Path, err)
	}
	return exit, nil
}

// result puts together what a guard has said and how it ended itself, which is by its own SIGKILL as a rule.
func result(said []byte, ended error) (Exit, error) {
	var s status
	if json.Unmarshal(said, &s) == nil {
		switch {
		case s.Fault != "":
			return Exit{Code: -1}, errors.New(s.Fault)
		case s.Missed:
			return Exit{Code: -1, Signal: syscall.SIGKILL}, ErrMissedBeats
		case s.Signalled:
			return Exit{Code: s.Code, Signal: syscall.Signal(s.Signal)}, ErrSignalled
		}
		return Exit{Code: s.Code, Signal: syscall.Signal(s.Signal)}, nil
	}
	// Somebody has killed it, and the kernel the program with it.
	var exit *exec.ExitError
	if errors.As(ended, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			exit := Exit{Code: -1, Signal: status.Signal()}
			if slices.Contains(requests, os.Signal(exit.Signal)) { // it came before the guard could catch it
				return exit, ErrSignalled
			}
			return exit, nil
		}
	}
	return Exit{Code: -1}, fmt.Errorf("the guard ended without a word: %w", ended)
}

// group signals a process group as long as its number is certainly its own: until its leader is waited for.
type group struct {
	mu sync.Mutex
	id int
}

func (g *group) signal(signal syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.id != 0 {
		_ = syscall.Kill(-g.id, signal) // the group may be gone, which is what is wanted
	}
}

// end kills what is left of the group when its leader has exited, and from then on signals nobody.
func (g *group) end() {
	g.signal(syscall.SIGKILL)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.id = 0
}

// gone waits until the killed members of a group are gone: a member that is being killed can still write. One that is
// dead and not waited for cannot, and stays where nobody waits for orphans, as in a container without an init.
func gone(id int, within time.Duration) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		if err := syscall.Kill(-id, 0); errors.Is(err, syscall.ESRCH) || dead(id) {
			return true
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			return false
		}
	}
}
