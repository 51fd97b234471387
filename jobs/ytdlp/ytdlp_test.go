package ytdlp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"medianest/jobs/guard"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp/ytdlptest"
)

func TestMain(m *testing.M) {
	guard.Main()
	if request := os.Getenv(beFetcher); request != "" {
		var f fetcher
		if err := json.Unmarshal([]byte(request), &f); err != nil {
			panic(err)
		}
		f.main()
		return
	}
	goleak.VerifyTestMain(m)
}

func testLogger(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

var discard = slog.New(slog.DiscardHandler)

func isMissed(err error) bool { return errors.Is(err, guard.ErrMissedBeats) }

func requireReason(t *testing.T, want reason.Reason, err error) *reason.Error {
	t.Helper()
	failure := reason.Find(err)
	require.NotNil(t, failure, "%v", err)
	require.Equal(t, want, failure.Reason, "%v", err)
	return failure
}

// bundle is a runner of the real yt-dlp and a site of its own.
type bundle struct {
	runner *Runner
	site   *ytdlptest.Site
	url    string // of the site
	dir    string
	total  int64 // bytes that the site has sent before it was made to forget
}

func setup(t *testing.T, adjust ...func(*Options)) *bundle {
	t.Helper()
	opts := Options{Path: tool(t, "yt-dlp"), FFmpeg: tool(t, "ffmpeg"), Logger: testLogger(t), Retries: 1}
	for _, f := range adjust {
		f(&opts)
	}
	runner, err := New(opts)
	require.NoError(t, err)
	site, err := ytdlptest.New(t.Context(), "", opts.FFmpeg)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(site)
	server.Config.ConnState = func(connection net.Conn, state http.ConnState) {
		if tcp, ok := connection.(*net.TCPConn); ok && state == http.StateNew {
			// What is sent is to be what somebody reads, not what a busy machine keeps for a process that was killed.
			_ = tcp.SetWriteBuffer(32 << 10)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	b := &bundle{runner: runner, site: site, url: server.URL, dir: t.TempDir()}
	t.Cleanup(func() { require.Empty(t, processes(t, b.dir), "processes are left") })
	return b
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := ytdlptest.Tool(name)
	require.NoError(t, err)
	return path
}

func (b *bundle) probe(t *testing.T, path string) (Probe, error) {
	t.Helper()
	return b.runner.Probe(t.Context(), ProbeRequest{URL: b.url + path, Dir: b.dir})
}

// processes are the command lines of those that were started for a fetch into dir: HOME says so in their environment,
// which yt-dlp hands on to ffmpeg.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	var out []string
	for _, path := range environments {
		content, err := os.ReadFile(path)
		if err != nil || !strings.Contains("\x00"+string(content), "\x00HOME="+dir+"\x00") {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		out = append(out, strings.ReplaceAll(string(line), "\x00", " "))
	}
	return out
}

func TestVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	version, err := b.runner.Version(t.Context())
	require.NoError(t, err)
	require.False(t, older(version, MinVersion), version)
}

func TestVersionTooOld(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) { o.Path = script(t, "echo 2023.03.04") })
	version, err := b.runner.Version(t.Context())
	require.ErrorContains(t, err, "older than "+MinVersion)
	require.Equal(t, "2023.03.04", version)
}

// script is a program that does what the real yt-dlp cannot be made to do.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "yt-dlp")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	return path
}

func TestKillsTheWholeGroup(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"Obedient":    `sleep 300 & touch ready; wait`,
		"Deaf":        `trap "" INT; sleep 300 & touch ready; while :; do wait; done`,
		"DeafChild":   `(trap "" INT TERM; sleep 301 & touch ready; while :; do sleep 302; done) & wait`,
		"LeftTheRoot": `sleep 300 </dev/null >/dev/null 2>&1 & touch ready; wait`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(o *Options) {
				o.Path = script(t, body)
				o.StopGrace = 300 * time.Millisecond
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := b.runner.Fetch(ctx, FetchRequest{URL: b.url, Dir: b.dir})
				ended <- err
			}()
			require.Eventually(t, func() bool {
				_, err := os.Stat(filepath.Join(b.dir, "ready"))
				return err == nil
			}, 10*time.Second, 5*time.Millisecond)
			cancel(os.ErrProcessDone)
			err := <-ended
			require.ErrorIs(t, err, os.ErrProcessDone)
			require.Nil(t, reason.Find(err))
			require.Empty(t, processes(t, b.dir))
		})
	}
}

// An ffmpeg that outlives its yt-dlp would go on writing where the result is being published from.
func TestKillsWhatAnEndedProcessLeaves(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) { o.Path = script(t, `sleep 300 & echo "ERROR: gone" >&2; exit 1`) })
	_, err := b.probe(t, "/")
	requireReason(t, reason.Unknown, err)
	require.Empty(t, processes(t, b.dir))
}

func TestBoundsWhatItKeeps(t *testing.T) {
	t.Parallel()
	t.Run("Description", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(o *Options) { o.Path = script(t, `exec yes '{"_type": "video"}'`) })
		_, err := b.probe(t, "/")
		failure := requireReason(t, reason.Unsupported, err)
		require.Contains(t, failure.Detail, "32 MiB")
	})
	t.Run("Errors", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(o *Options) {
			o.Path = script(t, `head -c 20000000 /dev/zero >&2; yes 'ERROR: chatter' | head -c 20000000 >&2; echo >&2; echo "ERROR: Video unavailable" >&2; exit 1`)
		})
		_, err := b.probe(t, "/")
		failure := requireReason(t, reason.Gone, err)
		require.Less(t, len(failure.Error()), 10_000)
	})
}

func TestRefusedOptionsAreOurFault(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) {
		o.Path = script(t, `echo "yt-dlp: error: no such option: --progress-delta" >&2; exit 2`)
	})
	_, err := b.probe(t, "/")
	failure := requireReason(t, reason.Internal, err)
	require.ErrorContains(t, failure.Err, "no such option")
}

func TestUnreadableDescription(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{"NotJSON": `echo Hello`, "WrongTypes": `echo '{"id": 5}'`, "Nothing": `:`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(o *Options) { o.Path = script(t, body) })
			_, err := b.probe(t, "/")
			requireReason(t, reason.ExtractorBug, err)
		})
	}
}

func TestProbeTakesTooLong(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) { o.ProbeTimeout = 100 * time.Millisecond })
	_, err := b.probe(t, "/hang")
	failure := requireReason(t, reason.Timeout, err)
	require.Equal(t, "127.0.0.1 took too long.", failure.Detail)
}

func TestDeadlineIsATimeout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := b.runner.Fetch(ctx, FetchRequest{URL: b.url + "/hang", Dir: b.dir})
	requireReason(t, reason.Timeout, err)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
