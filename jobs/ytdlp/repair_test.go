package ytdlp

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	streamFile = "media.hls.mp4"
	plainFile  = "media.mp4.mp4"
)

var (
	streamPlan = plan{Formats: []string{"hls"}, File: streamFile, Parts: map[string]part{streamFile: {byManifest, "hls"}}}
	plainPlan  = plan{Formats: []string{"mp4"}, File: plainFile, Parts: map[string]part{plainFile: {byRange, "mp4"}}}
	mergePlan  = plan{
		Formats: []string{"1", "2"}, File: "media.1+2.mp4",
		Parts: map[string]part{"media.1+2.f1.mp4": {byRange, "1"}, "media.1+2.f2.m4a": {byManifest, "2"}},
	}
)

// testSource is the digest of the list in testSourceLine.
var testSource = fragments{list: []fragment{{"/1.m4s", "", "0.5"}, {"/2.m4s", "", "1"}}}.digest()

const testSourceLine = `{"format_id":"hls","formats":null,"fragments":[{"url":"http://a/1.m4s?x","duration":0.5},` +
	`{"path":"/2.m4s?y","duration":1}]}` + "\n"

func journalOf(entries ...entry) string {
	var b strings.Builder
	for _, e := range entries {
		text, _ := json.Marshal(e)
		b.Write(append(text, '\n'))
	}
	return b.String()
}

func TestRepair(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	two := journalOf(entry{File: streamFile, Size: 1000, Fragments: 4, Source: testSource}, entry{File: streamFile, Size: 2000, Fragments: 8, Source: testSource})
	for name, test := range map[string]struct {
		plan    *plan
		journal string
		boot    string // empty: this one
		files   map[string]int
		want    map[string]int // sizes
		count   int            // in the stream's .ytdl
	}{
		"PlainFile":            {plan: &plainPlan, files: map[string]int{plainFile + ".part": 3 * mib}, want: map[string]int{plainFile + ".part": 3*mib - overlapBytes}},
		"PlainFileOtherBoot":   {plan: &plainPlan, boot: "x", files: map[string]int{plainFile + ".part": 3 * mib}, want: map[string]int{plainFile + ".part": 2*mib - overlapBytes}},
		"PlainFileNoBoot":      {plan: &plainPlan, boot: "none", files: map[string]int{plainFile + ".part": 10}, want: map[string]int{plainFile + ".part": 0}},
		"OfAnotherFormat":      {plan: &plainPlan, files: map[string]int{"media.22.mp4.part": 3}, want: map[string]int{}},
		"NobodyKnowsWhat":      {files: map[string]int{plainFile + ".part": 3, plainFile: 4, streamFile + ".ytdl": 1}, want: map[string]int{}},
		"LeftOfFFmpeg":         {plan: &mergePlan, files: map[string]int{"media.1+2.temp.mp4": 5, "media.1+2.f1.mp4": 6}, want: map[string]int{"media.1+2.f1.mp4": 6}},
		"Stream":               {plan: &streamPlan, journal: two, files: map[string]int{streamFile + ".part": 2345, streamFile + ".ytdl": 0, streamFile + ".part-Frag9.part": 7, streamFile + ".part-Frag9": 7}, want: map[string]int{streamFile + ".part": 2000}, count: 8},
		"StreamIsShorter":      {plan: &streamPlan, journal: two, files: map[string]int{streamFile + ".part": 1999, streamFile + ".ytdl": 9}, want: map[string]int{streamFile + ".part": 1000}, count: 4},
		"StreamIsTooShort":     {plan: &streamPlan, journal: two, files: map[string]int{streamFile + ".part": 999, streamFile + ".ytdl": 9}, want: map[string]int{}},
		"StreamIsComplete":     {plan: &streamPlan, journal: two, files: map[string]int{streamFile + ".part": 3000}, want: map[string]int{streamFile + ".part": 2000}, count: 8},
		"StreamWithoutJournal": {plan: &streamPlan, files: map[string]int{streamFile + ".part": 3000, streamFile + ".ytdl": 30}, want: map[string]int{}},
		"StreamTornJournal":    {plan: &streamPlan, journal: two + `{"file":"media.hls.mp4","size":2500,"fragments":1`, files: map[string]int{streamFile + ".part": 3000}, want: map[string]int{streamFile + ".part": 2000}, count: 8},
		"StreamZeroedJournal":  {plan: &streamPlan, journal: two + strings.Repeat("\x00", 99) + "\n", files: map[string]int{streamFile + ".part": 3000}, want: map[string]int{streamFile + ".part": 2000}, count: 8},
		"StreamOtherBoot": {
			plan: &streamPlan, boot: "x", journal: journalOf(entry{File: streamFile, Size: mib, Fragments: 4, Source: testSource}, entry{File: streamFile, Size: 2 * mib, Fragments: 8, Source: testSource}),
			files: map[string]int{streamFile + ".part": 3*mib - 1}, want: map[string]int{streamFile + ".part": mib}, count: 4,
		},
		"Finished":            {plan: &plainPlan, files: map[string]int{plainFile: 5}, want: map[string]int{plainFile: 5}},
		"FinishedOtherBoot":   {plan: &plainPlan, boot: "x", files: map[string]int{plainFile: 5}, want: map[string]int{}},
		"FinishedAndOnDisk":   {plan: &plainPlan, boot: "x", journal: journalOf(entry{File: plainFile, Size: 5}), files: map[string]int{plainFile: 5}, want: map[string]int{plainFile: 5}},
		"FinishedAndReplaced": {plan: &plainPlan, boot: "x", journal: journalOf(entry{File: plainFile, Size: 4}), files: map[string]int{plainFile: 5}, want: map[string]int{}},
		"HalfConverted":       {plan: &plainPlan, files: map[string]int{plainFile: 5, "media.mp4.mkv": 3}, want: map[string]int{plainFile: 5}},
		"Converted":           {plan: &plainPlan, files: map[string]int{"media.mp4.mkv": 3}, want: map[string]int{"media.mp4.mkv": 3}},
		"Merging":             {plan: &mergePlan, files: map[string]int{"media.1+2.f1.mp4": 6, "media.1+2.f2.m4a": 5, "media.1+2.mp4": 11}, want: map[string]int{"media.1+2.f1.mp4": 6, "media.1+2.f2.m4a": 5, "media.1+2.mp4": 11}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write := func(name string, content []byte) {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
			}
			if test.plan != nil {
				require.NoError(t, test.plan.write(dir))
			}
			for name, size := range test.files {
				write(name, make([]byte, size))
			}
			write(journalFile, []byte(test.journal))
			write(infoFile, []byte("{}"))
			switch test.boot {
			case "":
				write(bootFile, []byte(bootID()))
			case "none":
			default:
				write(bootFile, []byte(test.boot))
			}
			for range 2 { // done again, it changes nothing more
				got, err := repair(dir)
				require.NoError(t, err)
				require.Equal(t, test.plan, got)
				files, err := filepath.Glob(filepath.Join(dir, "media.*"))
				require.NoError(t, err)
				sizes := map[string]int{}
				for _, path := range files {
					info, err := os.Stat(path)
					require.NoError(t, err)
					if n, ok := readCount(path); ok {
						require.Equal(t, test.count, n)
						continue
					}
					sizes[filepath.Base(path)] = int(info.Size())
				}
				require.Equal(t, test.want, sizes)
				require.Equal(t, test.count > 0, exists(filepath.Join(dir, streamFile+".ytdl")))
				require.FileExists(t, filepath.Join(dir, infoFile))
				if test.boot != "" { // what was cut is not cut again, once the writer is known
					break
				}
			}
			if test.count > 0 {
				left, err := readJournal(dir)
				require.NoError(t, err)
				require.Len(t, left, 1, "entries of what was cut off are still there")
			}
		})
	}
}

// The states that a directory goes through while yt-dlp appends fragments, and while it fails to.
func TestJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	part, count := filepath.Join(dir, streamFile+".part"), filepath.Join(dir, streamFile+".ytdl")
	j, err := openJournal(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, j.close()) })
	j.chosen(&streamPlan)
	require.NoError(t, os.WriteFile(filepath.Join(dir, sourceFile), []byte(testSourceLine), 0o600))
	size := func(n int) { require.NoError(t, os.WriteFile(part, make([]byte, n), 0o600)) }
	index := func(n int) { require.NoError(t, writeCount(count, n)) }
	touch := func(path string) { require.NoError(t, os.WriteFile(path, nil, 0o600)) }
	remove := func(path string) { require.NoError(t, os.Remove(path)) }
	expect := func(want ...entry) {
		t.Helper()
		require.NoError(t, j.observe())
		got, err := readJournal(dir)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	expect()
	index(0)
	expect()
	touch(part + "-Frag1")
	size(50) // half of it
	expect()
	size(100)
	expect()
	index(1)
	expect()
	remove(part + "-Frag1")
	expect() // its appending may have failed
	touch(part + "-Frag2.part")
	first := entry{File: streamFile, Size: 100, Fragments: 1, Source: testSource}
	expect(first)
	require.NoError(t, os.Rename(part+"-Frag2.part", part+"-Frag2"))
	size(150)
	expect(first)
	size(200)
	touch(count) // truncated, about to be written
	expect(first)
	index(2)
	remove(part + "-Frag2")
	expect(first)
	index(3) // the next was there before anybody looked
	size(300)
	second := entry{File: streamFile, Size: 200, Fragments: 2, Source: testSource}
	expect(first, second)
	index(4)
	size(333) // an interrupt in the midst of appending: counted and removed all the same
	expect(first, second, entry{File: streamFile, Size: 300, Fragments: 3, Source: testSource})
	expect(first, second, entry{File: streamFile, Size: 300, Fragments: 3, Source: testSource})
	remove(count)
	require.NoError(t, os.Rename(part, filepath.Join(dir, streamFile)))
	expect(first, second, entry{File: streamFile, Size: 300, Fragments: 3, Source: testSource})
	expect(first, second, entry{File: streamFile, Size: 300, Fragments: 3, Source: testSource}, entry{File: streamFile, Size: 333})
	expect(first, second, entry{File: streamFile, Size: 300, Fragments: 3, Source: testSource}, entry{File: streamFile, Size: 333})
}

// yt-dlp fetches the initialization of a stream again when it goes on with it, and counts it as the first fragment.
func TestJournalOfAStreamGoneOnWith(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	part, count := filepath.Join(dir, streamFile+".part"), filepath.Join(dir, streamFile+".ytdl")
	write := func(name, content string) {
		t.Helper()
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	}
	begun := entry{File: streamFile, Size: 800, Fragments: 8, Source: testSource}
	write(filepath.Join(dir, journalFile), journalOf(begun))
	write(filepath.Join(dir, sourceFile), testSourceLine)
	j, err := openJournal(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, j.close()) })
	j.chosen(&streamPlan)
	expect := func(n, size int, want ...entry) {
		t.Helper()
		require.NoError(t, writeCount(count, n))
		write(part, strings.Repeat("x", size))
		require.NoError(t, j.observe())
		got, err := readJournal(dir)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	expect(8, 800, begun)
	write(part+"-Frag1", "")
	expect(8, 850, begun)
	require.NoError(t, os.Remove(part+"-Frag1"))
	expect(1, 850, begun)
	write(part+"-Frag2.part", "")
	expect(1, 850, begun)
	expect(9, 950, begun)
	expect(10, 1050, begun, entry{File: streamFile, Size: 950, Fragments: 9, Source: testSource})
}

func TestPlanNamesWhatWasChosen(t *testing.T) {
	t.Parallel()
	require.Equal(t, `b*[format_id="a\"b\\c"]+b*[format_id="mp4"]`, (&plan{Formats: []string{`a"b\c`, "mp4"}}).selector())
	require.Nil(t, makePlan(planLine{}))
	require.Nil(t, makePlan(planLine{Format: "1+2", File: "/x/media.1+2.mp4", Formats: []string{"1", "2"}, Exts: []string{"mp4"}}))
	require.Equal(t, &mergePlan, makePlan(planLine{
		Format: "1+2", File: "/x/media.1+2.mp4", Protocol: "https+http_dash_segments", Formats: []string{"1", "2"},
		Exts: []string{"mp4", "m4a"}, Protocols: []string{"https", "http_dash_segments"},
	}))
	list := makePlan(planLine{Format: "hls", File: "/x/" + streamFile, Protocol: "m3u8_native", Formats: []string{}})
	require.Equal(t, part{byPlaylist, "hls"}, list.Parts[streamFile])
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, planFile), []byte(`{"formats":["1"`), 0o600))
	p, err := readPlan(dir)
	require.NoError(t, err)
	require.Nil(t, p)
}
