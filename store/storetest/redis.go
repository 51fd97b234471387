package storetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"medianest/store/internal/deathwatch"
)

// Redis returns the URL of an in-process Redis of the test's own, of the kind that `up` embeds.
func Redis(t testing.TB) string {
	t.Helper()
	m := miniredis.NewMiniRedis()
	m.ClockTTL(true) // else nothing ever expires
	if err := m.Start(); err != nil {
		t.Fatalf("start miniredis: %v", err)
	}
	t.Cleanup(m.Close)
	return "redis://" + m.Addr() + "/0"
}

// RedisServer is a real redis-server on a loopback port, which can go away and come back.
type RedisServer struct {
	t    testing.TB
	port int
	dir  string

	mu    sync.Mutex
	cmd   *exec.Cmd
	watch *deathwatch.Watch
}

// RealRedis starts redis-server from PATH, without persistence, and stops it at the test's end. A machine without it
// fails the test.
func RealRedis(t testing.TB) *RedisServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "medianest-redis-")
	if err != nil {
		t.Fatalf("make directory for redis-server: %v", err)
	}
	r := &RedisServer{t: t, dir: dir}
	t.Cleanup(func() {
		r.Stop()
		_ = os.RemoveAll(dir)
	})
	// Another process may take a port between its choice and its use; then another one is chosen.
	for range 5 {
		r.port = freePort(t)
		if err = r.start(); err == nil {
			return r
		}
	}
	t.Fatalf("start redis-server: %v", err)
	return nil
}

// URL returns the server's address, the same over stops and starts.
func (r *RedisServer) URL() string {
	return "redis://" + r.addr() + "/0"
}

func (r *RedisServer) addr() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port))
}

// PID returns the process id, 0 while it is stopped.
func (r *RedisServer) PID() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil {
		return 0
	}
	return r.cmd.Process.Pid
}

// Start starts a stopped server again, empty, on the same port.
func (r *RedisServer) Start() {
	r.t.Helper()
	if err := r.start(); err != nil {
		r.t.Fatalf("start redis-server: %v", err)
	}
}

func (r *RedisServer) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd != nil {
		return errors.New("it runs already")
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return fmt.Errorf("%w (Debian, Ubuntu: apt-get install redis-server)", err)
	}
	cmd := exec.Command(path, "--bind", "127.0.0.1", "--port", strconv.Itoa(r.port), "--save", "", "--appendonly", "no",
		"--dir", r.dir, "--daemonize", "no", "--loglevel", "warning")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	watch, err := deathwatch.Start(`kill -s KILL "$1"; rm -rf -- "$2"`, strconv.Itoa(cmd.Process.Pid), r.dir)
	if err == nil {
		err = r.awaitReady(cmd.Process)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if watch != nil {
			err = errors.Join(err, watch.Cancel())
		}
		return err
	}
	r.cmd, r.watch = cmd, watch
	return nil
}

// awaitReady returns when the server of this very process answers.
func (r *RedisServer) awaitReady(p *os.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	// The client prints a line for every dial that fails: it waits until one does not.
	for !r.listens(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("it does not listen")
		}
	}
	client := redis.NewClient(&redis.Options{Addr: r.addr()})
	defer client.Close()
	info, err := client.InfoMap(ctx, "server").Result()
	if err != nil {
		return fmt.Errorf("it does not answer: %w", err)
	}
	if pid := info["Server"]["process_id"]; pid != strconv.Itoa(p.Pid) {
		return fmt.Errorf("port %d is process %s's", r.port, pid)
	}
	return nil
}

func (r *RedisServer) listens(ctx context.Context) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", r.addr())
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// Stop kills the server, as an outage does, and returns when it is gone. A stopped server is left alone.
func (r *RedisServer) Stop() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // how it ended is known
	if err := r.watch.Cancel(); err != nil {
		r.t.Errorf("stop redis-server: %v", err)
	}
	r.cmd, r.watch = nil, nil
}

// freePort returns a loopback port that nobody listens on now.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("find a free port: %v", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
