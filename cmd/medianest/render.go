package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/width"
)

// screen is what a live picture has to fit into.
type screen struct {
	columns, rows int
	unicode       bool // the terminal shows more than ASCII
}

const (
	minTitleCells = 12
	maxTitleCells = 48
	barCells      = 16
	percentCells  = 7  // " 100.0%"
	textCells     = 38 // "999.9/999.9 MiB  999.9 MiB/s  eta 0:59"
)

// frame draws what is in progress: the lines at the bottom of the terminal that are drawn again and again. It never
// returns more lines than fit above the prompt, nor wider ones than the terminal.
func (s screen) frame(t *tracker, now time.Time) []string {
	var lines []string
	hidden := 0
	room := max(1, s.rows-2)
	add := func(line string) {
		if len(lines) < room {
			lines = append(lines, line)
		} else {
			hidden++
		}
	}
	for _, root := range t.roots {
		if root.final() {
			continue
		}
		add(s.line(root, 0, now))
		waiting := 0
		for _, child := range root.children {
			switch {
			case child.final():
			case child.State == stateQueued, child.Waiting != nil:
				waiting++
			default:
				add(s.line(child, 2, now))
			}
		}
		if waiting > 0 {
			add(s.fit(fmt.Sprintf("  %d more in the queue", waiting)))
		}
	}
	if hidden > 0 {
		lines[len(lines)-1] = s.fit(fmt.Sprintf("and %d more", hidden+1))
	}
	return lines
}

// line draws one download in progress.
func (s screen) line(i *item, indent int, now time.Time) string {
	lead := strings.Repeat(" ", indent)
	if len(i.children) > 0 {
		done, total := 0, len(i.children)
		for _, child := range i.children {
			if child.final() {
				done++
			}
		}
		return s.columnsOf(lead, i.label(), 100*float64(done)/float64(total), fmt.Sprintf("%d of %d", done, total))
	}
	switch i.State {
	case stateWaiting:
		return s.columnsOf(lead, i.label(), -1, waitingText(i, now))
	case stateRunning:
		switch p := i.Progress; {
		case p == nil || p.Phase == "probing":
			return s.columnsOf(lead, i.label(), -1, "looking at it")
		case p.Phase == "downloading":
			return s.columnsOf(lead, i.label(), p.Percent, progressText(*p))
		default:
			return s.columnsOf(lead, i.label(), 100, strings.ReplaceAll(p.Phase, "_", " "))
		}
	default:
		return s.columnsOf(lead, i.label(), -1, i.State)
	}
}

// columnsOf lays out title, bar and text, each at the same place in every line. A percent below 0 has no bar. A narrow
// terminal has no bars at all, and then short titles.
func (s screen) columnsOf(lead, title string, percent float64, text string) string {
	usable := s.columns - 1 // the last column makes some terminals wrap
	barWidth := barCells + 3 + percentCells
	if usable-barWidth-2-textCells < minTitleCells {
		barWidth = percentCells
	}
	titleCells := min(max(usable-barWidth-2-textCells, minTitleCells), maxTitleCells) - cells(lead)
	bar := ""
	if percent >= 0 {
		bar = fmt.Sprintf(" %5.1f%%", percent)
		if barWidth > percentCells {
			bar = " " + s.bar(percent) + bar
		}
	}
	return s.fit(lead + pad(s.cut(s.printable(title), titleCells), titleCells) + bar + "  " + text)
}

// bar draws a percentage in a fixed number of cells.
func (s screen) bar(percent float64) string {
	percent = min(max(percent, 0), 100)
	if !s.unicode {
		full := int(percent / 100 * barCells)
		return "[" + strings.Repeat("#", full) + strings.Repeat("-", barCells-full) + "]"
	}
	eighths := int(percent / 100 * barCells * 8)
	full := eighths / 8
	bar := strings.Repeat("█", full)
	if rest := eighths % 8; rest > 0 {
		bar += string([]rune("▏▎▍▌▋▊▉")[rest-1])
		full++
	}
	return "▕" + bar + strings.Repeat(" ", barCells-full) + "▏"
}

// fit cuts a line to the terminal.
func (s screen) fit(line string) string {
	return strings.TrimRight(s.cut(line, max(1, s.columns-1)), " ")
}

// cut shortens a text to at most n cells, with an ellipsis where something went.
func (s screen) cut(text string, n int) string {
	if cells(text) <= n {
		return text
	}
	ellipsis := "…"
	if !s.unicode {
		ellipsis = "~"
	}
	var b strings.Builder
	used := 0
	for _, r := range text {
		w := runeCells(r)
		if used+w > n-1 {
			break
		}
		b.WriteRune(r)
		used += w
	}
	return b.String() + ellipsis
}

// printable makes a text from elsewhere safe for this terminal; where it shows ASCII only, other characters are marks.
func (s screen) printable(text string) string {
	text = printable(text)
	if s.unicode {
		return text
	}
	return strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII {
			return '?'
		}
		return r
	}, text)
}

// printable takes out what would move the cursor, colour the terminal or turn the direction of writing: titles come
// from anywhere.
func printable(text string) string {
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		switch {
		case r == unicode.ReplacementChar, unicode.IsControl(r), unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Cs):
			return ' '
		default:
			return r
		}
	}, text)), " ")
}

// cells is how many columns a text takes.
func cells(text string) int {
	n := 0
	for _, r := range text {
		n += runeCells(r)
	}
	return n
}

func runeCells(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	default:
		return 1
	}
}

func pad(text string, n int) string {
	return text + strings.Repeat(" ", max(0, n-cells(text)))
}

// label is what a person calls the download.
func (i *item) label() string {
	if i.Title != "" {
		return i.Title
	}
	return i.URL
}

func progressText(p remoteProgress) string {
	parts := []string{byteText(p.DownloadedBytes)}
	if p.TotalBytes > 0 {
		unit := sizeUnit(p.TotalBytes)
		parts[0] = fmt.Sprintf("%s/%s", strings.TrimSuffix(unit.text(p.DownloadedBytes), " "+unit.name), unit.text(p.TotalBytes))
	}
	if p.SpeedBytesPerS > 0 {
		parts = append(parts, byteText(p.SpeedBytesPerS)+"/s")
	}
	if p.ETAS > 0 {
		parts = append(parts, "eta "+clockText(time.Duration(p.ETAS)*time.Second))
	}
	return strings.Join(parts, "  ")
}

func waitingText(i *item, now time.Time) string {
	text := "waiting"
	if i.Waiting != nil {
		return text + limitText(*i.Waiting, now)
	}
	if i.Failure != nil && i.Failure.Reason != "" {
		text += " (" + strings.ReplaceAll(i.Failure.Reason, "_", " ") + ")"
	}
	if i.NextTryAt != nil {
		if left := i.NextTryAt.Sub(now); left > 0 {
			text += ", next try in " + clockText(left)
		}
	}
	return text
}

// limitText tells what somebody waits for in the queue. The stream does not tell when that changes, so it is no more than
// what stays true for a while.
func limitText(w remoteWaiting, now time.Time) string {
	if w.Key == "" {
		return " for a free worker"
	}
	text := " (" + w.Reason + " of " + printable(w.Key) + ")"
	if w.Reason == "paused" {
		text = ": " + printable(w.Key) + " is paused"
	}
	if w.NotBefore != nil {
		if left := w.NotBefore.Sub(now); left > 0 {
			text += ", not before " + clockText(left)
		}
	}
	return text
}

// unitOfSize is one in which sizes are told.
type unitOfSize struct {
	name  string
	bytes float64
}

var unitsOfSize = []unitOfSize{{"B", 1}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}}

// sizeUnit is the unit in which n has at most three digits before the point.
func sizeUnit(n int64) unitOfSize {
	for _, u := range unitsOfSize {
		if float64(n) < 999.95*u.bytes {
			return u
		}
	}
	return unitsOfSize[len(unitsOfSize)-1]
}

func (u unitOfSize) text(n int64) string {
	if u.bytes == 1 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", float64(n)/u.bytes, u.name)
}

func byteText(n int64) string { return sizeUnit(n).text(n) }

// clockText is a duration as 0:07, 12:34 or 1:02:03.
func clockText(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	if s < 3600 {
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}
