package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// severed is a way to a database that can be cut as a network is: connections stay open, new ones are taken, and nothing
// arrives at either end until it is healed.
type severed struct {
	url string // of the database, by this way

	mu    sync.Mutex
	whole chan struct{} // closed while bytes pass
	conns []net.Conn
	ended bool
}

func newSevered(t *testing.T, databaseURL string) *severed {
	t.Helper()
	config, err := pgx.ParseConfig(databaseURL)
	require.NoError(t, err)
	network, address := "tcp", net.JoinHostPort(config.Host, fmt.Sprint(config.Port))
	if strings.HasPrefix(config.Host, "/") {
		network, address = "unix", filepath.Join(config.Host, fmt.Sprintf(".s.PGSQL.%d", config.Port))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &severed{whole: make(chan struct{})}
	close(s.whole)
	s.url = fmt.Sprintf("host=127.0.0.1 port=%d user='%s' password='%s' dbname='%s' sslmode=disable",
		listener.Addr().(*net.TCPAddr).Port, config.User, config.Password, config.Database) //nolint:forcetypeassert // it is one
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial(network, address)
			if err != nil || !s.keep(near, far) {
				_ = near.Close()
				continue
			}
			all.Go(func() { s.pass(near, far) })
			all.Go(func() { s.pass(far, near) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		s.heal()
		s.end()
		all.Wait()
	})
	return s
}

// keep notes a pair of connections, to be closed at the end.
func (s *severed) keep(pair ...net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, pair...)
	return !s.ended
}

func (s *severed) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, c := range s.conns {
		_ = c.Close()
	}
}

// pass copies until either side ends, and keeps what it has read while the way is cut.
func (s *severed) pass(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		s.mu.Lock()
		whole := s.whole
		s.mu.Unlock()
		<-whole
		if err != nil {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (s *severed) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole = make(chan struct{})
}

func (s *severed) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.whole:
	default:
		close(s.whole)
	}
}
