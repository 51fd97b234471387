package stream_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api/stream"
	"medianest/store"
)

func TestWireForm(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada := b.user("ada")
	h := b.hub()
	b.outbox(h)
	b.settle()
	g := h.readNow("?user=" + ada.String())
	header := g.response.Header
	require.Equal(t, "text/event-stream", header.Get("Content-Type"))
	require.Equal(t, "no-store, no-cache, no-transform", header.Get("Cache-Control"))
	require.Equal(t, "no", header.Get("X-Accel-Buffering"))

	d := b.downloads(nil, ada)[0]
	b.exec(`UPDATE river.river_job SET metadata = '{"reason": "gone", "reason_attempt": "1"}' WHERE id = $1`, d.jobID)
	b.setJob(d.jobID, "running")
	b.setJob(d.jobID, "discarded")
	messages := map[string]message{}
	for messages["download.state failed"].Data == "" {
		m := <-g.messages
		messages[m.Event+" "+m.payload(t).State] = m
	}

	m := messages["job.state discarded"]
	require.JSONEq(t, fmt.Sprintf(`{"job_id":"%d","kind":"download","queue":"download","state":"discarded","previous_state":"running",
		"attempt":1,"reason":"gone","subject":{"type":"download","id":"%s"},"at":%s}`, d.jobID, d.id, at(m)), m.Data)
	m = messages["job.state available"]
	require.JSONEq(t, fmt.Sprintf(`{"job_id":"%d","kind":"download","queue":"download","state":"available","previous_state":"",
		"attempt":0,"subject":{"type":"download","id":"%s"},"at":%s}`, d.jobID, d.id, at(m)), m.Data)
	m = messages["download.state failed"]
	p := m.payload(t)
	require.Equal(t, "gone", p.Reason)
	require.Equal(t, d.id.String(), p.DownloadID)
	require.Equal(t, strconv.FormatInt(d.jobID, 10), p.JobID)

	raw, err := open(t.Context(), h.server.Client(), h.server.URL, "?user="+ada.String(), g.opened)
	require.NoError(t, err)
	defer raw.close()
	first, err := raw.next()
	require.NoError(t, err)
	require.Equal(t, "3000", raw.retry)
	require.Equal(t, messages[first.Event+" "+first.payload(t).State].ID, first.ID)
}

// at is the time as the message has it, in quotes, once it is one.
func at(m message) string {
	_, rest, _ := strings.Cut(m.Data, `"at":"`)
	text, _, _ := strings.Cut(rest, `"`)
	if _, err := time.Parse(time.RFC3339Nano, text); err != nil || !strings.HasSuffix(text, "Z") {
		return `"no time in UTC"`
	}
	return `"` + text + `"`
}

func TestPlacesThatCanNotBeGoneOnFrom(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.hub()
	b.outbox(h)
	b.settle()
	first := h.readNow("")
	jobs := b.jobs(3)
	var last message
	for _, id := range jobs {
		b.setJob(id, "running")
	}
	for range 2 * len(jobs) {
		last = first.want(store.TopicJobState)
	}
	place, err := stream.ParsePosition(last.ID)
	require.NoError(t, err)
	_, err = b.store("").TrimEvents(t.Context(), 0)
	require.NoError(t, err)

	for _, test := range map[string]struct{ id, reason string }{
		"Garbage":        {"garbage", "invalid_cursor"},
		"Empty parts":    {"..", "invalid_cursor"},
		"Foreign epoch":  {"feedfeedfeed.4.2", "unknown_epoch"},
		"Trimmed":        {place.Epoch + ".1.1", "cursor_expired"},
		"Never taken":    {fmt.Sprintf("%s.%d.1", place.Epoch, place.Tick+1_000_000), "invalid_cursor"},
		"Largest number": {place.Epoch + ".9223372036854775807.9223372036854775807", "invalid_cursor"},
		"Too large":      {place.Epoch + ".9223372036854775808.1", "invalid_cursor"},
	} {
		g := h.read("", test.id)
		m := g.wantReset(test.reason)
		// The stream goes on from now, and so does the client when it comes back.
		b.setJob(jobs[0], "retryable")
		g.wantState(store.TopicJobState, "retryable")
		again := h.read("", m.ID)
		again.wantState(store.TopicJobState, "retryable")
		b.setJob(jobs[0], "available")
		again.wantState(store.TopicJobState, "available")
	}
	require.Equal(t, 7.0, h.metric("medianest_stream_resets_total"))
}

// A browser gives the place it knows in the header; the query is for a first connection.
func TestHeaderGoesBeforeQuery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.hub()
	b.outbox(h)
	b.settle()
	g := h.readNow("")
	jobs := b.jobs(2)
	first, second := g.want(store.TopicJobState), g.want(store.TopicJobState)
	require.Equal(t, second.ID, h.read("?last_event_id="+first.ID, "").want(store.TopicJobState).ID)
	r := h.read("?last_event_id="+g.opened, first.ID)
	require.Equal(t, second.ID, r.want(store.TopicJobState).ID)
	b.setJob(jobs[0], "running")
	r.wantState(store.TopicJobState, "running")
}

func TestWhoSeesWhat(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, bob, eve := b.user("ada"), b.user("bob"), b.user("eve")
	h := b.hub(func(o *stream.Options) { o.Heartbeat = 20 * time.Millisecond })
	b.outbox(h)
	b.settle()
	queries := map[string]string{
		"ada": "?user=" + ada.String(), "bob": "?user=" + bob.String(), "eve": "?user=" + eve.String(),
		"admin": "", "admin bob": "?admin&user=" + bob.String(),
	}
	start := h.readNow("").opened
	streams := make(map[string]*reader)
	for name, query := range queries {
		streams[name] = h.open(query, start)
	}
	shared := b.downloads(nil, ada, bob)
	own := b.downloads(nil, ada)[0]
	system := b.jobs(1)[0]
	b.setJob(shared[0].jobID, "running")
	b.setJob(shared[0].jobID, "completed")
	b.setJob(own.jobID, "cancelled")
	b.setJob(system, "completed")
	require.Eventually(t, func() bool {
		var n int
		b.scan(&n, `SELECT count(*) FROM medianest.downloads WHERE state IN ('completed', 'cancelled')`)
		return n == 3
	}, 10*time.Second, 5*time.Millisecond)
	end := b.end()

	about := func(d download) string { return fmt.Sprintf("%d %s", d.jobID, d.id) }
	type seen struct {
		jobs      map[string]int // messages by job and subject
		downloads []string       // that ended
	}
	want := map[string]seen{
		"ada": {map[string]int{about(shared[0]): 3, about(own): 2}, []string{shared[0].id.String(), own.id.String()}},
		"bob": {map[string]int{about(shared[1]): 3}, []string{shared[1].id.String()}},
		"eve": {map[string]int{}, nil},
		"admin": {
			map[string]int{about(shared[0]): 3, about(own): 2, fmt.Sprintf("%d ", system): 2},
			[]string{shared[0].id.String(), shared[1].id.String(), own.id.String()},
		},
		"admin bob": { // to him it is about his own
			map[string]int{about(shared[1]): 3, about(own): 2, fmt.Sprintf("%d ", system): 2},
			[]string{shared[0].id.String(), shared[1].id.String(), own.id.String()},
		},
	}
	check := func(name string, messages []message) {
		got := seen{jobs: make(map[string]int)}
		for _, m := range messages {
			p := m.payload(t)
			switch {
			case m.Event == store.TopicJobState && p.Subject != nil:
				require.Equal(t, "download", p.Subject.Type)
				got.jobs[p.JobID+" "+p.Subject.ID]++
			case m.Event == store.TopicJobState:
				got.jobs[p.JobID+" "]++
			case p.State == store.StateCompleted, p.State == store.StateCancelled:
				got.downloads = append(got.downloads, p.DownloadID)
			}
		}
		require.Equal(t, want[name].jobs, got.jobs, name)
		require.ElementsMatch(t, want[name].downloads, got.downloads, name)
	}
	for name, query := range queries {
		check(name, streams[name].upTo(t, end))
		check(name, h.open(query, start).upTo(t, end)) // a replay shows the same
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada := b.user("ada")
	h := b.hub(func(o *stream.Options) { o.Heartbeat = 20 * time.Millisecond })
	b.outbox(h)
	b.settle()
	start := h.readNow("").opened

	parent := b.downloads(nil, ada)[0]
	child := b.downloads(&parent.id, ada)[0]
	other := b.downloads(nil, ada)[0]
	var scan int64
	b.scan(&scan, `INSERT INTO river.river_job (args, kind, max_attempts, queue) VALUES ('{}', 'scan', 1, 'library') RETURNING id`)
	for _, id := range []int64{parent.jobID, child.jobID, other.jobID, scan} {
		b.setJob(id, "running")
	}
	b.exec(`UPDATE medianest.downloads SET state = 'cancelled', cancelled_at = now()`)
	b.settle()

	// The download's own changes depend on the consumer's pace: only their ends are counted.
	names := map[string]string{
		strconv.FormatInt(parent.jobID, 10): "parent", strconv.FormatInt(child.jobID, 10): "child",
		strconv.FormatInt(other.jobID, 10): "other", strconv.FormatInt(scan, 10): "scan",
	}
	end := b.end()
	for query, want := range map[string][]string{
		"?kind=scan":                             {"scan available", "scan running"},
		"?queue=library&state=running":           {"scan running"},
		"?state=running&topic=job.state":         {"parent running", "child running", "other running", "scan running"},
		"?topic=download.state&state=cancelled":  {"parent cancelled", "child cancelled", "other cancelled"},
		"?state=cancelled":                       {"parent cancelled", "child cancelled", "other cancelled"},
		"?topic=job.state" + jobIDs(scan, -1):    {"scan available", "scan running"},
		"?state=cancelled" + jobIDs(other.jobID): {"other cancelled"},
		"?download_id=" + other.id.String():      {"other available", "other running", "other cancelled"},
		"?download_id=" + parent.id.String(): {
			"parent available", "child available", "parent running", "child running", "parent cancelled", "child cancelled",
		},
		"?download_id=" + child.id.String(): {"child available", "child running", "child cancelled"},
		"?kind=download&kind=scan&queue=download": {
			"parent available", "child available", "other available", "parent running", "child running", "other running",
		},
		"?download_id=" + uuid.NewString():                                 {},
		"?kind=scan&download_id=" + other.id.String() + "&state=available": {},
		"?kind=none": {},
	} {
		for _, user := range []string{"", "&user=" + ada.String()} {
			got := []string{}
			for _, m := range h.open(query+user, start).upTo(t, end) {
				if p := m.payload(t); m.Event == store.TopicJobState || p.State == store.StateCancelled {
					got = append(got, names[p.JobID]+" "+p.State)
				}
			}
			visible := []string{}
			for _, w := range want {
				if user == "" || !strings.HasPrefix(w, "scan") { // nobody's job
					visible = append(visible, w)
				}
			}
			require.ElementsMatch(t, visible, got, query+user)
		}
	}
}

// Workers come and go for administrators only, live as well as replayed, and not on streams that are about certain jobs
// or downloads.
func TestWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada := b.user("ada")
	h := b.hub(func(o *stream.Options) { o.Heartbeat = 20 * time.Millisecond })
	b.outbox(h)
	b.settle()
	start := h.readNow("?topic=job.progress").opened
	streams := map[string][]string{
		"":                                 {"worker.joined nas-1", "worker.left nas-1", "worker.joined nas-2", "job.state ", "worker.lost nas-2"},
		"?admin&user=" + ada.String():      {"worker.joined nas-1", "worker.left nas-1", "worker.joined nas-2", "job.state ", "worker.lost nas-2"},
		"?topic=worker.lost":               {"worker.lost nas-2"},
		"?topic=worker.joined":             {"worker.joined nas-1", "worker.joined nas-2"},
		"?topic=job.state":                 {"job.state "},
		"?kind=download":                   {"job.state "},
		"?queue=download":                  {"job.state "},
		"?state=available":                 {"job.state "},
		"?job_id=-1":                       {},
		"?download_id=" + uuid.NewString(): {},
		"?user=" + ada.String():            {},
		"?topic=worker.lost&user=" + ada.String(): {},
	}
	live := make(map[string]*reader)
	for query := range streams {
		live[query] = h.open(query, start)
	}
	b.join("nas-1")
	b.leave("nas-1", false)
	b.join("nas-2")
	b.jobs(1)
	b.leave("nas-2", true)
	end := b.end()
	for query, want := range streams {
		for _, r := range []*reader{live[query], h.open(query, start)} {
			got := []string{}
			for _, m := range r.upTo(t, end) {
				got = append(got, m.Event+" "+m.payload(t).WorkerID)
				if m.Event == store.TopicWorkerLost {
					require.JSONEq(t, `{"worker_id":"nas-2","mode":"work","host":"nas","at":`+at(m)+`}`, m.Data)
				}
			}
			require.Equal(t, want, got, query)
		}
	}
	require.Equal(t, 6.0, h.metric("medianest_stream_events_sent_total", store.TopicWorkerLost), "three streams, live and replayed")
}

// To its readers a job that loses its worker is the same job, which waits again.
func TestLostWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada := b.user("ada")
	progress := newFakeProgress()
	h := b.hub(func(o *stream.Options) { o.Progress = progress })
	b.outbox(h)
	b.settle()
	report := <-progress.fn
	g := h.readNow("?topic=job.state&topic=job.progress&user=" + ada.String())
	d := b.downloads(nil, ada)[0]
	g.wantState(store.TopicJobState, "available")
	for range 2 {
		b.setJob(d.jobID, "running")
		g.wantState(store.TopicJobState, "running")
		b.reclaim(d.jobID)
		p := g.wantState(store.TopicJobState, "available")
		require.Equal(t, "running", *p.PreviousState)
		require.Equal(t, strconv.FormatInt(d.jobID, 10), p.JobID)
		require.Equal(t, d.id.String(), p.Subject.ID)
		require.Zero(t, p.Attempt, "the loss costs no attempt")
	}
	b.setJob(d.jobID, "running")
	g.wantState(store.TopicJobState, "running")
	report(store.Progress{JobID: d.jobID, Percent: 50})
	p := g.want(stream.TopicJobProgress).payload(t)
	require.Equal(t, strconv.FormatInt(d.jobID, 10), p.JobID)
	require.Equal(t, d.id.String(), p.Subject.ID)
	b.setJob(d.jobID, "completed")
	end := g.wantState(store.TopicJobState, "completed")
	require.Equal(t, "running", *end.PreviousState)
}

// A burst larger than the buffer costs a replay, not the connection.
func TestBurstBeyondTheBuffer(t *testing.T) {
	t.Parallel()
	const burst = 3000
	b := setup(t)
	h := b.hub(func(o *stream.Options) { o.Buffer = 16; o.PageSize = 500 })
	b.outbox(h)
	jobs := b.jobs(burst)
	b.settle()
	g := h.readNow("")
	b.exec(`UPDATE river.river_job SET state = 'running' WHERE id = ANY($1)`, jobs)
	b.setJob(jobs[0], "retryable")
	seen := make(map[string]bool)
	for range burst {
		p := g.wantState(store.TopicJobState, "running")
		require.False(t, seen[p.JobID])
		seen[p.JobID] = true
	}
	g.wantState(store.TopicJobState, "retryable")
	require.GreaterOrEqual(t, h.metric("medianest_stream_lagging_total"), 1.0)
	require.Zero(t, h.metric("medianest_stream_ended_total"))
}

// A reader that does not read is disconnected; others do not notice, and it catches up when it comes back.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	b := setup(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	h := b.hub(func(o *stream.Options) { o.WriteTimeout = 300 * time.Millisecond; o.Buffer = 64 })
	slowServer := &http.Server{Handler: http.HandlerFunc(h.handle), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- slowServer.Serve(smallBuffers{listener}) }()
	t.Cleanup(func() {
		require.NoError(t, slowServer.Close())
		require.ErrorIs(t, <-served, http.ErrServerClosed)
	})
	b.outbox(h)
	jobs := b.jobs(500)
	b.settle()

	dialer := net.Dialer{}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return conn, err
	}}}
	defer client.CloseIdleConnections()
	slow, err := open(t.Context(), client, "http://"+listener.Addr().String(), "", "")
	require.NoError(t, err)
	defer slow.close()
	_, err = slow.next()
	require.NoError(t, err)
	quick := h.readNow("")
	start, err := stream.ParsePosition(quick.opened)
	require.NoError(t, err)

	// It reads nothing more.
	states := []string{"running", "retryable", "available"}
	var want []string
	ended := func() bool { return h.metric("medianest_stream_ended_total", "slow") > 0 }
	for n := 0; n < 6 || !ended(); n++ {
		require.Less(t, n, 500)
		began := time.Now()
		b.exec(`UPDATE river.river_job SET state = $1::river.river_job_state WHERE id = ANY($2)`, states[n%3], jobs)
		for range jobs {
			want = append(want, quick.wantState(store.TopicJobState, states[n%3]).JobID)
		}
		require.Less(t, time.Since(began), 5*time.Second, "others wait")
	}
	var log []string
	for {
		m, err := slow.next()
		if err != nil {
			break
		}
		log = append(log, m.payload(t).JobID)
	}
	require.Less(t, len(log), len(want), "it was disconnected")
	again := h.read("", slow.lastID)
	for len(log) < len(want) {
		log = append(log, again.want(store.TopicJobState).payload(t).JobID)
	}
	require.Equal(t, want, log)
	require.Len(t, b.whole(start), len(want))
}

func TestHeartbeatMovesThePlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.hub(func(o *stream.Options) { o.Heartbeat = 20 * time.Millisecond })
	b.outbox(h)
	b.settle()
	r, err := open(t.Context(), h.server.Client(), h.server.URL, "?kind=none", "")
	require.NoError(t, err)
	defer r.close()
	m, err := r.next()
	require.NoError(t, err)
	jobs := b.jobs(1) // nothing that this stream is about
	start, err := stream.ParsePosition(m.ID)
	require.NoError(t, err)
	require.Empty(t, r.upTo(t, b.end()))
	id := r.lastID
	place, err := stream.ParsePosition(id)
	require.NoError(t, err)
	require.Positive(t, place.Compare(start.Cursor))
	// From there, nothing is missed.
	g := h.read("", id)
	b.setJob(jobs[0], "running")
	g.wantState(store.TopicJobState, "running")
}

// The process ends: clients get what was under way, are told when to come back, each at another time, and let go.
func TestDrain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.hub()
	b.outbox(h)
	jobs := b.jobs(1)
	b.settle()
	var streams []*reading
	for range 20 {
		streams = append(streams, h.readNow(""))
	}
	b.setJob(jobs[0], "running")
	for _, g := range streams {
		g.wantState(store.TopicJobState, "running")
	}
	began := time.Now()
	h.stop()
	require.Less(t, time.Since(began), 5*time.Second)
	retries := make(map[string]bool)
	for _, g := range streams {
		require.Empty(t, g.wantEnd())
		ms, err := strconv.Atoi(g.retry)
		require.NoError(t, err)
		require.GreaterOrEqual(t, ms, 1500)
		require.Less(t, ms, 2500)
		retries[g.retry] = true
	}
	require.Greater(t, len(retries), 10)
	require.Zero(t, h.metric("medianest_stream_subscribers"))
	// Who comes now is sent away in the same way: an error status would keep a browser from coming back.
	late := h.read("", streams[0].opened)
	require.Empty(t, late.wantEnd())
	require.NotEmpty(t, late.retry)
}

func TestStreamsHaveAnAge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.hub(func(o *stream.Options) { o.MaxAge = time.Second; o.Heartbeat = 20 * time.Millisecond })
	b.outbox(h)
	b.settle()
	g := h.readNow("")
	require.Empty(t, g.wantEnd())
	require.Equal(t, "300", g.retry)
}

func TestStreamsOfAUserAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada, bob := b.user("ada"), b.user("bob")
	h := b.hub(func(o *stream.Options) { o.MaxPerUser = 2 })
	b.outbox(h)
	b.settle()
	query := "?user=" + ada.String()
	first := h.readNow(query)
	h.readNow(query)
	_, err := open(t.Context(), h.server.Client(), h.server.URL, query, "")
	require.ErrorIs(t, err, errNotAStream)
	h.readNow("?user=" + bob.String())
	first.cancel()
	require.Eventually(t, func() bool {
		g, err := open(t.Context(), h.server.Client(), h.server.URL, query, "")
		if err == nil {
			g.close()
		}
		return err == nil
	}, 10*time.Second, 5*time.Millisecond)
}

// Nobody listens: nothing is asked for. The first who comes misses nothing.
func TestHubSleepsAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	source := &countedSource{Source: b.store(store.RoleAPI)}
	h := b.hub(func(o *stream.Options) { o.Source = source; o.PollInterval = time.Millisecond })
	b.outbox() // does not ring
	jobs := b.jobs(1)
	b.settle()
	require.Zero(t, source.heads.Load())

	g := h.readNow("")
	b.setJob(jobs[0], "running")
	place := g.want(store.TopicJobState).ID
	g.cancel()
	require.Eventually(t, func() bool { return h.metric("medianest_stream_subscribers") == 0 }, 10*time.Second, time.Millisecond)
	var before int64
	require.Eventually(t, func() bool {
		last := before
		before = source.heads.Load()
		return last == before
	}, 10*time.Second, 50*time.Millisecond)
	b.setJob(jobs[0], "retryable")
	b.settle()
	require.LessOrEqual(t, source.heads.Load(), before)

	h.read("", place).wantState(store.TopicJobState, "retryable")
}

// The database goes away and comes back: streams stay open, a stream that begins meanwhile waits, nothing is lost.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	source := &countedSource{Source: b.store(store.RoleAPI)}
	h := b.hub(func(o *stream.Options) { o.Source = source })
	b.outbox(h)
	jobs := b.jobs(1)
	b.settle()
	g := h.readNow("")
	b.setJob(jobs[0], "running")
	place := g.want(store.TopicJobState).ID
	source.broken.Store(true)
	b.setJob(jobs[0], "retryable")
	b.settle()
	late := h.read("", g.opened)
	foreign := h.read("", "feedfeedfeed.1.1")
	require.Eventually(t, func() bool { return h.metric("medianest_stream_stalled") == 1 }, 10*time.Second, time.Millisecond)
	source.broken.Store(false)
	g.wantState(store.TopicJobState, "retryable")
	require.Equal(t, place, late.want(store.TopicJobState).ID)
	late.wantState(store.TopicJobState, "retryable")
	foreign.wantReset("unknown_epoch")
}

// The hub was cut off for longer than events are kept: its streams are told so.
func TestHubFallsOutOfRetention(t *testing.T) {
	t.Parallel()
	b := setup(t)
	source := &countedSource{Source: b.store(store.RoleAPI)}
	h := b.hub(func(o *stream.Options) { o.Source = source })
	b.outbox(h)
	jobs := b.jobs(2)
	b.settle()
	g := h.readNow("")
	source.broken.Store(true)
	for range 3 {
		for _, state := range []string{"running", "available"} {
			b.setJob(jobs[0], state)
			b.settle()
		}
	}
	require.Eventually(t, func() bool { // the consumer has to have read them
		_, err := b.store("").TrimEvents(t.Context(), 0)
		require.NoError(t, err)
		var ticks int
		b.scan(&ticks, `SELECT count(*) FROM medianest.tick`)
		return ticks == 1
	}, 10*time.Second, 10*time.Millisecond)
	b.setJob(jobs[1], "running")
	b.settle()
	source.broken.Store(false)
	g.wantReset("cursor_expired")
	b.setJob(jobs[0], "running")
	require.Equal(t, strconv.FormatInt(jobs[0], 10), g.wantState(store.TopicJobState, "running").JobID)
}

func TestPositionHasOneForm(t *testing.T) {
	t.Parallel()
	p := stream.Position{Epoch: "6f0d1c2b3a49", Cursor: store.Cursor{Tick: 90317, ID: 4}}
	require.Equal(t, "6f0d1c2b3a49.90317.4", p.String())
	again, err := stream.ParsePosition(p.String())
	require.NoError(t, err)
	require.Equal(t, p, again)
	for _, s := range []string{"", ".", "..", "e", "e.1", "e.1.", "e..1", ".1.1", "e.0.1", "e.01.1", "e.1.01", "e.+1.1", "e.-1.1", "e.1.1.1", "e.1.1 ", " e.1.1", "E.1.1", "e\n.1.1", "e.1.1\n", strings.Repeat("e", 33) + ".1.1"} {
		_, err := stream.ParsePosition(s)
		require.Error(t, err, "%q", s)
	}
}

func FuzzParsePosition(f *testing.F) {
	for _, s := range []string{"6f0d1c2b3a49.90317.4", "e.1.0", "", "..", "e.1", "e.9223372036854775807.9223372036854775807", "e.9223372036854775808.1", "é.1.1", "e.1.1\r\ndata: x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := stream.ParsePosition(s)
		if err != nil {
			require.Equal(t, stream.Position{}, p)
			return
		}
		require.Equal(t, s, p.String())
		require.Positive(t, p.Tick)
		require.GreaterOrEqual(t, p.ID, int64(0))
	})
}
