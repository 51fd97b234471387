package api_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api"
)

// form posts a form as a browser does.
func (b *bundle) form(path string, values url.Values, header map[string]string) answer {
	b.t.Helper()
	h := map[string]string{
		"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
		"Origin": "http://media.example", "Sec-Fetch-Site": "same-origin",
	}
	for name, value := range header {
		h[name] = value
	}
	return b.do(request{method: "POST", path: path, body: values.Encode(), header: h})
}

// cookie is the one cookie that was set.
func (a answer) cookie() *http.Cookie {
	a.t.Helper()
	cookies := (&http.Response{Header: a.header}).Cookies()
	require.Len(a.t, cookies, 1)
	return cookies[0]
}

func TestSignInAndOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := b.do(request{method: "GET", path: "/login?next=%2Fdocs", header: map[string]string{"Accept": "text/html"}})
	require.Equal(t, http.StatusOK, form.status)
	require.Contains(t, string(form.body), `name="next" value="/docs"`)

	in := b.form("/login", url.Values{"token": {" " + b.anna.token + "\n"}, "next": {"/docs"}}, nil)
	require.Equal(t, http.StatusSeeOther, in.status, "body: %s", in.body)
	require.Equal(t, "/docs", in.header.Get("Location"))
	cookie := in.cookie()
	require.True(t, cookie.HttpOnly)
	require.False(t, cookie.Secure)
	require.Equal(t, http.SameSiteStrictMode, cookie.SameSite)
	require.Equal(t, "/", cookie.Path)
	require.Equal(t, 30*24*60*60, cookie.MaxAge)

	signedIn := map[string]string{"Cookie": cookie.Name + "=" + cookie.Value, "Accept": "text/html"}
	page := b.do(request{method: "GET", path: "/", header: signedIn})
	require.Contains(t, string(page.body), "Sign out")
	require.Contains(t, string(page.body), "anna")
	me := b.do(request{method: "GET", path: "/api/v1/users/me", header: signedIn})
	require.Equal(t, http.StatusOK, me.status)
	b.golden("me.json", me.body, b.anna.ID.String(), "ANNA")

	out := b.form("/logout", nil, signedIn)
	require.Equal(t, http.StatusSeeOther, out.status)
	require.Negative(t, out.cookie().MaxAge)
	require.Empty(t, out.cookie().Value)

	require.NotContains(t, b.log.String(), b.anna.token)
}

func TestSignInRefusesWrongTokens(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, token := range []string{"", "mn_wrong", strings.Repeat("x", 1000), b.anna.token[1:]} {
		a := b.form("/login", url.Values{"token": {token}}, map[string]string{"X-Forwarded-For": ""})
		if a.status == http.StatusTooManyRequests {
			continue // the last of them: see TestSignInSlowsDown
		}
		require.Equal(t, http.StatusUnauthorized, a.status)
		require.Contains(t, string(a.body), "The token is not valid")
		require.Empty(t, a.header.Get("Set-Cookie"))
	}
}

// The cookie goes over https only where users reach us by https, lives no longer than its token, and is for our paths.
func TestCookie(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.BasePath, o.PublicURL = "/media", "https://home.example/media" })
	b.exec("UPDATE medianest.tokens SET expires_at = now() + interval '1 hour' WHERE user_id = $1", b.anna.ID)
	cookie := b.form("/media/login", url.Values{"token": {b.anna.token}}, map[string]string{"Origin": "https://home.example"}).cookie()
	require.True(t, cookie.Secure)
	require.Equal(t, "/media/", cookie.Path)
	require.InDelta(t, 3600, cookie.MaxAge, 30)

	plain := setup(t)
	require.True(t, plain.form("/login", url.Values{"token": {plain.anna.token}}, map[string]string{"X-Forwarded-Proto": "https"}).cookie().Secure)
}

// A browser sends the cookie by itself, so what another site's page asks for must not be done.
func TestCrossSiteRequests(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.PublicURL = "https://home.example" })
	d := b.wish(b.anna, wishURL)
	cookie := "medianest_token=" + b.anna.token
	cancel := "/api/v1/downloads/" + d.ID.String() + "/cancel"
	for name, test := range map[string]struct {
		header  map[string]string
		allowed bool
	}{
		"another site":                {map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, false},
		"a neighbour":                 {map[string]string{"Sec-Fetch-Site": "same-site", "Origin": "http://evil.media.example"}, false},
		"another site, old browser":   {map[string]string{"Origin": "https://evil.example"}, false},
		"another port, old browser":   {map[string]string{"Origin": "http://media.example:8081"}, false},
		"a sandbox, old browser":      {map[string]string{"Origin": "null"}, false},
		"our own page":                {map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": "http://media.example"}, true},
		"our own page, old browser":   {map[string]string{"Origin": "http://media.example"}, true},
		"our own page behind a proxy": {map[string]string{"Origin": "https://home.example"}, true},
		"no browser":                  {map[string]string{}, true},
	} {
		test.header["Cookie"] = cookie
		a := b.do(request{method: "POST", path: cancel, header: test.header})
		if test.allowed {
			require.Equal(t, http.StatusOK, a.status, "%s: %s", name, a.body)
			continue
		}
		a.problem(http.StatusForbidden, api.CodeCrossSite)
		// A token that a program holds is not sent by a browser on its own.
		delete(test.header, "Cookie")
		require.Equal(t, http.StatusOK, b.do(request{method: "POST", path: cancel, token: b.anna.token, header: test.header}).status, name)
		// Nobody may be signed in or out by another site either.
		for _, path := range []string{"/login", "/logout"} {
			forged := b.form(path, url.Values{"token": {b.anna.token}}, merge(map[string]string{"Sec-Fetch-Site": ""}, test.header))
			require.Equal(t, http.StatusForbidden, forged.status, "%s %s", name, path)
			require.Empty(t, forged.header.Get("Set-Cookie"))
		}
	}
}

func merge(a, b map[string]string) map[string]string {
	for name, value := range b {
		a[name] = value
	}
	return a
}

func TestLocalPath(t *testing.T) {
	t.Parallel()
	root := setupFake(t, &fakeStore{}).api
	below := setupFake(t, &fakeStore{}, func(_ *bundle, o *api.Options) { o.BasePath = "/media" }).api
	for next, want := range map[string][2]string{
		"":                        {"/", "/media/"},
		"/":                       {"/", "/media/"},
		"/docs":                   {"/docs", "/media/"},
		"/media/docs":             {"/media/docs", "/media/docs"},
		"/media/river/jobs?a=b":   {"/media/river/jobs?a=b", "/media/river/jobs?a=b"},
		"/media":                  {"/media", "/media/"},
		"/media/../admin":         {"/media/../admin", "/media/"},
		"/mediathek":              {"/mediathek", "/media/"},
		"docs":                    {"/", "/media/"},
		"https://evil.example/":   {"/", "/media/"},
		"//evil.example/":         {"/", "/media/"},
		"///evil.example/":        {"/", "/media/"},
		"/\\evil.example":         {"/", "/media/"},
		"/\tevil":                 {"/", "/media/"},
		"javascript:alert(1)":     {"/", "/media/"},
		"/docs\r\nSet-Cookie: a=": {"/", "/media/"},
	} {
		require.Equal(t, want[0], root.LocalPath(next), "%q", next)
		require.Equal(t, want[1], below.LocalPath(next), "%q", next)
	}
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	now := time.Now()
	throttle := api.NewThrottle(func() time.Time { return now })
	for i, want := range []time.Duration{0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60} {
		throttle.Failed("192.0.2.1")
		require.Equal(t, want*time.Second, throttle.Wait("192.0.2.1"), "failure %d", i+1)
		now = now.Add(throttle.Wait("192.0.2.1"))
		require.Zero(t, throttle.Wait("192.0.2.1"))
	}
	require.Zero(t, throttle.Wait("192.0.2.2"), "each address for itself")

	throttle.Failed("192.0.2.1")
	throttle.Succeeded("192.0.2.1")
	require.Zero(t, throttle.Wait("192.0.2.1"))

	// A network of IPv6 is one party.
	for _, last := range []string{"1", "2", "3", "4"} {
		throttle.Failed("2001:db8:1:2::" + last)
	}
	require.Equal(t, time.Second, throttle.Wait("2001:db8:1:2:ffff::1"))
	require.Zero(t, throttle.Wait("2001:db8:1:3::1"))
	now = now.Add(16 * time.Minute)
	throttle.Failed("2001:db8:1:2::1")
	require.Zero(t, throttle.Wait("2001:db8:1:2::1"), "old failures are forgotten")
}

func TestThrottleIsBounded(t *testing.T) {
	t.Parallel()
	throttle := api.NewThrottle(time.Now)
	for i := range 3 * api.MaxThrottledNets {
		throttle.Failed("2001:db8:" + hex(i>>16) + ":" + hex(i&0xffff) + "::1")
	}
	require.LessOrEqual(t, throttle.Size(), api.MaxThrottledNets)
}

func hex(n int) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[n>>12&15], digits[n>>8&15], digits[n>>4&15], digits[n&15]})
}

func TestSignInSlowsDown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var a answer
	for range 5 {
		a = b.form("/login", url.Values{"token": {"mn_wrong"}}, nil)
	}
	require.Equal(t, http.StatusTooManyRequests, a.status)
	require.Equal(t, "1", a.header.Get("Retry-After"))
	require.Contains(t, string(a.body), "Try again in 1 s")
	require.Equal(t, map[string]float64{"refused": 4, "slowed_down": 1}, b.samples("medianest_http_sign_ins_total"))
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/api/v1/users/me", token: b.anna.token}).status,
		"programs with a token that is right go on")
}
