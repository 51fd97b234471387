package api_test

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

const password = "correct horse battery"

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

// cookies are those that were set, by name.
func (a answer) cookies() map[string]*http.Cookie {
	set := map[string]*http.Cookie{}
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		set[c.Name] = c
	}
	return set
}

// browser keeps cookies as browsers do.
type browser struct {
	b       *bundle
	cookies map[string]string
}

// visits returns a browser that is signed in as the person, by their token.
func (b *bundle) visits(p person) *browser {
	b.t.Helper()
	in := &browser{b: b, cookies: map[string]string{}}
	require.Equal(b.t, http.StatusSeeOther, in.form("/login", url.Values{"token": {p.token}}).status)
	return in
}

func (w *browser) header(extra map[string]string) map[string]string {
	var pairs []string
	for name, value := range w.cookies {
		pairs = append(pairs, name+"="+value)
	}
	h := map[string]string{}
	if len(pairs) > 0 {
		h["Cookie"] = strings.Join(pairs, "; ")
	}
	return merge(h, extra)
}

func (w *browser) keep(a answer) answer {
	for name, c := range a.cookies() {
		if c.MaxAge < 0 {
			delete(w.cookies, name)
			continue
		}
		w.cookies[name] = c.Value
	}
	return a
}

func (w *browser) form(path string, values url.Values) answer {
	w.b.t.Helper()
	return w.keep(w.b.form(path, values, w.header(nil)))
}

// do sends what a script of our own pages does: with the token against forgery.
func (w *browser) do(r request) answer {
	w.b.t.Helper()
	r.header = w.header(merge(map[string]string{"X-CSRF-Token": w.cookies["medianest_csrf"]}, r.header))
	return w.keep(w.b.do(r))
}

// clone is the same browser, as a thief has it.
func (w *browser) clone() *browser {
	c := &browser{b: w.b, cookies: map[string]string{}}
	for name, value := range w.cookies {
		c.cookies[name] = value
	}
	return c
}

func (w *browser) me() answer {
	w.b.t.Helper()
	return w.do(request{method: "GET", path: "/api/v1/users/me"})
}

// clock is the test's time.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// withPassword gives the user one.
func (b *bundle) withPassword(p person) {
	b.t.Helper()
	hash, err := api.HashPassword(password)
	require.NoError(b.t, err)
	require.NoError(b.t, b.store.SetPassword(b.t.Context(), p.ID, hash, nil))
}

func TestSignInAndOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.withPassword(b.anna)
	form := b.do(request{method: "GET", path: "/login?next=%2Fdocs", header: map[string]string{"Accept": "text/html"}})
	require.Equal(t, http.StatusOK, form.status)
	require.Contains(t, string(form.body), `name="next" value="/docs"`)

	w := &browser{b: b, cookies: map[string]string{}}
	in := w.form("/login", url.Values{"name": {" Anna "}, "password": {password}, "next": {"/docs"}})
	require.Equal(t, http.StatusSeeOther, in.status, "body: %s", in.body)
	require.Equal(t, "/docs", in.header.Get("Location"))
	set := in.cookies()
	require.Len(t, set, 3)
	for name, cookie := range set {
		require.Equal(t, name != "medianest_csrf", cookie.HttpOnly, name)
		require.False(t, cookie.Secure, name)
		require.Equal(t, http.SameSiteStrictMode, cookie.SameSite, name)
		require.Equal(t, "/", cookie.Path, name)
		require.Zero(t, cookie.MaxAge, "%s ends with the browser", name)
	}

	page := w.do(request{method: "GET", path: "/", header: map[string]string{"Accept": "text/html"}})
	require.Contains(t, string(page.body), "Sign out")
	require.Contains(t, string(page.body), "anna")
	me := w.me()
	require.Equal(t, http.StatusOK, me.status)
	b.golden("me.json", me.body, b.anna.ID.String(), "ANNA")

	thief := w.clone()
	require.Equal(t, http.StatusForbidden, w.form("/logout", nil).status, "a form that is not of our page")
	require.Equal(t, http.StatusOK, w.me().status)
	out := w.form("/logout", url.Values{"csrf_token": {w.cookies["medianest_csrf"]}})
	require.Equal(t, http.StatusSeeOther, out.status)
	require.Empty(t, w.cookies)
	thief.me().problem(http.StatusUnauthorized, api.CodeSessionEnded)

	// As programs do.
	a := b.do(request{method: "POST", path: "/api/v1/auth/sign-in", body: map[string]any{"name": "anna", "password": password, "remember": true}})
	require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	require.InDelta(t, 30*24*3600, a.cookies()["medianest_refresh"].MaxAge, 60)
	w.keep(a)
	require.Equal(t, http.StatusNoContent, w.do(request{method: "POST", path: "/api/v1/auth/sign-out"}).status)
	require.Empty(t, w.cookies)

	require.NotContains(t, b.log.String(), b.anna.token)
	require.NotContains(t, b.log.String(), password)
	entries := b.do(request{method: "GET", path: "/api/v1/audit?action=auth.password", token: b.admin.token})
	require.Contains(t, string(entries.body), `"status":200`)
	require.NotContains(t, string(entries.body), password)
}

func TestSignInRefusesWrongTokens(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, token := range []string{"mn_wrong", strings.Repeat("x", 1000), b.anna.token[1:]} {
		a := b.form("/login", url.Values{"token": {token}}, nil)
		require.Equal(t, http.StatusUnauthorized, a.status)
		require.Contains(t, string(a.body), "The token is not valid")
		require.Empty(t, a.header.Get("Set-Cookie"))
	}
}

// A name that is not there is refused in the same words as a password that is wrong, and so are users without one, users who
// are disabled, and nonsense.
func TestSignInRefusesWrongPasswords(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ user, password string }{
		"wrong":       {"anna", "wrong"},
		"empty":       {"anna", ""},
		"nobody":      {"nobody", password},
		"no password": {"bert", password},
		"no name":     {"../anna\x00", password},
		"nul":         {"anna", password + "\x00"},
		"long":        {"anna", strings.Repeat("x", 1024)},
		"disabled":    {"carl", password},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.withPassword(b.anna)
			carl := b.person("carl", store.UserMember)
			b.withPassword(carl)
			b.exec(`UPDATE medianest.users SET disabled_at = now() WHERE id = $1`, carl.ID)
			a := b.do(request{method: "POST", path: "/api/v1/auth/sign-in", body: map[string]string{"name": test.user, "password": test.password}})
			p := a.problem(http.StatusUnauthorized, api.CodeUnauthenticated)
			require.Equal(t, "The name or the password is wrong.", p.Detail)
			require.Empty(t, a.header.Get("Set-Cookie"))
		})
	}
}

// Cookies go over https only where users reach us by https, and are for our paths.
func TestCookie(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.BasePath, o.PublicURL = "/media", "https://home.example/media" })
	for _, cookie := range b.form("/media/login", url.Values{"token": {b.anna.token}}, map[string]string{"Origin": "https://home.example"}).cookies() {
		require.True(t, cookie.Secure)
		require.Equal(t, "/media/", cookie.Path)
	}
	plain := setup(t)
	for _, cookie := range plain.form("/login", url.Values{"token": {plain.anna.token}}, map[string]string{"X-Forwarded-Proto": "https"}).cookies() {
		require.True(t, cookie.Secure)
	}
}

// A browser sends cookies by itself, so what another site's page asks for must not be done.
func TestCrossSiteRequests(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.PublicURL = "https://home.example" })
	d := b.wish(b.anna, wishURL)
	w := b.visits(b.anna)
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
		a := w.do(request{method: "POST", path: cancel, header: test.header})
		if test.allowed {
			require.Equal(t, http.StatusOK, a.status, "%s: %s", name, a.body)
			continue
		}
		a.problem(http.StatusForbidden, api.CodeCrossSite)
		// A token that a program holds is not sent by a browser on its own.
		require.Equal(t, http.StatusOK, b.do(request{method: "POST", path: cancel, token: b.anna.token, header: test.header}).status, name)
		// Nobody may be signed in or out by another site either.
		for _, path := range []string{"/login", "/logout", "/invitation"} {
			forged := b.form(path, url.Values{"token": {b.anna.token}}, merge(map[string]string{"Sec-Fetch-Site": ""}, test.header))
			require.Equal(t, http.StatusForbidden, forged.status, "%s %s", name, path)
			require.Empty(t, forged.header.Get("Set-Cookie"))
		}
		for _, path := range []string{"sign-in", "invitation"} {
			forged := b.do(request{
				method: "POST", path: "/api/v1/auth/" + path, header: test.header,
				body: map[string]string{map[string]string{"sign-in": "name", "invitation": "code"}[path]: "x", "password": password},
			})
			forged.problem(http.StatusForbidden, api.CodeCrossSite)
		}
	}
}

// What changes something carries what only our pages can read: the session's own, under a key that is ours.
func TestDoubleSubmit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.wish(b.anna, wishURL)
	cancel := "/api/v1/downloads/" + d.ID.String() + "/cancel"
	w, other := b.visits(b.anna), b.visits(b.bert)
	refused := func(what string, change func(*browser) string) {
		t.Helper()
		thief := w.clone()
		sent := change(thief)
		a := b.do(request{method: "POST", path: cancel, header: thief.header(map[string]string{"X-CSRF-Token": sent})})
		require.Equal(t, http.StatusForbidden, a.status, what)
		a.problem(http.StatusForbidden, api.CodeCSRF)
	}
	own := w.cookies["medianest_csrf"]
	refused("no header", func(*browser) string { return "" })
	refused("no cookie", func(t *browser) string { delete(t.cookies, "medianest_csrf"); return own })
	refused("header is not the cookie", func(t *browser) string { t.cookies["medianest_csrf"] = "x"; return own })
	refused("both forged", func(t *browser) string { t.cookies["medianest_csrf"] = "x.y"; return "x.y" })
	refused("another session's", func(t *browser) string {
		t.cookies["medianest_csrf"] = other.cookies["medianest_csrf"]
		return other.cookies["medianest_csrf"]
	})
	require.Equal(t, http.StatusOK, w.do(request{method: "POST", path: cancel}).status)
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/api/v1/downloads", header: w.header(nil)}).status, "reading needs none")
}

// A session goes on for as long as it is used, without anybody asking for it, and its refresh token is another each time.
func TestSessionsAreRenewed(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := setup(t, func(_ *bundle, o *api.Options) { o.Now = c.Now })
	w := b.visits(b.anna)
	first := w.cookies["medianest_refresh"]
	require.Empty(t, w.me().header.Get("Set-Cookie"), "nothing is due yet")
	for range 3 {
		before := w.clone()
		c.add(11 * time.Minute)
		require.Equal(t, http.StatusOK, w.me().status)
		require.NotEqual(t, before.cookies["medianest_refresh"], w.cookies["medianest_refresh"])
		require.NotEqual(t, before.cookies["medianest_session"], w.cookies["medianest_session"])
		require.Equal(t, before.cookies["medianest_csrf"], w.cookies["medianest_csrf"], "open pages go on")
	}
	require.NotEqual(t, first, w.cookies["medianest_refresh"])
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.session`))
	require.Equal(t, http.StatusOK, w.do(request{method: "POST", path: "/api/v1/auth/refresh"}).status)

	b.exec(`UPDATE medianest.session SET expires_at = now()`)
	w.me().problem(http.StatusUnauthorized, api.CodeSessionEnded)
	require.Empty(t, w.cookies)
	w.me().problem(http.StatusUnauthorized, api.CodeUnauthenticated)
}

// The requests of one page may all find that the session is due: one renews it, and none of them is refused.
func TestSessionsAreRenewedOnceByManyRequests(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := setup(t, func(_ *bundle, o *api.Options) { o.Now = c.Now })
	w := b.visits(b.anna)
	c.add(11 * time.Minute)
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		rotated int
	)
	for range 20 {
		tab := w.clone()
		wg.Go(func() {
			a := tab.me()
			mu.Lock()
			defer mu.Unlock()
			if a.status != http.StatusOK {
				t.Errorf("refused: %d %s", a.status, a.body)
			}
			if refresh := a.cookies()["medianest_refresh"]; refresh != nil {
				rotated++
				w.keep(a)
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, rotated)
	c.add(11 * time.Minute)
	require.Equal(t, http.StatusOK, w.me().status)
}

// A refresh token that comes a second time was stolen, or its successor was: both bearers are out, at once.
func TestReuseEndsTheSession(t *testing.T) {
	t.Parallel()
	c := newClock()
	b := setup(t, func(_ *bundle, o *api.Options) { o.Now = c.Now })
	w, elsewhere := b.visits(b.anna), b.visits(b.anna)
	thief := w.clone()
	c.add(11 * time.Minute)
	require.Equal(t, http.StatusOK, w.me().status)
	b.exec(`UPDATE medianest.refresh_token SET used_at = used_at - interval '1 minute' WHERE used_at IS NOT NULL`)
	thief.me().problem(http.StatusUnauthorized, api.CodeSessionEnded)
	require.Empty(t, thief.cookies)
	w.me().problem(http.StatusUnauthorized, api.CodeSessionEnded)
	require.Equal(t, http.StatusOK, elsewhere.me().status, "another session of the same user goes on")
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.session WHERE revoked_for = 'reuse'`))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.audit WHERE action = 'auth.refresh' AND status = 401`))
}

// What is in a cookie counts for as long as the database says so, whichever replica is asked.
func TestEndedSessionsAreRefusedByEveryReplica(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.withPassword(b.anna)
	replica := *b
	replica.registry = newBundle(t).registry
	replica.build(b.store)
	at := func(w *browser) answer {
		other := w.clone()
		other.b = &replica
		return other.me()
	}
	sign := func() *browser {
		w := &browser{b: b, cookies: map[string]string{}}
		require.Equal(t, http.StatusSeeOther, w.form("/login", url.Values{"name": {"anna"}, "password": {password}}).status)
		require.Equal(t, http.StatusOK, at(w).status)
		return w
	}
	for name, end := range map[string]func(w *browser){
		"signed out": func(w *browser) {
			require.Equal(t, http.StatusNoContent, w.do(request{method: "POST", path: "/api/v1/auth/sign-out"}).status)
		},
		"signed out everywhere": func(*browser) {
			other := sign()
			require.Equal(t, http.StatusNoContent, other.do(request{method: "POST", path: "/api/v1/auth/sign-out-everywhere"}).status)
		},
		"ended from another": func(w *browser) {
			other := sign()
			var list api.SessionList
			w.do(request{method: "GET", path: "/api/v1/auth/sessions"}).into(&list)
			require.Len(t, list.Items, 2)
			for _, s := range list.Items {
				if s.Current {
					path := "/api/v1/auth/sessions/" + s.ID.String()
					require.Equal(t, http.StatusNotFound, b.do(request{method: "DELETE", path: path, token: b.bert.token}).status)
					require.Equal(t, http.StatusNoContent, other.do(request{method: "DELETE", path: path}).status)
				}
			}
		},
		"password changed": func(*browser) {
			other := sign()
			a := other.do(request{method: "PUT", path: "/api/v1/users/me/password", body: map[string]string{"current": password, "password": password}})
			require.Equal(t, http.StatusNoContent, a.status, "body: %s", a.body)
			require.Equal(t, http.StatusOK, other.me().status, "the one that changed it goes on")
		},
		"disabled": func(*browser) {
			path := "/api/v1/users/" + b.anna.ID.String()
			require.Equal(t, http.StatusOK, b.do(request{method: "PATCH", path: path, token: b.admin.token, body: map[string]bool{"disabled": true}}).status)
			require.Equal(t, http.StatusUnauthorized, b.do(request{method: "GET", path: "/api/v1/users/me", token: b.anna.token}).status)
			require.Equal(t, http.StatusOK, b.do(request{method: "PATCH", path: path, token: b.admin.token, body: map[string]bool{"disabled": false}}).status)
		},
	} {
		w := sign()
		end(w)
		for range 2 {
			require.Equal(t, http.StatusUnauthorized, at(w).status, name)
		}
		b.exec(`DELETE FROM medianest.session`)
	}
	// By a token: with the token.
	w := b.visits(b.bert)
	var tokens api.TokenList
	w.do(request{method: "GET", path: "/api/v1/tokens"}).into(&tokens)
	require.Len(t, tokens.Items, 1)
	require.Equal(t, http.StatusNoContent, w.do(request{method: "DELETE", path: "/api/v1/tokens/" + tokens.Items[0].ID.String()}).status)
	require.Equal(t, http.StatusUnauthorized, at(w).status)
}

// A cookie that is not signed by one of our keys, or is past its time, is nothing.
func TestForgedSessions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.visits(b.anna)
	good := w.cookies["medianest_session"]
	parts := strings.Split(good, ".")
	for name, forged := range map[string]string{
		"empty":         "",
		"nonsense":      "x",
		"no signature":  parts[0] + "." + parts[1] + ".",
		"none":          "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0." + parts[1] + ".",
		"other body":    parts[0] + "." + strings.ToUpper(parts[1]) + "." + parts[2],
		"endless":       strings.Repeat("x", 5000),
		"other session": strings.Repeat(".", 2),
	} {
		a := b.do(request{method: "GET", path: "/api/v1/users/me", header: map[string]string{"Cookie": "medianest_session=" + forged}})
		require.Equal(t, http.StatusUnauthorized, a.status, name)
	}
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/api/v1/users/me", header: map[string]string{"Cookie": "medianest_session=" + good}}).status)
}

// A key is replaced while requests go on: what the old one signed counts for as long as it is there.
func TestKeyRotationFailsNoRequest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old, fresh := store.NewKey(), store.NewKey()
	replica := func(keys string) *bundle {
		r := *b
		r.registry = newBundle(t).registry
		ring, err := store.ParseKeyring(keys)
		require.NoError(t, err)
		r.build(b.store, func(_ *bundle, o *api.Options) { o.Keys = ring })
		return &r
	}
	d := b.wish(b.anna, wishURL)
	before, both, signing := replica(old), replica(old+","+fresh), replica(fresh+","+old)
	w := before.visits(b.anna)
	for _, r := range []*bundle{before, both, signing, both, signing} {
		w.b = r
		require.Equal(t, http.StatusOK, w.do(request{method: "POST", path: "/api/v1/downloads/" + d.ID.String() + "/cancel"}).status)
		require.Equal(t, http.StatusOK, w.do(request{method: "POST", path: "/api/v1/auth/refresh"}).status)
		b.exec(`UPDATE medianest.refresh_token SET used_at = used_at - interval '1 minute'`)
	}
	w.b = replica(fresh)
	require.Equal(t, http.StatusOK, w.me().status, "the old key is not needed any more")
}

// The first start's code, and any other invitation: it sets a password, once.
func TestInvitation(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.do(request{method: "POST", path: "/api/v1/users", token: b.admin.token, body: map[string]string{"name": "carl", "role": "viewer"}})
	require.Equal(t, http.StatusCreated, a.status, "body: %s", a.body)
	var invitation api.Invitation
	a.into(&invitation)
	require.Equal(t, "http://media.example/invitation?code="+invitation.Code, invitation.Link)
	page := b.do(request{method: "GET", path: strings.TrimPrefix(invitation.Link, "http://media.example"), header: map[string]string{"Accept": "text/html"}})
	require.Contains(t, string(page.body), `value="`+invitation.Code+`"`)
	require.Equal(t, "no-referrer", page.header.Get("Referrer-Policy"))

	w := &browser{b: b, cookies: map[string]string{}}
	weak := w.form("/invitation", url.Values{"code": {invitation.Code}, "password": {"short"}, "again": {"short"}})
	require.Equal(t, http.StatusUnprocessableEntity, weak.status)
	require.Contains(t, string(weak.body), "shorter than 10 characters")
	differ := w.form("/invitation", url.Values{"code": {invitation.Code}, "password": {password}, "again": {"another of that length"}})
	require.Contains(t, string(differ.body), "passwords are not the same")
	in := w.form("/invitation", url.Values{"code": {invitation.Code}, "password": {password}, "again": {password}})
	require.Equal(t, http.StatusSeeOther, in.status, "body: %s", in.body)
	require.Equal(t, http.StatusOK, w.me().status)

	again := b.do(request{method: "POST", path: "/api/v1/auth/invitation", body: map[string]string{"code": invitation.Code, "password": password}})
	again.problem(http.StatusUnauthorized, api.CodeUnauthenticated)
	require.Equal(t, http.StatusSeeOther, w.form("/login", url.Values{"name": {"carl"}, "password": {password}}).status)

	// Another one takes the place of the one before, and the password holds until it is taken.
	path := "/api/v1/users/" + invitation.User.ID.String() + "/invitation"
	var second, third api.Invitation
	b.do(request{method: "POST", path: path, token: b.admin.token}).into(&second)
	b.do(request{method: "POST", path: path, token: b.admin.token}).into(&third)
	redeem := func(code string) int {
		return b.do(request{method: "POST", path: "/api/v1/auth/invitation", body: map[string]string{"code": code, "password": password}}).status
	}
	require.Equal(t, http.StatusUnauthorized, redeem(second.Code))
	require.Equal(t, http.StatusOK, redeem(third.Code))
}

// Who fails again and again waits, whatever replica is asked: by name, and by address.
func TestSignInSlowsDown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.withPassword(b.anna)
	try := func(name, word, address string) answer {
		return b.do(request{
			method: "POST", path: "/api/v1/auth/sign-in", body: map[string]string{"name": name, "password": word},
			header: map[string]string{"X-Forwarded-For": address},
		})
	}
	trusted := func(_ *bundle, o *api.Options) { o.TrustedProxies = []string{"192.0.2.0/24"} } // httptest's
	b.registry = newBundle(t).registry
	b.build(b.store, trusted)
	for i := range 4 {
		require.Equal(t, http.StatusUnauthorized, try("anna", "wrong", "198.51.100."+string(rune('1'+i))).status)
	}
	a := try("anna", password, "198.51.100.9")
	a.problem(http.StatusTooManyRequests, api.CodeTooManyAttempts)
	require.Equal(t, "1", a.header.Get("Retry-After"))
	require.Equal(t, http.StatusUnauthorized, try("bert", "wrong", "198.51.100.9").status, "another name is not slowed down")

	for i := range 4 {
		require.Equal(t, http.StatusUnauthorized, try("user-"+string(rune('1'+i)), "wrong", "203.0.113.1").status)
	}
	require.Equal(t, http.StatusTooManyRequests, try("carl", "wrong", "203.0.113.1").status, "one address tries many names")
	require.Equal(t, map[string]float64{"refused": 9, "slowed_down": 2}, b.samples("medianest_http_sign_ins_total"))

	require.Equal(t, http.StatusOK, b.do(request{
		method: "GET", path: "/api/v1/users/me", token: b.anna.token, header: map[string]string{"X-Forwarded-For": "203.0.113.1"},
	}).status, "programs with a token that is right go on")

	b.exec(`UPDATE medianest.sign_in_failure SET until = now()`)
	require.Equal(t, http.StatusOK, try("anna", password, "198.51.100.9").status)
	require.Equal(t, http.StatusUnauthorized, try("anna", "wrong", "198.51.100.9").status)
	require.Equal(t, http.StatusOK, try("anna", password, "198.51.100.9").status, "a success forgets failures")
	require.Equal(t, "2001:db8:1:2::/64", api.Network("2001:db8:1:2:ffff::1"))
	require.Equal(t, "192.0.2.1/32", api.Network("::ffff:192.0.2.1"))
}

// A ticket opens one stream, for who got it, and for nothing else.
func TestEventTicket(t *testing.T) {
	t.Parallel()
	b := setup(t)
	get := func() string {
		var ticket api.Ticket
		a := b.do(request{method: "POST", path: "/api/v1/events/ticket", token: b.anna.token})
		require.Equal(t, http.StatusCreated, a.status, "body: %s", a.body)
		a.into(&ticket)
		return ticket.Ticket
	}
	ticket := get()
	require.Equal(t, http.StatusUnauthorized, b.do(request{method: "GET", path: "/api/v1/downloads?ticket=" + ticket}).status)
	a := b.do(request{method: "GET", path: "/api/v1/events?ticket=" + ticket})
	require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	require.Equal(t, b.anna.ID, b.stream.subscription().Viewer.UserID)
	b.do(request{method: "GET", path: "/api/v1/events?ticket=" + ticket}).problem(http.StatusUnauthorized, api.CodeUnauthenticated)
	b.do(request{method: "GET", path: "/api/v1/events?ticket=" + strings.Repeat("x", 300)}).problem(http.StatusUnauthorized, api.CodeUnauthenticated)

	late := get()
	b.exec(`UPDATE medianest.one_time SET expires_at = now()`)
	require.Equal(t, http.StatusUnauthorized, b.do(request{method: "GET", path: "/api/v1/events?ticket=" + late}).status)
	revoked := get()
	b.exec(`UPDATE medianest.tokens SET revoked_at = now() WHERE user_id = $1`, b.anna.ID)
	require.Equal(t, http.StatusUnauthorized, b.do(request{method: "GET", path: "/api/v1/events?ticket=" + revoked}).status)
	require.NotContains(t, b.log.String(), "mnt_")
}

// A stream that is open ends when its reader is not let in any more.
func TestStreamsEndWithTheirReaders(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(b *bundle){
		"token revoked": func(b *bundle) {
			b.exec(`UPDATE medianest.tokens SET revoked_at = now() WHERE user_id = $1`, b.anna.ID)
		},
		"user disabled": func(b *bundle) { b.exec(`UPDATE medianest.users SET disabled_at = now() WHERE id = $1`, b.anna.ID) },
		"another role":  func(b *bundle) { b.exec(`UPDATE medianest.users SET role = 'admin' WHERE id = $1`, b.anna.ID) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.api.WatchEvery(10 * time.Millisecond)
			b.stream.open = make(chan struct{})
			done := make(chan answer)
			go func() { done <- b.do(request{method: "GET", path: "/api/v1/events", token: b.anna.token}) }()
			<-b.stream.open
			end(b)
			select {
			case <-done:
			case <-time.After(30 * time.Second):
				t.Fatal("the stream goes on")
			}
		})
	}
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	hash, err := api.HashPassword(password)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$"))
	other, err := api.HashPassword(password)
	require.NoError(t, err)
	require.NotEqual(t, hash, other, "each has its salt")
	require.True(t, api.PasswordMatches(password, hash))
	for _, wrong := range []string{
		"", "$", "$argon2id$", strings.Replace(hash, "argon2id", "argon2i", 1), strings.Replace(hash, "v=19", "v=16", 1),
		strings.Replace(hash, "m=19456", "m=4194304", 1), strings.Replace(hash, "t=2", "t=0", 1), strings.Replace(hash, "p=1", "p=0", 1),
		hash[:len(hash)-4], hash + "$", strings.Replace(hash, "m=19456", "m=-1", 1),
	} {
		require.False(t, api.PasswordMatches(password, wrong), wrong)
	}
	require.False(t, api.PasswordMatches("correct horse batteri", hash))
	// The example of the reference implementation: https://github.com/P-H-C/phc-winner-argon2
	require.True(t, api.PasswordMatches("password", "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"))
}

func TestOnePasswordIsAsGoodAsItsLength(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for word, ok := range map[string]bool{
		"": false, "short": false, "aaaaaaaaaaaa": false, strings.Repeat("ä", 257): false, "nul\x00nul\x00nul\x00": false,
		"ten letter": true, "пароль из слов": true, strings.Repeat("ab", 128): true,
	} {
		a := b.do(request{method: "PUT", path: "/api/v1/users/me/password", token: b.anna.token, body: map[string]string{"password": word}})
		if ok {
			require.Equal(t, http.StatusNoContent, a.status, "%q: %s", word, a.body)
			b.exec(`UPDATE medianest.users SET password_hash = NULL`)
			continue
		}
		a.problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	}
	require.NotEqual(t, uuid.Nil, b.anna.ID)
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
