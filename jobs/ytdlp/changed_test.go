package ytdlp

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// read is a file of the site.
func (b *bundle) read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(b.site.Path(name))
	require.NoError(t, err)
	return string(content)
}

// without is a playlist without so many fragments from one on.
func without(list string, from, n int) string {
	parts := strings.SplitAfter(list, ".ts\n")
	end := parts[from+n:]
	if from == 0 {
		head, _, _ := strings.Cut(parts[0], "#EXTINF")
		return head + strings.Join(end, "")
	}
	return strings.Join(parts[:from], "") + strings.Join(end, "")
}

// yt-dlp would go on behind as many fragments of the new list as it has of the old one.
func TestFetchBeginsAnewWhereTheListHasChanged(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path, list string
		turn       func(list string) string
		rest       bool // only that is fetched: it is the same stream
	}{
		"Slid":    {"/hls/long/turning.m3u8", "hls/long/index.m3u8", func(l string) string { return without(l, 0, 3) }, false},
		"Shorter": {"/hls/long/turning.m3u8", "hls/long/index.m3u8", func(l string) string { return without(l, 4, 56) }, false},
		"Tokens": {"/hls/long/turning.m3u8", "hls/long/index.m3u8", func(l string) string {
			return strings.ReplaceAll(l, ".ts\n", ".ts?token=other\r\n")
		}, true},
		"DASH": {"/dash/long/turning.mpd", "dash/long/manifest.mpd", func(l string) string {
			return strings.NewReplacer(`r="59"`, `r="56"`).Replace(strings.Replace(l, `startNumber="1"`, `startNumber="4"`, 1))
		}, false},
		"DASHTokens": {"/dash/long/turning.mpd", "dash/long/manifest.mpd", func(l string) string {
			return strings.ReplaceAll(l, `.m4s"`, `.m4s?token=other"`)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, fresh := setup(t), setup(t)
			turned := test.turn(b.read(t, test.list))
			b.cutOff(t, test.path+"?rate=150000", 300_000)
			noted, err := readJournal(b.dir)
			require.NoError(t, err)
			require.NotEmpty(t, noted)
			b.site.Turn(turned)
			fresh.site.Turn(turned)
			b.site.Forget()
			want, err := fresh.fetch(t, test.path)
			require.NoError(t, err)
			got, err := b.fetch(t, test.path)
			require.NoError(t, err)
			require.Equal(t, frames(t, want.Path), frames(t, got.Path))
			if test.rest {
				require.Less(t, b.served(), fresh.served()*9/10, "it did not go on with what was there")
			}
		})
	}
}

// What the first of several runs has begun counts, not what the one before the last has seen.
func TestFetchComparesWithWhatIsThere(t *testing.T) {
	t.Parallel()
	b, fresh := setup(t), setup(t)
	first := strings.ReplaceAll(b.read(t, "hls/long/index.m3u8"), ".ts\n", ".ts?rate=150000\n")
	for _, list := range []string{first, strings.ReplaceAll(without(strings.ReplaceAll(first, "?rate=150000", ""), 0, 3), ".ts\n", ".ts?rate=150000\n"), first} {
		b.site.Turn(list)
		b.site.Forget()
		b.cutOff(t, "/hls/long/turning.m3u8", 200_000)
	}
	got, err := b.fetch(t, "/hls/long/turning.m3u8")
	require.NoError(t, err)
	want, err := fresh.fetch(t, "/hls/long/index.m3u8")
	require.NoError(t, err)
	require.Equal(t, frames(t, want.Path), frames(t, got.Path))
}

// yt-dlp fetches the initialization of a stream again each time, and counts it as its first fragment.
func TestFetchGoesOnWithAnInitializedStream(t *testing.T) {
	t.Parallel()
	b, fresh := setup(t), setup(t)
	var list strings.Builder
	list.WriteString("#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n#EXT-X-MAP:URI=\"/dash/long/init-stream0.m4s?rate=5000\"\n")
	for n := range 60 {
		fmt.Fprintf(&list, "#EXTINF:0.5,\n/dash/long/chunk-stream0-%05d.m4s?rate=150000\n", n+1)
	}
	list.WriteString("#EXT-X-ENDLIST\n")
	b.site.Turn(list.String())
	fresh.site.Turn(strings.ReplaceAll(list.String(), "?rate=150000", ""))
	b.cutOff(t, "/hls/long/turning.m3u8", 300_000)
	for range 2 { // once as soon as it is there again, and once later
		b.site.Forget()
		b.cutOff(t, "/hls/long/turning.m3u8", 20_000)
	}
	noted, err := readJournal(b.dir)
	require.NoError(t, err)
	require.NotEmpty(t, noted)
	for _, e := range noted {
		require.Greater(t, e.Fragments, 5, "%v", noted)
	}
	b.site.Forget()
	got, err := b.fetch(t, "/hls/long/turning.m3u8")
	require.NoError(t, err)
	rest := b.served()
	want, err := fresh.fetch(t, "/hls/long/turning.m3u8")
	require.NoError(t, err)
	require.Equal(t, frames(t, want.Path), frames(t, got.Path))
	require.Less(t, rest, fresh.served()*9/10, "it did not go on with what was there")
}

// anotherFilm is one of the site's with a box behind it, of the wanted size, that has something in it.
func (b *bundle) anotherFilm(t *testing.T, size int) string {
	t.Helper()
	film := b.read(t, "item-3.mp4")
	box := make([]byte, size-len(film))
	for i := range box {
		box[i] = byte(i)
	}
	binary.BigEndian.PutUint32(box, uint32(len(box))) //nolint:gosec // a small film
	copy(box[4:], "free")
	return film + string(box)
}

// yt-dlp would append the end of the new file to the beginning of the old one.
func TestFetchBeginsAnewWhereTheFileHasChanged(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]func(whole int) int{
		"SameSize": func(whole int) int { return whole },
		"Longer":   func(whole int) int { return whole + 100_000 },
		"Shorter":  func(int) int { return 110_000 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			whole := b.read(t, "plain.mp4")
			film := b.anotherFilm(t, size(len(whole)))
			b.cutOff(t, "/turning.mp4?rate=150000", 380_000)
			b.site.Turn(film)
			got, err := b.fetch(t, "/turning.mp4")
			require.NoError(t, err)
			content, err := os.ReadFile(got.Path)
			require.NoError(t, err)
			require.True(t, film == string(content), "it is not the new film")
		})
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	const size = 3 * overlapBytes
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i % 251)
	}
	part, kept := plainFile+".part", overlapPrefix+plainFile
	begin := func(t *testing.T) (dir string, write func(name string, content []byte)) {
		t.Helper()
		dir = t.TempDir()
		write = func(name string, content []byte) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		}
		require.NoError(t, plainPlan.write(dir))
		write(bootFile, []byte(bootID()))
		write(part, content)
		_, err := repair(dir)
		require.NoError(t, err)
		return dir, write
	}
	open := func(t *testing.T, dir string) *journal {
		t.Helper()
		j, err := openJournal(dir)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, j.close()) })
		return j
	}
	length := func(t *testing.T, dir string) int64 {
		t.Helper()
		info, err := os.Stat(filepath.Join(dir, part))
		require.NoError(t, err)
		return info.Size()
	}
	t.Run("Same", func(t *testing.T) {
		t.Parallel()
		dir, write := begin(t)
		require.EqualValues(t, size-overlapBytes, length(t, dir))
		j := open(t, dir)
		write(part, content[:size-1])
		require.NoError(t, j.observe())
		require.FileExists(t, filepath.Join(dir, kept))
		require.ErrorIs(t, j.end(), errChanged, "not all of it was compared")
		write(part, content)
		require.NoError(t, j.end())
		require.NoFileExists(t, filepath.Join(dir, kept))
	})
	t.Run("SameAndFinished", func(t *testing.T) {
		t.Parallel()
		dir, write := begin(t)
		j := open(t, dir)
		require.NoError(t, os.Remove(filepath.Join(dir, part)))
		write(plainFile, content)
		require.NoError(t, j.end())
	})
	t.Run("Other", func(t *testing.T) {
		t.Parallel()
		dir, write := begin(t)
		j := open(t, dir)
		write(part, append(content[:size-overlapBytes:size-overlapBytes], 99))
		require.ErrorIs(t, j.observe(), errChanged)
	})
	// A run that nobody has compared leaves nothing to the next.
	t.Run("NotCompared", func(t *testing.T) {
		t.Parallel()
		dir, write := begin(t)
		write(part, make([]byte, size))
		p, err := repair(dir)
		require.NoError(t, err)
		require.NotNil(t, p)
		require.EqualValues(t, size-overlapBytes, length(t, dir))
		write(part, make([]byte, size))
		require.ErrorIs(t, open(t, dir).observe(), errChanged)
	})
	for name, spoil := range map[string]func(dir string, write func(string, []byte)) error{
		"Finished": func(dir string, _ func(string, []byte)) error {
			return os.Rename(filepath.Join(dir, part), filepath.Join(dir, plainFile))
		},
		"Converted": func(dir string, _ func(string, []byte)) error {
			return os.Rename(filepath.Join(dir, part), filepath.Join(dir, "media.mp4.mkv"))
		},
		"Gone":      func(dir string, _ func(string, []byte)) error { return os.Remove(filepath.Join(dir, part)) },
		"Shorter":   func(dir string, _ func(string, []byte)) error { return os.Truncate(filepath.Join(dir, part), 1) },
		"Torn":      func(_ string, write func(string, []byte)) error { write(kept, []byte(`{"at":1`)); return nil },
		"NotOnDisk": func(_ string, write func(string, []byte)) error { write(kept, make([]byte, 100)); return nil },
	} {
		t.Run("NobodyKnows"+name, func(t *testing.T) {
			t.Parallel()
			dir, write := begin(t)
			require.NoError(t, spoil(dir, write))
			p, err := repair(dir)
			require.NoError(t, err)
			require.Nil(t, p)
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestTotal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, plainFile+".part"), make([]byte, 9), 0o600))
	for _, run := range []struct {
		size int64
		want error
	}{{0, nil}, {100, nil}, {100, nil}, {0, nil}, {101, errChanged}} {
		require.NoError(t, plainPlan.write(dir))
		_, err := repair(dir)
		require.NoError(t, err)
		j, err := openJournal(dir)
		require.NoError(t, err)
		require.NoError(t, j.total(plainFile, 7), "nobody knows yet what is fetched")
		j.chosen(&plainPlan)
		require.NoError(t, j.total(streamFile, 7))
		require.ErrorIs(t, j.total(plainFile, run.size), run.want)
		require.NoError(t, j.close())
	}
}

func TestPlaylist(t *testing.T) {
	t.Parallel()
	digest := func(text string) string {
		list, ok := parsePlaylist([]byte(text))
		require.True(t, ok, text)
		return list.digest()
	}
	plain := digest("#EXTM3U\n#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n")
	require.NotEmpty(t, plain)
	for name, text := range map[string]string{
		"Lines":       "#EXTM3U\r#EXTINF:2,a\u2028 0.ts\x1d\t#EXTINF:2,b\x0b1.ts\v\u00a0\n",
		"Invalid":     "#EXTM3U\xff\n#EXTINF:2,\n0.\xffts\n#EXTINF:2,\n1.ts",
		"Queries":     "#EXTM3U\n#EXTINF:2,\n0.ts?a=1\n#EXTINF:2,\n1.ts?a=2\n",
		"Of no sense": "#EXTM3U\n#EXT-X-PROGRAM-DATE-TIME:2020-01-01T00:00:00Z\n#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n#EXT-X-ENDLIST\n",
	} {
		require.Equal(t, plain, digest(text), name)
	}
	seen := map[string]string{}
	for name, text := range map[string]string{
		"Plain":          "#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n",
		"Order":          "#EXTINF:2,\n1.ts\n#EXTINF:2,\n0.ts\n",
		"Duration":       "#EXTINF:2,\n0.ts\n#EXTINF:3,\n1.ts\n",
		"OneMore":        "#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n2.ts",
		"Map":            "#EXT-X-MAP:URI=\"m\"\n#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n",
		"OtherMap":       "#EXT-X-MAP:URI=\"n\"\n#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n",
		"Encrypted":      "#EXT-X-KEY:METHOD=AES-128,URI=\"k\",IV=0x0\n#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n",
		"Sequence":       "#EXT-X-MEDIA-SEQUENCE:1\n#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n",
		"Discontinuous":  "#EXTINF:2,\n0.ts\n#EXT-X-DISCONTINUITY\n#EXTINF:2,\n1.ts\n",
		"Advertisement":  "#UPLYNK-SEGMENT:1,00,ad\n#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n",
		"Ranges":         "#EXTINF:2,\n#EXT-X-BYTERANGE:5@0\n0.ts\n#EXTINF:2,\n#EXT-X-BYTERANGE:5@5\n0.ts\n",
		"OtherRanges":    "#EXTINF:2,\n#EXT-X-BYTERANGE:5@0\n0.ts\n#EXTINF:2,\n#EXT-X-BYTERANGE:6@5\n0.ts\n",
		"ByQueries":      "#EXTINF:2,\ns?n=0\n#EXTINF:2,\ns?n=1\n",
		"ByOtherQueries": "#EXTINF:2,\ns?n=1\n#EXTINF:2,\ns?n=2\n",
	} {
		got := digest("#EXTM3U\n" + text)
		require.NotEmpty(t, got, name)
		require.NotContains(t, seen, got, name)
		seen[got] = name
	}
	// yt-dlp loses its place in these.
	for name, text := range map[string]string{
		"IndentedRange":   "#EXTM3U\n  #EXT-X-BYTERANGE:100\n#EXTINF:2,\n  0.ts\n",
		"CarriageReturns": "#EXTM3U\r#EXT-X-KEY:METHOD=AES-128,URI=\"k\"\r#EXTINF:2,\r0.ts\r",
		"TabbedKey":       "#EXTM3U\n\t#EXT-X-KEY:METHOD=AES-128,URI=\"k\"\n#EXTINF:2,\n0.ts\n",
		"QuotedMethod":    "#EXTM3U\n#EXT-X-KEY:METHOD=\"AES-128\",URI=\"k\"\n#EXTINF:2,\n0.ts\n",
		"VectorInAddress": "#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI=\"https://k/?a=1,IV=0x00\"\n#EXTINF:2,\n0.ts\n",
		"VectorElsewhere": "#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI=\"k\",IV=0x00\n#EXTINF:2,\n0.ts\n#EXT-X-KEY:METHOD=AES-128,URI=\"k\"\n#EXTINF:2,\n1.ts\n",
		"RangeAndSpace":   "#EXTM3U\n#EXTINF:2,\n#EXT-X-BYTERANGE:100 \t\n0.ts\n",
		"RangeThenNone":   "#EXTM3U\n#EXTINF:2,\n#EXT-X-BYTERANGE:100@0\n0.ts\n#EXTINF:2,\n1.ts\n",
		"NoFragments":     "#EXTM3U\n#EXTINF:2,\n",
	} {
		require.Empty(t, digest(text), name)
	}
	_, ok := parsePlaylist([]byte("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n0.m3u8\n"))
	require.False(t, ok)
}

// A stream whose list is too long to be read is fetched, and never gone on with.
func TestListThatIsTooLong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := sources{dir}
	write := func(name, content string, more int) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content+strings.Repeat("\n", more)), 0o600))
	}
	for more, known := range map[int]bool{0: true, maxSource: false} {
		require.NoError(t, s.forget())
		write(sourceFile, testSourceLine, more)
		write("a.dump", "#EXTM3U\n#EXTINF:2,\n0.ts\n", more)
		manifest, err := s.manifest("hls")
		require.NoError(t, err)
		require.Equal(t, known, manifest != "")
		lists, err := s.playlists()
		require.NoError(t, err)
		require.Len(t, lists, 1)
		require.Equal(t, known, lists[0] != "")
	}
}
