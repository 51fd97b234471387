package api_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

func (b *bundle) jobs(p person, query string) api.JobList {
	b.t.Helper()
	a := b.do(request{method: "GET", path: "/api/v1/jobs" + query, token: p.token})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	var list api.JobList
	a.into(&list)
	return list
}

func TestFindJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.wish(b.anna, wishURL)
	b.exec(`UPDATE river.river_job SET state = 'running', attempt = 2, attempted_at = now(), attempted_by = '{worker-1,worker-2}',
		errors = ARRAY['{"at":"2026-01-02T03:04:05Z","attempt":1,"error":"network: reset by peer","trace":""}'::jsonb] WHERE id = $1`, jobOf(t, d))
	b.progress.set(store.Progress{JobID: jobOf(t, d), Phase: "downloading", Percent: 10})
	a := b.do(request{method: "GET", path: "/api/v1/jobs/" + d.JobID, token: b.anna.token})
	require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	b.golden("job_running.json", a.body, d.ID.String(), "DOWNLOAD")
}

func TestListJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 5 {
		b.wish(b.anna, fmt.Sprintf("https://example.org/%d", i))
	}
	shared := b.wish(b.bert, "https://example.org/3")
	own := b.wish(b.bert, "https://example.org/bert")

	require.Len(t, b.jobs(b.admin, "").Items, 6)
	require.Len(t, b.jobs(b.anna, "").Items, 5)
	berts := b.jobs(b.bert, "").Items
	require.Len(t, berts, 2)
	require.Equal(t, own.JobID, berts[0].ID, "newest first")
	require.Equal(t, shared.ID, berts[1].DownloadIDs[0])
	require.Len(t, berts[1].DownloadIDs, 1, "others' downloads are not told")

	require.Len(t, b.jobs(b.anna, "?kind=download&queue=download&state=pending,running").Items, 5)
	require.Empty(t, b.jobs(b.anna, "?kind=remove_files").Items)
	require.Empty(t, b.jobs(b.anna, "?state=completed").Items)

	first := b.jobs(b.anna, "?limit=3")
	require.Len(t, first.Items, 3)
	second := b.jobs(b.anna, "?limit=3&cursor="+first.NextCursor)
	require.Len(t, second.Items, 2)
	require.Empty(t, second.NextCursor)
	require.NotEqual(t, first.Items[2].ID, second.Items[0].ID)
}

func TestCancelAndRetryJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.wish(b.anna, wishURL)
	post := func(action string) answer {
		return b.do(request{method: "POST", path: "/api/v1/jobs/" + d.JobID + action, token: b.anna.token})
	}
	post("/retry").problem(http.StatusConflict, api.CodeConflict)

	cancelled := post("/cancel")
	require.Equal(t, http.StatusAccepted, cancelled.status, "body: %s", cancelled.body)
	var job api.Job
	cancelled.into(&job)
	require.Equal(t, "cancelled", job.State)
	require.Equal(t, "cancelled", job.Reason)
	post("/cancel").problem(http.StatusConflict, api.CodeConflict)

	retried := post("/retry")
	require.Equal(t, http.StatusAccepted, retried.status, "body: %s", retried.body)
	retried.into(&job)
	require.Equal(t, "pending", job.State)

	b.exec("UPDATE river.river_job SET state = 'running' WHERE id = $1", jobOf(t, d))
	b.exec("UPDATE medianest.downloads SET state = 'running' WHERE id = $1", d.ID) // as the outbox's consumer does
	cancelled = post("/cancel")
	require.Equal(t, http.StatusAccepted, cancelled.status, "body: %s", cancelled.body)
	cancelled.into(&job)
	require.True(t, job.IsCancelling)
	require.Equal(t, "running", job.State)
}

// Who may see a job sees its attempts, those that are kept and the one that its row tells of, and its log.
func TestAttemptsAndLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.wish(b.anna, "https://site.test/1")
	list := func(token string) answer {
		t.Helper()
		return b.do(request{method: "GET", path: "/api/v1/jobs/" + d.JobID + "/attempts", token: token})
	}
	require.JSONEq(t, `{"items":[]}`, string(list(b.anna.token).body))
	b.exec(`INSERT INTO medianest.attempt (job_id, attempt, worker, started_at, ended_at, outcome, reason, detail, bytes)
		VALUES ($1::bigint, 1, 'nas-1', '2026-01-02T03:04:05Z', '2026-01-02T03:05:05Z', 'retried', 'network', 'no route', 42)`, d.JobID)
	b.exec(`UPDATE river.river_job SET state = 'running', attempt = 2, attempted_at = '2026-01-02T03:06:05Z', attempted_by = '{nas-1,nas-2}' WHERE id = $1::bigint`, d.JobID)
	require.JSONEq(t, `{"items":[
		{"attempt":2,"worker":"nas-2","started_at":"2026-01-02T03:06:05Z","outcome":"running"},
		{"attempt":1,"worker":"nas-1","started_at":"2026-01-02T03:04:05Z","ended_at":"2026-01-02T03:05:05Z","outcome":"retried","reason":"network","detail":"no route","bytes":42}
	]}`, string(list(b.anna.token).body))
	list(b.bert.token).problem(http.StatusNotFound, api.CodeNotFound)

	b.exec(`INSERT INTO medianest.job_log (job_id, attempt, at, level, text) VALUES
		($1::bigint, 1, '2026-01-02T03:04:05Z', 'info', 'one'), ($1::bigint, 2, '2026-01-02T03:04:06Z', 'warning', 'two')`, d.JobID)
	tail := func(token, query string) answer {
		t.Helper()
		return b.do(request{method: "GET", path: "/api/v1/jobs/" + d.JobID + "/log?" + query, token: token})
	}
	two := `{"at":"2026-01-02T03:04:06Z","attempt":2,"level":"warning","text":"two"}`
	require.JSONEq(t, `{"items":[{"at":"2026-01-02T03:04:05Z","attempt":1,"level":"info","text":"one"},`+two+`],"after":"2"}`, string(tail(b.anna.token, "").body))
	require.JSONEq(t, `{"items":[`+two+`],"after":"2"}`, string(tail(b.anna.token, "tail=1").body))
	require.JSONEq(t, `{"items":[`+two+`],"after":"2"}`, string(tail(b.anna.token, "after=1").body))
	require.JSONEq(t, `{"items":[],"after":"2"}`, string(tail(b.anna.token, "after=2").body))
	tail(b.bert.token, "").problem(http.StatusNotFound, api.CodeNotFound)
	for _, query := range []string{"tail=0", "tail=201", "after=x", "after=-1", "after=1234567890123456789"} {
		tail(b.anna.token, query).problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	}

	b.exec(`DELETE FROM river.river_job`)
	trimmed, err := b.store.TrimDomain(t.Context(), time.Hour)
	require.NoError(t, err)
	require.EqualValues(t, 1, trimmed.Attempts)
	require.EqualValues(t, 2, trimmed.LogLines)
}
