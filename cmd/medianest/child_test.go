package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api/client"
	"medianest/jobs/guard"
	"medianest/jobs/ytdlp/ytdlptest"
	"medianest/store/storetest"
)

// beMedianest in the environment makes this test binary the program: what the tests start as processes is this very
// build, without another link.
const beMedianest = "TEST_BINARY_IS_MEDIANEST"

func TestMain(m *testing.M) {
	guard.Main()
	if os.Getenv(beMedianest) != "" {
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		os.Exit(run(context.Background(), process{
			args: os.Args[1:], env: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, signals: signals,
		}))
	}
	if address := os.Getenv(beCrew); address != "" {
		os.Exit(crew(address, os.Args[1:]))
	}
	os.Exit(storetest.Main(m))
}

// turns lets two tests with processes run at a time: on a small machine more of them only wait for each other.
var turns = make(chan struct{}, 2)

// takeTurn waits for a turn that ends with the test. Tests of processes call it after t.Parallel.
func takeTurn(t *testing.T) {
	t.Helper()
	turns <- struct{}{}
	t.Cleanup(func() { <-turns })
}

// patience is how long what must happen may take on a busy machine.
const patience = 90 * time.Second

// output is what a process has written so far.
type output struct {
	mu      sync.Mutex
	buffer  bytes.Buffer
	changed chan struct{}
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.buffer.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.String()
}

func (o *output) next() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changed
}

// child is a process of the program.
type child struct {
	t              testing.TB
	command        *exec.Cmd
	stdout, stderr *output
	exited         chan struct{}
}

// startChild starts the program in a process group of its own, which is gone at the test's end, whatever happens. Its
// environment is what a user would have, and env.
func startChild(t testing.TB, env []string, args ...string) *child {
	t.Helper()
	c := launch(t, t.TempDir(), env, args...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s %v\nstdout:\n%s\nstderr:\n%s", "medianest", args, c.stdout, lastLines(c.stderr.String(), 60))
		}
		c.end()
	})
	return c
}

// launch starts the program in dir, for a caller who ends it.
func launch(t testing.TB, dir string, env []string, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	c := &child{t: t, command: exec.Command(self, args...), stdout: newOutput(), stderr: newOutput(), exited: make(chan struct{})}
	c.command.Env = append([]string{
		beMedianest + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LANG=C.UTF-8", "TMPDIR=" + os.TempDir(),
		"MEDIANEST_YTDLP=" + testTool(t, "yt-dlp"), "MEDIANEST_FFMPEG=" + testTool(t, "ffmpeg"),
	}, env...)
	c.command.Stdout, c.command.Stderr = c.stdout, c.stderr
	c.command.Dir = dir
	c.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, c.command.Start())
	go func() {
		_ = c.command.Wait()
		close(c.exited)
	}()
	return c
}

// end kills the process's group, if it still is there, and waits for it.
func (c *child) end() {
	_ = syscall.Kill(-c.command.Process.Pid, syscall.SIGKILL)
	<-c.exited
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func testTool(t testing.TB, name string) string {
	t.Helper()
	path, err := ytdlptest.Tool(name)
	require.NoError(t, err)
	return path
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	require.NoError(c.t, c.command.Process.Signal(s))
}

// exit waits for the process to end and returns its exit code.
func (c *child) exit() int {
	c.t.Helper()
	select {
	case <-c.exited:
	case <-time.After(patience):
		_ = c.command.Process.Signal(syscall.SIGQUIT) // stacks
		select {
		case <-c.exited:
		case <-time.After(2 * time.Second):
		}
		require.Fail(c.t, "the process does not end")
	}
	return c.command.ProcessState.ExitCode()
}

// stop asks the process to stop and requires that it does, well.
func (c *child) stop() {
	c.t.Helper()
	c.signal(syscall.SIGTERM)
	require.Equal(c.t, exitOK, c.exit(), "exit code")
}

// kill ends the process as a power cut would.
func (c *child) kill() {
	c.t.Helper()
	c.signal(syscall.SIGKILL)
	<-c.exited
}

// await waits until the output holds text and returns the rest of its line.
func (c *child) await(o *output, text string) string {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		changed := o.next()
		if _, after, ok := strings.Cut(o.String(), text); ok {
			if line, _, whole := strings.Cut(after, "\n"); whole {
				return strings.TrimSpace(line)
			}
		}
		select {
		case <-changed:
		case <-c.exited:
			if !strings.Contains(o.String(), text) {
				require.Failf(c.t, "the process ended", "before it wrote %q", text)
			}
		case <-deadline:
			require.Failf(c.t, "the process does not write", "%q", text)
		}
	}
}

// home is a data and a media directory.
type home struct{ dir string }

func newHome(t testing.TB) home {
	t.Helper()
	// Not t.TempDir: its paths are long, and a killed process must not make its removal fail.
	dir, err := os.MkdirTemp("", "medianest-e2e-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return home{dir}
}

func (h home) data() string  { return filepath.Join(h.dir, "data") }
func (h home) media() string { return filepath.Join(h.dir, "media") }
func (h home) env(more ...string) []string {
	return append([]string{
		"MEDIANEST_DATA_DIR=" + h.data(), "MEDIANEST_MEDIA_DIR=" + h.media(), "MEDIANEST_LISTEN=127.0.0.1:0", "MEDIANEST_ADMIN_LISTEN=127.0.0.1:0",
		"MEDIANEST_LOG_FORMAT=text", "MEDIANEST_LOG_LEVEL=debug", "MEDIANEST_RETRY_SCALE=0.05",
	}, more...)
}

func (h home) token(t testing.TB) string {
	t.Helper()
	token, err := readToken(filepath.Join(h.data(), adminTokenFile))
	require.NoError(t, err)
	return token
}

// installation is a running `up`.
type installation struct {
	*child
	home
	url string
}

// startUp starts `up` and waits until it is ready.
func startUp(t testing.TB, h home, env ...string) *installation {
	t.Helper()
	c := startChild(t, h.env(env...), "up")
	url := c.await(c.stdout, "MediaNest is running at ")
	return &installation{child: c, home: h, url: url}
}

func (i *installation) client() *client.ClientWithResponses {
	return newClient(i.t, i.url, i.home.token(i.t))
}

func newClient(t testing.TB, url, token string) *client.ClientWithResponses {
	t.Helper()
	p, err := newPlatform(url, token, "test")
	require.NoError(t, err)
	t.Cleanup(p.close)
	return p.client
}

// download runs the download command as a process.
func (i *installation) download(args ...string) *child {
	i.t.Helper()
	return startChild(i.t, []string{"MEDIANEST_SERVER=" + i.url, "MEDIANEST_DATA_DIR=" + i.home.data()}, append([]string{"download"}, args...)...)
}

// sampleSite serves the sample site on loopback; its films are made once for all tests.
func sampleSite(t testing.TB) (site *ytdlptest.Site, url, allow string) {
	t.Helper()
	site, err := ytdlptest.New(t.Context(), "", testTool(t, "ffmpeg"))
	require.NoError(t, err)
	server := httptest.NewServer(site)
	t.Cleanup(server.Close)
	return site, server.URL, "MEDIANEST_EGRESS_ALLOW=" + server.Listener.Addr().String()
}

// ask is create, for a URL, of what the API answers with.
func ask(t testing.TB, c *client.ClientWithResponses, url string) client.Download {
	t.Helper()
	answer, err := c.CreateDownloadWithResponse(t.Context(), &client.CreateDownloadParams{}, client.DownloadRequest{URL: url})
	require.NoError(t, err)
	require.NoError(t, client.Fault(answer))
	if answer.JSON202 != nil {
		return *answer.JSON202
	}
	return *answer.JSON200
}

// unlimit lifts the limits that a platform begins with.
func unlimit(t testing.TB, c *client.ClientWithResponses) {
	t.Helper()
	limits, err := c.ListLimitsWithResponse(t.Context(), &client.ListLimitsParams{})
	require.NoError(t, err)
	require.NoError(t, client.Fault(limits))
	for _, limit := range limits.JSON200.Items {
		answer, err := c.DeleteLimitWithResponse(t.Context(), limit.Key)
		require.NoError(t, err)
		require.NoError(t, client.Fault(answer))
	}
}

// awaitState polls a download until it is in the state, and returns it.
func awaitState(t testing.TB, c *client.ClientWithResponses, d client.Download, state string) client.Download {
	t.Helper()
	var last client.Download
	require.Eventually(t, func() bool {
		answer, err := c.FindDownloadWithResponse(t.Context(), d.ID)
		if err != nil || answer.JSON200 == nil {
			return false
		}
		last = *answer.JSON200
		return string(last.State) == state
	}, patience, 50*time.Millisecond, "download %s never was %s", d.URL, state)
	return last
}

func cancelDownload(t testing.TB, c *client.ClientWithResponses, d client.Download) {
	t.Helper()
	answer, err := c.CancelDownloadWithResponse(t.Context(), d.ID)
	require.NoError(t, err)
	require.NoError(t, client.Fault(answer))
}

// processesBelow lists the live processes, of any depth, whose environment or arguments name dir.
func processesBelow(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	var found []string
	for _, e := range entries {
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(line) == 0 {
			continue
		}
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if strings.Contains(string(line), dir) || strings.HasPrefix(cwd, dir) {
			found = append(found, fmt.Sprintf("%s %s", e.Name(), strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return found
}
