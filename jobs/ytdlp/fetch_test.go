package ytdlp

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

// watched is what ffprobe says of a file.
type watched struct {
	seconds float64
	height  int  // 0 without a picture
	sound   bool // whether there is any
}

func watch(t *testing.T, path string) watched {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), tool(t, "ffprobe"), "-v", "error", "-show_entries", "format=duration:stream=codec_type,height", "-of", "json", path).Output()
	require.NoError(t, err)
	var found struct {
		Format  struct{ Duration string }
		Streams []struct {
			CodecType string `json:"codec_type"`
			Height    int
		}
	}
	require.NoError(t, json.Unmarshal(out, &found))
	w := watched{}
	w.seconds, err = strconv.ParseFloat(found.Format.Duration, 64)
	require.NoError(t, err)
	for _, stream := range found.Streams {
		w.height = max(w.height, stream.Height)
		w.sound = w.sound || stream.CodecType == "audio"
	}
	return w
}

func sha256Of(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func (b *bundle) fetch(t *testing.T, path string, adjust ...func(*FetchRequest)) (Media, error) {
	t.Helper()
	req := FetchRequest{URL: b.url + path, Dir: b.dir}
	for _, f := range adjust {
		f(&req)
	}
	return b.runner.Fetch(t.Context(), req)
}

func TestFetchIsTheSitesFile(t *testing.T) {
	t.Parallel()
	for path, test := range map[string]struct {
		film   string
		probed bool
	}{
		"/plain.mp4":                {"plain.mp4", true},
		"/gallery#medianest-item=5": {"item-5.mp4", true},
		"/single.rss":               {"item-3.mp4", false},
		"/hostile":                  {"item-2.mp4", false},
		"/cut-once.mp4":             {"plain.mp4", false},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			var info json.RawMessage
			if test.probed {
				probe, err := b.probe(t, path)
				require.NoError(t, err)
				info = probe.Info
				b.site.Forget()
			}
			var seen []Progress
			media, err := b.fetch(t, path, func(r *FetchRequest) {
				r.Info = info
				r.OnProgress = func(p Progress) { seen = append(seen, p) }
			})
			require.NoError(t, err)
			require.Equal(t, b.dir, filepath.Dir(media.Path))
			require.Equal(t, "mp4", media.Ext)
			want, err := b.site.SHA256(test.film)
			require.NoError(t, err)
			require.Equal(t, want, sha256Of(t, media.Path))
			require.NotEmpty(t, seen)
			require.InDelta(t, 100, seen[len(seen)-1].Percent, 0.01)
			if test.probed {
				require.Len(t, b.site.Requests(), 1, "something was extracted twice")
				stat, err := os.Stat(filepath.Join(b.dir, infoFile))
				require.NoError(t, err)
				require.Equal(t, os.FileMode(0o600), stat.Mode())
			}
		})
	}
}

func TestFetchStreams(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path    string
		profile Profile
		ext     string
		want    watched
	}{
		"HLS":          {"/hls/master.m3u8", Profile{}, "mp4", watched{6, 360, true}},
		"DASH":         {"/dash/manifest.mpd", Profile{}, "mp4", watched{6, 360, true}},
		"MatroskaDASH": {"/dash/manifest.mpd", Profile{MaxHeight: 200, Container: "mkv"}, "mkv", watched{6, 180, true}},
		"Sound":        {"/dash/manifest.mpd", Profile{AudioOnly: true}, "m4a", watched{6, 0, true}},
		"SoundOfMP4":   {"/plain.mp4", Profile{AudioOnly: true, Container: "mp3"}, "mp3", watched{5, 0, true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			var phases []string
			var last Progress
			media, err := b.fetch(t, test.path, func(r *FetchRequest) {
				r.Profile = test.profile
				r.OnProgress = func(p Progress) {
					if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
						phases = append(phases, p.Phase)
					}
					require.GreaterOrEqual(t, p.Percent, last.Percent)
					last = p
				}
			})
			require.NoError(t, err)
			require.Equal(t, test.ext, media.Ext)
			got := watch(t, media.Path)
			require.InDelta(t, test.want.seconds, got.seconds, 0.3)
			require.Equal(t, test.want.height, got.height)
			require.Equal(t, test.want.sound, got.sound)
			require.Equal(t, []string{PhaseDownloading, PhasePostprocessing}, phases)
			require.InDelta(t, 100, last.Percent, 0.01)
		})
	}
}

func TestFetchFailures(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]reason.Reason{
		"/404":            reason.NotFound,
		"/cut.mp4":        reason.Network,
		"/stall.mp4":      reason.Timeout,
		"/text.txt":       reason.NoMedia,
		"/forbidden-film": reason.RateLimited,
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(o *Options) {
				if want == reason.Timeout {
					o.SocketTimeout = time.Second
				}
			})
			_, err := b.fetch(t, path)
			requireReason(t, want, err)
		})
	}
}

func TestFetchExtractsAgainWhatHasExpired(t *testing.T) {
	t.Parallel()
	b := setup(t)
	probe, err := b.probe(t, "/expiring")
	require.NoError(t, err)
	b.site.Expire()
	media, err := b.fetch(t, "/expiring", func(r *FetchRequest) { r.Info = probe.Info })
	require.NoError(t, err)
	want, err := b.site.SHA256("plain.mp4")
	require.NoError(t, err)
	require.Equal(t, want, sha256Of(t, media.Path))
}

// Extracting a page's film again must not fetch the page's other films, too.
func TestFetchOfAnItemFetchesNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	probe, err := b.probe(t, "/gallery#medianest-item=2")
	require.NoError(t, err)
	info := strings.ReplaceAll(string(probe.Info), "/items/2.mp4", "/status/410")
	_, err = b.fetch(t, "/gallery#medianest-item=2", func(r *FetchRequest) { r.Info = json.RawMessage(info) })
	require.NoError(t, err)
	require.NotEmpty(t, b.site.Requests("/status/410"))
	for _, request := range b.site.Requests("/items/") {
		require.Equal(t, "/items/2.mp4", request.Path)
	}
}

func TestFetchCancelledAndGoneOnWith(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var once sync.Once
	begun := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := b.runner.Fetch(ctx, FetchRequest{URL: b.url + "/slow.mp4?rate=50000", Dir: b.dir, OnProgress: func(p Progress) {
			if p.DownloadedBytes > 50_000 {
				once.Do(func() { close(begun) })
			}
		}})
		ended <- err
	}()
	select {
	case <-begun:
	case err := <-ended:
		require.NoError(t, err)
	}
	cancel(os.ErrProcessDone)
	asked := time.Now()
	err := <-ended
	require.ErrorIs(t, err, os.ErrProcessDone)
	require.Nil(t, reason.Find(err))
	require.Less(t, time.Since(asked), 5*time.Second, "it waited for the film")
	require.Empty(t, processes(t, b.dir))

	b.site.Forget()
	media, err := b.fetch(t, "/slow.mp4?rate=1000000")
	require.NoError(t, err)
	want, err := b.site.SHA256("plain.mp4")
	require.NoError(t, err)
	require.Equal(t, want, sha256Of(t, media.Path))
	requests := b.site.Requests("/slow.mp4")
	require.Regexp(t, `^bytes=[1-9]\d+-$`, requests[len(requests)-1].Range, "it did not go on with what was there")
}

// yt-dlp hands streams that it cannot decrypt to ffmpeg, which then fetches by itself.
func TestCancelEndsFFmpeg(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() {
		_, err := b.runner.Fetch(ctx, FetchRequest{URL: b.url + "/ffmpeg-hang.m3u8", Dir: b.dir})
		ended <- err
	}()
	require.Eventually(t, func() bool {
		return strings.Contains(strings.Join(processes(t, b.dir), "\n"), "ffmpeg -y") && len(b.site.Requests("/hang")) > 0
	}, 30*time.Second, 20*time.Millisecond)
	require.Contains(t, strings.Join(processes(t, b.dir), "\n"), "-protocol_whitelist "+ffmpegTransports)
	cancel(os.ErrProcessDone)
	require.ErrorIs(t, <-ended, os.ErrProcessDone)
	require.Empty(t, processes(t, b.dir))
}

func TestFetchOntoAFullDisk(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// A small disk of its own, in a namespace of its own: nothing to unmount, nothing that needs to be root.
	b.runner.opts.Path = script(t, `exec unshare --user --map-root-user --mount sh -c '
		mount -t tmpfs -o size=200k none "$HOME" && cd "$HOME" && exec "$@"' sh `+tool(t, "yt-dlp")+` "$@"`)
	_, err := b.fetch(t, "/plain.mp4")
	failure := requireReason(t, reason.DiskFull, err)
	require.NotContains(t, failure.Detail, b.dir)
}

// proxy is an HTTP proxy for absolute-form requests that wants to be signed in to.
func proxy(t *testing.T) (address string, requests func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte("job:s3cret-pass"))
		if r.Header.Get("Proxy-Authorization") == want {
			mu.Lock()
			seen = append(seen, r.Method+" "+r.URL.String())
			mu.Unlock()
		}
		switch {
		case r.Header.Get("Proxy-Authorization") != want:
			// ffmpeg sends credentials only when it is asked for them like this.
			w.Header().Set("Proxy-Authenticate", `Basic realm="egress"`)
			w.WriteHeader(http.StatusProxyAuthRequired)
		case r.Method == http.MethodConnect:
			w.WriteHeader(http.StatusForbidden)
		default:
			out := r.Clone(r.Context())
			out.RequestURI = ""
			out.Header.Del("Proxy-Authorization")
			response, err := http.DefaultTransport.RoundTrip(out)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer response.Body.Close()
			for name, values := range response.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(response.StatusCode)
			_, _ = io.Copy(w, response.Body)
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	host, _ := url.Parse(server.URL)
	return "http://job:s3cret-pass@" + host.Host, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), seen...)
	}
}

func TestEverythingGoesThroughTheProxy(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/hls/master.m3u8", "/ffmpeg.m3u8"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			address, requests := proxy(t)
			var lines []string
			media, err := b.fetch(t, path, func(r *FetchRequest) {
				r.Network.ProxyURL = address
				r.OnProgress = func(Progress) { lines = append(lines, processes(t, b.dir)...) }
			})
			require.NoError(t, err)
			require.FileExists(t, media.Path)
			require.Len(t, requests(), len(b.site.Requests()), "some requests went past the proxy")
			require.NotContains(t, strings.Join(lines, "\n"), "s3cret")
		})
	}
	t.Run("Refused", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		address, _ := proxy(t)
		_, err := b.runner.Probe(t.Context(), ProbeRequest{URL: "https://internal.invalid/x", Dir: b.dir, Network: Network{ProxyURL: address}})
		failure := requireReason(t, reason.EgressDenied, err)
		require.NotContains(t, failure.Error(), "s3cret")
	})
	t.Run("ProxyIsGone", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, listener.Close())
		_, err = b.runner.Probe(t.Context(), ProbeRequest{URL: b.url + "/plain.mp4", Dir: b.dir, Network: Network{ProxyURL: "http://job:s3cret@" + listener.Addr().String()}})
		failure := requireReason(t, reason.Network, err)
		require.NotContains(t, failure.Error(), "s3cret")
		require.Empty(t, b.site.Requests())
	})
}

func TestFetchChecksWhatItIsTold(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		body string
		want reason.Reason
	}{
		"NothingNamed":  {`:`, reason.NoMedia},
		"Outside":       {`echo 'medianest:file "/etc/passwd"'`, reason.Internal},
		"NotThere":      {`echo "medianest:file \"$HOME/x.mp4\""`, reason.Internal},
		"Link":          {`ln -s /etc/passwd x.mp4; echo "medianest:file \"$HOME/x.mp4\""`, reason.Internal},
		"Empty":         {`touch x.mp4; echo "medianest:file \"$HOME/x.mp4\""`, reason.Damaged},
		"UnknownAndBad": {`echo text > x.unknown_video; echo "medianest:file \"$HOME/x.unknown_video\""`, reason.NoMedia},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.runner.opts.Path = script(t, test.body)
			_, err := b.fetch(t, "/plain.mp4")
			requireReason(t, test.want, err)
		})
	}
	t.Run("UnknownAndGood", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.runner.opts.Path = script(t, `cp `+b.site.Path("plain.mp4")+` x.unknown_video; echo "medianest:file \"$HOME/x.unknown_video\""`)
		media, err := b.fetch(t, "/plain.mp4")
		require.NoError(t, err)
		require.Equal(t, Media{Path: filepath.Join(b.dir, "x.mp4"), Ext: "mp4"}, media)
	})
}

func TestFetchRefusesABadProfile(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.fetch(t, "/plain.mp4", func(r *FetchRequest) { r.Profile.Container = "exe" })
	requireReason(t, reason.Internal, err)
}
