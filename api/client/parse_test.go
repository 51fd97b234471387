package client

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

// parse returns the events of a stream, and the last pause that it asks for.
func parse(t *testing.T, r io.Reader) (events []Event, retry time.Duration) {
	t.Helper()
	require.NoError(t, readEvents(r, func(line eventLine) error {
		if line.event != nil {
			events = append(events, *line.event)
		}
		if line.retry > 0 {
			retry = line.retry
		}
		return nil
	}))
	return events, retry
}

func TestReadEvents(t *testing.T) {
	t.Parallel()
	event := func(id, kind, data string) Event { return Event{ID: id, Type: kind, Data: []byte(data)} }
	for name, test := range map[string]struct {
		text  string
		want  []Event
		retry time.Duration
	}{
		"an event":                    {"id: 1\nevent: a\ndata: x\n\n", []Event{event("1", "a", "x")}, 0},
		"without spaces":              {"id:1\nevent:a\ndata:x\n\n", []Event{event("1", "a", "x")}, 0},
		"one space is not data":       {"data:  x\n\n", []Event{event("", "", " x")}, 0},
		"several lines of data":       {"data: x\ndata\ndata: y\n\n", []Event{event("", "", "x\n\ny")}, 0},
		"CR LF":                       {"data: x\r\n\r\ndata: y\r\n\r\n", []Event{event("", "", "x"), event("", "", "y")}, 0},
		"CR":                          {"data: x\r\rdata: y\r\r", []Event{event("", "", "x"), event("", "", "y")}, 0},
		"comments":                    {": ping\n\ndata: x\n: ping\n\n", []Event{event("", "", "x")}, 0},
		"a byte order mark":           {"\ufeffdata: x\n\n", []Event{event("", "", "x")}, 0},
		"a pause":                     {"retry: 1500\n\n", nil, 1500 * time.Millisecond},
		"a pause that is no number":   {"retry: soon\n\n", nil, 0},
		"an id with NUL":              {"id: 1\x00\ndata: x\n\n", []Event{event("", "", "x")}, 0},
		"an event that is cut off":    {"data: x\n\ndata: y\n", []Event{event("", "", "x")}, 0},
		"a line that is cut off":      {"data: x\n\ndata: y", []Event{event("", "", "x")}, 0},
		"a field that nobody knows":   {"colour: red\ndata: x\n\n", []Event{event("", "", "x")}, 0},
		"an id alone":                 {"id: 7\n\n", []Event{{ID: "7"}}, 0},
		"a value with colons":         {"data: {\"a\":\"b:c\"}\n\n", []Event{event("", "", `{"a":"b:c"}`)}, 0},
		"empty data is an event":      {"data\n\n", []Event{{}}, 0},
		"nothing":                     {"", nil, 0},
		"a type does not carry over":  {"event: a\n\ndata: x\n\n", []Event{event("", "", "x")}, 0},
		"an id does not either":       {"id: 1\ndata: x\n\ndata: y\n\n", []Event{event("1", "", "x"), event("", "", "y")}, 0},
		"a mark inside is kept":       {"data: \ufeffx\n\n", []Event{event("", "", "\ufeffx")}, 0},
		"many blank lines say little": {"\n\n\n\ndata: x\n\n\n", []Event{event("", "", "x")}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			events, retry := parse(t, strings.NewReader(test.text))
			require.Equal(t, test.want, events)
			require.Equal(t, test.retry, retry)
			// The same byte by byte, as a slow network has it.
			events, _ = parse(t, iotest.OneByteReader(strings.NewReader(test.text)))
			require.Equal(t, test.want, events)
		})
	}
}

// An event must be handled as soon as its last line has ended, not when the next one begins.
func TestReadEventsDoesNotWait(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"\n\n", "\r\r", "\r\n\r\n"} {
		r, w := io.Pipe()
		got := make(chan Event)
		done := make(chan error, 1)
		go func() {
			done <- readEvents(r, func(line eventLine) error {
				if line.event != nil {
					got <- *line.event
				}
				return nil
			})
		}()
		_, err := io.WriteString(w, "data: x"+end)
		require.NoError(t, err)
		require.Equal(t, "x", string((<-got).Data))
		require.NoError(t, w.Close())
		require.NoError(t, <-done)
	}
}

func TestReadEventsRefusesEndlessLine(t *testing.T) {
	t.Parallel()
	err := readEvents(strings.NewReader("data: "+strings.Repeat("x", maxLineBytes)), func(eventLine) error { return nil })
	require.ErrorContains(t, err, "too long")
}

func TestReadEventsEndsWithTheHandler(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	require.ErrorIs(t, readEvents(strings.NewReader("data: x\n\n"), func(eventLine) error { return enough }), enough)
}

func FuzzReadEvents(f *testing.F) {
	for _, seed := range []string{"id: 1\nevent: a\ndata: x\n\n", "\r\r\n\n:", "retry: 10\ndata\r\n\r\n", "\ufeffdata:\x00\n\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		whole, retry := parse(t, strings.NewReader(text))
		bytewise, again := parse(t, iotest.OneByteReader(strings.NewReader(text)))
		require.Equal(t, whole, bytewise)
		require.Equal(t, retry, again)
		require.GreaterOrEqual(t, retry, time.Duration(0))
	})
}
