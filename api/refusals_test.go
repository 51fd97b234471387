package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

// What is wrong with a request is said clearly, with a stable code, and nothing is kept of it.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const downloads = "/api/v1/downloads"
	id := uuid.Must(uuid.NewV7()).String()
	wish := func(u string) string {
		encoded, err := json.Marshal(map[string]string{"url": u})
		require.NoError(t, err)
		return string(encoded)
	}
	tests := map[string]struct {
		request request
		status  int
		code    api.Code
		says    string // part of the body
	}{
		"not a URL":               {request{method: "POST", path: downloads, body: wish("a video of cats")}, 422, api.CodeInvalidURL, "body.url"},
		"file URL":                {request{method: "POST", path: downloads, body: wish("file:///etc/passwd")}, 422, api.CodeInvalidURL, "body.url"},
		"option of yt-dlp":        {request{method: "POST", path: downloads, body: wish("-rf")}, 422, api.CodeInvalidURL, "body.url"},
		"long option":             {request{method: "POST", path: downloads, body: wish("--exec=reboot")}, 422, api.CodeInvalidURL, "body.url"},
		"relative URL":            {request{method: "POST", path: downloads, body: wish("/watch/42")}, 422, api.CodeInvalidURL, "body.url"},
		"URL without a host":      {request{method: "POST", path: downloads, body: wish("http:///x")}, 422, api.CodeInvalidURL, "body.url"},
		"script URL":              {request{method: "POST", path: downloads, body: wish("javascript:alert(1)")}, 422, api.CodeInvalidURL, "body.url"},
		"data URL":                {request{method: "POST", path: downloads, body: wish("data:text/html,x")}, 422, api.CodeInvalidURL, "body.url"},
		"search of yt-dlp":        {request{method: "POST", path: downloads, body: wish("ytsearch10:cats")}, 422, api.CodeInvalidURL, "body.url"},
		"URL with a line break":   {request{method: "POST", path: downloads, body: wish("http://example.org/\nx")}, 422, api.CodeInvalidURL, "body.url"},
		"URL with NUL":            {request{method: "POST", path: downloads, body: wish("http://example.org/\x00")}, 422, api.CodeInvalidURL, "body.url"},
		"URL of spaces":           {request{method: "POST", path: downloads, body: wish("   ")}, 422, api.CodeInvalidURL, "body.url"},
		"empty URL":               {request{method: "POST", path: downloads, body: wish("")}, 422, api.CodeValidationFailed, "body.url"},
		"endless URL":             {request{method: "POST", path: downloads, body: wish("https://example.org/" + strings.Repeat("x", 9000))}, 422, api.CodeValidationFailed, "body.url"},
		"no URL":                  {request{method: "POST", path: downloads, body: `{}`}, 422, api.CodeValidationFailed, "url"},
		"URL of another type":     {request{method: "POST", path: downloads, body: `{"url":42}`}, 422, api.CodeValidationFailed, "body.url"},
		"URL that is null":        {request{method: "POST", path: downloads, body: `{"url":null}`}, 422, api.CodeValidationFailed, "body.url"},
		"unknown field":           {request{method: "POST", path: downloads, body: `{"url":"https://example.org/1","usr":"x"}`}, 422, api.CodeValidationFailed, "body.usr"},
		"unknown profile":         {request{method: "POST", path: downloads, body: `{"url":"https://example.org/1","profile":"4d"}`}, 422, api.CodeValidationFailed, "body.profile"},
		"a list":                  {request{method: "POST", path: downloads, body: `["https://example.org/1"]`}, 422, api.CodeValidationFailed, "body"},
		"no JSON":                 {request{method: "POST", path: downloads, body: `url=https://example.org/1`}, 400, api.CodeInvalidBody, "body"},
		"half of a JSON":          {request{method: "POST", path: downloads, body: `{"url":"https://exam`}, 400, api.CodeInvalidBody, "body"},
		"two JSONs":               {request{method: "POST", path: downloads, body: wish("https://example.org/1") + wish("https://example.org/2")}, 400, api.CodeInvalidBody, "body"},
		"no body":                 {request{method: "POST", path: downloads}, 400, api.CodeInvalidBody, "body"},
		"a form":                  {request{method: "POST", path: downloads, body: "url=x", header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}}, 415, api.CodeUnsupportedMediaType, "application/json"},
		"text":                    {request{method: "POST", path: downloads, body: wish("https://example.org/1"), header: map[string]string{"Content-Type": "text/plain"}}, 415, api.CodeUnsupportedMediaType, "application/json"},
		"JSON of another kind":    {request{method: "POST", path: downloads, body: wish("https://example.org/1"), header: map[string]string{"Content-Type": "application/vnd.api+json"}}, 415, api.CodeUnsupportedMediaType, "application/json"},
		"JSON in Latin-1":         {request{method: "POST", path: downloads, body: wish("https://example.org/1"), header: map[string]string{"Content-Type": "application/json; charset=iso-8859-1"}}, 415, api.CodeUnsupportedMediaType, "application/json"},
		"no content type":         {request{method: "POST", path: downloads, body: wish("https://example.org/1"), header: map[string]string{"Content-Type": ""}}, 415, api.CodeUnsupportedMediaType, "application/json"},
		"broken content type":     {request{method: "POST", path: downloads, body: wish("https://example.org/1"), header: map[string]string{"Content-Type": ";;+"}}, 415, api.CodeUnsupportedMediaType, "application/json"},
		"endless key":             {request{method: "POST", path: downloads, body: wish("https://example.org/1"), header: map[string]string{"Idempotency-Key": strings.Repeat("k", 256)}}, 422, api.CodeValidationFailed, "header.Idempotency-Key"},
		"key of emoji":            {request{method: "POST", path: downloads, body: wish("https://example.org/1"), header: map[string]string{"Idempotency-Key": "🔑"}}, 422, api.CodeValidationFailed, "header.Idempotency-Key"},
		"limit of 0":              {request{method: "GET", path: downloads + "?limit=0"}, 422, api.CodeValidationFailed, "query.limit"},
		"limit of 201":            {request{method: "GET", path: downloads + "?limit=201"}, 422, api.CodeValidationFailed, "query.limit"},
		"limit that is no number": {request{method: "GET", path: downloads + "?limit=many"}, 422, api.CodeValidationFailed, "query.limit"},
		"unknown state":           {request{method: "GET", path: downloads + "?state=done"}, 422, api.CodeValidationFailed, "query.state"},
		"unknown parameter":       {request{method: "GET", path: downloads + "?states=failed"}, 422, api.CodeValidationFailed, "query.states"},
		"foreign cursor":          {request{method: "GET", path: downloads + "?cursor=abc"}, 422, api.CodeValidationFailed, "query.cursor"},
		"cursor of another list":  {request{method: "GET", path: downloads + "?cursor=AAAAAAAAAAA"}, 422, api.CodeValidationFailed, "query.cursor"},
		"parent that is no id":    {request{method: "GET", path: downloads + "?parent_id=7"}, 422, api.CodeValidationFailed, "query.parent_id"},
		"unknown parent":          {request{method: "GET", path: downloads + "?parent_id=" + id}, 404, api.CodeNotFound, "collection"},
		"download that is no id":  {request{method: "GET", path: downloads + "/7"}, 422, api.CodeValidationFailed, "path.id"},
		"unknown download":        {request{method: "GET", path: downloads + "/" + id}, 404, api.CodeNotFound, "download"},
		"unknown job state":       {request{method: "GET", path: "/api/v1/jobs?state=queued"}, 422, api.CodeValidationFailed, "query.state"},
		"foreign job cursor":      {request{method: "GET", path: "/api/v1/jobs?cursor=!"}, 422, api.CodeValidationFailed, "query.cursor"},
		"job that is no id":       {request{method: "GET", path: "/api/v1/jobs/x"}, 422, api.CodeValidationFailed, "path.id"},
		"job of minus one":        {request{method: "GET", path: "/api/v1/jobs/-1"}, 422, api.CodeValidationFailed, "path.id"},
		"job of plus one":         {request{method: "GET", path: "/api/v1/jobs/+1"}, 422, api.CodeValidationFailed, "path.id"},
		"job beyond all numbers":  {request{method: "GET", path: "/api/v1/jobs/9999999999999999999"}, 404, api.CodeNotFound, "job"},
		"unknown job":             {request{method: "GET", path: "/api/v1/jobs/9223372036854775807"}, 404, api.CodeNotFound, "job"},
		"unknown topic":           {request{method: "GET", path: "/api/v1/events?topic=jobs"}, 422, api.CodeValidationFailed, "query.topic"},
		"unknown event state":     {request{method: "GET", path: "/api/v1/events?state=running,done"}, 422, api.CodeValidationFailed, "query.state"},
		"events of no job":        {request{method: "GET", path: "/api/v1/events?job_id=0"}, 422, api.CodeValidationFailed, "query.job_id"},
		"events of no download":   {request{method: "GET", path: "/api/v1/events?download_id=x"}, 422, api.CodeValidationFailed, "query.download_id"},
		"too many filters":        {request{method: "GET", path: "/api/v1/events?kind=" + strings.Repeat("a,", 201)}, 422, api.CodeValidationFailed, "query.kind"},
		"no such route":           {request{method: "GET", path: "/api/v1/nothing"}, 404, api.CodeNoSuchRoute, "path"},
		"a slash too many":        {request{method: "GET", path: downloads + "/"}, 404, api.CodeNoSuchRoute, "path"},
		"no such version":         {request{method: "GET", path: "/api/v2/downloads"}, 404, api.CodeNoSuchRoute, "path"},
		"no such method":          {request{method: "PUT", path: downloads}, 405, api.CodeMethodNotAllowed, "method"},
		"method of one's own":     {request{method: "DOWNLOAD", path: downloads}, 405, api.CodeMethodNotAllowed, "method"},
		"HEAD of the stream":      {request{method: "HEAD", path: "/api/v1/events"}, 405, api.CodeMethodNotAllowed, "method"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.request.token = b.anna.token
			r := test.request.http(t)
			a := b.serve(r)
			a.t = t
			a.problem(test.status, test.code)
			require.Contains(t, string(a.body), test.says)
			if test.status == http.StatusMethodNotAllowed {
				require.NotEmpty(t, a.header.Get("Allow"))
			}
		})
	}
	t.Cleanup(func() { // after the subtests, which are parallel; the pool is closed later
		var n int
		err := b.pool.QueryRow(context.WithoutCancel(t.Context()), "SELECT count(*) FROM medianest.downloads").Scan(&n)
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// Every route but those that are listed here refuses who brings no token, and who brings a wrong one.
func TestRoutesNeedAToken(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) {
		o.RiverUI = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	})
	public := map[string]bool{
		"GET /": true, "GET /docs": true, "GET /openapi.json": true, "GET /login": true, "POST /login": true, "POST /logout": true,
		"GET /static/:name": true, "GET /livez": true, "GET /readyz": true, "GET /invitation": true, "POST /invitation": true,
		"POST /api/v1/auth/sign-in": true, "POST /api/v1/auth/invitation": true, "POST /api/v1/auth/refresh": true,
		"GET /api/v1/auth/providers": true, "POST /api/v1/auth/plex/pin": true, "POST /api/v1/auth/plex/verify": true,
		"GET /login/:provider": true, "GET /login/:provider/done": true,
		"GET /river": true, // leads to /river/
	}
	walked := 0
	for _, route := range b.api.Routes() {
		name := route.Method + " " + route.Path
		if public[name] {
			delete(public, name)
			continue
		}
		walked++
		path := concrete(route.Path)
		for kind, header := range map[string]map[string]string{
			"none":                       {},
			"wrong":                      {"Authorization": "Bearer mn_wrong"},
			"empty":                      {"Authorization": "Bearer "},
			"endless":                    {"Authorization": "Bearer " + strings.Repeat("x", 1000)},
			"other scheme":               {"Authorization": "Basic " + b.admin.token},
			"no scheme":                  {"Authorization": b.admin.token},
			"wrong cookie":               {"Cookie": "medianest_session=mn_wrong"},
			"other cookie":               {"Cookie": "session=" + b.admin.token},
			"right cookie, wrong bearer": {"Authorization": "Bearer mn_wrong", "Cookie": "medianest_session=" + b.admin.token},
		} {
			a := b.do(request{method: route.Method, path: path, header: header})
			require.Equal(t, http.StatusUnauthorized, a.status, "%s with token %s: %s", name, kind, a.body)
			require.Equal(t, `Bearer realm="medianest"`, a.header.Get("WWW-Authenticate"))
			if route.Method != http.MethodHead {
				a.problem(http.StatusUnauthorized, api.CodeUnauthenticated)
			}
		}
	}
	require.Greater(t, walked, 12)
	require.Empty(t, public, "listed as public, and not there")
}

// A token that was revoked or has expired, or whose user is disabled, is none.
func TestTokensEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	me := func(p person) answer { return b.do(request{method: "GET", path: "/api/v1/users/me", token: p.token}) }
	for name, end := range map[string]string{
		"revoked":  "UPDATE medianest.tokens SET revoked_at = now() WHERE user_id = $1",
		"expired":  "UPDATE medianest.tokens SET expires_at = now() WHERE user_id = $1",
		"disabled": "UPDATE medianest.users SET disabled_at = now() WHERE id = $1",
	} {
		p := b.person(name, store.UserMember)
		require.Equal(t, http.StatusOK, me(p).status)
		b.exec(end, p.ID)
		me(p).problem(http.StatusUnauthorized, api.CodeUnauthenticated)
	}
	var user api.User
	me(b.anna).into(&user)
	require.Equal(t, "anna", user.Name)
	require.Equal(t, "member", user.Role)
}

// Every route that takes an id treats somebody else's like one that does not exist; an admin sees it.
func TestOthersThingsAreNotFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	walked := 0
	for _, route := range b.api.Routes() {
		scope, _, _ := b.api.ScopeOf(route.Method, pathParameter.ReplaceAllString(route.Path, "{$1}"))
		if !strings.Contains(route.Path, ":id") || !strings.HasPrefix(string(scope), "downloads:") && !strings.HasPrefix(string(scope), "jobs:") {
			continue // not of one user; tokens and sessions are in TestOwnershipFuzz
		}
		walked++
		// A thing of its own for each route, since some end it.
		d := b.wish(b.anna, fmt.Sprintf("https://example.org/%d", walked))
		id := d.ID.String()
		if strings.Contains(route.Path, "/jobs/") {
			id = d.JobID
		}
		path := strings.ReplaceAll(route.Path, ":id", id)
		others := b.do(request{method: route.Method, path: path, token: b.bert.token})
		p := others.problem(http.StatusNotFound, api.CodeNotFound)
		missing := uuid.Must(uuid.NewV7()).String()
		if strings.Contains(route.Path, "/jobs/") {
			missing = "4711"
		}
		none := b.do(request{method: route.Method, path: strings.ReplaceAll(route.Path, ":id", missing), token: b.bert.token}).
			problem(http.StatusNotFound, api.CodeNotFound)
		none.RequestID = p.RequestID
		require.Equal(t, none, p, "%s %s tells that it exists", route.Method, route.Path)

		admins := b.do(request{method: route.Method, path: path, token: b.admin.token})
		require.NotEqual(t, http.StatusNotFound, admins.status, "%s %s: %s", route.Method, route.Path, admins.body)
		require.Less(t, admins.status, http.StatusInternalServerError)
	}
	require.Equal(t, 11, walked, "downloads: find, cancel, retry, retry-failed, now, delete; jobs: find, attempts, log, cancel, retry")
	d := b.wish(b.anna, wishURL)
	b.exec("UPDATE medianest.downloads SET is_collection = true WHERE id = $1", d.ID)
	b.do(request{method: "GET", path: "/api/v1/downloads?parent_id=" + d.ID.String(), token: b.bert.token}).
		problem(http.StatusNotFound, api.CodeNotFound)
	require.Zero(t, b.count("SELECT count(*) FROM medianest.downloads WHERE user_id = $1 AND state = 'cancelled' AND id = $2", b.anna.ID, d.ID))
}

// Faults of ours are told without their cause, and with what makes sense to do.
func TestFaults(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial tcp 10.1.2.3:5432: password secret")
	for name, test := range map[string]struct {
		err    error
		status int
		code   api.Code
		retry  string
		level  string
	}{
		"something unknown": {secret, 500, api.CodeInternal, "", "ERROR"},
		"database away":     {fmt.Errorf("load: %w: %w", store.ErrUnavailable, secret), 503, api.CodeUnavailable, "5", "WARN"},
		"too slow":          {fmt.Errorf("load: %w: %w", context.DeadlineExceeded, secret), 504, api.CodeTimeout, "", "WARN"},
		"refused value":     {fmt.Errorf("load: %w: %w", store.ErrInvalid, secret), 422, api.CodeValidationFailed, "", "INFO"},
		"conflict":          {fmt.Errorf("load: %w: %w", store.ErrConflict, secret), 409, api.CodeConflict, "", "INFO"},
		"not found":         {errors.Join(store.ErrNotFound, secret), 404, api.CodeNotFound, "", "INFO"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupFake(t, &fakeStore{err: test.err})
			a := b.do(request{method: "GET", path: "/api/v1/jobs/1", token: "x"})
			a.problem(test.status, test.code)
			require.NotContains(t, string(a.body), "secret")
			require.Equal(t, test.retry, a.header.Get("Retry-After"))
			lines := b.lines("request")
			require.Len(t, lines, 1)
			require.Equal(t, test.level, lines[0]["level"])
			require.Contains(t, lines[0]["err"], "password secret", "the cause is in the log")
		})
	}
}

// Whose token it is cannot be told while the database is away: that is no refusal of the token.
func TestTokensWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{userErr: fmt.Errorf("find user: %w", store.ErrUnavailable)})
	a := b.do(request{method: "GET", path: "/api/v1/downloads", token: "x"})
	a.problem(http.StatusServiceUnavailable, api.CodeUnavailable)
	require.Equal(t, "5", a.header.Get("Retry-After"))
	in := b.form("/login", url.Values{"token": {"x"}}, nil)
	require.Equal(t, http.StatusServiceUnavailable, in.status)
	require.Contains(t, string(in.body), "The service is not available now.")
	page := b.do(request{method: "GET", path: "/", header: map[string]string{"Cookie": "medianest_refresh=x", "Accept": "text/html"}})
	require.Equal(t, http.StatusOK, page.status, "the page that says what is wrong is there")
}
