// Package pgserver runs a private Postgres server as a child process: for `up`, and for tests by the same code.
//
// The server listens on a Unix socket in a private directory and nowhere else. It belongs to this process: Stop ends it,
// and when this process is killed a watch beside it shuts it down. Whatever a killed predecessor left nevertheless (a
// server still running, backends without a postmaster, a pid file naming somebody else's process by now) is cleaned up
// by the next Start. Postgres refuses to run as root; see identity for what is done about that.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"medianest/store/internal/deathwatch"
)

const (
	// superuser is the role that initdb creates. Who may open the socket may be it.
	superuser = "medianest"

	// port is only a part of the socket's name.
	port = 5432

	// quitTimeout is how long an immediate shutdown may take before it is a kill. A postmaster kills backends that do
	// not follow after 5 s.
	quitTimeout = 8 * time.Second
)

// Options configure a Server.
type Options struct {
	// BinDir holds postgres and initdb. Default: what FindBinDir finds, of the data directory's version if it has one.
	BinDir string

	// DataDir is the cluster's directory. It is created, with its parents, if it is missing or empty; beside it a lock
	// file of the same name with ".lock" is kept. Required, except with ScratchDir.
	DataDir string

	// SocketDir holds the socket; it must be this server's alone. Default: the data directory, or, where that path is
	// too long for a socket, a directory named after it under the system's temporary directory.
	SocketDir string

	// NoSync trades durability over a crash of the machine for speed. What was committed still survives the death of
	// any process. For tests.
	NoSync bool

	// ScratchDir is a directory around DataDir (default pg in it) that is removed when this process dies without Stop.
	// Shutdowns are immediate. For tests.
	ScratchDir string

	// Restart starts the server again when it dies, at growing intervals from 100 ms to 30 s, until Stop.
	Restart bool

	// OnDeath, if set, is told each time the server ended unasked, with how it ended. It must not block.
	OnDeath func(err error)

	// OnRestart, if set, is told each time the server accepts connections again. It must not block.
	OnRestart func()

	// forceSetuid leaves out user namespaces, so that tests see what happens where there are none.
	forceSetuid bool

	// Logger receives the server's log lines and this package's. Default: none.
	Logger *slog.Logger
}

// Server is a running Postgres server.
type Server struct {
	opts      Options
	binDir    string
	dataDir   string // absolute, without symbolic links: what /proc shows as the server's working directory
	socketDir string
	ident     identity
	log       *slog.Logger
	lock      *os.File
	watch     *deathwatch.Watch

	stopOnce sync.Once
	stopping chan struct{} // closed by the first Stop
	done     chan struct{} // closed when the server is down for good

	mu   sync.Mutex
	proc *process // the running, or the last, postmaster
	err  error    // why the server is down although nobody stopped it
}

// Start starts the server and returns when it accepts connections. The context bounds the start only, which can take
// long after a crash, while the write-ahead log is replayed; the server runs until Stop.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	s := &Server{
		opts:     o,
		log:      o.Logger,
		stopping: make(chan struct{}),
		done:     make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.prepare(ctx); err != nil {
		s.release()
		return nil, err
	}
	p, err := s.launch(ctx)
	if err != nil {
		s.release()
		return nil, err
	}
	s.log.InfoContext(ctx, "postgres started", "pid", p.pid(), "data_dir", s.dataDir, "duration_ms", time.Since(p.startedAt).Milliseconds())
	go s.supervise(context.WithoutCancel(ctx), p)
	return s, nil
}

// prepare does all that comes before the first launch: it takes the data directory and makes it one that can be started.
func (s *Server) prepare(ctx context.Context) error {
	if s.opts.DataDir == "" && s.opts.ScratchDir != "" {
		s.opts.DataDir = filepath.Join(s.opts.ScratchDir, "pg")
	}
	if s.opts.DataDir == "" {
		return errors.New("start postgres: no data directory")
	}
	if err := s.openDataDir(); err != nil {
		return err
	}
	binDir, err := s.findBinDir()
	if err != nil {
		return err
	}
	s.binDir = binDir
	if s.ident, err = chooseIdentity(ctx, binDir, s.opts.forceSetuid); err != nil {
		return err
	}
	if err := s.chooseSocketDir(); err != nil {
		return err
	}
	if s.watch, err = s.watchDeath(); err != nil {
		return err
	}
	if err := s.endLeftovers(ctx); err != nil {
		return err
	}
	if err := s.initCluster(ctx); err != nil {
		return err
	}
	if err := s.makeSocketDir(); err != nil {
		return err
	}
	return s.writeSettings()
}

// release undoes prepare, as far as it came.
func (s *Server) release() {
	if s.watch != nil {
		if err := s.watch.Cancel(); err != nil {
			s.log.Warn("death watch of postgres had ended", "err", err)
		}
	}
	s.removeSocketDir()
	if s.lock != nil {
		// Closing is not enough: a child that another goroutine is just forking holds the descriptor until its exec.
		_ = syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN)
		s.lock.Close()
	}
}

// URL returns the address of a database on this server, for its superuser.
func (s *Server) URL(dbname string) string {
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + dbname}
	// As libpq reads it, a plus sign is one, and no space.
	u.RawQuery = "host=" + strings.ReplaceAll(url.QueryEscape(s.socketDir), "+", "%20") + "&port=" + strconv.Itoa(port)
	return u.String()
}

// PID returns the process id of the postmaster: the running one, or the last.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.pid()
}

// Done is closed when the server is down for good: after Stop, or when it died and Restart is off.
func (s *Server) Done() <-chan struct{} {
	return s.done
}

// Err returns why the server is down although nobody stopped it, once Done is closed; else nil.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stop shuts the server down and returns when it, and every backend of it, has ended. The shutdown is fast: clients are
// disconnected, a checkpoint is written. When ctx ends before, it is made immediate, and what has not ended 5 s later is
// killed; no committed data is lost by that, the next start replays the log. Stop may be called more than once.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() { close(s.stopping) })
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	s.signal(syscall.SIGQUIT)
	t := time.NewTimer(quitTimeout)
	defer t.Stop()
	select {
	case <-s.done:
		return nil
	case <-t.C:
	}
	s.signal(syscall.SIGKILL)
	<-s.done
	return fmt.Errorf("stop postgres: killed after it had not ended in %s", quitTimeout)
}

// signal sends sig to the current postmaster, if it runs.
func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		s.proc.signal(sig)
	}
}
