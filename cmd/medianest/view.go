package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// view shows what happens to downloads.
type view interface {
	// stateChanged is called once for every state an item is seen in.
	stateChanged(i *item)
	progressed(i *item)
	// accepted is the last that is shown of a download that is not followed.
	accepted(i *item)
	// note tells a person something that is not about one download.
	note(text string)
	// draw is called a few times a second.
	draw(t *tracker)
	// clear takes back what draw showed, before somebody else writes to the terminal.
	clear()
	summary(c tally)
}

// endText is the line that stays when a download has ended.
func endText(i *item) string {
	title := printable(i.label())
	switch i.State {
	case stateCompleted:
		if len(i.Files) == 0 {
			return title
		}
		paths := make([]string, 0, len(i.Files))
		var size int64
		for _, f := range i.Files {
			paths, size = append(paths, printable(f.Path)), size+f.SizeBytes
		}
		return fmt.Sprintf("%s (%s)", strings.Join(paths, ", "), byteText(size))
	case stateFailed:
		return title + ": " + failureText(i.Failure)
	default:
		return title
	}
}

// acceptedText names a download for whoever looks for it later.
func acceptedText(i *item) string { return "accepted as " + i.ID + ": " + printable(i.URL) }

func failureText(f *remoteFailure) string {
	switch {
	case f == nil:
		return "no reason was given"
	case f.Detail == "":
		return strings.ReplaceAll(printable(f.Reason), "_", " ")
	default:
		return fmt.Sprintf("%s (%s)", strings.TrimSuffix(printable(f.Detail), "."), printable(f.Reason))
	}
}

func (c tally) text() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{c.Completed, "completed"}, {c.Failed, "failed"}, {c.Cancelled, "cancelled"}, {c.Running, "not finished"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	if len(parts) == 0 {
		return "nothing to download"
	}
	return strings.Join(parts, ", ")
}

// plainView writes lines that stay: for logs, pipes and people without a terminal.
type plainView struct {
	w     io.Writer
	shown map[string]int // last percentage written, in steps of plainStep
}

const plainStep = 10 // percent

func newPlainView(w io.Writer) *plainView { return &plainView{w: w, shown: map[string]int{}} }

func (v *plainView) stateChanged(i *item) {
	delete(v.shown, i.ID) // another attempt begins at nothing
	text := printable(i.label())
	switch {
	case i.final():
		text = endText(i)
	case i.State == stateWaiting:
		text += ": " + waitingText(i, time.Now())
	}
	v.line(i.State, text)
}

func (v *plainView) progressed(i *item) {
	if i.Progress == nil || i.Progress.Phase != "downloading" || len(i.children) > 0 {
		return
	}
	step := int(i.Progress.Percent) / plainStep
	if step <= v.shown[i.ID] || step >= 100/plainStep {
		return
	}
	v.shown[i.ID] = step
	v.line(fmt.Sprintf("%d %%", step*plainStep), printable(i.label())+"  "+progressText(*i.Progress))
}

func (v *plainView) accepted(i *item) { fmt.Fprintln(v.w, acceptedText(i)) }

func (v *plainView) line(what, text string) { fmt.Fprintf(v.w, "%-10s %s\n", what, text) }
func (v *plainView) note(text string)       { fmt.Fprintln(v.w, text) }
func (v *plainView) draw(*tracker)          {}
func (v *plainView) clear()                 {}
func (v *plainView) summary(c tally) {
	if c.Completed+c.Failed+c.Cancelled+c.Running > 1 {
		fmt.Fprintln(v.w, c.text())
	}
}

// jsonView writes one object a line to stdout, for programs; notes go to stderr.
type jsonView struct {
	out    *json.Encoder
	stderr io.Writer
}

func newJSONView(stdout, stderr io.Writer) *jsonView {
	encoder := json.NewEncoder(stdout)
	encoder.SetEscapeHTML(false)
	return &jsonView{out: encoder, stderr: stderr}
}

func (v *jsonView) write(event string, i *item) {
	_ = v.out.Encode(struct { // a reader that left is noticed by nobody but the reader
		Event    string         `json:"event"`
		Download remoteDownload `json:"download"`
	}{event, i.remoteDownload})
}

func (v *jsonView) stateChanged(i *item) { v.write("state", i) }
func (v *jsonView) progressed(i *item)   { v.write("progress", i) }
func (v *jsonView) accepted(*item)       {}
func (v *jsonView) note(text string)     { fmt.Fprintln(v.stderr, text) }
func (v *jsonView) draw(*tracker)        {}
func (v *jsonView) clear()               {}
func (v *jsonView) summary(c tally) {
	_ = v.out.Encode(struct {
		Event string `json:"event"`
		tally
	}{"summary", c})
}

// liveView keeps bars at the bottom of a terminal and lets what has ended scroll away above them. Each picture is one
// write that overwrites the last one line by line, so nothing flickers.
type liveView struct {
	w      io.Writer
	size   func() screen
	drawn  int // lines of the last picture
	above  strings.Builder
	hidden bool // the cursor is
}

const (
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	clearRight = "\x1b[K"
	clearBelow = "\x1b[J"
)

func newLiveView(w io.Writer, size func() screen) *liveView { return &liveView{w: w, size: size} }

func (v *liveView) stateChanged(i *item) {
	if !i.final() {
		return // the picture shows it
	}
	if len(i.children) > 0 && i.State == stateCompleted && i.Failure == nil {
		return // its items said it all
	}
	s := v.size()
	mark := map[string]string{stateCompleted: "✓", stateFailed: "✗"}[i.State]
	if mark == "" {
		mark = "–"
	}
	if !s.unicode {
		mark = map[string]string{"✓": "ok     ", "✗": "FAILED ", "–": "ended  "}[mark]
	}
	text := endText(i)
	if i.State == stateCancelled || i.State == stateDeleted {
		text += ": " + i.State
	}
	v.note(mark + " " + s.printable(text))
}

func (v *liveView) progressed(*item) {}

func (v *liveView) accepted(i *item) { v.note(acceptedText(i)) }

// note puts a line above the bars, with the next picture.
func (v *liveView) note(text string) { v.above.WriteString(text + "\n") }

func (v *liveView) draw(t *tracker) {
	lines := v.size().frame(t, time.Now())
	var b strings.Builder
	if !v.hidden && len(lines) > 0 {
		b.WriteString(hideCursor)
		v.hidden = true
	}
	b.WriteString(v.home())
	for line := range strings.Lines(v.above.String()) {
		b.WriteString(strings.TrimSuffix(line, "\n") + clearRight + "\r\n")
	}
	v.above.Reset()
	for _, line := range lines {
		b.WriteString(line + clearRight + "\r\n")
	}
	b.WriteString(clearBelow)
	v.drawn = len(lines)
	_, _ = io.WriteString(v.w, b.String()) // a terminal that went away takes its reader with it
}

// home moves to the first line of the last picture.
func (v *liveView) home() string {
	if v.drawn == 0 {
		return "\r"
	}
	return fmt.Sprintf("\r\x1b[%dA", v.drawn)
}

func (v *liveView) clear() {
	text := v.home() + clearBelow
	for line := range strings.Lines(v.above.String()) {
		text += strings.TrimSuffix(line, "\n") + "\r\n"
	}
	v.above.Reset()
	v.drawn = 0
	if v.hidden {
		text += showCursor
		v.hidden = false
	}
	_, _ = io.WriteString(v.w, text)
}

func (v *liveView) summary(c tally) {
	if c.Completed+c.Failed+c.Cancelled+c.Running > 1 {
		v.note(c.text())
	}
	v.clear()
}
