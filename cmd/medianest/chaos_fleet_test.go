//go:build chaos

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"medianest/api/client"
	"medianest/store"
	"medianest/store/storetest"
)

// member is a process of the fleet that is started again whenever it ends.
type member struct {
	fleet *chaosFleet
	name  string
	args  []string
	env   []string
	dir   string

	mu       sync.Mutex
	child    *child
	ready    bool
	id       string // of a worker, as attempts name it
	starts   int
	expected bool // to end: it was killed
	retired  bool // nobody starts another
}

// start runs the process and follows it until it is ready.
func (m *member) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.retired || m.fleet.stopping.Err() != nil {
		return
	}
	c := launch(m.fleet.t, m.dir, m.env, m.args...)
	m.child, m.ready, m.id, m.expected = c, false, "", false
	m.starts++
	m.fleet.watching.Go(func() { m.watch(c) })
}

// watch notes when the process is ready, and starts another when it has ended.
func (m *member) watch(c *child) {
	for {
		changed := c.stderr.next()
		text := c.stderr.String()
		if strings.Contains(text, "msg=ready ") {
			m.mu.Lock()
			_, after, _ := strings.Cut(text, "client_id=")
			m.id, _, _ = strings.Cut(after, "\n")
			m.ready = true
			m.mu.Unlock()
			break
		}
		select {
		case <-changed:
			continue
		case <-c.exited:
		}
		break
	}
	<-c.exited
	m.mu.Lock()
	wasReady, expected := m.ready, m.expected
	m.ready = false
	m.mu.Unlock()
	c.end()
	m.keepLog(c)
	if m.fleet.stopping.Err() != nil {
		return
	}
	code := c.command.ProcessState.ExitCode()
	switch {
	case expected:
	case !wasReady && code == exitFailure:
		m.fleet.gaveUp.Add(1) // what it needs was killed while it started; a supervisor starts it again, as this one does
	case code == exitOverslept:
		m.fleet.overslept.Add(1) // on a machine that is too busy
	default:
		m.fleet.bad.add("%s ended by itself, code %d: %s", m.name, code, lastLines(strings.TrimSpace(c.stderr.String()), 3))
		m.fleet.pause(time.Second)
	}
	m.start()
}

func (m *member) keepLog(c *child) {
	m.mu.Lock()
	name := fmt.Sprintf("%s.%04d.log", strings.ReplaceAll(m.name, " ", "-"), m.starts)
	m.mu.Unlock()
	if err := os.WriteFile(filepath.Join(m.fleet.logs, name), []byte(c.stderr.String()), 0o600); err != nil {
		m.fleet.bad.add("keep a log: %v", err)
	}
}

// current is the process if it is ready.
func (m *member) current() (c *child, id string, ready bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.child, m.id, m.ready
}

// kill ends the process with SIGKILL and returns which it was and when; no when it is not ready.
func (m *member) kill() (id string, at time.Time, ok bool) {
	m.mu.Lock()
	if !m.ready {
		m.mu.Unlock()
		return "", time.Time{}, false
	}
	m.ready, m.expected = false, true
	c, id := m.child, m.id
	at = time.Now()
	_ = c.command.Process.Kill() // it may just have ended
	m.mu.Unlock()
	<-c.exited
	return id, at, true
}

// retire is kill, and nobody starts another.
func (m *member) retire() (id string, at time.Time, ok bool) {
	m.mu.Lock()
	m.retired = true
	m.mu.Unlock()
	return m.kill()
}

// chaosFleet is a whole platform of processes, with servers of its own, whose parts may be killed at any time.
type chaosFleet struct {
	t      *testing.T
	home   home
	logs   string
	bad    *violations
	random *rand.Rand
	meter  *meter
	ffmpeg string

	postgres *storetest.Owned
	redis    *storetest.RedisServer
	pool     *pgxpool.Pool // the owner's, for looking past the API

	env     []string
	serves  []*member
	works   []*member
	clients map[string][]*client.ClientWithResponses // by user, for each replica

	gaveUp, overslept atomic.Int64

	stopping context.Context
	stop     context.CancelFunc
	watching sync.WaitGroup
}

// otherUser is a second person of the household.
const otherUser = "other"

func startChaosFleet(t *testing.T, seed uint64, serves, works int, env ...string) *chaosFleet {
	t.Helper()
	f := &chaosFleet{
		t: t, home: newHome(t), bad: &violations{}, random: rand.New(rand.NewPCG(seed, seed)), //nolint:gosec // to be repeated
		clients: map[string][]*client.ClientWithResponses{}, ffmpeg: testTool(t, "ffmpeg"),
	}
	f.stopping, f.stop = context.WithCancel(context.Background())
	var err error
	f.logs, err = os.MkdirTemp("", "medianest-chaos-")
	require.NoError(t, err)
	var allow string
	f.meter, allow = meteredSite(t)
	f.postgres, f.redis = storetest.OwnServer(t, false), storetest.RealRedis(t)
	f.env = f.home.env(append([]string{
		allow, "MEDIANEST_DATABASE_URL=" + f.postgres.URL(), "MEDIANEST_REDIS_URL=" + f.redis.URL(), "MEDIANEST_LOG_LEVEL=info",
	}, env...)...)
	migrate := startChild(t, f.env, "migrate", "up")
	require.Equal(t, exitOK, migrate.exit(), migrate.stderr)
	f.pool = storetest.OpenPool(t, f.postgres.URL(), "")
	tokens := map[string]string{"admin": f.home.token(t), otherUser: f.addUser(otherUser)}

	t.Cleanup(f.end)
	for n := range serves {
		address := freeAddress(t)
		f.serves = append(f.serves, f.member(numbered("serve ", n+1), []string{"serve"}, "MEDIANEST_LISTEN="+address))
		for user, token := range tokens {
			f.clients[user] = append(f.clients[user], newClient(t, "http://"+address, token))
		}
	}
	for n := range works {
		f.works = append(f.works, f.member(numbered("work ", n+1), []string{"work"}))
	}
	for _, m := range f.members() {
		m.start()
	}
	f.awaitReady()
	unlimit(t, f.clients["admin"][0]) // the load is to fill the slots
	return f
}

func (f *chaosFleet) member(name string, args []string, env ...string) *member {
	dir := filepath.Join(f.logs, strings.ReplaceAll(name, " ", "-"))
	require.NoError(f.t, os.MkdirAll(dir, 0o700))
	return &member{fleet: f, name: name, args: args, env: append(f.env[:len(f.env):len(f.env)], env...), dir: dir}
}

func (f *chaosFleet) members() []*member {
	return append(f.serves[:len(f.serves):len(f.serves)], f.works...)
}

// awaitReady waits until every process can do its work.
func (f *chaosFleet) awaitReady() {
	f.t.Helper()
	require.Eventually(f.t, func() bool {
		for _, m := range f.members() {
			if _, _, ready := m.current(); !ready {
				return false
			}
		}
		return true
	}, patience, 20*time.Millisecond, "the fleet is not ready; its logs are in %s", f.logs)
}

// addUser makes a user past the API, and returns a token.
func (f *chaosFleet) addUser(name string) string {
	f.t.Helper()
	s := store.New(f.pool)
	user, err := s.CreateUser(f.t.Context(), store.NewUser{Name: name, Role: store.UserMember})
	require.NoError(f.t, err)
	token := newToken()
	_, err = s.CreateToken(f.t.Context(), store.NewToken{UserID: user.ID, Name: "test", Hash: sha256.Sum256([]byte(token))})
	require.NoError(f.t, err)
	return token
}

// api is any replica, for a user.
func (f *chaosFleet) api(user string) *client.ClientWithResponses {
	replicas := f.clients[user]
	return replicas[rand.IntN(len(replicas))] //nolint:gosec // nobody gains by guessing it
}

// pause waits, less long when the fleet is to stop.
func (f *chaosFleet) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.stopping.Done():
	}
}

// end kills what runs. Logs stay where something is to be found in them.
func (f *chaosFleet) end() {
	f.stop()
	for _, m := range f.members() {
		m.mu.Lock()
		if m.child != nil {
			_ = m.child.command.Process.Kill()
		}
		m.mu.Unlock()
	}
	f.watching.Wait()
	if f.t.Failed() || os.Getenv(chaosKeep) != "" {
		f.t.Logf("the logs of all processes are in %s", f.logs)
		return
	}
	_ = os.RemoveAll(f.logs)
}

// stopGracefully ends all processes as a supervisor does, and requires that they end well.
func (f *chaosFleet) stopGracefully() {
	f.t.Helper()
	f.stop()
	for _, m := range f.members() {
		c, _, _ := m.current()
		c.signal(syscall.SIGTERM)
	}
	for _, m := range f.members() {
		c, _, _ := m.current()
		if code := c.exit(); code != exitOK {
			f.bad.add("%s stops with code %d: %s", m.name, code, lastLines(strings.TrimSpace(c.stderr.String()), 3))
		}
	}
	f.watching.Wait()
}

// runningOf are the public ids of the jobs that a worker's rows say it runs. Of a dead worker nobody changes them for a
// while.
func (f *chaosFleet) runningOf(ctx context.Context, worker string) ([]string, error) {
	rows, err := f.pool.Query(ctx, `
		SELECT coalesce(metadata ->> 'public_id', id::text)
		FROM river.river_job
		WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] = $1`, worker)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// freeAddress is a loopback address that nobody listens on now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // nothing was sent
	return l.Addr().String()
}
