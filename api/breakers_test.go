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

const breakersPath = "/api/v1/breakers"

func breakerPath(key string) string { return breakersPath + "/" + url.PathEscape(key) }

func (b *bundle) breakers(query string) (list api.BreakerList) {
	b.t.Helper()
	a := b.do(request{method: "GET", path: breakersPath + query, token: b.admin.token})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	a.into(&list)
	return list
}

// What has tripped is shown from when it does until it closes, and is closed by hand: what waits for it begins at once.
func TestBreakers(t *testing.T) {
	t.Parallel()
	rung := 0
	b := setup(t, func(_ *bundle, o *api.Options) { o.OnLimits = func() { rung++ } })
	require.Empty(t, b.breakers("").Items)
	d := b.wish(b.anna, "https://www.site.test/1")
	b.exec(`
		INSERT INTO medianest.breaker (key, step, open_until, probe_job, tripped_at, trips, reason)
		VALUES ('host:site.test', 2, now() + interval '5 min', NULL, now(), 3, 'rate_limited'),
			('host:due.test', 0, now(), $1, now(), 1, 'bot_check'),
			('host:probed.test', 0, now(), NULL, now(), 1, 'bot_check')`, jobOf(t, d))
	a := b.do(request{method: "GET", path: breakersPath + "?limit=2", token: b.admin.token})
	var first api.BreakerList
	a.into(&first)
	b.golden("breakers.json", a.body, first.NextCursor, "CURSOR")
	require.WithinDuration(t, time.Now().Add(5*time.Minute), b.breakers("").Items[2].OpenUntil, time.Minute)
	last := b.breakers("?limit=2&cursor=" + first.NextCursor)
	require.Equal(t, "host:site.test", last.Items[0].Key)
	require.Equal(t, store.BreakerOpen, last.Items[0].State)
	require.Empty(t, last.NextCursor)

	b.admission(3)
	require.Eventually(t, func() bool { return b.find(d).WaitingOn == store.WaitingOnBreaker }, 10*time.Second, 5*time.Millisecond)
	reset := b.do(request{method: "DELETE", path: breakerPath("host:site.test"), token: b.admin.token})
	require.Equal(t, http.StatusNoContent, reset.status, "body: %s", reset.body)
	require.Equal(t, 1, rung)
	b.waitForAdmitted(1)
	require.Equal(t, "queued", b.find(d).State)
	probing := b.breakers("").Items[0]
	require.Equal(t, []string{"host:due.test", store.BreakerProbing, d.JobID}, []string{probing.Key, probing.State, probing.ProbeJobID})

	p := b.do(request{method: "DELETE", path: breakerPath("host:site.test"), token: b.admin.token}).
		problem(http.StatusNotFound, api.CodeNotFound)
	require.Contains(t, p.Detail, "has not tripped")
	p = b.do(request{method: "DELETE", path: breakerPath("planet:mars"), token: b.admin.token}).
		problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	require.Equal(t, "path.key", p.Errors[0].Location)
	for _, cursor := range []string{"x", "AAAA", "_w"} {
		b.do(request{method: "GET", path: breakersPath + "?cursor=" + cursor, token: b.admin.token}).problem(422, api.CodeValidationFailed)
	}
	require.Equal(t, 1, rung, "nothing changed")
}
