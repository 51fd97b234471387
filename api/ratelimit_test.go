package api_test

import (
	"log/slog"
	"net/http"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
	"medianest/store/storetest"
)

// limiter returns a counter over a Redis server of the test's own.
func limiter(t *testing.T, url string) *store.RateLimiter {
	t.Helper()
	options, err := redis.ParseURL(url)
	require.NoError(t, err)
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	return store.NewRateLimiter(client, slog.New(slog.DiscardHandler))
}

// Requests are counted by user and class at all replicas together; a token has less than its user; who is not known is
// counted by address, and so are tries to sign in.
func TestRateLimits(t *testing.T) {
	t.Parallel()
	rates := map[api.RateClass]int{api.RateRead: 12, api.RateWrite: 12, api.RateSignIn: 6, api.RateAnonymous: 8}
	redisURL := storetest.Redis(t)
	b := setup(t, func(_ *bundle, o *api.Options) {
		o.Rates, o.RateLimiter, o.TrustedProxies = rates, limiter(t, redisURL), []string{"192.0.2.0/24"}
	})
	replica := *b
	replica.registry = newBundle(t).registry
	replica.build(b.store, func(_ *bundle, o *api.Options) {
		o.Rates, o.RateLimiter, o.TrustedProxies = rates, limiter(t, redisURL), []string{"192.0.2.0/24"}
	})
	second := b.makeToken(b.anna, map[string]any{"name": "second"})
	get := func(at *bundle, token, from string) answer {
		return at.do(request{method: "GET", path: "/api/v1/users/me", token: token, header: map[string]string{"X-Forwarded-For": from}})
	}
	// A token: 8 a minute, 4 of them at once. Its user: 12, 6 at once.
	for i := range 4 {
		a := get([]*bundle{b, &replica}[i%2], b.anna.token, "")
		require.Equal(t, http.StatusOK, a.status, "request %d", i)
		require.Equal(t, "12", a.header.Get("RateLimit-Limit"))
		require.Equal(t, "12;w=60", a.header.Get("RateLimit-Policy"))
		require.Equal(t, strconv.Itoa(5-i), a.header.Get("RateLimit-Remaining"))
	}
	refused := get(b, b.anna.token, "")
	refused.problem(http.StatusTooManyRequests, api.CodeTooManyRequests)
	require.Equal(t, "8", refused.header.Get("RateLimit-Limit"), "the token's")
	wait, err := strconv.Atoi(refused.header.Get("Retry-After"))
	require.NoError(t, err)
	require.InDelta(t, 7, wait, 2)
	require.Equal(t, http.StatusOK, get(b, second.Secret, "").status)
	require.Equal(t, http.StatusOK, get(&replica, second.Secret, "").status)
	require.Equal(t, "12", get(b, second.Secret, "").header.Get("RateLimit-Limit"), "the user's are used up")
	require.Equal(t, http.StatusTooManyRequests, get(b, second.Secret, "").status)
	require.Equal(t, http.StatusOK, get(b, b.bert.token, "").status, "another user")
	require.Equal(t, http.StatusAccepted, b.do(request{method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: `{"url":"https://example.org/1"}`}).status, "another class")

	for i := range 4 {
		require.Equal(t, http.StatusUnauthorized, get(b, "mn_wrong", "198.51.100.1").status, "try %d", i)
	}
	require.Equal(t, http.StatusTooManyRequests, get(&replica, "mn_wrong", "198.51.100.1").status)
	require.Equal(t, http.StatusUnauthorized, get(b, "mn_wrong", "198.51.100.2").status, "another address")
	require.Equal(t, http.StatusOK, get(b, b.bert.token, "198.51.100.1").status, "who is known is not counted by address")

	for range 3 {
		require.Equal(t, http.StatusUnauthorized, b.do(request{
			method: "POST", path: "/api/v1/auth/invitation", body: map[string]string{"code": "mni_x", "password": password},
		}).status)
	}
	a := b.do(request{method: "POST", path: "/api/v1/auth/invitation", body: map[string]string{"code": "mni_x", "password": password}})
	a.problem(http.StatusTooManyRequests, api.CodeTooManyRequests)
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/livez"}).status, "probes are not counted")
	require.Equal(t, map[string]float64{"read": 3, "sign_in": 1}, b.samples("medianest_http_rate_limited_total"))
}

// Without Redis each process counts for itself: nobody is kept out, and nobody is let in without end.
func TestRateLimitsWithoutRedis(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) {
		o.Rates, o.RateLimiter = map[api.RateClass]int{api.RateRead: 12}, limiter(t, "redis://127.0.0.1:1?max_retries=-1")
	})
	for i := range 4 {
		require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/api/v1/users/me", token: b.anna.token}).status, "request %d", i)
	}
	b.do(request{method: "GET", path: "/api/v1/users/me", token: b.anna.token}).problem(http.StatusTooManyRequests, api.CodeTooManyRequests)
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/api/v1/users/me", token: b.bert.token}).status)
}

// Scripts of origins that are listed may use the API, with a token; those of others may not, nor any of them our pages.
func TestCORS(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.CORSOrigins = []string{"https://portal.example"} })
	ask := func(method, path, origin string) answer {
		return b.do(request{method: method, path: path, token: b.anna.token, header: map[string]string{
			"Origin": origin, "Sec-Fetch-Site": "cross-site", "Access-Control-Request-Method": map[bool]string{true: "POST"}[method == "OPTIONS"],
		}})
	}
	a := ask("GET", "/api/v1/downloads", "https://portal.example")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, "https://portal.example", a.header.Get("Access-Control-Allow-Origin"))
	require.Empty(t, a.header.Get("Access-Control-Allow-Credentials"), "cookies are not for other sites")
	require.Contains(t, a.header.Get("Vary"), "Origin")
	preflight := ask("OPTIONS", "/api/v1/downloads", "https://portal.example")
	require.Equal(t, http.StatusNoContent, preflight.status)
	require.Contains(t, preflight.header.Get("Access-Control-Allow-Headers"), "Authorization")
	require.Contains(t, preflight.header.Get("Access-Control-Allow-Methods"), "PATCH")
	for _, origin := range []string{"https://evil.example", "https://portal.example.evil", "http://portal.example", "null", "https://PORTAL.example", ""} {
		for _, method := range []string{"GET", "OPTIONS"} {
			require.Empty(t, ask(method, "/api/v1/downloads", origin).header.Get("Access-Control-Allow-Origin"), "%s %s", method, origin)
		}
	}
	for _, path := range []string{"/", "/login", "/docs"} {
		require.Empty(t, ask("GET", path, "https://portal.example").header.Get("Access-Control-Allow-Origin"), path)
	}
	// A browser's session of ours is no use to another site, listed or not.
	w := b.visits(b.anna)
	d := b.wish(b.anna, wishURL)
	w.do(request{method: "POST", path: "/api/v1/downloads/" + d.ID.String() + "/cancel", header: map[string]string{
		"Origin": "https://portal.example", "Sec-Fetch-Site": "cross-site",
	}}).problem(http.StatusForbidden, api.CodeCrossSite)
}
