package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/jobs/ytdlp/ytdlptest"
)

func aDemo(t *testing.T) *demo {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	return &demo{binary: self, dir: filepath.Join(t.TempDir(), "demo"), out: &bytes.Buffer{}}
}

// The demo empties its own folder, and nobody else's.
func TestBegin(t *testing.T) {
	t.Parallel()
	d := aDemo(t)
	require.NoError(t, d.begin())
	require.NoError(t, os.MkdirAll(d.media(), 0o755))
	require.NoError(t, d.begin())
	require.NoDirExists(t, d.media())

	d.dir = t.TempDir()
	precious := filepath.Join(d.dir, "media", "film.mp4")
	require.NoError(t, os.MkdirAll(filepath.Dir(precious), 0o755))
	require.NoError(t, os.WriteFile(precious, nil, 0o644))
	require.ErrorContains(t, d.begin(), "not empty and not a demo's")
	require.FileExists(t, precious)

	d.binary = "/nowhere/medianest"
	require.ErrorContains(t, d.begin(), "make demo")
}

// A library in which a file is missing, or cannot be played, is no success.
func TestVerify(t *testing.T) {
	t.Parallel()
	d := aDemo(t)
	ffmpeg, err := tool("ffmpeg")
	require.NoError(t, err)
	site, err := ytdlptest.New(t.Context(), "", ffmpeg)
	require.NoError(t, err)
	film, err := os.ReadFile(site.Path("item-1.mp4"))
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(d.media(), "admin"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(d.media(), ".medianest"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(d.media(), ".medianest", "half"), nil, 0o644))
	name := func(n int) string { return filepath.Join(d.media(), "admin", string(rune('a'+n))+".mp4") }
	for n := range wantFiles - 1 {
		require.NoError(t, os.WriteFile(name(n), film, 0o644))
	}
	_, err = d.verify(t.Context())
	require.ErrorContains(t, err, "there are 6 files")

	require.NoError(t, os.WriteFile(name(wantFiles-1), film[:len(film)/8], 0o644))
	_, err = d.verify(t.Context())
	require.ErrorContains(t, err, name(wantFiles-1))

	require.NoError(t, os.WriteFile(name(wantFiles-1), film, 0o644))
	films, err := d.verify(t.Context())
	require.NoError(t, err)
	require.Len(t, films, wantFiles)
	var tree bytes.Buffer
	printTree(&tree, films[:2])
	require.Equal(t, "  admin/\n    a.mp4                                           0.1 MiB    2 s, plays\n    b.mp4                                           0.1 MiB    2 s, plays\n", tree.String())
}

func TestEnvironmentHasNoneOfARealInstallation(t *testing.T) {
	t.Setenv("MEDIANEST_DATABASE_URL", "postgres://real") // and so not parallel
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://real")
	for _, pair := range environment() {
		require.NotContains(t, pair, "real")
	}
}
