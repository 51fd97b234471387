package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/api/client"
	"medianest/store/storetest"
)

// serveAt serves on a loopback address of one's own, which is another host for limits.
func serveAt(t *testing.T, address string, handler http.Handler) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address+":0")
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(handler)
	require.NoError(t, server.Listener.Close())
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

// breaker is one of the list, as a client reads it.
type breaker struct {
	Key    string `json:"key"`
	State  string `json:"state"`
	Step   int    `json:"step"`
	Trips  int    `json:"trips"`
	Reason string `json:"reason"`
}

func (f *fleet) breakers() []breaker {
	f.t.Helper()
	var list struct {
		Items []breaker `json:"items"`
	}
	body := get(f.t, f.urls[0]+"/api/v1/breakers", "Authorization", "Bearer "+f.home.token(f.t))
	require.NoError(f.t, json.Unmarshal([]byte(body), &list), body)
	return list.Items
}

func (f *fleet) resetBreaker(key string) {
	f.t.Helper()
	request, err := http.NewRequestWithContext(f.t.Context(), http.MethodDelete, f.urls[0]+"/api/v1/breakers/"+url.PathEscape(key), nil)
	require.NoError(f.t, err)
	request.Header.Set("Authorization", "Bearer "+f.home.token(f.t))
	response, err := http.DefaultClient.Do(request)
	require.NoError(f.t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(f.t, err)
	require.NoError(f.t, response.Body.Close())
	require.Equal(f.t, http.StatusNoContent, response.StatusCode, "%s", body)
}

// A site that answers 429 is asked once for each step of the ladder, by one worker of the fleet, whatever waits for it.
// Another is not held up. When it answers again everything completes, and no attempt was spent.
func TestFleetLeavesAHostAlone(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	site, otherURL, _ := sampleSite(t)
	var refuses atomic.Bool
	var refused atomic.Int64
	refuses.Store(true)
	busyURL := serveAt(t, "127.0.0.2", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refuses.Load() {
			refused.Add(1)
			http.Error(w, "too many requests", http.StatusTooManyRequests)
			return
		}
		site.ServeHTTP(w, r)
	}))
	const key = "host:127.0.0.2"
	databaseURL := storetest.DB(t)
	// The ladder: 0, 1.2 s, 6 s, 18 s ...
	f := startFleet(t, databaseURL, storetest.Redis(t), 1, 2, "MEDIANEST_EGRESS_ALLOW=127.0.0.0/8", "MEDIANEST_RETRY_SCALE=0.02")
	c := f.client(0)
	busy := func(n int) string { return fmt.Sprintf("%s/plain.mp4?n=%d", busyURL, n) }
	// The first finds out; what would begin beside it would do so too.
	downloads := []client.Download{ask(t, c, busy(0))}
	require.Eventually(t, func() bool { return len(f.breakers()) == 1 }, patience, 20*time.Millisecond)
	for n := range 4 {
		downloads = append(downloads, ask(t, c, busy(1+n)))
	}
	awaitState(t, c, ask(t, c, otherURL+"/plain.mp4"), stateCompleted)

	var found breaker
	require.Eventually(t, func() bool {
		found = f.breakers()[0]
		return found.Step == 2 && found.State == "open"
	}, patience, 20*time.Millisecond)
	refuses.Store(false)
	require.Equal(t, breaker{key, "open", 2, 3, "rate_limited"}, found)
	waits := awaitState(t, c, downloads[3], "waiting")
	require.Equal(t, []string{"breaker", "breaker", key}, []string{string(*waits.WaitingOn), string(waits.Waiting.Reason), *waits.Waiting.Key})

	for _, d := range downloads {
		d = awaitState(t, c, d, stateCompleted)
		state, attempt := jobRow(t, databaseURL, *d.JobID)
		require.Equal(t, []any{"completed", 1}, []any{state, attempt})
	}
	require.Empty(t, f.breakers())
	require.Equal(t, found.Trips, endsOfAttempts(t, databaseURL, "rate_limited"))
	require.EqualValues(t, found.Trips, refused.Load(), "an attempt that is refused asks once")
	require.Equal(t, len(downloads)+1, endsOfAttempts(t, databaseURL, ""))
	logged := ""
	for _, w := range f.work {
		logged += w.stderr.String()
	}
	require.Equal(t, found.Trips, strings.Count(logged, `level=WARN msg="breaker tripped" key=`+key))
	require.Equal(t, 1, strings.Count(logged, `level=INFO msg="breaker closed" key=`+key))

	// By hand: what would wait for an hour begins at once.
	refuses.Store(true)
	downloads = []client.Download{ask(t, c, busy(10)), ask(t, c, busy(11))}
	require.Eventually(t, func() bool { list := f.breakers(); return len(list) == 1 && list[0].State == "open" }, patience, 20*time.Millisecond)
	byOwner(t, databaseURL, `UPDATE medianest.breaker SET open_until = now() + interval '1 h'`)
	for _, d := range downloads {
		awaitState(t, c, d, "waiting")
	}
	refuses.Store(false)
	f.resetBreaker(key)
	for _, d := range downloads {
		awaitState(t, c, d, stateCompleted)
	}
	require.Empty(t, f.breakers())
}

// endsOfAttempts counts the attempts of downloads that ended so.
func endsOfAttempts(t *testing.T, databaseURL, reason string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(context.Background()) //nolint:errcheck // read only
	require.NoError(t, conn.QueryRow(t.Context(), `
		SELECT count(*)
		FROM medianest.event
		WHERE topic = 'job.state' AND kind = 'download' AND previous_state = 'running' AND reason = $1`, reason).Scan(&n))
	return n
}

// byOwner changes the database behind everybody's back.
func byOwner(t *testing.T, databaseURL, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(context.Background()) //nolint:errcheck // it is done
	_, err = conn.Exec(t.Context(), statement)
	require.NoError(t, err)
}
