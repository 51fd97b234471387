package api_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/api"
)

// Many jobs are counted first and changed then; what was asked for and done is in the audit.
func TestBulk(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for n := range 3 {
		b.wish(b.anna, fmt.Sprintf("https://site.test/%d", n))
	}
	b.wish(b.anna, "https://other.test/1")
	ask := func(body string) (result api.BulkResult) {
		t.Helper()
		a := b.do(request{method: "POST", path: "/api/v1/jobs/bulk", token: b.admin.token, body: body})
		require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
		a.into(&result)
		return result
	}
	result := ask(`{"action":"cancel","filter":{"key":"host:site.test"},"dry_run":true}`)
	require.Equal(t, api.BulkResult{ByState: map[string]int{"pending": 3}}, result)
	require.Equal(t, api.BulkResult{Done: 3}, ask(`{"action":"cancel","filter":{"key":"host:site.test"}}`))
	require.Equal(t, api.BulkResult{}, ask(`{"action":"cancel","filter":{"key":"host:site.test"}}`))
	entry := b.audit("?action=bulk-jobs")[1]
	require.Equal(t, float64(3), entry.Detail["done"])
	require.Equal(t, map[string]any{"action": "cancel", "filter": map[string]any{"key": "host:site.test"}}, entry.Detail["asked"])

	a := b.do(request{method: "GET", path: "/api/v1/jobs?state=cancelled&reason=cancelled&user_id=" + b.anna.ID.String() + "&key=host:site.test", token: b.admin.token})
	var list api.JobList
	a.into(&list)
	require.Len(t, list.Items, 3)

	for body, location := range map[string]string{
		`{"action":"cancel","filter":{}}`:                                  "body.filter",
		`{"action":"explode","filter":{"key":"host:a"}}`:                   "body.action",
		`{"action":"cancel","filter":{"state":["odd"]}}`:                   "body.filter.state[0]",
		`{"action":"cancel","filter":{"key":"host:a"},"cursor":"x"}`:       "body.cursor",
		`{"action":"cancel","filter":{"color":"red"}}`:                     "body.filter",
		`{"action":"cancel","filter":{"key":"host:a","user_id":"anna"}}`:   "body.filter.user_id",
		`{"action":"cancel","filter":{"key":"host:a","created_after":""}}`: "body.filter.created_after",
		`{"action":"delete"}`:                                              "body",
	} {
		p := b.do(request{method: "POST", path: "/api/v1/jobs/bulk", token: b.admin.token, body: body}).problem(422, api.CodeValidationFailed)
		require.Equal(t, location, p.Errors[0].Location, body)
	}
	b.do(request{method: "POST", path: "/api/v1/jobs/bulk", token: b.anna.token, body: `{"action":"cancel","filter":{"key":"host:a"}}`}).
		problem(http.StatusForbidden, api.CodeForbidden)
	d := b.wish(b.anna, "https://site.test/page")
	p := b.do(request{method: "POST", path: "/api/v1/downloads/" + d.ID.String() + "/retry-failed", token: b.anna.token}).problem(http.StatusConflict, api.CodeConflict)
	require.Contains(t, p.Detail, "None of its items has failed")
}
