package ytdlp

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

// secretFilm is a film that no site may get at.
func (b *bundle) secretFilm(t *testing.T) string {
	t.Helper()
	film, err := os.ReadFile(b.site.Path("hls/high/1.ts"))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "private [x].ts")
	require.NoError(t, os.WriteFile(path, film, 0o600))
	return path
}

// requireNothingFetched fails if there is anything in the directory that could be media, or a piece of the secret.
func (b *bundle) requireNothingFetched(t *testing.T, secret string) {
	t.Helper()
	film, err := os.ReadFile(secret)
	require.NoError(t, err)
	const packet = 188
	inside := len(film)/2/packet*packet + 40 // of a packet, which is the same in any container
	piece := film[inside : inside+64]
	require.NoError(t, filepath.WalkDir(b.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || entry.Name() == infoFile {
			return err
		}
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NotContains(t, string(content), string(piece), path)
		// ffmpeg creates what it will not have anything to write to.
		require.Less(t, len(bytes.Trim(content, "\x00")), 1<<10, path)
		return nil
	}))
}

// A site once could have any film of this machine copied to whoever asked: it showed a transport stream when it was
// looked at, and sent a playlist that names a local file when it was fetched. yt-dlp kept that under the name of a
// transport stream, and ffmpeg, which goes by what is in a file, read the playlist when it repacked it.
func TestFileThatTurnsOutToBeAPlaylistReadsNoOther(t *testing.T) {
	t.Parallel()
	const hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n%SECRET%\n#EXT-X-ENDLIST\n"
	for name, test := range map[string]struct {
		path    string
		profile Profile
		hostile string
	}{
		"Remux":       {"/turning.ts", Profile{}, hls},
		"RemuxConcat": {"/turning.ts", Profile{}, "ffconcat version 1.0\nfile '%SECRET%'\n"},
		"RemuxBinary": {"/turning.ts", Profile{}, hls + "\x00\x01\x02"},
		"RemuxToMKV":  {"/turning.mp4", Profile{Container: "mkv"}, hls},
		"Sound":       {"/turning.ts", Profile{AudioOnly: true, Container: "mp3"}, hls},
		"SoundAsIs":   {"/turning.ts", Profile{AudioOnly: true}, hls},
		"Merge":       {"/turning.mpd", Profile{}, hls},
		"Segment":     {"/list.m3u8?segment=/turning.ts", Profile{}, hls},
		"NothingToDo": {"/turning.mp4", Profile{}, hls},
		"Page":        {"/turning.mp4", Profile{}, "<!doctype html><title>Sign in</title>"},
		"Session":     {"/turning.ts", Profile{}, "v=0\nc=IN IP4 127.0.0.1\nm=video 1234 RTP/AVP 96\na=rtpmap:96 H264/90000\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			secret := b.secretFilm(t)
			probe, err := b.probe(t, test.path)
			require.NoError(t, err)
			fetch := func() error {
				_, err := b.fetch(t, test.path, func(r *FetchRequest) { r.Info, r.Profile = probe.Info, test.profile })
				return err
			}
			b.site.Turn(string(bytes.ReplaceAll([]byte(test.hostile), []byte("%SECRET%"), []byte(secret))))
			requireReason(t, reason.Damaged, fetch())
			b.requireNothingFetched(t, secret)
			if name == "Remux" { // it goes no better when what is left is gone on with
				requireReason(t, reason.Damaged, fetch())
				b.requireNothingFetched(t, secret)
			}
		})
	}
}

func TestFilmThatDoesNotTurnIsFetched(t *testing.T) {
	t.Parallel()
	for path, profile := range map[string]Profile{
		"/turning.ts":                       {},
		"/turning.mp4":                      {Container: "mkv"},
		"/turning.mpd":                      {},
		"/list.m3u8?segment=/turning.ts":    {},
		"/list.m3u8?segment=/hls/low/0.ts&": {AudioOnly: true, Container: "mp3"},
		"/list.m3u8?segment=/hls/low/0.ts&key=/key&method=SAMPLE-AES": {},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			media, err := b.fetch(t, path, func(r *FetchRequest) { r.Profile = profile })
			require.NoError(t, err)
			require.Positive(t, watch(t, media.Path).seconds)
		})
	}
}

// Neither yt-dlp nor ffmpeg reads local files on behalf of a stream from the network.
func TestStreamNamesALocalFile(t *testing.T) {
	t.Parallel()
	for name, query := range map[string]url.Values{
		"Native":        {"segment": {"file://%SECRET%"}},
		"NativeMap":     {"segment": {"/hls/low/0.ts"}, "map": {"file://%SECRET%"}},
		"NativeKey":     {"segment": {"/hls/low/0.ts"}, "key": {"file://%SECRET%"}},
		"FFmpeg":        {"segment": {"file://%SECRET%"}, "key": {"/key"}, "method": {"SAMPLE-AES"}},
		"FFmpegNoSlash": {"segment": {"file:%SECRET%"}, "key": {"/key"}, "method": {"SAMPLE-AES"}},
		"FFmpegConcat":  {"segment": {"concat:%SECRET%|%SECRET%"}, "key": {"/key"}, "method": {"SAMPLE-AES"}},
		"FFmpegCrypto":  {"segment": {"crypto+file:%SECRET%"}, "key": {"/key"}, "method": {"SAMPLE-AES"}},
		"FFmpegMap":     {"segment": {"/hls/low/0.ts"}, "map": {"file://%SECRET%"}, "key": {"/key"}, "method": {"SAMPLE-AES"}},
		"FFmpegList":    {"segment": {"/turning.ts"}, "key": {"/key"}, "method": {"SAMPLE-AES"}},
		"Nested":        {"segment": {"/turning.ts"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			secret := b.secretFilm(t)
			encoded, err := json.Marshal(query)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(bytes.ReplaceAll(encoded, []byte("%SECRET%"), []byte(secret)), &query))
			b.site.Turn("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nfile://" + secret + "\n#EXT-X-ENDLIST\n")
			_, err = b.fetch(t, "/list.m3u8?"+query.Encode())
			require.Error(t, err)
			b.requireNothingFetched(t, secret)
		})
	}
}
