package ytdlp

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// A site once could have any film of this machine copied to whoever asked: it showed a transport stream when it was
// looked at, and sent a playlist that names a local file when it was fetched. yt-dlp kept that under the name of a
// transport stream, and ffmpeg, which goes by what is in a file, read the playlist when it repacked it.
func TestFileThatTurnsOutToBeAPlaylistReadsNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stream, err := os.ReadFile(b.site.Path("hls/high/0.ts"))
	require.NoError(t, err)
	secret := filepath.Join(t.TempDir(), "secret.mp4")
	film, err := os.ReadFile(b.site.Path("plain.mp4"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(secret, film, 0o600))
	for name, hostile := range map[string]string{
		"hls":    "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:5,\n" + secret + "\n#EXT-X-ENDLIST\n",
		"concat": "ffconcat version 1.0\nfile '" + secret + "'\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var turned atomic.Bool
			site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body := stream
				if turned.Load() {
					body = []byte(hostile)
				}
				w.Header().Set("Content-Type", "application/octet-stream")
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
				_, _ = w.Write(body)
			}))
			t.Cleanup(site.Close)
			dir := t.TempDir()
			probe, err := b.runner.Probe(t.Context(), ProbeRequest{URL: site.URL + "/x.ts", Dir: dir})
			require.NoError(t, err)
			// As long as it behaves, it is repacked.
			whole, err := b.runner.Fetch(t.Context(), FetchRequest{URL: site.URL + "/x.ts", Info: probe.Info, Dir: t.TempDir()})
			require.NoError(t, err)
			require.Equal(t, ".mp4", filepath.Ext(whole.Path))

			turned.Store(true)
			media, err := b.runner.Fetch(t.Context(), FetchRequest{URL: site.URL + "/x.ts", Info: probe.Info, Dir: dir})
			require.Error(t, err, "%+v", media)
			left, err := filepath.Glob(filepath.Join(dir, "*"))
			require.NoError(t, err)
			for _, path := range left {
				stat, err := os.Stat(path)
				require.NoError(t, err)
				if !stat.IsDir() && filepath.Base(path) != infoFile {
					require.Less(t, stat.Size(), int64(len(film)/4), "%s may hold the secret", path)
				}
			}
		})
	}
}
