package api_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/api/client"
	"medianest/api/stream"
	"medianest/store"
)

// What the query says reaches the hub: repeated, or separated by commas.
func TestEventFilters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := uuid.Must(uuid.NewV7()), uuid.Must(uuid.NewV7())
	anna := store.Viewer{UserID: b.anna.ID}
	for name, test := range map[string]struct {
		query  string
		header string
		want   stream.Subscription
	}{
		"none":             {"", "", stream.Subscription{Viewer: anna}},
		"repeated":         {"?kind=download&kind=remove_files", "", stream.Subscription{Viewer: anna, Kinds: []string{"download", "remove_files"}}},
		"commas":           {"?state=running,completed&state=deleted", "", stream.Subscription{Viewer: anna, States: []string{"running", "completed", "deleted"}}},
		"topics and queue": {"?topic=job.state,job.progress,download.state&queue=download", "", stream.Subscription{Viewer: anna, Topics: []string{"job.state", "job.progress", "download.state"}, Queues: []string{"download"}}},
		"jobs":             {"?job_id=1,2&job_id=9223372036854775807", "", stream.Subscription{Viewer: anna, JobIDs: []int64{1, 2, 9223372036854775807}}},
		"downloads":        {"?download_id=" + one.String() + "," + two.String(), "", stream.Subscription{Viewer: anna, DownloadIDs: []uuid.UUID{one, two}}},
		"empty values":     {"?kind=&state=,&queue=download,", "", stream.Subscription{Viewer: anna, Queues: []string{"download"}}},
		"last id":          {"?last_event_id=e.1.2", "", stream.Subscription{Viewer: anna, LastEventID: "e.1.2"}},
		"last id's header": {"?last_event_id=e.1.2", "e.3.4", stream.Subscription{Viewer: anna, LastEventID: "e.3.4"}},
	} {
		a := b.do(request{
			method: "GET", path: "/api/v1/events" + test.query, token: b.anna.token,
			header: map[string]string{"Last-Event-ID": test.header},
		})
		require.Equal(t, http.StatusOK, a.status, "%s: %s", name, a.body)
		require.Equal(t, "text/event-stream", a.header.Get("Content-Type"))
		require.Equal(t, ": ping\n\n", string(a.body))
		require.Equal(t, test.want, b.stream.subscription(), name)
	}
	b.do(request{method: "GET", path: "/api/v1/events", token: b.admin.token})
	require.Equal(t, store.Viewer{UserID: b.admin.ID, Admin: true}, b.stream.subscription().Viewer)
}

func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{})
	b.stream.err = stream.ErrTooManyStreams
	a := b.do(request{method: "GET", path: "/api/v1/events", token: "x"})
	a.problem(http.StatusTooManyRequests, api.CodeTooManyStreams)
	require.Equal(t, "30", a.header.Get("Retry-After"))
}

// From a request to what its sender sees of it, and others do not, with the real hub and outbox.
func TestEventsEndToEnd(t *testing.T) {
	t.Parallel()
	var hub *stream.Hub
	b := setup(t, func(b *bundle, o *api.Options) {
		hub = stream.New(stream.Options{Source: b.store, Logger: discard, PollInterval: 5 * time.Millisecond})
		o.Stream = hub
	})
	ctx, cancel := context.WithCancel(t.Context())
	outbox := store.NewOutbox(store.OutboxOptions{Store: b.store, Logger: discard, OnTick: hub.Ring})
	ended := make(chan error, 2)
	go func() { ended <- hub.Run(ctx) }()
	go func() { ended <- outbox.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		<-ended
	})
	server := b.listen()
	follow := func(p person, options client.EventsOptions) <-chan client.Event {
		events := make(chan client.Event, 100)
		c, err := client.New(server.URL, p.token, client.WithHTTPClient(server.Client()))
		require.NoError(t, err)
		opened := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for event, err := range client.Events(ctx, c, options) {
				if err != nil {
					t.Error(err)
					return
				}
				if event.Type == client.EventOpen {
					close(opened)
					continue
				}
				events <- event
			}
		}()
		t.Cleanup(func() { cancel(); <-done })
		<-opened
		return events
	}
	annas := follow(b.anna, client.EventsOptions{})
	berts := follow(b.bert, client.EventsOptions{})
	admins := follow(b.admin, client.EventsOptions{Topics: []string{client.EventDownloadState}})
	workers := follow(b.admin, client.EventsOptions{Topics: []string{client.EventWorkerJoined, client.EventWorkerLost}})

	d := b.wish(b.anna, wishURL)
	seen := map[string]client.Event{}
	for len(seen) < 2 {
		event := <-annas
		seen[event.Type] = event
	}
	var job client.JobStateEvent
	require.NoError(t, seen[client.EventJobState].Decode(&job))
	require.Equal(t, d.JobID, job.JobID)
	require.Equal(t, "pending", job.State)
	require.Empty(t, job.PreviousState)
	require.Equal(t, d.ID, job.Subject.ID)
	var download client.DownloadStateEvent
	require.NoError(t, seen[client.EventDownloadState].Decode(&download))
	require.Equal(t, d.ID, download.DownloadID)
	require.Equal(t, "queued", download.State)

	event := <-admins
	require.NoError(t, event.Decode(&download))
	require.Equal(t, d.ID, download.DownloadID)

	b.worker("nas-1", "work", "expires_at")
	b.exec("DELETE FROM medianest.worker")
	for _, topic := range []string{client.EventWorkerJoined, client.EventWorkerLost} {
		event := <-workers
		require.Equal(t, topic, event.Type)
		require.NotEmpty(t, event.ID)
		var worker client.WorkerEvent
		require.NoError(t, event.Decode(&worker))
		require.False(t, worker.At.IsZero())
		require.Equal(t, client.WorkerEvent{WorkerID: "nas-1", Mode: "work", Host: "nas", At: worker.At}, worker)
	}

	own := b.wish(b.bert, "https://example.org/bert")
	event = <-berts
	require.Contains(t, string(event.Data), own.ID.String(), "the first that Bert sees is his own")
}
