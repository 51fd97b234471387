package ytdlp

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

var testOptions = Options{Path: "/bin/yt-dlp", FFmpeg: "/bin/ffmpeg", SearchPath: "/bin", SocketTimeout: 20 * time.Second, Retries: 5}

// What is in testdata/args is read by people when it changes: it is all that yt-dlp is ever told.
func TestArgs(t *testing.T) {
	t.Parallel()
	const page = "https://site.example/page?a=b"
	for name, args := range map[string][]string{
		"probe":           probeArgs(testOptions, target{url: page}),
		"probe_item":      probeArgs(testOptions, target{url: page, item: 3}),
		"fetch_info":      fetchArgs(testOptions, Profile{}, target{url: page}, "/staging/7", true, nil),
		"fetch_page_item": fetchArgs(testOptions, Profile{MaxHeight: 720, Container: "mkv"}, target{url: page, item: 3}, "/staging/7", false, nil),
		"fetch_webm":      fetchArgs(testOptions, Profile{Container: "webm"}, target{url: page}, "/staging/7", false, nil),
		"fetch_sound":     fetchArgs(testOptions, Profile{AudioOnly: true}, target{url: page}, "/staging/7", false, nil),
		"fetch_mp3":       fetchArgs(testOptions, Profile{AudioOnly: true, Container: "mp3"}, target{url: page}, "/staging/7", false, nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			golden := filepath.Join("testdata", "args", name+".txt")
			got := strings.Join(args, "\n") + "\n"
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(golden), 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(string(want), got))
		})
	}
}

func TestAddressIsTheLastArgument(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		probeArgs(testOptions, target{url: "-rf"}),
		fetchArgs(testOptions, Profile{}, target{url: "-rf"}, "/staging/7", false, nil),
	} {
		require.Equal(t, []string{"--", "-rf"}, args[len(args)-2:])
	}
	require.NotContains(t, fetchArgs(testOptions, Profile{}, target{url: "-rf"}, "/staging/7", true, nil), "-rf")
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	const proxy = "http://user:secret@127.0.0.1:9"
	env := environment(testOptions, "/staging/7", Network{ProxyURL: proxy})
	names := map[string]string{}
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		names[name] = value
	}
	want := map[string]string{
		"PATH": "/bin", "LC_ALL": "C.UTF-8", "HOME": "/staging/7", "TMPDIR": "/staging/7",
		"XDG_CACHE_HOME": "/staging/7/.cache", "XDG_CONFIG_HOME": "/staging/7/.config", "XDG_DATA_HOME": "/staging/7/.local",
		"http_proxy": proxy, "https_proxy": proxy, "all_proxy": proxy, "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy,
	}
	require.Empty(t, cmp.Diff(want, names))
	for _, entry := range environment(testOptions, "/staging/7", Network{}) {
		require.NotContains(t, strings.ToLower(entry), "proxy")
	}
}

func TestProfileValidate(t *testing.T) {
	t.Parallel()
	for _, valid := range []Profile{{}, {MaxHeight: 2160}, {Container: "webm"}, {AudioOnly: true}, {AudioOnly: true, Container: "opus"}} {
		require.NoError(t, valid.Validate(), "%+v", valid)
	}
	for _, invalid := range []Profile{{Container: "m4a"}, {AudioOnly: true, Container: "mp4"}, {Container: "mp4/../x"}, {MaxHeight: -1}} {
		require.Error(t, invalid.Validate(), "%+v", invalid)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	_, err := New(Options{Path: "/bin/sh"})
	require.ErrorContains(t, err, "Logger")
	_, err = New(Options{Logger: testLogger(t)})
	require.ErrorContains(t, err, "Path")
	_, err = New(Options{Path: "/bin/sh", FFmpeg: t.TempDir(), Logger: testLogger(t)})
	require.ErrorContains(t, err, "FFmpeg")
}

func TestOlder(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2023.03.04", "2025.04.29", "", "nightly", "2025.4", "2025.x.1"} {
		require.True(t, older(version, MinVersion), version)
	}
	for _, version := range []string{"2025.04.30", "2025.04.30.232839", "2025.05.01", "2026.01.02"} {
		require.False(t, older(version, MinVersion), version)
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]target{
		"https://site.example/a?b=c":                           {url: "https://site.example/a?b=c", host: "site.example"},
		"http://user:pw@site.example:81/a#t=30":                {url: "http://user:pw@site.example:81/a#t=30", host: "site.example"},
		ItemURL("https://site.example/a#x", 12):                {url: "https://site.example/a", host: "site.example", item: 12},
		"https://site.example/a#medianest-item=0":              {url: "https://site.example/a#medianest-item=0", host: "site.example"},
		"https://site.example/a#__youtubedl_smuggle=%7B%7D":    {url: "https://site.example/a", host: "site.example"},
		"https://site.example/a#/x&__youtubedl_smuggle=%7B%7D": {url: "https://site.example/a", host: "site.example"},
	} {
		got, err := newTarget(address)
		require.NoError(t, err)
		require.Equal(t, want, got, address)
	}
	for _, address := range []string{"", "-rf", "not a url", "file:///etc/passwd", "ytsearch:cats", "ftp://site.example/a", "https:///a", "//site.example/a", "http://[::1"} {
		_, err := newTarget(address)
		requireReason(t, "unsupported_url", err)
	}
	require.True(t, IsItemURL(ItemURL("https://site.example/a", 1)))
	require.False(t, IsItemURL("https://site.example/a#medianest-item=-1"))
}
