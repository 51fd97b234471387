package api_test

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"riverqueue.com/riverui"

	"medianest/api"
	"medianest/store"
)

// withRiver mounts the real River UI.
func withRiver(b *bundle, o *api.Options) {
	b.t.Helper()
	handler, err := riverui.NewHandler(&riverui.HandlerOpts{
		Endpoints: riverui.NewEndpoints(b.queue.client, nil), Logger: slog.New(slog.DiscardHandler), Prefix: o.BasePath + "/river",
	})
	require.NoError(b.t, err)
	o.RiverUI = handler
}

// cookieOf is what a signed-in browser sends.
func (b *bundle) cookieOf(p person, header map[string]string) map[string]string {
	b.t.Helper()
	session, err := b.store.CreateSession(b.t.Context(), store.NewSession{UserID: p.ID, Method: "password", Refresh: sha256.Sum256([]byte(rand()))})
	require.NoError(b.t, err)
	return merge(map[string]string{"Cookie": "medianest_session=" + b.api.SignSession(session.ID)}, header)
}

func TestRiverUI(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.BasePath = "/media" }, withRiver)
	b.exec("INSERT INTO river.river_job (kind, queue, max_attempts, args) VALUES ('download', 'download', 8, '{}')")
	page := b.do(request{method: "GET", path: "/media/river/", header: b.cookieOf(b.admin, asBrowser)})
	require.Equal(t, http.StatusOK, page.status, "body: %s", page.body)
	require.Contains(t, string(page.body), "<title>River</title>")
	require.Contains(t, page.header.Get("Content-Security-Policy"), "script-src 'self';")
	require.Contains(t, page.header.Get("Content-Security-Policy"), "frame-ancestors 'none'")

	// What the page loads is there, and of a type that browsers take it for under nosniff.
	loads := regexp.MustCompile(`(?:src|href)="(/media/river/assets/[^"]+)"`).FindAllStringSubmatch(string(page.body), -1)
	require.Len(t, loads, 2)
	for _, load := range loads {
		file := b.do(request{method: "GET", path: load[1], header: b.cookieOf(b.admin, nil)})
		require.Equal(t, http.StatusOK, file.status, load[1])
		require.Regexp(t, "^text/(javascript|css)", file.header.Get("Content-Type"))
	}

	jobs := b.do(request{method: "GET", path: "/media/river/api/jobs?state=available", header: b.cookieOf(b.admin, map[string]string{"Sec-Fetch-Site": "same-origin"})})
	require.Equal(t, http.StatusOK, jobs.status, "body: %s", jobs.body)
	var list struct{ Data []struct{ ID int64 } }
	jobs.into(&list)
	require.Len(t, list.Data, 1)

	// Its buttons work from its own page, and from no other.
	cancel := request{
		method: "POST", path: "/media/river/api/jobs/cancel", body: fmt.Sprintf(`{"ids":["%d"]}`, list.Data[0].ID),
		header: b.cookieOf(b.admin, map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}),
	}
	b.do(cancel).problem(http.StatusForbidden, api.CodeCrossSite)
	require.Zero(t, b.count("SELECT count(*) FROM river.river_job WHERE state = 'cancelled'"))
	cancel.header["Sec-Fetch-Site"], cancel.header["Origin"] = "same-origin", "http://media.example"
	require.Equal(t, http.StatusOK, b.do(cancel).status)
	require.Equal(t, 1, b.count("SELECT count(*) FROM river.river_job WHERE state = 'cancelled'"))

	moved := b.do(request{method: "GET", path: "/media/river", header: b.cookieOf(b.admin, asBrowser)})
	require.Equal(t, "/media/river/", moved.header.Get("Location"))
}

// A link by a job's id leads to the row that the job has now, through any number of lost workers.
func TestRiverUIFollowsAJob(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.BasePath = "/media" }, withRiver)
	const insert = "INSERT INTO river.river_job (kind, queue, max_attempts, args) VALUES ('download', 'download', 8, '{}') RETURNING id"
	id, other := int64(b.count(insert)), int64(b.count(insert))
	succeed := func(row int64) (successor int64) {
		require.NoError(t, b.pool.QueryRow(t.Context(), `
			WITH fresh AS (
				INSERT INTO river.river_job (args, kind, max_attempts, queue, metadata)
				VALUES ('{}', 'download', 8, 'download', jsonb_build_object('public_id', $1::bigint::text))
				RETURNING id
			), mapped AS (
				INSERT INTO medianest.job_map (public_id, row_id) SELECT $1, id FROM fresh
				ON CONFLICT (public_id) DO UPDATE SET row_id = excluded.row_id
			)
			UPDATE river.river_job AS j
			SET state = 'discarded', finalized_at = now(),
				metadata = j.metadata || jsonb_build_object('superseded_by', fresh.id::text)
			FROM fresh
			WHERE j.id = $2
			RETURNING fresh.id`, id, row).Scan(&successor))
		return successor
	}
	get := func(p person, path string) answer {
		return b.do(request{method: "GET", path: "/media/river" + path, header: b.cookieOf(p, asBrowser)})
	}
	page := func(row int64) string { return fmt.Sprintf("/jobs/%d", row) }

	require.Equal(t, http.StatusOK, get(b.admin, page(id)).status)
	second := succeed(id)
	third := succeed(second)
	for _, row := range []int64{id, second} {
		moved := get(b.admin, page(row)+"?from=a%20log")
		require.Equal(t, http.StatusFound, moved.status)
		require.Equal(t, "/media/river"+page(third)+"?from=a%20log", moved.header.Get("Location"))
		require.Equal(t, "no-store", moved.header.Get("Cache-Control"), "it may move on")
		require.Equal(t, http.StatusForbidden, get(b.anna, page(row)).status)
		require.Equal(t, http.StatusOK, get(b.admin, "/api"+page(row)).status, "its own page can show any row")
	}
	for _, path := range []string{page(third), page(other), page(4711), "/jobs/x", "/jobs/0", "/jobs/9999999999999999999", "/jobs"} {
		require.Equal(t, http.StatusOK, get(b.admin, path).status, path)
	}
}

func TestRiverUIIsForAdmins(t *testing.T) {
	t.Parallel()
	b := setup(t, withRiver)
	for _, path := range []string{"/river/", "/river/api/jobs", "/river/assets/x.js", "/river/jobs/1"} {
		b.do(request{method: "GET", path: path, token: b.anna.token}).problem(http.StatusForbidden, api.CodeForbidden)
		b.do(request{method: "GET", path: path, header: b.cookieOf(b.anna, nil)}).problem(http.StatusForbidden, api.CodeForbidden)
		require.NotEqual(t, http.StatusForbidden, b.do(request{method: "GET", path: path, token: b.admin.token}).status)
		// Not even a link of another site's leads here.
		for _, header := range []map[string]string{
			{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"},
		} {
			b.do(request{method: "GET", path: path, header: b.cookieOf(b.admin, header)}).problem(http.StatusForbidden, api.CodeCrossSite)
		}
	}
	// A browser is led to the form and back.
	a := b.do(request{method: "GET", path: "/river/jobs?state=running", header: asBrowser})
	require.Equal(t, http.StatusSeeOther, a.status)
	require.Equal(t, "/login?next=%2Friver%2Fjobs%3Fstate%3Drunning", a.header.Get("Location"))
	in := b.form("/login", url.Values{"token": {b.admin.token}, "next": {"/river/jobs?state=running"}}, nil)
	require.Equal(t, "/river/jobs?state=running", in.header.Get("Location"))

	without := setup(t)
	without.do(request{method: "GET", path: "/river/", token: without.admin.token}).problem(http.StatusNotFound, api.CodeNoSuchRoute)
}
