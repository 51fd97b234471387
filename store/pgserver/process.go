package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// readyPoll is how often a starting server is tried.
	readyPoll = 10 * time.Millisecond

	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second

	// settledAfter is how long a server must have run for its next death to be counted as the first again.
	settledAfter = time.Minute
)

// errStopped ends a launch that Stop overtook.
var errStopped = errors.New("stopped while starting")

// process is one life of the postmaster.
type process struct {
	cmd       *exec.Cmd
	startedAt time.Time
	exited    chan struct{} // closed when the process has been waited for
	err       error         // how it ended; read after exited
}

func (p *process) pid() int {
	if p == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// signal sends sig; a process that has ended is no error.
func (p *process) signal(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig)
}

// launch starts a postmaster and waits until it accepts connections.
func (s *Server) launch(ctx context.Context) (*process, error) {
	output := &logWriter{log: s.log}
	cmd := exec.Command(filepath.Join(s.binDir, "postgres"), append([]string{"-D", s.dataDir}, s.fixedSettings()...)...)
	cmd.Dir = s.dataDir
	cmd.Env = environment()
	cmd.Stderr = output
	cmd.SysProcAttr = s.ident.attr()
	// Backends that outlive their postmaster hold its stderr; they are ended after it, not waited for.
	cmd.WaitDelay = time.Second

	p := &process{cmd: cmd, startedAt: time.Now(), exited: make(chan struct{})}
	s.mu.Lock()
	err := cmd.Start()
	if err == nil {
		s.proc = p
	}
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()

	if err := s.waitReady(ctx, p); err != nil {
		s.kill(p)
		if said := output.lastLines(); said != "" {
			return nil, fmt.Errorf("start postgres: %w: %s", err, said)
		}
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	return p, nil
}

// waitReady returns when p accepts connections, has ended, or is not wanted any more.
func (s *Server) waitReady(ctx context.Context, p *process) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		if s.accepts(ctx) {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return fmt.Errorf("it ended at once: %w", exitError(p.err))
		case <-s.stopping:
			return errStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// accepts reports whether the server lets a client in.
func (s *Server) accepts(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return false
	}
	_ = conn.Close(ctx)
	return true
}

// kill ends a process that is not wanted, as orderly as a few seconds allow, and waits for it.
func (s *Server) kill(p *process) {
	p.signal(syscall.SIGQUIT)
	t := time.NewTimer(quitTimeout)
	defer t.Stop()
	select {
	case <-p.exited:
	case <-t.C:
		p.signal(syscall.SIGKILL)
		<-p.exited
	}
}

// supervise waits for the postmaster's end, and starts the next one where that is wanted.
func (s *Server) supervise(ctx context.Context, p *process) {
	defer close(s.done)
	defer s.release()

	backoff := minBackoff
	for {
		select {
		case <-p.exited:
		case <-s.stopping:
			p.signal(s.stopSignal())
			<-p.exited
		}
		if s.isStopping() {
			s.ended(ctx)
			return
		}
		err := exitError(p.err)
		if s.opts.OnDeath != nil {
			s.opts.OnDeath(err)
		}
		if !s.opts.Restart {
			s.log.ErrorContext(ctx, "postgres died", "err", err)
			s.ended(ctx)
			s.mu.Lock()
			s.err = fmt.Errorf("postgres died: %w", err)
			s.mu.Unlock()
			return
		}
		s.log.WarnContext(ctx, "postgres died, starting it again", "err", err)
		if time.Since(p.startedAt) > settledAfter {
			backoff = minBackoff
		}
		if p = s.relaunch(ctx, &backoff); p == nil {
			s.ended(ctx)
			return
		}
		s.log.InfoContext(ctx, "postgres started again", "pid", p.pid())
		if s.opts.OnRestart != nil {
			s.opts.OnRestart()
		}
	}
}

func (s *Server) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// stopSignal is SIGINT for a fast shutdown. A scratch server's files are thrown away: it need not write a checkpoint.
func (s *Server) stopSignal() syscall.Signal {
	if s.opts.ScratchDir != "" {
		return syscall.SIGQUIT
	}
	return syscall.SIGINT
}

// relaunch tries to start a postmaster until it runs. It returns nil if Stop came before.
func (s *Server) relaunch(ctx context.Context, backoff *time.Duration) *process {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		t := time.NewTimer(*backoff)
		select {
		case <-t.C:
		case <-s.stopping:
			t.Stop()
			return nil
		}
		*backoff = min(2**backoff, maxBackoff)

		err := s.endLeftovers(ctx)
		var p *process
		if err == nil {
			p, err = s.launch(ctx)
		}
		switch {
		case err == nil:
			return p
		case errors.Is(err, errStopped):
			return nil
		}
		s.log.ErrorContext(ctx, "postgres does not start", "err", err, "next_try_ms", backoff.Milliseconds())
	}
}

// ended makes sure that nothing of a postmaster that has ended runs on.
func (s *Server) ended(ctx context.Context) {
	if err := s.endLeftovers(ctx); err != nil {
		s.log.ErrorContext(ctx, "postgres left processes behind", "err", err)
	}
}

// exitError names how a process ended; a postmaster that was not asked to has no good way to.
func exitError(err error) error {
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return errors.New("exit status 0")
	}
	return err
}
