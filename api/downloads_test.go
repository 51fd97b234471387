package api_test

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

const wishURL = "https://example.org/watch/42"

func TestCreateDownload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.do(request{method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: map[string]string{"url": wishURL}})
	require.Equal(t, http.StatusAccepted, a.status, "body: %s", a.body)
	d := a.download()
	require.Equal(t, "/api/v1/downloads/"+d.ID.String(), a.header.Get("Location"))
	require.Equal(t, "application/json", a.header.Get("Content-Type"))
	b.golden("download_queued.json", a.body, d.ID.String(), "ID", b.anna.ID.String(), "ANNA")

	// What the location names is what was answered.
	found := b.do(request{method: "GET", path: a.header.Get("Location"), token: b.anna.token})
	require.Equal(t, http.StatusOK, found.status)
	later := found.download()
	require.NotNil(t, later.Waiting)
	later.Waiting = nil // only what is looked up tells
	require.Equal(t, d, later)
	require.Equal(t, 1, b.count("SELECT count(*) FROM river.river_job WHERE id = $1 AND state = 'pending'", jobOf(t, d)))
}

func TestCreateDownloadAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.wish(b.anna, wishURL)
	again := b.do(request{method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: map[string]string{"url": wishURL}})
	require.Equal(t, http.StatusOK, again.status)
	require.Equal(t, first.ID, again.download().ID)
	require.Equal(t, "/api/v1/downloads/"+first.ID.String(), again.header.Get("Location"))

	// Somebody else's wish is a download of its own, by the same job.
	other := b.wish(b.bert, wishURL)
	require.NotEqual(t, first.ID, other.ID)
	require.Equal(t, first.JobID, other.JobID)
}

func TestProblemDocument(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.do(request{
		method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: `{"url":"","usr":1}`,
		header: map[string]string{"X-Request-ID": "r-1"},
	})
	a.problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	b.golden("problem.json", a.body)
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	post := func(p person, key, body string) answer {
		return b.do(request{
			method: "POST", path: "/api/v1/downloads", token: p.token, body: body,
			header: map[string]string{"Idempotency-Key": key},
		})
	}
	first := post(b.anna, "k 1", `{"url":"https://example.org/1"}`)
	require.Equal(t, http.StatusAccepted, first.status, "body: %s", first.body)
	again := post(b.anna, "k 1", ` { "profile" : "best", "url" : "https://example.org/1" } `)
	require.Equal(t, http.StatusOK, again.status, "white space, order and defaults mean nothing: %s", again.body)
	require.Equal(t, first.download().ID, again.download().ID)
	post(b.anna, "k 1", `{"url":"https://example.org/2"}`).problem(http.StatusUnprocessableEntity, api.CodeIdempotencyMismatch)
	require.Equal(t, http.StatusAccepted, post(b.bert, "k 1", `{"url":"https://example.org/2"}`).status, "keys are each user's own")

	deleted := b.do(request{method: "DELETE", path: first.header.Get("Location"), token: b.anna.token})
	require.Equal(t, http.StatusNoContent, deleted.status)
	require.Empty(t, deleted.body)
	p := post(b.anna, "k 1", `{"url":"https://example.org/1"}`).problem(http.StatusConflict, api.CodeConflict)
	require.Contains(t, p.Detail, "deleted")
}

// A client that sends its request again and again, impatiently, has wished once.
func TestParallelPostsWithOneKeyAreOneDownload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const posts = 100
	var wg sync.WaitGroup
	answers := make([]answer, posts)
	for i := range posts {
		r := request{
			method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: map[string]string{"url": wishURL},
			header: map[string]string{"Idempotency-Key": "once"},
		}.http(t)
		wg.Go(func() { answers[i] = b.serve(r) })
	}
	wg.Wait()
	statuses := map[int]int{}
	ids := map[uuid.UUID]bool{}
	for _, a := range answers {
		statuses[a.status]++
		ids[a.download().ID] = true
	}
	require.Equal(t, map[int]int{http.StatusAccepted: 1, http.StatusOK: posts - 1}, statuses)
	require.Len(t, ids, 1)
	require.Equal(t, 1, b.count("SELECT count(*) FROM medianest.downloads"))
	require.Equal(t, 1, b.count("SELECT count(*) FROM river.river_job"))
}

func TestDownloadShowsWhatBecameOfIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.wish(b.anna, wishURL)
	path := "/api/v1/downloads/" + d.ID.String()
	show := func(name string) answer {
		a := b.do(request{method: "GET", path: path, token: b.anna.token})
		require.Equal(t, http.StatusOK, a.status)
		b.golden(name, a.body, d.ID.String(), "ID", b.anna.ID.String(), "ANNA")
		return a
	}
	b.exec("UPDATE medianest.downloads SET state = 'running', started_at = now(), title = 'A walk' WHERE id = $1", d.ID)
	b.progress.set(store.Progress{
		JobID: jobOf(t, d), Phase: "downloading", Percent: 41.23456, DownloadedBytes: 4321, TotalBytes: 10485,
		SpeedBytesPerS: 1200, ETAS: 5, At: time.Now().UTC(),
	})
	show("download_running.json")

	// Redis is away: the download is shown without progress.
	b.progress.mu.Lock()
	b.progress.err = errors.New("connection refused")
	b.progress.mu.Unlock()
	require.Nil(t, b.do(request{method: "GET", path: path, token: b.anna.token}).download().Progress)

	b.exec(`UPDATE river.river_job SET state = 'retryable', attempt = 1, metadata = '{"reason":"network","reason_attempt":"1"}' WHERE id = $1`, jobOf(t, d))
	b.exec("UPDATE medianest.downloads SET state = 'waiting', waiting_on = 'retry', next_try_at = now() WHERE id = $1", d.ID)
	show("download_waiting.json")

	b.exec("UPDATE medianest.downloads SET state = 'failed', waiting_on = '', next_try_at = NULL, finished_at = now(), failure_reason = 'no_media' WHERE id = $1", d.ID)
	show("download_failed.json")

	b.exec(`INSERT INTO medianest.files (id, content_id, user_id, path, size_bytes, sha256)
		SELECT gen_random_uuid(), content_id, user_id, 'anna/A walk [42].mp4', 10485, sha256('x') FROM medianest.downloads WHERE id = $1`, d.ID)
	b.exec("UPDATE medianest.downloads SET state = 'completed', failure_reason = '' WHERE id = $1", d.ID)
	show("download_completed.json")
}

func TestCollectionShowsItsItems(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.wish(b.anna, "https://example.org/playlist")
	b.exec("UPDATE medianest.downloads SET state = 'running', is_collection = true, title = 'Walks' WHERE id = $1", d.ID)
	states := []string{"completed", "running", "failed", "queued"}
	for i, state := range states {
		item := b.wish(b.anna, fmt.Sprintf("https://example.org/%d", i))
		b.exec("UPDATE medianest.downloads SET parent_id = $2, position = $3, state = $4 WHERE id = $1", item.ID, d.ID, i, state)
		b.progress.set(store.Progress{JobID: jobOf(t, item), Percent: 50})
	}
	a := b.do(request{method: "GET", path: "/api/v1/downloads/" + d.ID.String(), token: b.anna.token})
	b.golden("download_collection.json", a.body, d.ID.String(), "ID", b.anna.ID.String(), "ANNA")
	require.InDelta(t, 62.5, a.download().Progress.Percent, 0.01, "two and a half of four")

	items := b.list(b.anna, "?parent_id="+d.ID.String())
	require.Len(t, items.Items, 4)
	for i, item := range items.Items {
		require.Equal(t, states[i], item.State)
		require.Equal(t, d.ID, *item.ParentID)
		require.Equal(t, state(item) == "running", item.Progress != nil)
	}
	top := b.list(b.anna, "")
	require.Len(t, top.Items, 1, "items are left out of the list of what was asked for")
}

func state(d api.Download) string { return d.State }

func (b *bundle) list(p person, query string) api.DownloadList {
	b.t.Helper()
	a := b.do(request{method: "GET", path: "/api/v1/downloads" + query, token: p.token})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	var list api.DownloadList
	a.into(&list)
	return list
}

func TestListDownloads(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var wished []uuid.UUID
	for i := range 7 {
		wished = append(wished, b.wish(b.anna, fmt.Sprintf("https://example.org/%d", i)).ID)
	}
	b.wish(b.bert, "https://example.org/bert")
	b.exec("UPDATE medianest.downloads SET state = 'failed' WHERE id = $1", wished[2])

	var listed []uuid.UUID
	cursor, pages := "", 0
	for {
		page := b.list(b.anna, "?limit=3&cursor="+cursor)
		pages++
		for _, d := range page.Items {
			listed = append(listed, d.ID)
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	require.Equal(t, 3, pages)
	require.Len(t, listed, 7)
	for i := range listed {
		require.Equal(t, wished[6-i], listed[i], "newest first")
	}
	require.Len(t, b.list(b.admin, "").Items, 8, "an admin sees everybody's")
	require.Len(t, b.list(b.bert, "").Items, 1)
	require.Len(t, b.list(b.anna, "?state=failed").Items, 1)
	require.Len(t, b.list(b.anna, "?state=failed,queued").Items, 7)
	none := b.do(request{method: "GET", path: "/api/v1/downloads?state=completed", token: b.anna.token})
	require.JSONEq(t, `{"items":[]}`, string(none.body))
	b.golden("downloads.json", b.do(request{method: "GET", path: "/api/v1/downloads?limit=1", token: b.anna.token}).body,
		wished[6].String(), "ID", b.anna.ID.String(), "ANNA", b.list(b.anna, "?limit=1").NextCursor, "CURSOR")
}

func TestCancelAndRetryDownload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.wish(b.anna, wishURL)
	path := "/api/v1/downloads/" + d.ID.String()
	post := func(action string) answer {
		return b.do(request{method: "POST", path: path + action, token: b.anna.token})
	}

	post("/retry").problem(http.StatusConflict, api.CodeConflict)
	cancelled := post("/cancel")
	require.Equal(t, http.StatusOK, cancelled.status, "body: %s", cancelled.body)
	require.Equal(t, "cancelled", cancelled.download().State)
	require.NotNil(t, cancelled.download().FinishedAt)
	require.Equal(t, 1, b.count("SELECT count(*) FROM river.river_job WHERE id = $1 AND state = 'cancelled'", jobOf(t, d)))
	require.Equal(t, http.StatusOK, post("/cancel").status, "cancelled is what was asked for")

	retried := post("/retry")
	require.Equal(t, http.StatusAccepted, retried.status, "body: %s", retried.body)
	require.Equal(t, "queued", retried.download().State)
	require.NotEqual(t, d.JobID, retried.download().JobID)

	b.exec("UPDATE medianest.downloads SET state = 'completed' WHERE id = $1", d.ID)
	p := post("/cancel").problem(http.StatusConflict, api.CodeConflict)
	require.Equal(t, "It has ended already.", p.Detail)
}
