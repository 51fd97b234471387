package main

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// spans is a collector that keeps what it is sent, by name.
type spans struct {
	mu     sync.Mutex
	byName map[string][]*trace.Span
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unzipped, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = unzipped
	}
	content, err := io.ReadAll(body)
	var request collector.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(content, &request) != nil {
		http.Error(w, "not spans", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range request.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				s.byName[span.GetName()] = append(s.byName[span.GetName()], span)
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func (s *spans) one(t *testing.T, name string) *trace.Span {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.NotEmpty(t, s.byName[name], "no span %q", name)
	return s.byName[name][0]
}

// One trace leads from the request to the job's insertion, and the attempt, which is linked to it, to yt-dlp. Spans of
// the last seconds are sent when the process stops.
func TestTraceFromRequestToYTDLP(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	received := &spans{byName: map[string][]*trace.Span{}}
	server := httptest.NewServer(received)
	t.Cleanup(server.Close)
	_, siteURL, allow := sampleSite(t)
	up := startUp(t, newHome(t), allow, "OTEL_EXPORTER_OTLP_ENDPOINT="+server.URL)
	d := ask(t, up.client(), siteURL+"/items/3.mp4")
	awaitState(t, up.client(), d, stateCompleted)
	up.stop()

	request, insert, work := received.one(t, "POST /api/v1/downloads"), received.one(t, "river.insert_many"), received.one(t, "river.work/download")
	require.Equal(t, request.GetTraceId(), insert.GetTraceId())
	require.Len(t, work.GetLinks(), 1)
	require.Equal(t, insert.GetTraceId(), work.GetLinks()[0].GetTraceId())
	for _, name := range []string{"yt-dlp probe", "yt-dlp fetch"} {
		span := received.one(t, name)
		require.Equal(t, work.GetTraceId(), span.GetTraceId(), name)
	}
	for name, list := range received.byName {
		for _, span := range list {
			for _, a := range span.GetAttributes() {
				require.NotContains(t, a.GetValue().GetStringValue(), "items/3.mp4", "%s tells the address in %s", name, a.GetKey())
			}
		}
	}
}
