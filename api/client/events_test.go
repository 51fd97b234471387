package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api/client"
)

// streamServer serves handler as the event stream and returns a client of it.
func streamServer(t *testing.T, handler http.HandlerFunc) *client.ClientWithResponses {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := client.New(server.URL, "mn_secret", client.WithHTTPClient(&http.Client{Transport: transport}))
	require.NoError(t, err)
	return c
}

func startStream(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = io.WriteString(w, "retry: 2\n\n")
	flush(w)
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

// cut breaks the connection without an end of the body.
func cut() { panic(http.ErrAbortHandler) }

// A server that cuts at random places, also within a line, loses and doubles nothing for its reader.
func TestEventsGoOnAfterCuts(t *testing.T) {
	t.Parallel()
	const total = 1000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var connections atomic.Int64
	c := streamServer(t, func(w http.ResponseWriter, r *http.Request) {
		connections.Add(1)
		next := 0
		if last := r.Header.Get("Last-Event-ID"); last != "" {
			n, err := strconv.Atoi(strings.TrimPrefix(last, "e.7."))
			if err != nil {
				w.WriteHeader(http.StatusUnprocessableEntity)
				return
			}
			next = n + 1
		}
		startStream(w)
		var out strings.Builder
		for i := next; i < total; i++ {
			fmt.Fprintf(&out, "id: e.7.%d\nevent: job.state\ndata: {\"job_id\":\"%d\",\n", i, i)
			fmt.Fprintf(&out, "data: \"state\":\"running\"}\n\n: ping\n\n")
		}
		if random.IntN(8) == 0 {
			cut() // before anything
		}
		_, _ = io.WriteString(w, out.String()[:min(out.Len(), random.IntN(6000))])
		flush(w)
		cut()
	})
	var seen int
	for event, err := range client.Events(t.Context(), c, client.EventsOptions{}) {
		require.NoError(t, err)
		var state client.JobStateEvent
		require.NoError(t, event.Decode(&state))
		require.Equal(t, client.EventJobState, event.Type)
		require.Equal(t, strconv.Itoa(seen), state.JobID)
		require.Equal(t, "running", state.State)
		require.Equal(t, fmt.Sprintf("e.7.%d", seen), event.ID)
		if seen++; seen == total {
			break
		}
	}
	require.Equal(t, total, seen)
	require.Greater(t, connections.Load(), int64(10))
}

func TestEventsAsksForWhatIsWanted(t *testing.T) {
	t.Parallel()
	id := uuid.Must(uuid.NewV7())
	c := streamServer(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		startStream(w)
		_, _ = fmt.Fprintf(w, "event: echo\ndata: %s %v %v %v %v %v %s %s %s\n\n", r.URL.Path, q["topic"], q["kind"], q["state"],
			q["job_id"], q["download_id"], r.Header.Get("Last-Event-ID"), r.Header.Get("Authorization"), r.Header.Get("Accept"))
	})
	for event, err := range client.Events(t.Context(), c, client.EventsOptions{
		Topics: []string{"job.state", "job.progress"}, Kinds: []string{"download"}, States: []string{"running"},
		JobIDs: []string{"42"}, DownloadIDs: []uuid.UUID{id}, LastEventID: "a.1.2",
	}) {
		require.NoError(t, err)
		require.Equal(t, "/api/v1/events [job.state job.progress] [download] [running] [42] ["+id.String()+"] a.1.2 Bearer mn_secret text/event-stream",
			string(event.Data))
		break
	}
}

// A reset tells that events are missing; the id that led to it is not used again.
func TestEventsTellsOfReset(t *testing.T) {
	t.Parallel()
	var lastIDs []string
	c := streamServer(t, func(w http.ResponseWriter, r *http.Request) {
		lastIDs = append(lastIDs, r.Header.Get("Last-Event-ID"))
		startStream(w)
		if len(lastIDs) == 1 {
			_, _ = io.WriteString(w, "event: reset\ndata: {\"reason\":\"cursor_expired\"}\n\n")
			flush(w)
			cut()
		}
		_, _ = io.WriteString(w, "id: new.1.0\nevent: open\ndata: {}\n\n")
	})
	var types []string
	for event, err := range client.Events(t.Context(), c, client.EventsOptions{LastEventID: "old.9.9"}) {
		require.NoError(t, err)
		types = append(types, event.Type)
		if event.Type == client.EventReset {
			var reset client.ResetEvent
			require.NoError(t, event.Decode(&reset))
			require.Equal(t, "cursor_expired", reset.Reason)
		}
		if len(types) == 2 {
			break
		}
	}
	require.Equal(t, []string{client.EventReset, client.EventOpen}, types)
	require.Equal(t, []string{"old.9.9", ""}, lastIDs)
}

// A line of an id alone moves the place, as browsers have it.
func TestEventsKeepsIDOfEmptyEvent(t *testing.T) {
	t.Parallel()
	var lastID atomic.Value
	c := streamServer(t, func(w http.ResponseWriter, r *http.Request) {
		startStream(w)
		if r.Header.Get("Last-Event-ID") == "" {
			_, _ = io.WriteString(w, "id: e.5.0\n\n")
			return
		}
		lastID.Store(r.Header.Get("Last-Event-ID"))
		_, _ = io.WriteString(w, "data: x\n\n")
	})
	for _, err := range client.Events(t.Context(), c, client.EventsOptions{}) {
		require.NoError(t, err)
		break
	}
	require.Equal(t, "e.5.0", lastID.Load())
}

func TestEventsEndsWithWhatCannotBeMended(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"a token that is not valid": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"type":"/docs#problem-unauthenticated","title":"A valid token is needed","status":401,"code":"unauthenticated"}`)
		}, "A valid token is needed"},
		"another server": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<h1>Welcome</h1>")
		}, "text/html"},
		"a proxy's page": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<h1>no</h1>", http.StatusForbidden) }, "HTTP 403 Forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := streamServer(t, test.answer)
			n := 0
			for _, err := range client.Events(t.Context(), c, client.EventsOptions{}) {
				n++
				require.ErrorContains(t, err, test.want)
			}
			require.Equal(t, 1, n)
		})
	}
}

// What may pass is tried again: refused connections, a server that starts, a silent connection.
func TestEventsTriesAgain(t *testing.T) {
	t.Parallel()
	var connections atomic.Int64
	c := streamServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch connections.Add(1) {
		case 1:
			cut()
		case 2:
			startStream(w)
			<-r.Context().Done() // silence: the client gives up
		case 3:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			startStream(w)
			_, _ = io.WriteString(w, "data: x\n\n")
		}
	})
	var lost []error
	connected := 0
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, err := range client.Events(ctx, c, client.EventsOptions{
		IdleTimeout: 200 * time.Millisecond, MaxRetry: 10 * time.Millisecond,
		OnConnected: func() { connected++ }, OnLost: func(err error) { lost = append(lost, err) },
	}) {
		require.NoError(t, err)
		break
	}
	require.Len(t, lost, 3)
	require.ErrorContains(t, lost[1], "nothing arrived for too long")
	require.ErrorContains(t, lost[2], "HTTP 503")
	require.Equal(t, 2, connected)
}

func TestEventsWaitsAsLongAsTheServerAsks(t *testing.T) {
	t.Parallel()
	var first time.Time
	c := streamServer(t, func(w http.ResponseWriter, _ *http.Request) {
		if first.IsZero() {
			first = time.Now()
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		startStream(w)
		_, _ = io.WriteString(w, "data: x\n\n")
	})
	for _, err := range client.Events(t.Context(), c, client.EventsOptions{MaxRetry: time.Millisecond}) {
		require.NoError(t, err)
		break
	}
	require.GreaterOrEqual(t, time.Since(first), time.Second)
}

func TestEventsEndsWithItsContext(t *testing.T) {
	t.Parallel()
	connected := make(chan struct{})
	c := streamServer(t, func(w http.ResponseWriter, r *http.Request) {
		startStream(w)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for _, err := range client.Events(ctx, c, client.EventsOptions{OnConnected: func() { close(connected) }}) {
			done <- errors.Join(errors.New("the sequence should end without an error"), err)
			return
		}
		done <- nil
	}()
	<-connected
	cancel()
	require.NoError(t, <-done)
}
