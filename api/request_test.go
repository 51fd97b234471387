package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"medianest/api"
	"medianest/api/client"
	"medianest/store"
)

// listen serves the API on a real port.
func (b *bundle) listen() *httptest.Server {
	b.t.Helper()
	server := httptest.NewServer(b.api)
	b.t.Cleanup(server.Close)
	return server
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{})
	for given, kept := range map[string]bool{
		"": false, "abc-123_x": true, "0199aa3e-5b77-7000-8000-000000000000": true, "a b": false, "a\"b": false,
		strings.Repeat("x", 128): true, strings.Repeat("x", 129): false, "-x": false, "ümlaut": false,
	} {
		a := b.do(request{method: "GET", path: "/nothing", header: map[string]string{"X-Request-ID": given}})
		id := a.problem(http.StatusNotFound, api.CodeNoSuchRoute).RequestID
		if kept {
			require.Equal(t, given, id)
		} else {
			require.NotEqual(t, given, id)
			require.Len(t, id, 36)
		}
	}
}

func TestLogLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.do(request{
		method: "GET", path: "/api/v1/downloads?cursor=secret-in-a-query", token: b.anna.token,
		header: map[string]string{"X-Request-ID": "r1", "Cookie": "other=secret-in-a-cookie", "X-Forwarded-For": "203.0.113.7"},
	})
	a.problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	lines := b.lines("request")
	require.Len(t, lines, 1)
	line := lines[0]
	require.Equal(t, "INFO", line["level"])
	require.NotZero(t, line["duration_ms"])
	for _, name := range []string{"time", "duration_ms", "err", "size_bytes", "level", "msg"} {
		delete(line, name)
	}
	require.Equal(t, map[string]any{
		"method": "GET", "path": "/api/v1/downloads", "route": "/api/v1/downloads", "status": 422.0, "request_id": "r1",
		"client": "192.0.2.1", "user": "anna", "code": "validation_failed",
	}, line, "an address of the internet may not say whom it forwards for")
	require.NotContains(t, b.log.String(), "secret")
	require.NotContains(t, b.log.String(), b.anna.token)

	// A proxy nearby may.
	r := request{method: "GET", path: "/livez", header: map[string]string{"X-Forwarded-For": "203.0.113.7, 10.0.0.2"}}.http(t)
	r.RemoteAddr = "127.0.0.1:1234"
	require.Equal(t, http.StatusOK, b.serve(r).status)
	line = b.lines("request")[1]
	require.Equal(t, "203.0.113.7", line["client"])
	require.Equal(t, "DEBUG", line["level"], "probes are no news")
}

func TestSecurityHeaders(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{})
	for _, path := range []string{"/", "/docs", "/login", "/livez", "/openapi.json", "/api/v1/downloads", "/nothing", "/static/style.css"} {
		for _, accept := range []string{"text/html", "*/*"} {
			a := b.do(request{method: "GET", path: path, header: map[string]string{"Accept": accept}})
			csp := a.header.Get("Content-Security-Policy")
			require.Contains(t, csp, "default-src 'none'", path)
			require.Contains(t, csp, "frame-ancestors 'none'", path)
			require.NotContains(t, csp, "unsafe", path)
			require.NotContains(t, csp, "script-src", path)
			require.Equal(t, "nosniff", a.header.Get("X-Content-Type-Options"))
			require.Equal(t, "same-origin", a.header.Get("Referrer-Policy"))
			require.Equal(t, "DENY", a.header.Get("X-Frame-Options"))
			require.Equal(t, "same-origin", a.header.Get("Cross-Origin-Resource-Policy"))
			require.Empty(t, a.header.Get("Access-Control-Allow-Origin"))
			if !strings.HasPrefix(path, "/static") {
				require.Equal(t, "no-store", a.header.Get("Cache-Control"), path)
			}
		}
	}
}

// A handler that panics costs its own request alone, and tells nobody outside why.
func TestPanic(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{do: func(context.Context) error { panic("secret of the house") }})
	a := b.do(request{method: "GET", path: "/api/v1/jobs/1", token: "x"})
	a.problem(http.StatusInternalServerError, api.CodeInternal)
	require.NotContains(t, string(a.body), "secret")
	panics := b.lines("panic")
	require.Len(t, panics, 1)
	require.Equal(t, "secret of the house", panics[0]["err"])
	require.Contains(t, panics[0]["stack"], "TestPanic")
	require.Equal(t, a.header.Get("X-Request-ID"), panics[0]["request_id"])
	require.Len(t, b.lines("request"), 1)
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/livez"}).status)
}

// An answer that has begun cannot become a problem: it is cut, so that it does not look whole.
func TestPanicInTheMiddleOfAnAnswer(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{})
	b.api.AddRoute("GET", "/half", func(c *gin.Context) {
		_, _ = c.Writer.WriteString("half of it")
		c.Writer.Flush()
		panic("now")
	})
	server := b.listen()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/half", nil)
	require.NoError(t, err)
	response, err := server.Client().Do(r)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	_, err = io.ReadAll(response.Body)
	require.Error(t, err)
	require.Eventually(t, func() bool { return len(b.lines("request")) == 1 }, 10*time.Second, 5*time.Millisecond)
	require.Equal(t, "ERROR", b.lines("request")[0]["level"])
}

// A client that left is no fault of anybody's.
func TestClientGone(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{})
	b := setupFake(t, &fakeStore{do: func(ctx context.Context) error {
		close(entered)
		<-ctx.Done()
		return fmt.Errorf("load job: %w", ctx.Err())
	}})
	server := b.listen()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/api/v1/jobs/1", nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer x")
	_, err = server.Client().Do(r) //nolint:bodyclose // there is none
	require.ErrorIs(t, err, context.Canceled)
	require.Eventually(t, func() bool { return len(b.lines("request")) == 1 }, 10*time.Second, 5*time.Millisecond)
	line := b.lines("request")[0]
	require.InDelta(t, 499, line["status"], 0)
	require.Equal(t, "INFO", line["level"])
}

func TestHEADIsGETWithoutABody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.listen()
	for _, path := range []string{"/livez", "/", "/docs", "/api/v1/downloads"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, server.URL+path, nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+b.anna.token)
		response, err := server.Client().Do(r)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusOK, response.StatusCode, path)
		require.Empty(t, body)
	}
}

// A body that is too large is refused clearly to clients of all kinds: those that say its size and those that do not,
// and those that read the answer only when they have sent everything.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.listen()
	body := `{"url":"https://example.org/` + strings.Repeat("x", 10<<20) + `"}`
	check := func(response *http.Response) {
		defer func() { _ = response.Body.Close() }()
		require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
		require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"))
		var p api.Problem
		require.NoError(t, json.NewDecoder(response.Body).Decode(&p))
		require.Equal(t, api.CodeBodyTooLarge, p.Code)
		require.Contains(t, p.Detail, "1048576 bytes")
	}
	for name, reader := range map[string]io.Reader{
		"sized":   strings.NewReader(body),
		"chunked": struct{ io.Reader }{strings.NewReader(body)},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/api/v1/downloads", reader)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+b.anna.token)
		r.Header.Set("Content-Type", "application/json")
		response, err := server.Client().Do(r)
		require.NoError(t, err, name)
		check(response)
	}
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "POST /api/v1/downloads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		b.anna.token, len(body), body)
	require.NoError(t, err, "all of it is taken")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	check(response)

	// Just below the limit is another matter.
	a := b.do(request{method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: `{"url":"` + strings.Repeat("x", api.MaxBodyBytes-11) + `"}`})
	a.problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	require.Less(t, len(a.body), 2000, "values are not echoed")
}

// Who asks before sending is told no before sending.
func TestLargeBodyThatAsksFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := b.listen()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "POST /api/v1/downloads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		b.anna.token, 10<<20)
	require.NoError(t, err)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
}

// deadlines records the read deadlines of a connection.
type deadlines struct {
	*httptest.ResponseRecorder

	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}

// The deadline of a body must not outlive it: when it passes, the server takes the client for gone and cancels the
// request, however long the body has been read.
func TestBodyDeadline(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{})
	for name, body := range map[string]string{"good": `{"url":"https://example.org/1"}`, "bad": `{`, "large": strings.Repeat("x", 2<<20)} {
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		b.api.ServeHTTP(w, request{method: "POST", path: "/api/v1/downloads", token: "x", body: body}.http(t))
		bounded := 0
		for _, d := range w.set {
			if !d.IsZero() {
				bounded++
				require.WithinDuration(t, time.Now(), d, 11*time.Second, name)
			}
		}
		require.Positive(t, bounded, name)
		require.True(t, w.set[len(w.set)-1].IsZero(), name)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.wish(b.anna, wishURL)
	for range 3 {
		b.do(request{method: "GET", path: "/api/v1/downloads/x" + rand(), token: b.anna.token})
	}
	b.do(request{method: "GET", path: "/wp-admin/" + rand()})
	b.do(request{method: "BREW", path: "/"})
	b.do(request{method: "GET", path: "/api/v1/events", token: b.anna.token})
	require.Equal(t, map[string]float64{
		"GET /api/v1/downloads/:id 422": 3,
		"GET /api/v1/events 200":        1,
		"GET none 404":                  1,
		"POST /api/v1/downloads 202":    1,
		"other none 405":                1,
	}, b.samples("medianest_http_requests_total"))
	require.Len(t, b.samples("medianest_http_request_duration_seconds"), 4, "all but the stream")
	families, err := b.registry.Gather()
	require.NoError(t, err)
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
}

// samples are a metric's values by its labels' values; of a histogram, how many observations there were.
func (b *bundle) samples(name string) map[string]float64 {
	b.t.Helper()
	families, err := b.registry.Gather()
	require.NoError(b.t, err)
	found := map[string]float64{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			found[strings.Join(labels, " ")] = value
		}
	}
	return found
}

func TestTraces(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	b := setup(t, func(_ *bundle, o *api.Options) {
		o.TracerProvider = trace.NewTracerProvider(trace.WithSpanProcessor(spans))
	})
	const parent = "4bf92f3577b34da6a3ce929d0e0e4736"
	b.do(request{
		method: "GET", path: "/api/v1/downloads", token: b.anna.token,
		header: map[string]string{"traceparent": "00-" + parent + "-00f067aa0ba902b7-01"},
	})
	b.do(request{method: "GET", path: "/livez"})
	require.Len(t, spans.Ended(), 1, "probes are not traced")
	require.Equal(t, "GET /api/v1/downloads", spans.Ended()[0].Name())
	require.Equal(t, parent, spans.Ended()[0].SpanContext().TraceID().String())
	require.Equal(t, parent, b.lines("request")[0]["trace_id"])
}

// The generated client and the API are of one mind.
func TestGeneratedClient(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.BasePath = "/media" })
	server := b.listen()
	c, err := client.New(server.URL+"/media", b.anna.token, client.WithHTTPClient(server.Client()))
	require.NoError(t, err)
	key := "k"
	made, err := c.CreateDownloadWithResponse(t.Context(), &client.CreateDownloadParams{IdempotencyKey: &key}, client.DownloadRequest{URL: wishURL})
	require.NoError(t, err)
	require.NoError(t, client.Fault(made))
	require.Equal(t, wishURL, made.JSON202.URL)
	require.Equal(t, "/media/api/v1/downloads/"+made.JSON202.ID.String(), made.HTTPResponse.Header.Get("Location"))

	states := []client.ListDownloadsParamsState{client.ListDownloadsParamsStateQueued, client.ListDownloadsParamsStateRunning}
	limit := int64(10)
	list, err := c.ListDownloadsWithResponse(t.Context(), &client.ListDownloadsParams{State: &states, Limit: &limit})
	require.NoError(t, err)
	require.NoError(t, client.Fault(list))
	require.Len(t, list.JSON200.Items, 1)
	require.Equal(t, made.JSON202.ID, list.JSON200.Items[0].ID)

	job, err := c.FindJobWithResponse(t.Context(), *made.JSON202.JobID)
	require.NoError(t, err)
	require.NoError(t, client.Fault(job))
	require.Equal(t, client.JobStatePending, job.JSON200.State)

	gone, err := c.DeleteDownloadWithResponse(t.Context(), made.JSON202.ID)
	require.NoError(t, err)
	require.NoError(t, client.Fault(gone))
	missing, err := c.FindDownloadWithResponse(t.Context(), made.JSON202.ID)
	require.NoError(t, err)
	var problem *client.Problem
	require.ErrorAs(t, client.Fault(missing), &problem)
	require.Equal(t, client.CodeNotFound, problem.Code)
	require.EqualError(t, problem, "There is no such thing: There is no such download, or it is not yours.")

	stranger, err := client.New(server.URL+"/media", "mn_wrong", client.WithHTTPClient(server.Client()))
	require.NoError(t, err)
	for _, err := range client.Events(t.Context(), stranger, client.EventsOptions{}) {
		require.ErrorAs(t, err, &problem)
		require.Equal(t, client.CodeUnauthenticated, problem.Code)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	keys, err := store.ParseKeyring(store.NewKey())
	require.NoError(t, err)
	good := api.Options{Keys: keys, Store: &fakeStore{}, Stream: b.stream, Logger: discard, Registerer: b.registry}
	for name, change := range map[string]func(*api.Options){
		"no store":          func(o *api.Options) { o.Store = nil },
		"no stream":         func(o *api.Options) { o.Stream = nil },
		"no keys":           func(o *api.Options) { o.Keys = nil },
		"no logger":         func(o *api.Options) { o.Logger = nil },
		"no registerer":     func(o *api.Options) { o.Registerer = nil },
		"base path":         func(o *api.Options) { o.BasePath = "media" },
		"base path's slash": func(o *api.Options) { o.BasePath = "/media/" },
		"public URL":        func(o *api.Options) { o.PublicURL = "media.example" },
	} {
		o := good
		change(&o)
		_, err := api.New(o)
		require.Error(t, err, name)
	}
	_, err = api.New(good)
	require.NoError(t, err)
	_, err = api.New(good)
	require.Error(t, err, "metrics are registered once")
}
