package ytdlp

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/guard"
	"medianest/jobs/ytdlp/ytdlptest"
)

// beFetcher in the environment makes this test binary a worker that does one Fetch. It holds a fetcher as JSON.
const beFetcher = "TEST_BINARY_IS_FETCHER"

type fetcher struct {
	URL, Dir, Path, FFmpeg string
	Info                   json.RawMessage `json:",omitempty"` // absent, not null
	Lifetime               time.Duration   // of its guard; it beats until it is stopped
	Done                   string          // a file for how it ended
}

// done is how a fetcher ended.
type done struct {
	Path   string
	Err    string
	Missed bool
}

// main runs the fetch that the environment asks for, if it does.
func (f fetcher) main() {
	keeper := guard.New(guard.Options{Lifetime: f.Lifetime})
	if f.Lifetime > 0 {
		go func() {
			for range time.Tick(f.Lifetime / 10) {
				keeper.Beat()
			}
		}()
	}
	runner, err := New(Options{Path: f.Path, FFmpeg: f.FFmpeg, Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})), Retries: 1, Guard: keeper})
	var media Media
	if err == nil {
		media, err = runner.Fetch(context.Background(), FetchRequest{URL: f.URL, Dir: f.Dir, Info: f.Info})
	}
	result := done{Path: media.Path}
	if err != nil {
		result.Err, result.Missed = err.Error(), isMissed(err)
	}
	content, err := json.Marshal(result)
	if err == nil {
		err = replaceFile(f.Done, content)
	}
	if err != nil {
		panic(err)
	}
}

// startFetcher starts a worker that fetches into the bundle's directory.
func (b *bundle) startFetcher(t *testing.T, path string, info json.RawMessage, lifetime time.Duration) (*exec.Cmd, string) {
	t.Helper()
	f := fetcher{
		URL: b.url + path, Dir: b.dir, Path: tool(t, "yt-dlp"), FFmpeg: tool(t, "ffmpeg"), Info: info, Lifetime: lifetime,
		Done: filepath.Join(t.TempDir(), "done"),
	}
	request, err := json.Marshal(f)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	worker := exec.CommandContext(context.WithoutCancel(t.Context()), self)
	worker.Env = []string{beFetcher + "=" + string(request), "PATH=" + os.Getenv("PATH")}
	worker.Stderr = t.Output()
	worker.WaitDelay = time.Second
	require.NoError(t, worker.Start())
	t.Cleanup(func() {
		_ = worker.Process.Kill()
		_ = worker.Wait()
		require.Eventually(t, func() bool { return len(alive(t, b.dir)) == 0 }, patience, 5*time.Millisecond)
	})
	return worker, f.Done
}

// alive are the processes of a fetch into dir that are not dead and waiting to be waited for.
func alive(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	for _, line := range processes(t, dir) {
		if line != "" {
			out = append(out, line)
		}
	}
	return out
}

// frames is what is seen and heard of a film, frame by frame.
func frames(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), tool(t, "ffmpeg"), "-v", "error", "-xerror", "-i", path, "-f", "framemd5", "-").Output()
	require.NoError(t, err)
	return string(out)
}

// served is how many bytes of media the site has sent.
func (b *bundle) served() int64 {
	var sum int64
	for _, request := range b.site.Requests() {
		if !strings.HasSuffix(request.Path, ".m3u8") && !strings.HasSuffix(request.Path, ".mpd") {
			sum += request.Bytes
		}
	}
	return sum
}

const patience = 90 * time.Second // the machine may be busy

// wait waits on the way of a test, for no more than it has to: until something of the site's has been sent, or for a
// time that the test has chosen.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

// A worker that is killed again and again at any moment still makes exactly the film, and fetches hardly a byte twice.
func TestFetchKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	if text := os.Getenv("TEST_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("TEST_SEED=%d", seed)
	for name, path := range map[string]string{
		"MP4":  "/big.mp4?mb=8&rate=1200000",
		"HLS":  "/hls/long/index.m3u8?rate=120000",
		"DASH": "/dash/long/manifest.mpd?rate=120000",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, uint64(len(name)))) //nolint:gosec // for a test
			whole := setup(t)
			want, err := whole.fetch(t, strings.TrimRight(strings.Split(path, "rate=")[0], "?&"))
			require.NoError(t, err)
			once := whole.served()
			if name == "MP4" {
				once = 8 << 20 // the first request is for what it is
			}

			b := setup(t)
			probe, err := b.probe(t, path) // what it is, yt-dlp finds out by beginning to fetch it
			require.NoError(t, err)
			const kills = 3
			killed := 0
			var last done
			for {
				b.site.Forget()
				worker, result := b.startFetcher(t, path, probe.Info, 0)
				if killed < kills {
					// From when it fetches: yt-dlp's start takes more time than the film.
					require.Eventually(t, func() bool { return b.served() > 0 || exists(result) }, patience, 5*time.Millisecond)
					wait(t, time.Duration(random.Int64N(int64(3*time.Second))))
				} else {
					require.Eventually(t, func() bool { return exists(result) }, patience, 10*time.Millisecond)
				}
				_ = worker.Process.Kill()
				_ = worker.Wait()
				require.Eventually(t, func() bool { return len(alive(t, b.dir)) == 0 }, patience, time.Millisecond)
				b.total += b.served()
				if content, err := os.ReadFile(result); err == nil {
					require.NoError(t, json.Unmarshal(content, &last))
					break
				}
				killed++
			}
			require.Empty(t, last.Err)
			if name == "MP4" {
				require.Equal(t, sha256Of(t, want.Path), sha256Of(t, last.Path))
			} else {
				require.Equal(t, frames(t, want.Path), frames(t, last.Path))
			}
			t.Logf("killed %d times: %d bytes of %d served, %.3f times", killed, b.total, once, float64(b.total)/float64(once))
			// A kill costs the fragment that is under way, and what the site has sent into buffers that nobody reads: on a
			// busy machine a second's worth. From the beginning each time, the film would cost 1.7 times its bytes.
			require.LessOrEqual(t, float64(b.total), (1+0.15*float64(killed))*float64(once), "bytes were fetched again")
		})
	}
}

// cutOff has a worker fetch until so much has been sent, and kills it.
func (b *bundle) cutOff(t *testing.T, path string, bytes int64) {
	t.Helper()
	worker, result := b.startFetcher(t, path, nil, 0)
	require.Eventually(t, func() bool { return b.served() > bytes || exists(result) }, patience, 5*time.Millisecond)
	if content, err := os.ReadFile(result); err == nil {
		require.Fail(t, "it is over", "%s", content)
	}
	require.NoError(t, worker.Process.Kill())
	_ = worker.Wait()
	require.Eventually(t, func() bool { return len(alive(t, b.dir)) == 0 }, patience, time.Millisecond)
}

// yt-dlp would go on silently wherever its count of fragments says, with a fragment twice or not at all.
func TestFetchDoesNotTrustTheCount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.cutOff(t, "/hls/long/index.m3u8?rate=150000", 500_000)
	noted, err := readJournal(b.dir)
	require.NoError(t, err)
	require.NotEmpty(t, noted)
	whole := setup(t)
	film, err := whole.fetch(t, "/hls/long/index.m3u8")
	require.NoError(t, err)
	want, once := frames(t, film.Path), whole.served()
	counted := func(t *testing.T, dir string) (path string, n int) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, "*.ytdl"))
		require.NoError(t, err)
		require.Len(t, found, 1)
		n, ok := readCount(found[0])
		require.True(t, ok)
		return found[0], n
	}
	for name, change := range map[string]func(t *testing.T, dir string){
		"AsItIs": func(*testing.T, string) {},
		"Gone": func(t *testing.T, dir string) {
			t.Helper()
			path, _ := counted(t, dir)
			require.NoError(t, os.Remove(path))
		},
		"Empty": func(t *testing.T, dir string) {
			t.Helper()
			path, _ := counted(t, dir)
			require.NoError(t, os.Truncate(path, 0))
		},
		"Truncated": func(t *testing.T, dir string) {
			t.Helper()
			path, _ := counted(t, dir)
			require.NoError(t, os.Truncate(path, 20))
		},
		"Stale": func(t *testing.T, dir string) {
			t.Helper()
			path, n := counted(t, dir)
			require.NoError(t, writeCount(path, n-1))
		},
		"Ahead": func(t *testing.T, dir string) {
			t.Helper()
			path, n := counted(t, dir)
			require.NoError(t, writeCount(path, n+1))
		},
		"ShortFile": func(t *testing.T, dir string) {
			t.Helper()
			path, _ := counted(t, dir)
			require.NoError(t, os.Truncate(strings.TrimSuffix(path, ".ytdl")+".part", noted[len(noted)-1].Size-1))
		},
		"NoJournal": func(t *testing.T, dir string) {
			t.Helper()
			require.NoError(t, os.Remove(filepath.Join(dir, journalFile)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			again := setup(t)
			require.NoError(t, os.CopyFS(again.dir, os.DirFS(b.dir)))
			change(t, again.dir)
			media, err := again.fetch(t, "/hls/long/index.m3u8")
			require.NoError(t, err)
			require.Equal(t, want, frames(t, media.Path))
			if name != "NoJournal" {
				require.Less(t, again.served(), once*8/10, "it did not go on with what was there")
			}
		})
	}
}

// yt-dlp loses the place in such a playlist when it passes over fragments.
func TestFetchBeginsAnewWhereYTDLPCannotGoOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.cutOff(t, "/ranges.m3u8?rate=150000", 500_000)
	noted, err := readJournal(b.dir)
	require.NoError(t, err)
	require.Empty(t, noted)
	media, err := b.fetch(t, "/ranges.m3u8")
	require.NoError(t, err)
	whole := setup(t)
	film, err := whole.fetch(t, "/ranges.m3u8")
	require.NoError(t, err)
	require.Equal(t, frames(t, film.Path), frames(t, media.Path))
}

func TestFetchStaysWithItsFormat(t *testing.T) {
	t.Parallel()
	for turned, height := range map[string]int{ytdlptest.TurnedBeside: 144, ytdlptest.TurnedInstead: 360} {
		t.Run(strconv.Itoa(height), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.cutOff(t, "/turning.m3u8?rate=150000", 300_000)
			b.site.Turn(turned)
			media, err := b.fetch(t, "/turning.m3u8")
			require.NoError(t, err)
			got := watch(t, media.Path)
			require.Equal(t, height, got.height)
			require.InDelta(t, map[int]float64{144: 30, 360: 6}[height], got.seconds, 0.3)
		})
	}
}

// A worker that is stopped, as by a frozen host, is taken for dead by others: what it has started must be dead by then.
func TestNothingIsFetchedForAStoppedWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	worker, result := b.startFetcher(t, "/dash/long/manifest.mpd?rate=50000", nil, 2*time.Second)
	require.Eventually(t, func() bool { return b.served() > 100_000 || exists(result) }, patience, 5*time.Millisecond)
	require.NoFileExists(t, result)
	require.NoError(t, worker.Process.Signal(syscall.SIGSTOP))
	stopped := time.Now()
	require.Eventually(t, func() bool { return len(alive(t, b.dir)) == 0 }, patience, time.Millisecond)
	t.Logf("all dead %s after the stop", time.Since(stopped))
	require.Eventually(t, func() bool { return b.site.Active() == 0 }, patience, time.Millisecond)
	requests, sizes := b.site.Requests(), list(t, b.dir)
	wait(t, time.Second)
	require.NoError(t, worker.Process.Signal(syscall.SIGCONT))
	require.Eventually(t, func() bool { return exists(result) }, patience, 5*time.Millisecond)
	require.Equal(t, requests, b.site.Requests())
	require.Equal(t, sizes, list(t, b.dir))
	content, err := os.ReadFile(result)
	require.NoError(t, err)
	var ended done
	require.NoError(t, json.Unmarshal(content, &ended))
	require.True(t, ended.Missed, "%s", ended.Err)
}

// list is what is fetched of a film, with sizes.
func list(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "media.*"))
	require.NoError(t, err)
	out := map[string]int64{}
	for _, path := range found {
		info, err := os.Stat(path)
		require.NoError(t, err)
		out[path] = info.Size()
	}
	return out
}

func TestFFmpegDoesNotOutliveAKilledWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	worker, _ := b.startFetcher(t, "/ffmpeg-hang.m3u8", nil, 0)
	require.Eventually(t, func() bool {
		return strings.Contains(strings.Join(processes(t, b.dir), "\n"), "ffmpeg -y") && len(b.site.Requests("/hang")) > 0
	}, patience, 20*time.Millisecond)
	require.NoError(t, worker.Process.Kill())
	require.Eventually(t, func() bool { return len(alive(t, b.dir)) == 0 }, patience, 5*time.Millisecond)
	require.Eventually(t, func() bool { return b.site.Active() == 0 }, patience, 5*time.Millisecond)
}
