package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// renderNow is when the pictures of these tests are drawn.
var renderNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// aTracker follows one of everything: a running item with a long wide title, one that waits, and a collection.
func aTracker() *tracker {
	t := newTracker()
	t.want(remoteDownload{ID: "1", URL: "https://example.org/1", State: stateQueued})
	t.update(remoteDownload{
		ID: "1", Title: "深夜の馬鹿力 ラジオ 第1234回 とても長いタイトルのための試験", State: stateRunning,
		Progress: &remoteProgress{Phase: "downloading", Percent: 41.3, DownloadedBytes: 4_404_019, TotalBytes: 10_485_760, SpeedBytesPerS: 1_258_291, ETAS: 5},
	})
	next := renderNow.Add(95 * time.Second)
	t.want(remoteDownload{
		ID: "2", URL: "https://example.org/a/long/path/to/some/video.mp4", State: stateWaiting, WaitingOn: "retry", NextTryAt: &next,
		Failure: &remoteFailure{Reason: "rate_limited"},
	})
	t.want(remoteDownload{ID: "3", Title: "A gallery", State: stateRunning, IsCollection: true})
	for n, state := range []string{stateCompleted, stateFailed, stateRunning, stateRunning, stateQueued, stateQueued, stateQueued} {
		t.update(remoteDownload{ID: "3." + string(rune('a'+n)), ParentID: "3", Title: "Clip " + string(rune('A'+n)), State: state})
	}
	t.byID["3.c"].Progress = &remoteProgress{Phase: "postprocessing", Percent: 100}
	t.want(remoteDownload{ID: "4", URL: "https://example.org/4", State: stateQueued})
	return t
}

func TestFrame(t *testing.T) {
	t.Parallel()
	var pictures strings.Builder
	for _, s := range []screen{{100, 24, true}, {80, 24, false}, {50, 24, true}, {20, 24, true}, {100, 6, true}} {
		lines := s.frame(aTracker(), renderNow)
		require.LessOrEqual(t, len(lines), s.rows-2)
		for _, line := range lines {
			require.Less(t, cells(line), s.columns, "%q", line)
			pictures.WriteString(line + "\n")
		}
		pictures.WriteString(strings.Repeat("=", s.columns) + "\n")
	}
	golden(t, "frames.txt", pictures.String())
}

func TestFrameFitsAnyTerminal(t *testing.T) {
	t.Parallel()
	for columns := 1; columns < 130; columns++ {
		for rows := 1; rows < 12; rows++ {
			for _, line := range (screen{columns, rows, true}).frame(aTracker(), renderNow) {
				require.LessOrEqual(t, cells(line), max(1, columns-1))
			}
		}
	}
}

// What waits in the queue says for what, and many of it take one line.
func TestWaitingForLimits(t *testing.T) {
	t.Parallel()
	soon := renderNow.Add(12 * time.Second)
	tr := newTracker()
	for text, w := range map[string]remoteWaiting{
		"waiting (limit of user:*)":                             {Reason: "limit", Key: "user:*"},
		"waiting (pace of host:example.org), not before 0:12":   {Reason: "pace", Key: "host:example.org", NotBefore: &soon},
		"waiting (breaker of host:a [2Jb.org), not before 0:12": {Reason: "breaker", Key: "host:a\x1b[2Jb.org", NotBefore: &soon},
		"waiting: kind:download is paused":                      {Reason: "paused", Key: "kind:download"},
		"waiting for a free worker":                             {Reason: "slots", NotBefore: &renderNow},
	} {
		i := tr.want(remoteDownload{ID: text, State: stateWaiting, Waiting: &w})
		require.Equal(t, text, waitingText(i, renderNow))
	}
	tr = newTracker()
	tr.want(remoteDownload{ID: "page", State: stateRunning, IsCollection: true})
	for _, id := range []string{"a", "b", "c"} {
		tr.update(remoteDownload{ID: id, ParentID: "page", State: stateWaiting, Waiting: &remoteWaiting{Reason: "limit", Key: "user:*"}})
	}
	lines := screen{80, 24, true}.frame(tr, renderNow)
	require.Len(t, lines, 2)
	require.Contains(t, lines[1], "3 more in the queue")
}

// A title cannot act on the terminal that shows it.
func TestPrintable(t *testing.T) {
	t.Parallel()
	require.Equal(t, "a [2Jb c d ü 深 e", printable("a\x1b[2Jb\r\nc\td \u202e\u200b ü 深\u009b \xff e"))
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b[31m", 10)
	f.Fuzz(func(t *testing.T, text string, n int) {
		s := screen{columns: 80, rows: 24, unicode: true}
		shown := s.cut(s.printable(text), max(1, n%200))
		require.True(t, utf8.ValidString(shown))
		require.LessOrEqual(t, cells(shown), max(1, n%200))
		require.NotContains(t, shown, "\x1b")
	})
}

func TestTexts(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 KiB", 1024: "1.0 KiB", 1_023_999: "1.0 MiB", 10_485_760: "10.0 MiB", 5 << 40: "5.0 TiB"} {
		require.Equal(t, want, byteText(n))
	}
	for d, want := range map[time.Duration]string{0: "0:00", 7 * time.Second: "0:07", 754 * time.Second: "12:34", 3723 * time.Second: "1:02:03"} {
		require.Equal(t, want, clockText(d))
	}
	require.Equal(t, "2 completed, 1 failed", tally{Completed: 2, Failed: 1}.text())
	require.Equal(t, "Clip: the site refused (rate_limited)",
		endText(&item{remoteDownload: remoteDownload{State: stateFailed, Title: "Clip", Failure: &remoteFailure{Reason: "rate_limited", Detail: "the site refused."}}}))
}

func TestPlainView(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	v := newPlainView(&out)
	i := &item{remoteDownload: remoteDownload{ID: "1", URL: "https://example.org/1", State: stateQueued}}
	v.stateChanged(i)
	i.State, i.Title = stateRunning, "Clip\x1b[2J"
	v.stateChanged(i)
	for percent := 0.0; percent <= 100; percent += 0.7 {
		i.Progress = &remoteProgress{Phase: "downloading", Percent: percent, DownloadedBytes: int64(percent * 1024), TotalBytes: 102400}
		v.progressed(i)
	}
	i.State, i.Files = stateCompleted, []remoteFile{{Path: "admin/Clip [1].mp4", SizeBytes: 102400}}
	v.stateChanged(i)
	v.summary(tally{Completed: 1, Failed: 1})
	golden(t, "plain.txt", out.String())
}

func TestJSONView(t *testing.T) {
	t.Parallel()
	var out, notes bytes.Buffer
	v := newJSONView(&out, &notes)
	v.note("connected again")
	i := &item{remoteDownload: remoteDownload{ID: "1", URL: "https://example.org/1?a=1&b=2", State: stateCompleted, Files: []remoteFile{{Path: "p", SizeBytes: 1}}}}
	v.stateChanged(i)
	v.summary(tally{Completed: 1})
	require.Equal(t, "connected again\n", notes.String())
	require.Equal(t, `{"event":"state","download":{"id":"1","url":"https://example.org/1?a=1&b=2","state":"completed","files":[{"path":"p","size_bytes":1}]}}
{"event":"summary","completed":1,"failed":0,"cancelled":0,"running":0}
`, out.String())
}

// What a terminal shows after all that was written to it, by the few controls that liveView uses.
func TestLiveViewLeavesACleanTerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	v := newLiveView(&out, func() screen { return screen{60, 24, true} })
	tr := newTracker()
	a := tr.want(remoteDownload{ID: "1", Title: "First", State: stateRunning, Progress: &remoteProgress{Percent: 10}})
	b := tr.want(remoteDownload{ID: "2", Title: "Second", State: stateRunning, Progress: &remoteProgress{Percent: 20}})
	v.draw(tr)
	v.draw(tr)
	require.Len(t, terminal(t, out.String()), 2)
	a.State, a.Files = stateCompleted, []remoteFile{{Path: "admin/First.mp4", SizeBytes: 2048}}
	v.stateChanged(a)
	v.draw(tr)
	shown := terminal(t, out.String())
	require.Len(t, shown, 2)
	require.Equal(t, "✓ admin/First.mp4 (2.0 KiB)", shown[0])
	require.True(t, strings.HasPrefix(shown[1], "Second"), shown[1])
	b.State, b.Failure = stateFailed, &remoteFailure{Reason: "not_found", Detail: "There is nothing at this address."}
	v.stateChanged(b)
	v.draw(tr)
	v.summary(tr.count())
	require.Equal(t, []string{
		"✓ admin/First.mp4 (2.0 KiB)",
		"✗ Second: There is nothing at this address (not_found)",
		"1 completed, 1 failed",
	}, terminal(t, out.String()))
	require.True(t, strings.HasSuffix(out.String(), showCursor), "the cursor is back")
}

// terminal interprets output and returns the lines of the screen, without empty ones at the end.
func terminal(t *testing.T, output string) []string {
	t.Helper()
	lines, row, column := [][]rune{nil}, 0, 0
	for rest := output; rest != ""; {
		if tail, ok := strings.CutPrefix(rest, "\x1b["); ok {
			end := strings.IndexFunc(tail, func(r rune) bool { return r >= '@' && r <= '~' })
			argument, final := tail[:end], tail[end]
			rest = tail[end+1:]
			switch {
			case final == 'A':
				n := 0
				for _, digit := range argument {
					n = n*10 + int(digit-'0')
				}
				row -= n
				require.GreaterOrEqual(t, row, 0)
			case final == 'K':
				lines[row] = lines[row][:min(column, len(lines[row]))]
			case final == 'J':
				lines[row] = lines[row][:min(column, len(lines[row]))]
				lines = lines[:row+1]
			case strings.HasPrefix(argument, "?25"):
			default:
				t.Fatalf("control %q %q", argument, final)
			}
			continue
		}
		r, size := utf8.DecodeRuneInString(rest)
		rest = rest[size:]
		switch r {
		case '\r':
			column = 0
		case '\n':
			if row++; row == len(lines) {
				lines = append(lines, nil)
			}
		default:
			for len(lines[row]) <= column {
				lines[row] = append(lines[row], ' ')
			}
			lines[row][column] = r
			column++
		}
	}
	var text []string
	for _, line := range lines {
		text = append(text, strings.TrimRight(string(line), " "))
	}
	for len(text) > 0 && text[len(text)-1] == "" {
		text = text[:len(text)-1]
	}
	return text
}
