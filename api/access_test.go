package api_test

import (
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

// pathParameter is one of gin's.
var pathParameter = regexp.MustCompile(`[:*](\w+)`)

// concrete is a path of the route.
func concrete(path string) string {
	id := uuid.Must(uuid.NewV7()).String()
	if strings.Contains(path, "/jobs/") {
		id = "4711"
	}
	return strings.NewReplacer(":id", id, ":key", "host:site.test", ":name", "x", ":provider", "x", "*path", "").Replace(path)
}

// The whole table: who may ask for which route. What is allowed is reviewed in testdata/access.txt; that each operation
// does as it declares is asserted here.
func TestAccessMatrix(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) {
		o.RiverUI = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	})
	people := map[string]person{"nobody": {}, "admin": b.admin}
	for _, role := range []string{store.UserManager, store.UserMember, store.UserViewer} {
		people[role] = b.person(role, role)
	}
	columns := []string{"nobody", "viewer", "member", "manager", "admin"}
	var lines []string
	for _, route := range b.api.Routes() {
		declaredPath := pathParameter.ReplaceAllString(route.Path, "{$1}")
		scope, public, isOperation := b.api.ScopeOf(route.Method, declaredPath)
		line := fmt.Sprintf("%-6s %-46s %-15s", route.Method, declaredPath, scope)
		for _, column := range columns {
			a := b.do(request{method: route.Method, path: concrete(route.Path), token: people[column].token, body: map[bool]any{true: "{}"}[route.Method != "GET"]})
			word := "yes"
			switch a.status {
			case http.StatusUnauthorized:
				word = "who?"
			case http.StatusForbidden:
				word = "no"
				a.problem(http.StatusForbidden, api.CodeForbidden)
			}
			line += fmt.Sprintf(" %-5s", word)
			if !isOperation {
				continue
			}
			want := "yes"
			switch {
			case public:
				want = word
			case column == "nobody":
				want = "who?"
			case !slices.Contains(api.RoleScopes(column), scope):
				want = "no"
			}
			require.Equal(t, want, word, "%s %s as %s: %s", route.Method, route.Path, column, a.body)
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[7:]+a, b[7:]+b) })
	got := fmt.Sprintf("%-6s %-46s %-15s %s\n", "", "", "scope", strings.Join(columns, " ")) + strings.Join(lines, "\n") + "\n"
	file := filepath.Join("testdata", "access.txt")
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "run with -update to write it")
	require.Equal(t, string(want), got)
}

// Roles are nested: who may more may all that the others may.
func TestRolesAreNested(t *testing.T) {
	t.Parallel()
	for i, role := range store.Roles[1:] {
		above := api.RoleScopes(store.Roles[i])
		require.NotEmpty(t, api.RoleScopes(role))
		for _, scope := range api.RoleScopes(role) {
			require.Contains(t, above, scope, role)
		}
		require.Greater(t, len(above), len(api.RoleScopes(role)), role)
	}
	require.Equal(t, api.AllScopes(), api.RoleScopes(store.UserAdmin))
}

// makeToken makes one by the API.
func (b *bundle) makeToken(p person, body map[string]any) api.NewToken {
	b.t.Helper()
	a := b.do(request{method: "POST", path: "/api/v1/tokens", token: p.token, body: body})
	require.Equal(b.t, http.StatusCreated, a.status, "body: %s", a.body)
	var token api.NewToken
	a.into(&token)
	return token
}

// A token may do some of what its user may, from some places, for some time; never more, and it makes itself no other.
func TestTokensCarryLess(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.TrustedProxies = []string{"192.0.2.0/24"} })
	annas := b.wish(b.anna, wishURL)
	expires := time.Now().Add(time.Hour)
	reads := b.makeToken(b.admin, map[string]any{"name": "reads", "scopes": []string{"downloads:read", "profile"}, "expires_at": expires})
	require.True(t, strings.HasPrefix(reads.Secret, "mn_"))
	do := func(token, method, path, from string) answer {
		return b.do(request{method: method, path: "/api/v1" + path, token: token, header: map[string]string{"X-Forwarded-For": from}, body: map[bool]any{true: "{}"}[method == "POST"]})
	}
	require.Equal(t, http.StatusOK, do(reads.Secret, "GET", "/downloads", "").status)
	for _, refused := range []string{"GET /jobs", "GET /users", "GET /audit", "POST /downloads", "POST /downloads/" + annas.ID.String() + "/cancel"} {
		method, path, _ := strings.Cut(refused, " ")
		p := do(reads.Secret, method, path, "").problem(http.StatusForbidden, api.CodeForbidden)
		require.Contains(t, p.Detail, "The token does not have the scope")
	}
	// An admin's token without others:read sees the admin's own.
	do(reads.Secret, "GET", "/downloads/"+annas.ID.String(), "").problem(http.StatusNotFound, api.CodeNotFound)
	everything := b.makeToken(b.admin, map[string]any{"name": "reads all", "scopes": []string{"downloads:read", "others:read"}})
	require.Equal(t, http.StatusOK, do(everything.Secret, "GET", "/downloads/"+annas.ID.String(), "").status)

	// It makes no other, nor a password.
	b.do(request{method: "POST", path: "/api/v1/tokens", token: reads.Secret, body: `{"name":"more"}`}).problem(http.StatusForbidden, api.CodeForbidden)
	b.do(request{method: "PUT", path: "/api/v1/users/me/password", token: reads.Secret, body: map[string]string{"password": password}}).
		problem(http.StatusForbidden, api.CodeForbidden)
	// Nor does a browser that is signed in by it.
	w := b.visits(person{token: reads.Secret})
	w.do(request{method: "GET", path: "/api/v1/jobs"}).problem(http.StatusForbidden, api.CodeForbidden)
	w.do(request{method: "POST", path: "/api/v1/tokens", body: `{"name":"more"}`}).problem(http.StatusForbidden, api.CodeForbidden)

	// A scope that the role does not have is worth nothing, also when the role loses it later.
	members := b.makeToken(b.anna, map[string]any{"name": "too much", "scopes": []string{"audit:read", "downloads:write"}})
	do(members.Secret, "GET", "/audit", "").problem(http.StatusForbidden, api.CodeForbidden)
	require.Equal(t, http.StatusOK, do(members.Secret, "POST", "/downloads/"+annas.ID.String()+"/cancel", "").status)
	b.exec(`UPDATE medianest.users SET role = 'viewer' WHERE id = $1`, b.anna.ID)
	do(members.Secret, "POST", "/downloads/"+annas.ID.String()+"/cancel", "").problem(http.StatusForbidden, api.CodeForbidden)

	home := b.makeToken(b.admin, map[string]any{"name": "at home", "networks": []string{"198.51.100.0/24", "2001:db8::1"}})
	for from, ok := range map[string]bool{
		"198.51.100.7": true, "::ffff:198.51.100.7": true, "2001:db8::1": true, "198.51.101.7": false, "2001:db8::2": false, "": false,
	} {
		require.Equal(t, map[bool]int{true: 200, false: 403}[ok], do(home.Secret, "GET", "/downloads", from).status, from)
	}

	// Another user's.
	for _, path := range []string{"/tokens?user_id=" + b.admin.ID.String()} {
		do(b.bert.token, "GET", path, "").problem(http.StatusForbidden, api.CodeForbidden)
	}
	b.do(request{method: "POST", path: "/api/v1/tokens", token: b.bert.token, body: map[string]any{"name": "x", "user_id": b.admin.ID}}).
		problem(http.StatusForbidden, api.CodeForbidden)
	berts := b.makeToken(b.admin, map[string]any{"name": "for bert", "user_id": b.bert.ID})
	require.Equal(t, b.bert.ID, berts.UserID)
	require.NotContains(t, b.log.String(), reads.Secret)
	for _, bad := range []string{`{"name":"x","scopes":["root"]}`, `{"name":"x","networks":["home"]}`, `{"name":"x","networks":["10.0.0.1/33"]}`, `{"name":""}`, `{"name":"x","expires_at":"2001-01-01T00:00:00Z"}`} {
		b.do(request{method: "POST", path: "/api/v1/tokens", token: b.anna.token, body: bad}).problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	}
}

// Rules bind scopes to networks and times, at once and for everybody whom they name; nobody locks themselves out.
func TestAccessRules(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *bundle, o *api.Options) { o.TrustedProxies = []string{"192.0.2.0/24"} })
	const rules = "/api/v1/access-rules"
	put := func(name string, body map[string]any, from string) answer {
		return b.do(request{method: "PUT", path: rules + "/" + name, token: b.admin.token, body: body, header: map[string]string{"X-Forwarded-For": from}})
	}
	list := func(p person, from string) answer {
		return b.do(request{method: "GET", path: "/api/v1/downloads", token: p.token, header: map[string]string{"X-Forwarded-For": from}})
	}
	home := map[string]any{"roles": []string{"member"}, "scopes": []string{"downloads:read"}, "networks": []string{"198.51.100.0/24"}}
	require.Equal(t, http.StatusOK, list(b.anna, "203.0.113.1").status)
	a := put("members-at-home", home, "203.0.113.1")
	require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	p := list(b.anna, "203.0.113.1").problem(http.StatusForbidden, api.CodeForbidden)
	require.Contains(t, p.Detail, "members-at-home")
	require.Equal(t, http.StatusOK, list(b.anna, "198.51.100.3").status)
	require.Equal(t, http.StatusOK, list(b.admin, "203.0.113.1").status, "another role")
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/api/v1/jobs", token: b.anna.token}).status, "another scope")

	// At no time of any day but this minute of another one: shut now.
	shut := time.Now().UTC().Add(12 * time.Hour)
	closed := map[string]any{
		"user_ids": []uuid.UUID{b.bert.ID}, "scopes": []string{"downloads:read"},
		"windows": []map[string]any{{"from": shut.Format("15:04"), "to": shut.Add(time.Minute).Format("15:04")}},
	}
	require.Equal(t, http.StatusOK, put("bert-at-night", closed, "").status)
	p = list(b.bert, "").problem(http.StatusForbidden, api.CodeForbidden)
	require.Contains(t, p.Detail, "bert-at-night does not allow this before ")

	for name, own := range map[string]map[string]any{
		"from elsewhere": {"roles": []string{"admin"}, "scopes": []string{"users:write"}, "networks": []string{"198.51.100.0/24"}},
		"at night":       {"user_ids": []uuid.UUID{b.admin.ID}, "scopes": []string{"users:write"}, "windows": closed["windows"]},
	} {
		put("out", own, "203.0.113.1").problem(http.StatusConflict, api.CodeConflict)
		require.Equal(t, http.StatusOK, list(b.admin, "").status, name)
	}
	for _, bad := range []map[string]any{
		{"roles": []string{"king"}, "scopes": []string{"profile"}, "networks": []string{"10.0.0.0/8"}},
		{"scopes": []string{"profile"}, "networks": []string{"10.0.0.0/8"}},
		{"roles": []string{"member"}, "scopes": []string{"profile"}},
		{"roles": []string{"member"}, "scopes": []string{}, "networks": []string{"10.0.0.0/8"}},
		{"roles": []string{"member"}, "scopes": []string{"root"}, "networks": []string{"10.0.0.0/8"}},
		{"roles": []string{"member"}, "scopes": []string{"profile"}, "networks": []string{"x"}},
		{"roles": []string{"member"}, "scopes": []string{"profile"}, "windows": []map[string]any{{"from": "25:00", "to": "26:00"}}},
		{"roles": []string{"member"}, "scopes": []string{"profile"}, "windows": closed["windows"], "timezone": "Moon/Base"},
	} {
		put("bad", bad, "").problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	}
	var all api.AccessRuleList
	b.do(request{method: "GET", path: rules, token: b.admin.token}).into(&all)
	require.Len(t, all.Items, 2)
	require.Equal(t, http.StatusNoContent, b.do(request{method: "DELETE", path: rules + "/members-at-home", token: b.admin.token}).status)
	b.do(request{method: "DELETE", path: rules + "/members-at-home", token: b.admin.token}).problem(http.StatusNotFound, api.CodeNotFound)
	require.Equal(t, http.StatusOK, list(b.anna, "203.0.113.1").status)
}

// Whatever one user asks for with the ids of another's things, in whatever order: nothing of the other's changes, and
// nothing is told of it.
func TestOwnershipFuzz(t *testing.T) {
	t.Parallel()
	b := setup(t)
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 1))
	var ids []string
	for i := range 5 {
		d := b.wish(b.anna, fmt.Sprintf("https://example.org/annas-secret-%d", i))
		ids = append(ids, d.ID.String(), d.JobID)
	}
	b.visits(b.anna)
	rows := func() (state string) {
		for _, sql := range []string{
			`SELECT d.id, d.state, d.cancelled_at, d.job_id FROM medianest.downloads AS d WHERE d.user_id = $1 ORDER BY 1`,
			`SELECT t.id, t.revoked_at FROM medianest.tokens AS t WHERE t.user_id = $1 ORDER BY 1`,
			`SELECT s.id, s.revoked_at FROM medianest.session AS s WHERE s.user_id = $1 ORDER BY 1`,
			`SELECT u.role, u.disabled_at, u.quota_bytes, u.quota_downloads, u.password_hash FROM medianest.users AS u WHERE u.id = $1`,
			`SELECT j.id, j.state, j.priority FROM river.river_job AS j WHERE j.id IN (SELECT job_id FROM medianest.job_viewer WHERE user_id = $1) ORDER BY 1`,
		} {
			var part string
			require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT coalesce(jsonb_agg(r), '[]')::text FROM (`+sql+`) AS r`, b.anna.ID).Scan(&part))
			state += part
		}
		return state
	}
	for _, sql := range []string{
		`SELECT id::text FROM medianest.tokens WHERE user_id = $1`, `SELECT id::text FROM medianest.session WHERE user_id = $1`, `SELECT $1::uuid::text`,
	} {
		var id string
		require.NoError(t, b.pool.QueryRow(t.Context(), sql, b.anna.ID).Scan(&id))
		ids = append(ids, id)
	}
	before := rows()
	var routes []string
	for _, route := range b.api.Routes() {
		if strings.Contains(route.Path, ":id") {
			routes = append(routes, route.Method+" "+route.Path)
		}
	}
	require.Greater(t, len(routes), 25)
	bodies := []any{nil, "{}", `{"priority":1}`, `{"disabled":true}`, `{"role":"admin"}`, `{"role":"viewer","quota":{"downloads":0}}`}
	viewer := b.person("vera", store.UserViewer)
	for range 600 {
		method, path, _ := strings.Cut(routes[random.IntN(len(routes))], " ")
		path = strings.ReplaceAll(path, ":id", ids[random.IntN(len(ids))])
		who := []person{b.bert, viewer}[random.IntN(2)]
		a := b.do(request{method: method, path: path, token: who.token, body: bodies[random.IntN(len(bodies))]})
		require.GreaterOrEqual(t, a.status, 400, "%s %s: %s", method, path, a.body)
		require.Less(t, a.status, 500, "%s %s: %s", method, path, a.body)
		require.NotContains(t, string(a.body), "secret")
	}
	require.Equal(t, before, rows())
	// By filters and lists, too.
	for _, path := range []string{"/downloads", "/jobs", "/jobs?user_id=" + b.anna.ID.String(), "/downloads?state=queued", "/users/me/export"} {
		a := b.do(request{method: "GET", path: "/api/v1" + path, token: b.bert.token})
		require.NotContains(t, string(a.body), "annas-secret", path)
	}
}
