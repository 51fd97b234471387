package ytdlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxLine   = 64 << 10 // of output; the rest of a longer line is dropped
	maxStderr = 64 << 10 // kept of what yt-dlp said, the end of it
)

// invocation is one run of yt-dlp.
type invocation struct {
	args []string
	dir  string
	env  []string
	// stdout gets the output. Without it the output is part of the error output, by one pipe, so that what yt-dlp says
	// here and there is seen in the order of its saying.
	stdout io.Writer
	stderr func(line string) bool // true: understood, not to be kept
}

// ending is how a run ended.
type ending struct {
	code   int            // exit status; -1 when a signal ended it
	signal syscall.Signal // 0 unless a signal ended it
	stderr string         // the end of what it said
}

// clean reports whether yt-dlp came to its own end and could put away what it had.
func (e ending) clean() bool { return e.signal == 0 }

// run runs yt-dlp to its end. A context that ends stops it; the error is then the context's cause, wrapped, and when
// run returns nobody of its process group is left, whatever the outcome.
func (r *Runner) run(ctx context.Context, in invocation) (ending, error) {
	if err := context.Cause(ctx); err != nil {
		return ending{}, fmt.Errorf("run yt-dlp: %w", err)
	}
	kept := &tail{max: maxStderr}
	stderr := newLines(func(line string) {
		if in.stderr == nil || !in.stderr(line) {
			kept.add(line)
		}
	})
	// Stopping is done below, for the whole group; the context must not kill the leader alone.
	command := exec.CommandContext(context.WithoutCancel(ctx), r.opts.Path, in.args...)
	command.Dir, command.Env = in.dir, in.env
	command.Stdout, command.Stderr = in.stdout, stderr
	if in.stdout == nil {
		command.Stdout = stderr
	}
	command.SysProcAttr = processAttributes()
	// A grandchild that has left the group could hold the pipes open for ever.
	command.WaitDelay = r.opts.StopGrace

	group := &processGroup{}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// The kernel ties a child's parent-death signal to the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := command.Start(); err != nil {
			started <- err
			return
		}
		group.lead(command.Process.Pid)
		started <- nil
		ended <- await(command, group)
	}()
	begun := time.Now()
	if err := <-started; err != nil {
		return ending{}, fmt.Errorf("start yt-dlp: %w", err)
	}
	pid := command.Process.Pid
	r.log.DebugContext(ctx, "yt-dlp started", slog.Int("pid", pid))

	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		group.signal(syscall.SIGINT)
		timer := time.NewTimer(r.opts.StopGrace)
		select {
		case err = <-ended:
		case <-timer.C:
			group.signal(syscall.SIGKILL)
			err = <-ended
		}
		timer.Stop()
	}
	if !groupGone(pid, r.opts.StopGrace) {
		r.log.WarnContext(ctx, "processes of a killed group are still there", slog.Int("pid", pid))
	}
	r.log.DebugContext(ctx, "yt-dlp ended", slog.Int("pid", pid), slog.Int64("duration_ms", time.Since(begun).Milliseconds()))
	if flush, ok := in.stdout.(*lines); ok {
		flush.end()
	}
	stderr.end()

	out := ending{stderr: kept.String()}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
	case errors.As(err, &exit):
		out.code = exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			out.signal = status.Signal()
		}
	default:
		return out, fmt.Errorf("run yt-dlp: %w", err)
	}
	if cause := context.Cause(ctx); cause != nil {
		return out, fmt.Errorf("run yt-dlp: %w", cause)
	}
	return out, nil
}

// processGroup signals a group as long as its number is certainly its own: until its leader is waited for.
type processGroup struct {
	mu sync.Mutex
	id int
}

func (g *processGroup) lead(pid int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.id = pid
}

func (g *processGroup) signal(signal syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.id != 0 {
		_ = syscall.Kill(-g.id, signal) // the group may be gone, which is what is wanted
	}
}

// end kills what is left of the group when its leader has exited, and from then on signals nobody.
func (g *processGroup) end() {
	g.signal(syscall.SIGKILL)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.id = 0
}

// groupGone waits until the killed members of a group are gone: a member that is being killed can still write. One that
// is dead and not waited for cannot, and stays where nobody waits for orphans, as in a container without an init.
func groupGone(id int, within time.Duration) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		if err := syscall.Kill(-id, 0); errors.Is(err, syscall.ESRCH) || groupDead(id) {
			return true
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			return false
		}
	}
}

// lines cuts what is written to it into lines, of which it hands on the first maxLine bytes each.
type lines struct {
	line    func(string)
	pending []byte
}

func newLines(line func(string)) *lines { return &lines{line: line} }

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		end := bytes.IndexAny(rest, "\r\n")
		if end < 0 {
			l.keep(rest)
			break
		}
		l.keep(rest[:end])
		l.end()
		rest = rest[end+1:]
	}
	return len(b), nil
}

func (l *lines) keep(b []byte) {
	l.pending = append(l.pending, b[:min(len(b), maxLine-len(l.pending))]...)
}

// end hands on a last line that nothing has ended.
func (l *lines) end() {
	if len(l.pending) > 0 {
		l.line(string(l.pending))
	}
	l.pending = l.pending[:0]
}

// tail keeps the last lines that fit into max bytes.
type tail struct {
	lines []string
	size  int
	max   int
}

func (t *tail) add(line string) {
	t.lines = append(t.lines, line)
	t.size += len(line) + 1
	for t.size > t.max && len(t.lines) > 1 {
		t.size -= len(t.lines[0]) + 1
		t.lines = t.lines[1:]
	}
}

// String is what was kept.
func (t *tail) String() string { return strings.Join(t.lines, "\n") }

// limited keeps what is written to it, up to max bytes, and calls over once when there is more. The buffer is no
// embedded one: io.Copy would find its ReadFrom and go past Write.
type limited struct {
	buffer bytes.Buffer
	max    int
	over   func()
}

// Write implements io.Writer. It never fails: a yt-dlp whose pipe breaks would say so instead of being stopped.
func (l *limited) Write(b []byte) (int, error) {
	if l.over == nil || l.buffer.Len()+len(b) > l.max {
		if l.over != nil {
			l.over()
			l.over = nil
		}
		return len(b), nil
	}
	return l.buffer.Write(b)
}
