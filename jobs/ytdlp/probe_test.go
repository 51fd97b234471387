package ytdlp

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
	"medianest/jobs/ytdlp/ytdlptest"
)

func TestProbeFilm(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, want := range map[string]Probe{
		"/hls/master.m3u8":          {Extractor: "generic", ID: "master", Title: "master", Ext: "mp4", DurationS: 6},
		"/dash/manifest.mpd":        {Extractor: "generic", ID: "manifest", Title: "manifest", Ext: "mp4"},
		"/page?n=2":                 {Extractor: "html5mediaembed", ID: "page?n=2-1", Title: "Holiday film 2", Ext: "mp4"},
		"/redirect?to=/plain.mp4":   {Extractor: "generic", ID: "plain", Title: "plain", Ext: "mp4"},
		"/single.rss":               {Extractor: "generic", ID: "3", Title: "The only episode", Ext: "mp4"},
		"/hostile":                  {Extractor: "html5mediaembed", ID: "hostile-1", Title: hostileTitle, Ext: "mp4"},
		"/gallery#medianest-item=4": {Extractor: "html5mediaembed", ID: "gallery-4", Title: "Holiday gallery (4)", Ext: "mp4"},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			got, err := b.probe(t, path)
			require.NoError(t, err)
			require.True(t, json.Valid(got.Info))
			require.NotContains(t, string(got.Info), `\u0000`)
			got.Info = nil
			require.Equal(t, want, got)
		})
	}
}

// hostileTitle is what yt-dlp makes of the title: a line separator is a space to it, and the rest is a title.
var hostileTitle = strings.ReplaceAll(ytdlptest.HostileTitle, "\u2028", "")

func TestProbeCollection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, entry := range map[string]func(n int) Entry{
		"/gallery": func(n int) Entry {
			return Entry{
				URL: fmt.Sprintf("%s/gallery#medianest-item=%d", b.url, n), ID: fmt.Sprintf("gallery-%d", n),
				Extractor: "html5mediaembed", Title: fmt.Sprintf("Holiday gallery (%d)", n),
			}
		},
		"/feed.rss": func(n int) Entry {
			return Entry{URL: fmt.Sprintf("%s/items/%d.mp4", b.url, n), Title: fmt.Sprintf("Episode %d", n)}
		},
		"/feed-pages.rss": func(n int) Entry {
			return Entry{URL: fmt.Sprintf("%s/page?n=%d", b.url, n), Title: fmt.Sprintf("Episode %d", n)}
		},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			got, err := b.probe(t, path)
			require.NoError(t, err)
			require.True(t, got.IsCollection)
			require.False(t, got.Truncated)
			require.Nil(t, got.Info)
			require.True(t, strings.HasPrefix(got.Title, "Holiday "), got.Title)
			var want []Entry
			for n := range 5 {
				want = append(want, entry(n+1))
			}
			require.Equal(t, want, got.Entries)
		})
	}
}

func TestProbeFailures(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, want := range map[string]reason.Reason{
		"/novideo":                        reason.NoMedia,
		"/empty.rss":                      reason.NoMedia,
		"/gallery#medianest-item=77":      reason.NoMedia,
		"/drm":                            reason.DRM,
		"/403":                            reason.AuthRequired,
		"/404":                            reason.NotFound,
		"/429":                            reason.RateLimited,
		"/status/500":                     reason.Network,
		"/redirect?to=file:///etc/passwd": reason.Unsupported,
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			_, err := b.probe(t, path)
			failure := requireReason(t, want, err)
			require.NotContains(t, failure.Error(), b.dir)
			require.NotContains(t, failure.Detail, "?")
		})
	}
	t.Run("Silence", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(o *Options) { o.SocketTimeout = time.Second })
		_, err := b.probe(t, "/hang")
		requireReason(t, reason.Timeout, err)
	})
	t.Run("NobodyListens", func(t *testing.T) {
		t.Parallel()
		_, err := b.runner.Probe(t.Context(), ProbeRequest{URL: "http://127.0.0.1:1/x.mp4", Dir: b.dir})
		requireReason(t, reason.Network, err)
	})
	t.Run("NoSuchHost", func(t *testing.T) {
		t.Parallel()
		_, err := b.runner.Probe(t.Context(), ProbeRequest{URL: "http://no-such-host.invalid/x.mp4", Dir: b.dir})
		requireReason(t, reason.Network, err)
	})
}

func TestProbeCancelled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := b.runner.Probe(ctx, ProbeRequest{URL: b.url + "/hang", Dir: b.dir})
		ended <- err
	}()
	require.Eventually(t, func() bool { return len(b.site.Requests("/hang")) > 0 }, 30*time.Second, 10*time.Millisecond)
	cancel(os.ErrProcessDone)
	err := <-ended
	require.ErrorIs(t, err, os.ErrProcessDone)
	require.Nil(t, reason.Find(err))
	require.Empty(t, processes(t, b.dir))
}

// A description of many entries, one of them missing and two of them at the same address.
func TestCollectionOfDescriptions(t *testing.T) {
	t.Parallel()
	described, err := decodeDescription([]byte(`{"_type": "playlist", "id": "PL1", "extractor_key": "Site", "webpage_url": "https://site.example/list/", "entries": [
		null,
		{"_type": "url", "url": "https://site.example/watch?v=a", "id": "a", "ie_key": "Site", "title": "A\u0000"},
		{"_type": "video", "id": "b", "webpage_url": "https://site.example/watch?v=b", "extractor_key": "Site"},
		{"id": "c", "webpage_url": "https://site.example/list"},
		{"_type": "video", "id": "d", "webpage_url": "https://site.example/watch?v=b"},
		{"_type": "url_transparent", "url": "https://site.example/e#__youtubedl_smuggle=%7B%7D"}
	]}`))
	require.NoError(t, err)
	got, err := described.collection("https://site.example/list/")
	require.NoError(t, err)
	require.Equal(t, []Entry{
		{URL: "https://site.example/watch?v=a", ID: "a", Extractor: "site", Title: "A"},
		{URL: "https://site.example/watch?v=b", ID: "b", Extractor: "site"},
		{URL: "https://site.example/list/#medianest-item=4", ID: "c"},
		{URL: "https://site.example/list/#medianest-item=5", ID: "d"},
		{URL: "https://site.example/e"},
	}, got.Entries)
	require.Equal(t, "PL1", got.Title)
}

func TestCollectionIsTruncated(t *testing.T) {
	t.Parallel()
	described := description{Type: "playlist", ID: "PL1"}
	for n := range MaxEntries + 1 {
		described.Entries = append(described.Entries, json.RawMessage(fmt.Sprintf(`{"_type": "url", "url": "https://site.example/%d"}`, n)))
	}
	got, err := described.collection("https://site.example/list")
	require.NoError(t, err)
	require.True(t, got.Truncated)
	require.Len(t, got.Entries, MaxEntries)
}

func TestFilmThatIsNotThereYet(t *testing.T) {
	t.Parallel()
	for _, status := range []string{"is_upcoming", "is_live"} {
		described, err := decodeDescription([]byte(`{"id": "a", "live_status": "` + status + `"}`))
		require.NoError(t, err)
		_, err = described.film()
		requireReason(t, reason.Upcoming, err)
	}
}

func TestInfoFitsADatabase(t *testing.T) {
	t.Parallel()
	info, err := reusable([]byte(`{"id": "a\u0000b", "x\u0000": [1e300, {"y": "\ud800\u0000"}], "n": 12345678901234567890, "automatic_captions": {}}`))
	require.NoError(t, err)
	require.Equal(t, `{"id":"ab","n":12345678901234567890,"x":[1e300,{"y":"�"}]}`, string(info))
}
