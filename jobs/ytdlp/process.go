package ytdlp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"syscall"
	"time"

	"medianest/jobs/guard"
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

// run runs yt-dlp to its end. A context that ends stops it; the error is then the context's cause, wrapped. A worker
// that was stopped, or cut off, gets guard.ErrMissedBeats. When run returns nobody of yt-dlp's process group is left,
// whatever the outcome.
func (r *Runner) run(ctx context.Context, in invocation) (ending, error) {
	kept := &tail{max: maxStderr}
	stderr := newLines(func(line string) {
		if in.stderr == nil || !in.stderr(line) {
			kept.add(line)
		}
	})
	command := guard.Command{
		Path: r.opts.Path, Args: in.args, Dir: in.dir, Env: in.env, Stdout: in.stdout, Stderr: stderr, Grace: r.opts.StopGrace,
	}
	if in.stdout == nil {
		command.Stdout = stderr
	}
	r.log.DebugContext(ctx, "yt-dlp starts")
	begun := time.Now()
	exit, err := r.opts.Guard.Run(ctx, command)
	if exit.Left {
		r.log.WarnContext(ctx, "processes of a killed group are still there")
	}
	r.log.DebugContext(ctx, "yt-dlp ended", slog.Int64("duration_ms", time.Since(begun).Milliseconds()))
	if flush, ok := in.stdout.(*lines); ok {
		flush.end()
	}
	stderr.end()
	out := ending{code: exit.Code, signal: exit.Signal, stderr: kept.String()}
	if err != nil {
		return out, fmt.Errorf("run yt-dlp: %w", err)
	}
	return out, nil
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
