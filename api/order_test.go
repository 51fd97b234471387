package api_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

// A download is moved to the front by who wishes for it, and a job's priority changed by admins.
func TestDownloadNow(t *testing.T) {
	t.Parallel()
	rung := 0
	b := setup(t, func(_ *bundle, o *api.Options) { o.OnLimits = func() { rung++ } })
	first, second := b.wish(b.anna, "https://site.test/1"), b.wish(b.anna, "https://site.test/2")
	position := func(d api.Download) int { return b.find(d).Waiting.Position }
	require.Equal(t, []int{1, 2}, []int{position(first), position(second)})
	now := request{method: "POST", path: "/api/v1/downloads/" + second.ID.String() + "/now", token: b.anna.token}
	a := b.do(now)
	require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	require.Equal(t, second.ID, a.download().ID)
	require.Equal(t, []int{2, 1}, []int{position(first), position(second)})
	require.Equal(t, 1, rung)

	change := request{method: "PATCH", path: "/api/v1/jobs/" + second.JobID, token: b.admin.token, body: `{"priority":4}`}
	a = b.do(change)
	require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	require.Equal(t, []int{1, 2}, []int{position(first), position(second)})
	require.Equal(t, 2, rung)
	change.body = `{"priority":5}`
	require.Equal(t, "body.priority", b.do(change).problem(http.StatusUnprocessableEntity, api.CodeValidationFailed).Errors[0].Location)
	change.token, change.body = b.anna.token, `{"priority":1}`
	b.do(change).problem(http.StatusForbidden, api.CodeForbidden)

	b.do(request{method: "POST", path: "/api/v1/downloads/" + second.ID.String() + "/cancel", token: b.anna.token})
	p := b.do(now).problem(http.StatusConflict, api.CodeConflict)
	require.Contains(t, p.Detail, "does not wait")
	change.token = b.admin.token
	b.do(change).problem(http.StatusConflict, api.CodeConflict)
}

// What is wanted until some time only says so, and is dropped with its reason.
func TestStartBy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	by := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	body := func(at time.Time) string {
		return `{"url":"https://site.test/1","start_by":"` + at.Format(time.RFC3339) + `"}`
	}
	p := b.do(request{method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: body(by.Add(-2 * time.Hour))}).
		problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	require.Equal(t, "body.start_by", p.Errors[0].Location)
	a := b.do(request{method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: body(by)})
	require.Equal(t, http.StatusAccepted, a.status, "body: %s", a.body)
	d := a.download()
	require.True(t, by.Equal(*d.StartBy))
	_, err := b.store.ExpireDownloads(t.Context(), &by)
	require.NoError(t, err)
	found := b.find(d)
	require.Equal(t, []string{store.StateCancelled, "expired", "It had not begun by the time until which it was wanted."},
		[]string{found.State, found.Failure.Reason, found.Failure.Detail})
}
