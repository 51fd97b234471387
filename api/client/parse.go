package client

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// maxLineBytes bounds a line of the stream.
const maxLineBytes = 1 << 20

// eventLine is what a line of the stream amounts to: an event that it ends, a new pause, or nothing but a sign of life.
type eventLine struct {
	event *Event
	retry time.Duration
}

// readEvents parses an event stream as https://html.spec.whatwg.org/multipage/server-sent-events.html says, and calls
// handle for each line. It returns nil at the stream's end; an event that is cut off there is dropped.
func readEvents(r io.Reader, handle func(eventLine) error) error {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 0, 4096), maxLineBytes)
	scanner.Split(splitLines())
	var (
		event   Event
		hasData bool
		first   = true
	)
	for scanner.Scan() {
		text := scanner.Text()
		if first {
			text, first = strings.TrimPrefix(text, "\ufeff"), false
		}
		var line eventLine
		field, value, _ := strings.Cut(text, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case text == "":
			if hasData || event.ID != "" {
				ended := event
				line.event = &ended
			}
			event, hasData = Event{}, false
		case field == "event":
			event.Type = value
		case field == "data":
			if hasData {
				event.Data = append(event.Data, '\n')
			}
			event.Data, hasData = append(event.Data, value...), true
		case field == "id" && !strings.ContainsRune(value, 0):
			event.ID = value
		case field == "retry":
			if ms, err := strconv.ParseUint(value, 10, 31); err == nil {
				line.retry = time.Duration(ms) * time.Millisecond
			}
		}
		if err := handle(line); err != nil {
			return err
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return nil
}

// splitLines ends lines at LF, CR or both, without waiting after a CR for what may follow.
func splitLines() bufio.SplitFunc {
	afterCR := false
	return func(data []byte, atEOF bool) (int, []byte, error) {
		start := 0
		if afterCR && len(data) > 0 {
			afterCR = false
			if data[0] == '\n' {
				start = 1
			}
		}
		if i := bytes.IndexAny(data[start:], "\r\n"); i >= 0 {
			afterCR = data[start+i] == '\r'
			return start + i + 1, data[start : start+i], nil
		}
		if atEOF {
			return len(data), nil, nil
		}
		return start, nil, nil
	}
}
