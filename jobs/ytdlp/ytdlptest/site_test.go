package ytdlptest

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func setup(t *testing.T) (site *Site, get func(path string, header ...string) (*http.Response, string)) {
	t.Helper()
	ffmpeg, err := Tool("ffmpeg")
	require.NoError(t, err)
	site, err = New(t.Context(), "", ffmpeg)
	require.NoError(t, err)
	server := httptest.NewServer(site)
	t.Cleanup(server.Close)
	return site, func(path string, header ...string) (*http.Response, string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		require.NoError(t, err)
		for i := 0; i+1 < len(header); i += 2 {
			request.Header.Set(header[i], header[i+1])
		}
		response, err := server.Client().Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		}
		return response, string(body)
	}
}

func TestIndexListsWhatThereIs(t *testing.T) {
	t.Parallel()
	site, get := setup(t)
	_, index := get("/")
	links := regexp.MustCompile(`href="([^"]+)"`).FindAllStringSubmatch(index, -1)
	require.Greater(t, len(links), 20)
	for _, link := range links {
		if link[1] == "/hang" || link[1] == "/stall.mp4" || strings.Contains(link[1], "rate=") {
			continue
		}
		response, _ := get(strings.ReplaceAll(link[1], "&amp;", "&"))
		if want := regexp.MustCompile(`^/(?:status/)?(\d{3})$`).FindStringSubmatch(link[1]); want != nil {
			require.Equal(t, want[1], response.Status[:3])
			continue
		}
		require.Equal(t, http.StatusOK, response.StatusCode, link[1])
	}
	// The site may still be at the end of a request when its client has the whole answer.
	require.Eventually(t, func() bool { return site.Active() == 0 }, 10*time.Second, 5*time.Millisecond)
	for _, request := range site.Requests() {
		require.True(t, request.Done)
		require.NotZero(t, request.Status, request.Path)
	}
}

func TestRangesAndTheLog(t *testing.T) {
	t.Parallel()
	site, get := setup(t)
	film, err := os.ReadFile(site.Path("plain.mp4"))
	require.NoError(t, err)
	response, body := get("/plain.mp4", "Range", "bytes=100-199")
	require.Equal(t, http.StatusPartialContent, response.StatusCode)
	require.Equal(t, string(film[100:200]), body)
	require.Equal(t, []Request{{
		At: site.Requests()[0].At, Method: "GET", Path: "/plain.mp4", Range: "bytes=100-199", Status: 206, Bytes: 100, Done: true,
	}}, site.Requests("/plain"))
	require.Empty(t, site.Requests("/hls/", "/dash/"))
	site.Forget()
	require.Empty(t, site.Requests())
}

func TestBigFilmIsAFilm(t *testing.T) {
	t.Parallel()
	_, get := setup(t)
	_, body := get("/big.mp4?mb=3")
	require.Len(t, body, 3<<20)
	path := filepath.Join(t.TempDir(), "big.mp4")
	require.NoError(t, os.WriteFile(path, []byte(body), 0o600))
	ffprobe, err := Tool("ffprobe")
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), ffprobe, "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", path).CombinedOutput()
	require.NoError(t, err)
	require.Regexp(t, `^5\.`, string(out))
	_, rest := get("/big.mp4?mb=3", "Range", "bytes=300000-")
	require.Equal(t, body[300000:], rest)
}

func TestFaults(t *testing.T) {
	t.Parallel()
	site, get := setup(t)
	film, err := os.ReadFile(site.Path("plain.mp4"))
	require.NoError(t, err)

	response, _ := get("/429")
	require.Equal(t, "7", response.Header.Get("Retry-After"))

	response, body := get("/cut.mp4")
	require.Equal(t, int64(len(film)), response.ContentLength)
	require.Len(t, body, len(film)/2)
	_, body = get("/cut.mp4", "Range", "bytes=100-")
	require.Equal(t, string(film[100:len(film)/2]), body)

	_, body = get("/cut-once.mp4")
	require.Len(t, body, len(film))
	_, body = get("/cut-once.mp4")
	require.Len(t, body, len(film)/2)
	_, body = get("/cut-once.mp4")
	require.Len(t, body, len(film))

	_, page := get("/expiring")
	address := regexp.MustCompile(`/expiring\.mp4\?token=\d+`).FindString(page)
	response, _ = get(address)
	require.Equal(t, http.StatusOK, response.StatusCode)
	site.Expire()
	response, _ = get(address)
	require.Equal(t, http.StatusForbidden, response.StatusCode)
}

func TestHangsUntilTheClientLeaves(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/hang", "/stall.mp4", "/slow.mp4?rate=1"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			site, _ := setup(t)
			server := httptest.NewServer(site)
			t.Cleanup(server.Close)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+path, nil)
				if err == nil {
					var response *http.Response
					if response, err = server.Client().Do(request); err == nil {
						_, err = io.Copy(io.Discard, response.Body)
						response.Body.Close()
					}
				}
				ended <- err
			}()
			require.Eventually(t, func() bool { return site.Active() == 1 }, 5*time.Second, time.Millisecond)
			require.Equal(t, 1, site.Peak())
			cancel()
			require.ErrorIs(t, <-ended, context.Canceled)
			require.Eventually(t, func() bool { return site.Active() == 0 }, 5*time.Second, time.Millisecond)
		})
	}
}

func TestThrottles(t *testing.T) {
	t.Parallel()
	_, get := setup(t)
	begun := time.Now()
	get("/items/1.mp4?rate=200000") // about 90 kB
	require.Greater(t, time.Since(begun), 300*time.Millisecond)
}

func TestMakesMediaOnce(t *testing.T) {
	t.Parallel()
	ffmpeg, err := Tool("ffmpeg")
	require.NoError(t, err)
	dir := t.TempDir()
	_, err = New(t.Context(), dir, ffmpeg)
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "something temporary is left")
	_, err = New(t.Context(), dir, "/no/ffmpeg")
	require.NoError(t, err, "it was made again")
	_, err = New(t.Context(), t.TempDir(), "/no/ffmpeg")
	require.ErrorContains(t, err, "make sample media")
}

func TestTool(t *testing.T) {
	t.Parallel()
	path, err := Tool("yt-dlp")
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(path))
	_, err = Tool("no-such-tool")
	require.ErrorContains(t, err, "make tools")
}
