package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

const workersPath = "/api/v1/workers"

// worker puts a process into the database that has renewed its presence for an hour. The columns, which hold times, are
// set to now.
func (b *bundle) worker(id, mode string, columns ...string) {
	b.t.Helper()
	b.exec(`
		INSERT INTO medianest.worker (id, mode, host, version, volume, queues, running, started_at, expires_at)
		VALUES ($1, $2, 'nas', 'v1.2.3', 'f00d', '{"download": 4}', 2, clock_timestamp(), now() + interval '1 hour')`, id, mode)
	for _, column := range columns {
		b.exec("UPDATE medianest.worker SET "+column+" = now() WHERE id = $1", id)
	}
}

func TestListWorkers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	list := func() answer {
		a := b.do(request{method: "GET", path: workersPath, token: b.admin.token})
		require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
		return a
	}
	require.JSONEq(t, `{"items":[]}`, string(list().body))
	b.worker("runs", "up")
	b.worker("drains", "work", "drain_asked_at")
	b.worker("has-drained", "work", "drain_asked_at", "drained_at")
	b.worker("is-lost", "work", "expires_at")
	b.exec(`UPDATE medianest.worker SET volume = '', queues = '{}', running = 0 WHERE id = 'is-lost'`)
	b.golden("workers.json", list().body)
}

func TestDrainWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.worker("nas-1", "work")
	b.worker("nas-2", "work")
	b.worker("front", "serve")
	drain := func(id string) answer {
		return b.do(request{method: "POST", path: workersPath + "/" + id + "/drain", token: b.admin.token})
	}
	for range 2 { // the second time nothing is left to do
		a := drain("nas-1")
		require.Equal(t, http.StatusAccepted, a.status, "body: %s", a.body)
		var w api.Worker
		a.into(&w)
		require.Equal(t, "nas-1", w.ID)
		require.Equal(t, "draining", w.State)
		require.Equal(t, map[string]int{"download": 4}, w.Queues)
	}
	require.Contains(t, drain("front").problem(http.StatusConflict, api.CodeConflict).Detail, "works no jobs")
	require.Contains(t, drain("nas-3").problem(http.StatusNotFound, api.CodeNotFound).Detail, "worker")
	drain(strings.Repeat("x", 101)).problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	drain("nas%00").problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	drain("nas%2F1").problem(http.StatusNotFound, api.CodeNoSuchRoute)
	require.Equal(t, 1, b.count("SELECT count(*) FROM medianest.worker WHERE drain_asked_at IS NOT NULL"))
}

// Who may not see workers is told so instead of waiting for events that never come.
func TestEventsOfWorkersAreForAdmins(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, topics := range []string{"worker.joined", "worker.left", "job.state,worker.lost"} {
		r := request{method: "GET", path: "/api/v1/events?topic=" + topics, token: b.anna.token}
		b.do(r).problem(http.StatusForbidden, api.CodeForbidden)
		require.Empty(t, b.stream.subscription().Topics)
	}
	b.do(request{method: "GET", path: "/api/v1/events?topic=worker.joined,worker.left,worker.lost", token: b.admin.token})
	want := []string{store.TopicWorkerJoined, store.TopicWorkerLeft, store.TopicWorkerLost}
	require.Equal(t, want, b.stream.subscription().Topics)
}
