package api_test

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

const pausesPath = "/api/v1/pauses"

func pausePath(key string) string { return pausesPath + "/" + url.PathEscape(key) }

func (b *bundle) pauses() (list api.PauseList) {
	b.t.Helper()
	a := b.do(request{method: "GET", path: pausesPath, token: b.admin.token})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	a.into(&list)
	return list
}

// What is paused does not begin, says so, and goes on in its place when it is resumed.
func TestPauses(t *testing.T) {
	t.Parallel()
	rung := 0
	b := setup(t, func(_ *bundle, o *api.Options) { o.OnLimits = func() { rung++ } })
	b.admission(3)
	a := b.do(request{method: "PUT", path: pausePath("host:site.test"), token: b.admin.token, body: `{"note":"it moves"}`})
	require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	var pause api.Pause
	a.into(&pause)
	require.WithinDuration(t, time.Now(), pause.PausedAt, time.Minute)
	require.Equal(t, []string{"host:site.test", "it moves", b.admin.ID.String()}, []string{pause.Key, pause.Note, pause.PausedBy.String()})
	require.Equal(t, 1, rung)
	d := b.wish(b.anna, "https://www.site.test/1")
	other := b.wish(b.anna, "https://other.test/1")
	b.waitForAdmitted(1)
	found := b.find(d)
	require.Equal(t, []string{"waiting", store.WaitingOnPause, store.WaitsForPause, "host:site.test"},
		[]string{found.State, found.WaitingOn, found.Waiting.Reason, found.Waiting.Key})
	require.Equal(t, "queued", b.find(other).State)
	require.Equal(t, []api.Pause{pause}, b.pauses().Items)

	a = b.do(request{method: "DELETE", path: pausePath("host:site.test"), token: b.admin.token})
	require.Equal(t, http.StatusNoContent, a.status, "body: %s", a.body)
	b.waitForAdmitted(2)
	require.Equal(t, "queued", b.find(d).State)
	require.Empty(t, b.pauses().Items)
	require.Equal(t, 2, rung)

	p := b.do(request{method: "DELETE", path: pausePath("host:site.test"), token: b.admin.token}).problem(http.StatusNotFound, api.CodeNotFound)
	require.Contains(t, p.Detail, "is not paused by itself")
	p = b.do(request{method: "PUT", path: pausePath("planet:mars"), token: b.admin.token, body: `{}`}).
		problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	require.Equal(t, "path.key", p.Errors[0].Location)
	require.Equal(t, 2, rung, "nothing changed")
}
