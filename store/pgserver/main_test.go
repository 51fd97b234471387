package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"medianest/store/internal/deathwatch"
	"medianest/store/internal/scratch"
)

// ownerCommand makes the test binary an owner: a process that starts a server on the directory named next, says so, and
// waits to be killed.
const ownerCommand = "pgserver-owner"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == ownerCommand {
		os.Exit(beOwner(Options{DataDir: os.Args[2], ScratchDir: os.Args[3], NoSync: true}))
	}
	os.Exit(run(m))
}

// base holds the test's directories. Others may pass through: a server by setuid has to.
var base string

func run(m *testing.M) int {
	var err error
	if base, err = os.MkdirTemp(scratch.Root(), "medianest-pgserver-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	watch, err := deathwatch.Start(`rm -rf -- "$1"; sleep 5; rm -rf -- "$1"`, base)
	if err == nil {
		err = os.Chmod(base, 0o711)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := errors.Join(os.RemoveAll(base), watch.Cancel()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// tempDir is t.TempDir where files cost little.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(base, "")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func beOwner(o Options) int {
	s, err := Start(context.Background(), o)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready", s.PID())
	<-s.Done()
	return 0
}

// owner is another process that has started a server.
type owner struct {
	cmd        *exec.Cmd
	postmaster int
}

func startOwner(t *testing.T, dataDir, scratchDir string) *owner {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, ownerCommand, dataDir, scratchDir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	o := &owner{cmd: cmd}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	buf := make([]byte, 512)
	n, err := out.Read(buf)
	require.NoError(t, err)
	pid, ok := strings.CutPrefix(strings.TrimSpace(string(buf[:n])), "ready ")
	require.True(t, ok, string(buf[:n]))
	o.postmaster, err = strconv.Atoi(pid)
	require.NoError(t, err)
	return o
}

// kill kills the owner, and nothing else.
func (o *owner) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, o.cmd.Process.Kill())
	_ = o.cmd.Wait()
}

// killWithWatch kills the owner and the watch that would stop the server after it.
func (o *owner) killWithWatch(t *testing.T) {
	t.Helper()
	watch := childNamed(t, o.cmd.Process.Pid, "deathwatch")
	require.NoError(t, syscall.Kill(watch, syscall.SIGKILL))
	o.kill(t)
}

func childNamed(t *testing.T, parent int, word string) int {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	require.NoError(t, err)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	require.NoError(t, err)
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		require.NoError(t, err)
		children = append(append(children, ' '), b...)
	}
	for _, pid := range strings.Fields(string(children)) {
		cmdline, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err == nil && bytes.Contains(cmdline, []byte(word)) {
			n, err := strconv.Atoi(pid)
			require.NoError(t, err)
			return n
		}
	}
	t.Fatalf("process %d has no child with %q in its command line", parent, word)
	return 0
}

// template is a stopped cluster, made once: copying it takes a tenth of making one.
var template struct {
	once sync.Once
	dir  string
	err  error
}

// newCluster returns a data directory with an empty cluster.
func newCluster(t *testing.T) string {
	t.Helper()
	template.once.Do(func() { template.dir, template.err = makeTemplate() })
	require.NoError(t, template.err)
	dir := filepath.Join(tempDir(t), "pg")
	out, err := exec.Command("cp", "-a", filepath.Join(template.dir, "pg"), dir).CombinedOutput()
	require.NoError(t, err, string(out))
	return dir
}

func makeTemplate() (dir string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir = filepath.Join(base, "template")
	s, err := Start(ctx, Options{DataDir: filepath.Join(dir, "pg"), NoSync: true})
	if err != nil {
		return dir, err
	}
	return dir, s.Stop(ctx)
}

// start starts a server that the test's end stops.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := Start(ctx, o)
	require.NoError(t, err)
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	require.NoError(t, s.Stop(ctx))
	requireNoProcess(t, s.dataDir)
}

func requireNoProcess(t *testing.T, dataDir string) {
	t.Helper()
	left, err := serverProcesses(dataDir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// query returns the one value that sql selects.
func query(t *testing.T, s *Server, sql string) string {
	t.Helper()
	v, err := tryQuery(s, sql)
	require.NoError(t, err, sql)
	return v
}

func tryQuery(s *Server, sql string) (v string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, sql).Scan(&v)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return v, err
}

// keep writes a row that later lives of the server must still have.
func keep(t *testing.T, s *Server) {
	t.Helper()
	query(t, s, `CREATE TABLE kept AS SELECT 'value' AS v`)
}

func requireKept(t *testing.T, s *Server) {
	t.Helper()
	require.Equal(t, "value", query(t, s, `SELECT v FROM kept`))
}

// recorder is a slog handler's output that tests read.
type recorder struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(b)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

func (r *recorder) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
