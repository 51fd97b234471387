package api_test

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api"
)

func TestHealth(t *testing.T) {
	t.Parallel()
	ok := func(name string) api.Check { return api.Check{Name: name, State: api.HealthOK} }
	away := func(name, state string) api.Check {
		return api.Check{Name: name, State: state, Detail: "no answer", Err: errors.New("dial 10.1.2.3: refused")}
	}
	for name, test := range map[string]struct {
		checks []api.Check
		status int
		body   string
	}{
		"all is well":   {[]api.Check{ok("postgres"), ok("redis")}, 200, `{"state":"ok","version":"v0.0.0-test","checks":[{"name":"postgres","state":"ok"},{"name":"redis","state":"ok"}]}`},
		"Redis away":    {[]api.Check{ok("postgres"), away("redis", api.HealthDegraded)}, 200, `{"state":"degraded","version":"v0.0.0-test","checks":[{"name":"postgres","state":"ok"},{"name":"redis","state":"degraded","detail":"no answer"}]}`},
		"Postgres away": {[]api.Check{away("postgres", api.HealthDown), away("redis", api.HealthDegraded)}, 503, `{"state":"down","version":"v0.0.0-test","checks":[{"name":"postgres","state":"down","detail":"no answer"},{"name":"redis","state":"degraded","detail":"no answer"}]}`},
		"no checks":     {nil, 200, `{"state":"ok","version":"v0.0.0-test","checks":[]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupFake(t, &fakeStore{}, func(_ *bundle, o *api.Options) {
				o.Health = func(context.Context) []api.Check { return test.checks }
			})
			a := b.do(request{method: "GET", path: "/readyz?verbose"})
			require.Equal(t, test.status, a.status)
			require.JSONEq(t, test.body, string(a.body), "what anybody may read names no hosts")
			alive := b.do(request{method: "GET", path: "/livez"})
			require.Equal(t, http.StatusOK, alive.status)
			require.JSONEq(t, `{"state":"ok","version":"v0.0.0-test"}`, string(alive.body))
		})
	}
}

// Dependencies are asked once a second at most, however many probes there are, and changes are logged once.
func TestHealthIsAskedSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		state := api.HealthOK
		b := setupFake(t, &fakeStore{}, func(_ *bundle, o *api.Options) {
			o.Health = func(context.Context) []api.Check {
				asked.Add(1)
				return []api.Check{{Name: "postgres", State: state, Err: errors.New("why")}}
			}
		})
		for range 100 {
			b.do(request{method: "GET", path: "/readyz"})
		}
		require.Equal(t, int64(1), asked.Load())
		require.Empty(t, b.lines("dependency changed"), "well from the start")
		for range 3 {
			state = api.HealthDown
			<-time.After(time.Second) // of the test's own clock
			require.Equal(t, http.StatusServiceUnavailable, b.do(request{method: "GET", path: "/readyz"}).status)
		}
		state = api.HealthOK
		<-time.After(time.Second)
		require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/readyz"}).status)
		changes := b.lines("dependency changed")
		require.Len(t, changes, 2)
		require.Equal(t, "WARN", changes[0]["level"])
		require.Equal(t, "why", changes[0]["err"])
		require.Equal(t, "INFO", changes[1]["level"])
	})
}
