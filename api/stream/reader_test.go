package stream_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api/stream"
	"medianest/store"
)

// message is an event as a client gets it.
type message struct {
	ID    string // the last id, of this message or before
	Event string
	Data  string
}

// payload is the data of any event, as far as tests look at it.
type payload struct {
	JobID         string   `json:"job_id"`
	DownloadID    string   `json:"download_id"`
	ParentID      string   `json:"parent_id"`
	Kind          string   `json:"kind"`
	Queue         string   `json:"queue"`
	State         string   `json:"state"`
	PreviousState *string  `json:"previous_state"`
	Attempt       int      `json:"attempt"`
	Reason        string   `json:"reason"`
	Position      string   `json:"position"`
	WorkerID      string   `json:"worker_id"`
	Percent       float64  `json:"percent"`
	Subject       *subject `json:"subject"`
}

type subject struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

func (m message) payload(t testing.TB) payload {
	t.Helper()
	var p payload
	require.NoError(t, json.Unmarshal([]byte(m.Data), &p), "%s", m.Data)
	return p
}

// reader is a client of the stream, by the letter of the standard as far as it concerns us.
type reader struct {
	response *http.Response
	lines    *bufio.Reader
	cancel   context.CancelFunc

	lastID string // where to go on
	retry  string // the last that was asked for
}

var errNotAStream = errors.New("no event stream")

// open opens a stream. query may be empty or begin with "?".
func open(ctx context.Context, client *http.Client, url, query, lastID string) (*reader, error) {
	ctx, cancel := context.WithCancel(ctx)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/"+query, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	if lastID != "" {
		request.Header.Set("Last-Event-ID", lastID)
	}
	response, err := client.Do(request)
	if err != nil {
		cancel()
		return nil, err
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "text/event-stream" {
		cancel()
		return nil, errors.Join(errNotAStream, errors.New(response.Status), response.Body.Close())
	}
	return &reader{response: response, lines: bufio.NewReaderSize(response.Body, 4<<10), cancel: cancel, lastID: lastID}, nil
}

// next returns the next message.
func (r *reader) next() (message, error) {
	for {
		m, err := r.block()
		if err != nil || m.Data != "" {
			return m, err
		}
	}
}

// block reads up to an empty line. A block without data is no message, but moves the last id, as the standard has it.
func (r *reader) block() (message, error) {
	m := message{ID: r.lastID}
	for {
		line, err := r.lines.ReadString('\n')
		if err != nil {
			return message{}, err // what is not whole does not count
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			r.lastID = m.ID
			return m, nil
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			m.ID = value
		case "event":
			m.Event = value
		case "data":
			m.Data += value
		case "retry":
			r.retry = value
		}
	}
}

// upTo returns all messages until the stream says that it is at the place. It needs quick heartbeats.
func (r *reader) upTo(t testing.TB, place store.Cursor) []message {
	t.Helper()
	var messages []message
	for {
		if r.lastID != "" {
			p, err := stream.ParsePosition(r.lastID)
			require.NoError(t, err)
			if p.Compare(place) >= 0 {
				return messages
			}
		}
		m, err := r.block()
		require.NoError(t, err)
		if m.Data != "" {
			messages = append(messages, m)
		}
	}
}

func (r *reader) close() {
	r.cancel()
	_ = r.response.Body.Close()
}

// reading is a reader whose messages a test waits for.
type reading struct {
	*reader

	t        testing.TB
	opened   string // where a stream without a cursor began
	messages chan message
	end      chan error
}

// read opens a stream that is read until it ends, at the latest with the test.
func (h *hub) read(query, lastID string) *reading {
	h.t.Helper()
	r, err := open(context.Background(), h.server.Client(), h.server.URL, query, lastID)
	require.NoError(h.t, err)
	g := &reading{reader: r, t: h.t, messages: make(chan message, 100_000), end: make(chan error, 1)}
	go func() {
		defer r.close()
		for {
			m, err := r.next()
			if err != nil {
				close(g.messages)
				g.end <- err
				return
			}
			g.messages <- m
		}
	}()
	h.t.Cleanup(func() {
		r.cancel()
		for range g.messages { // until it is closed
		}
	})
	return g
}

// open opens a stream that is read when the test asks.
func (h *hub) open(query, lastID string) *reader {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	r, err := open(ctx, h.server.Client(), h.server.URL, query, lastID)
	require.NoError(h.t, err)
	h.t.Cleanup(func() {
		r.close()
		cancel()
	})
	return r
}

// readNow is read of a stream that begins at the present.
func (h *hub) readNow(query string) *reading {
	h.t.Helper()
	g := h.read(query, "")
	m := g.want("open")
	require.Equal(h.t, m.ID, m.payload(h.t).Position)
	g.opened = m.ID
	return g
}

// want returns the next message, which has to be of the event.
func (g *reading) want(event string) message {
	g.t.Helper()
	select {
	case m, ok := <-g.messages:
		require.True(g.t, ok, "the stream has ended, waiting for %s", event)
		require.Equal(g.t, event, m.Event, "%s", m.Data)
		return m
	case <-time.After(20 * time.Second):
		require.FailNow(g.t, "no message", "waiting for %s", event)
		return message{}
	}
}

// wantState returns the payload of the next message, which has to be of the topic and state.
func (g *reading) wantState(topic, state string) payload {
	g.t.Helper()
	m := g.want(topic)
	p := m.payload(g.t)
	require.Equal(g.t, state, p.State, "%s", m.Data)
	return p
}

// wantReset is what a client is told that can not go on.
func (g *reading) wantReset(reason string) message {
	g.t.Helper()
	m := g.want("reset")
	require.Equal(g.t, reason, m.payload(g.t).Reason)
	require.NotEmpty(g.t, m.ID)
	return m
}

// wantEnd waits for the stream's end, which has to be a clean one, and returns what came before.
func (g *reading) wantEnd() []message {
	g.t.Helper()
	var rest []message
	timeout := time.After(20 * time.Second)
	for {
		select {
		case m, ok := <-g.messages:
			if ok {
				rest = append(rest, m)
				continue
			}
			require.ErrorIs(g.t, <-g.end, io.EOF)
			return rest
		case <-timeout:
			require.FailNow(g.t, "the stream goes on")
		}
	}
}
