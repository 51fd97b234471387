package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

// fakeProvider lets in whom the test says.
type fakeProvider struct {
	who store.ExternalIdentity
	err error
}

func (*fakeProvider) Name() string  { return "plex" }
func (*fakeProvider) Title() string { return "Plex" }

func (f *fakeProvider) Begin(_ context.Context, state, back string) (string, json.RawMessage, error) {
	if f.err != nil {
		return "", nil, f.err
	}
	return "https://provider.example/?state=" + state + "&back=" + url.QueryEscape(back), json.RawMessage(`{"n":1}`), nil
}

func (f *fakeProvider) Finish(_ context.Context, attempt json.RawMessage, _, _ string) (store.ExternalIdentity, []byte, error) {
	if string(attempt) != `{"n": 1}` && string(attempt) != `{"n":1}` {
		return store.ExternalIdentity{}, nil, &api.RefusedError{Why: "The attempt is another: " + string(attempt)}
	}
	return f.who, []byte("canary-token"), f.err
}

func setupProvider(t *testing.T, role string) (*bundle, *fakeProvider) {
	t.Helper()
	f := &fakeProvider{who: store.ExternalIdentity{Provider: "plex", Subject: "42", Name: "Carla C."}}
	return setup(t, func(_ *bundle, o *api.Options) { o.Providers, o.SignUpRole = []api.Provider{f}, role }), f
}

// begin goes to the provider's page and returns the state.
func (w *browser) begin(next string) string {
	w.b.t.Helper()
	a := w.keep(w.b.do(request{method: "GET", path: "/login/plex?next=" + url.QueryEscape(next), header: w.header(nil)}))
	require.Equal(w.b.t, http.StatusSeeOther, a.status, "body: %s", a.body)
	require.Equal(w.b.t, http.SameSiteLaxMode, a.cookies()["medianest_attempt"].SameSite)
	link, err := url.Parse(a.header.Get("Location"))
	require.NoError(w.b.t, err)
	require.Equal(w.b.t, "http://media.example/login/plex/done", link.Query().Get("back"))
	return link.Query().Get("state")
}

func (w *browser) done(query string) answer {
	w.b.t.Helper()
	return w.keep(w.b.do(request{method: "GET", path: "/login/plex/done" + query, header: w.header(map[string]string{"Accept": "text/html"})}))
}

func (b *bundle) browser() *browser { return &browser{b: b, cookies: map[string]string{}} }

// Who comes for the first time gets an account, and the same one ever after; what they show is kept sealed.
func TestSignInByProvider(t *testing.T) {
	t.Parallel()
	b, f := setupProvider(t, store.UserViewer)
	require.Contains(t, string(b.do(request{method: "GET", path: "/login", header: map[string]string{"Accept": "text/html"}}).body), `href="/login/plex?next=%2F"`)
	w := b.browser()
	w.begin("/docs")
	f.err = api.ErrPending
	a := w.done("")
	require.Equal(t, http.StatusAccepted, a.status)
	require.Contains(t, string(a.body), `content="2;url=/login/plex/done"`)
	f.err = nil
	a = w.done("")
	require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	require.Contains(t, string(a.body), `content="0;url=/docs"`)
	var me api.Me
	w.me().into(&me)
	require.Equal(t, []string{"carla-c", "viewer"}, []string{me.Name, me.Role})
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.secret WHERE position('canary'::bytea IN sealed) > 0`))
	token, err := b.store.OpenSecret(t.Context(), "plex:user:"+me.ID.String())
	require.NoError(t, err)
	require.Equal(t, "canary-token", string(token))
	require.NotContains(t, b.log.String(), "canary-token")

	f.who.Name = "Another Name"
	again := b.browser()
	again.begin("")
	require.Equal(t, http.StatusOK, again.done("").status)
	var same api.Me
	again.me().into(&same)
	require.Equal(t, me.ID, same.ID)

	// A namesake is somebody else.
	f.who = store.ExternalIdentity{Provider: "plex", Subject: "43", Name: "carla c"}
	other := b.browser()
	other.begin("")
	require.Equal(t, http.StatusOK, other.done("").status)
	other.me().into(&same)
	require.Equal(t, "carla-c-2", same.Name)

	b.exec(`UPDATE medianest.users SET disabled_at = now() WHERE id = $1`, me.ID)
	f.who.Subject = "42"
	third := b.browser()
	third.begin("")
	require.Equal(t, http.StatusUnauthorized, third.done("").status)
}

// Nobody gets an account whom the provider does not let in, or who is a stranger where strangers may not come; nobody finishes
// what another browser began, nor twice.
func TestSignInByProviderRefuses(t *testing.T) {
	t.Parallel()
	b, f := setupProvider(t, "")
	users := b.count(`SELECT count(*) FROM medianest.users`)
	w := b.browser()
	state := w.begin("")
	a := w.done("")
	require.Equal(t, http.StatusUnauthorized, a.status)
	require.Contains(t, string(a.body), "Ask an administrator for an invitation")

	w = b.browser()
	w.begin("")
	f.err = &api.RefusedError{Why: "Your Plex account has no access to this server."}
	require.Contains(t, string(w.done("").body), "has no access to this server")
	require.Equal(t, users, b.count(`SELECT count(*) FROM medianest.users`))

	f.err = nil
	require.NoError(t, b.store.LinkIdentity(t.Context(), b.anna.ID, f.who))
	require.Equal(t, http.StatusUnauthorized, b.browser().done("?state="+state).status, "another browser")
	victim := b.browser()
	victim.begin("")
	for _, query := range []string{"?code=attackers", "?code=attackers&state=" + state, "?state=x"} {
		require.Equal(t, http.StatusUnauthorized, victim.done(query).status, query)
	}
	b.exec(`DELETE FROM medianest.sign_in_failure`)
	require.Equal(t, http.StatusOK, victim.done("").status)
	require.Equal(t, http.StatusUnauthorized, victim.done("").status, "twice")
	b.exec(`DELETE FROM medianest.sign_in_failure`)
	late := b.browser()
	late.begin("")
	b.exec(`UPDATE medianest.one_time SET expires_at = now()`)
	require.Equal(t, http.StatusUnauthorized, late.done("").status)

	f.err = api.ErrProviderAway
	away := b.do(request{method: "GET", path: "/login/plex", header: map[string]string{"Accept": "text/html"}})
	require.Equal(t, http.StatusServiceUnavailable, away.status)
	require.Contains(t, string(away.body), "Plex does not answer")
	b.do(request{method: "GET", path: "/login/nobody"}).problem(http.StatusNotFound, api.CodeNoSuchRoute)
}

// Who is signed in ties the provider's person to their account by going there; a frontend that stays open asks by the API.
func TestLinkAndVerifyByAPI(t *testing.T) {
	t.Parallel()
	b, f := setupProvider(t, "")
	b.withPassword(b.anna)
	w := b.browser()
	require.Equal(t, http.StatusSeeOther, w.form("/login", url.Values{"name": {"anna"}, "password": {password}}).status)
	w.begin("")
	back := &browser{b: b, cookies: map[string]string{"medianest_attempt": w.cookies["medianest_attempt"]}} // as from another site
	require.Equal(t, http.StatusOK, back.done("").status)

	fresh := b.browser()
	post := func(path string) answer {
		return fresh.keep(b.do(request{method: "POST", path: "/api/v1/auth/plex/" + path, header: fresh.header(nil)}))
	}
	pin := post("pin")
	require.Equal(t, http.StatusCreated, pin.status, "body: %s", pin.body)
	require.Contains(t, string(pin.body), "https://provider.example/")
	f.err = api.ErrPending
	post("verify").problem(http.StatusConflict, api.CodeConflict)
	f.err = nil
	require.Equal(t, http.StatusOK, post("verify").status)
	var me api.Me
	fresh.me().into(&me)
	require.Equal(t, "anna", me.Name)
	require.True(t, strings.Contains(string(b.do(request{method: "GET", path: "/api/v1/auth/providers"}).body), "http://media.example/login/plex"))

	none := setup(t)
	none.do(request{method: "POST", path: "/api/v1/auth/plex/pin"}).problem(http.StatusNotFound, api.CodeNotFound)
}
