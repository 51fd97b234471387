package api_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever is given as an id, a cursor or a filter: it is found, not found or refused, and never a fault of ours.
func FuzzIDsAndCursors(f *testing.F) {
	b := setup(f)
	d := b.wish(b.anna, wishURL)
	b.wish(b.anna, "https://example.org/2")
	for _, seed := range []string{
		d.ID.String(), d.JobID, b.list(b.anna, "?limit=1").NextCursor, "", "0", "-1", "+1", "007", "9223372036854775808", "%00", "\x00", "..",
		"00000000-0000-0000-0000-000000000000", "{" + d.ID.String() + "}", "urn:uuid:" + d.ID.String(), "AAAA", "AAAAAAAAAAAAAAAAAAAAAA", "é", "a,b",
		"5e1c9a3b7f20.90317.4", "queued", "job.state",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		path, query := url.PathEscape(text), url.QueryEscape(text)
		for _, target := range []string{
			"/api/v1/downloads/" + path, "/api/v1/jobs/" + path, "/api/v1/downloads?cursor=" + query,
			"/api/v1/downloads?parent_id=" + query, "/api/v1/downloads?parent_id=" + d.ID.String() + "&cursor=" + query,
			"/api/v1/jobs?cursor=" + query, "/api/v1/jobs?kind=" + query, "/api/v1/jobs?state=" + query,
			"/api/v1/downloads?limit=" + query, "/api/v1/events?job_id=" + query, "/api/v1/events?download_id=" + query,
			"/api/v1/events?topic=" + query, "/api/v1/events?last_event_id=" + query, "/login?next=" + query, "/static/" + path,
		} {
			r := request{method: http.MethodGet, path: target, token: b.anna.token}.http(t)
			w := httptest.NewRecorder()
			b.api.ServeHTTP(w, r)
			require.Less(t, w.Code, http.StatusInternalServerError, "%s: %s", target, w.Body)
		}
	})
}
