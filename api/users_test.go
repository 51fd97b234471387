package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

const usersPath = "/api/v1/users"

func (b *bundle) patch(p person, id uuid.UUID, body string) answer {
	b.t.Helper()
	return b.do(request{method: "PATCH", path: usersPath + "/" + id.String(), token: p.token, body: body})
}

func TestUsers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var page api.UserList
	b.do(request{method: "GET", path: usersPath + "?limit=2", token: b.admin.token}).into(&page)
	require.Equal(t, []string{"admin", "anna"}, []string{page.Items[0].Name, page.Items[1].Name})
	var last api.UserList
	b.do(request{method: "GET", path: usersPath + "?limit=2&cursor=" + page.NextCursor, token: b.admin.token}).into(&last)
	require.Len(t, last.Items, 1)
	require.Empty(t, last.NextCursor)

	// A role is another one with the next request.
	require.Equal(t, http.StatusForbidden, b.do(request{method: "GET", path: usersPath, token: b.anna.token}).status)
	require.Equal(t, http.StatusOK, b.patch(b.admin, b.anna.ID, `{"role":"manager"}`).status)
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: usersPath, token: b.anna.token}).status)
	b.patch(b.anna, b.anna.ID, `{"role":"admin"}`).problem(http.StatusForbidden, api.CodeForbidden)

	// Somebody is always let in who can let in others.
	for _, change := range []string{`{"role":"manager"}`, `{"disabled":true}`} {
		b.patch(b.admin, b.admin.ID, change).problem(http.StatusConflict, api.CodeConflict)
	}
	b.do(request{method: "DELETE", path: usersPath + "/" + b.admin.ID.String(), token: b.admin.token}).problem(http.StatusConflict, api.CodeConflict)
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/api/v1/audit", token: b.admin.token}).status)

	for name, bad := range map[string]string{
		"name":     `{"name":"../etc","role":"member"}`,
		"upper":    `{"name":"Anna","role":"member"}`,
		"long":     `{"name":"` + strings.Repeat("a", 64) + `","role":"member"}`,
		"role":     `{"name":"carl","role":"king"}`,
		"nothing":  `{}`,
		"too much": `{"name":"carl","role":"member","password":"x"}`,
	} {
		a := b.do(request{method: "POST", path: usersPath, token: b.admin.token, body: bad})
		require.Equal(t, http.StatusUnprocessableEntity, a.status, name)
	}
	b.do(request{method: "POST", path: usersPath, token: b.admin.token, body: `{"name":"bert","role":"member"}`}).problem(http.StatusConflict, api.CodeConflict)
	b.patch(b.admin, b.anna.ID, `{"quota":{"downloads":-1}}`).problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	b.patch(b.admin, uuid.New(), `{"role":"member"}`).problem(http.StatusNotFound, api.CodeNotFound)
}

// A quota is the user's own, else the role's; what is there and under way stays.
func TestQuotas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ask := func(n int) answer {
		return b.do(request{method: "POST", path: "/api/v1/downloads", token: b.anna.token, body: map[string]string{"url": fmt.Sprintf("https://example.org/q%d", n)}})
	}
	setRole := func(body string) {
		a := b.do(request{method: "PUT", path: "/api/v1/roles/member/quota", token: b.admin.token, body: body})
		require.Equal(t, http.StatusOK, a.status, "body: %s", a.body)
	}
	setRole(`{"downloads":2}`)
	require.Equal(t, http.StatusAccepted, ask(1).status)
	require.Equal(t, http.StatusAccepted, ask(2).status)
	p := ask(3).problem(http.StatusTooManyRequests, api.CodeQuotaReached)
	require.Contains(t, p.Detail, "as many downloads as you may in 24 hours")
	require.Equal(t, http.StatusOK, ask(2).status, "what is there is answered")
	require.Equal(t, http.StatusOK, b.patch(b.admin, b.anna.ID, `{"quota":{"downloads":3}}`).status)
	require.Equal(t, http.StatusAccepted, ask(3).status)
	require.Equal(t, http.StatusTooManyRequests, ask(4).status)
	require.Equal(t, http.StatusOK, b.patch(b.admin, b.anna.ID, `{"quota":{}}`).status)
	setRole(`{"size_bytes":1000}`)
	require.Equal(t, http.StatusAccepted, ask(4).status)
	b.exec(`INSERT INTO medianest.files (id, content_id, user_id, path, size_bytes, sha256)
		SELECT gen_random_uuid(), d.content_id, d.user_id, 'anna/x', 1000, sha256('') FROM medianest.downloads AS d WHERE d.user_id = $1 LIMIT 1`, b.anna.ID)
	p = ask(5).problem(http.StatusTooManyRequests, api.CodeQuotaReached)
	require.Contains(t, p.Detail, "take as much space as they may")
	var me api.Me
	b.do(request{method: "GET", path: usersPath + "/me", token: b.anna.token}).into(&me)
	require.Equal(t, api.Usage{SizeBytes: 1000, Downloads: 4}, me.Usage)
	require.EqualValues(t, 1000, *me.Allowed.SizeBytes)
	require.Nil(t, me.Allowed.Downloads)
	require.Equal(t, http.StatusAccepted, b.do(request{method: "POST", path: "/api/v1/downloads", token: b.bert.token, body: `{"url":"https://example.org/q5"}`}).status)
}

// What is kept of a person can be taken along, and goes with them.
func TestExportAndErase(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.withPassword(b.anna)
	b.visits(b.anna)
	d := b.wish(b.anna, wishURL)
	shared := b.wish(b.bert, wishURL)
	require.Equal(t, d.JobID, shared.JobID)
	require.Equal(t, http.StatusOK, b.do(request{
		method: "POST", path: "/api/v1/auth/sign-in", body: map[string]string{"name": "anna", "password": password},
	}).status)

	own := b.do(request{method: "GET", path: usersPath + "/me/export", token: b.anna.token})
	byAdmin := b.do(request{method: "GET", path: usersPath + "/" + b.anna.ID.String() + "/export", token: b.admin.token})
	for _, a := range []answer{own, byAdmin} {
		require.Equal(t, http.StatusOK, a.status)
		require.Equal(t, "application/x-ndjson", a.header.Get("Content-Type"))
		kinds := map[string]int{}
		for line := range strings.Lines(string(a.body)) {
			var record map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &record))
			kinds[record["record"].(string)]++ //nolint:forcetypeassert // or the test fails
		}
		require.Equal(t, 1, kinds["user"])
		require.Equal(t, 1, kinds["token"])
		require.Equal(t, 2, kinds["session"])
		require.Equal(t, 1, kinds["download"])
		require.Positive(t, kinds["action"])
		require.NotContains(t, string(a.body), "argon2")
	}
	b.do(request{method: "GET", path: usersPath + "/" + uuid.NewString() + "/export", token: b.admin.token}).problem(http.StatusNotFound, api.CodeNotFound)

	require.Equal(t, http.StatusNoContent, b.do(request{method: "DELETE", path: usersPath + "/" + b.anna.ID.String(), token: b.admin.token}).status)
	b.do(request{method: "GET", path: usersPath + "/me", token: b.anna.token}).problem(http.StatusUnauthorized, api.CodeUnauthenticated)
	for _, table := range []string{"tokens", "session", "downloads", "user_identity", "one_time", "idempotency"} {
		require.Zero(t, b.count(`SELECT count(*) FROM medianest.`+table+` WHERE user_id = $1`, b.anna.ID), table)
	}
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.users WHERE name = 'anna' OR password_hash IS NOT NULL`))
	still := b.do(request{method: "GET", path: "/api/v1/downloads/" + shared.ID.String(), token: b.bert.token}).download()
	require.Equal(t, "queued", string(still.State), "what others wish for goes on")

	_, err := store.New(b.pool).WithQueue(b.queue).TrimDomain(context.WithoutCancel(t.Context()), 0)
	require.NoError(t, err)
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.users WHERE id = $1`, b.anna.ID), "no file, no row")
	require.Positive(t, b.count(`SELECT count(*) FROM medianest.audit WHERE actor_id = $1`, b.anna.ID), "what was done stays, by nobody's name")
	require.Equal(t, http.StatusCreated, b.do(request{method: "POST", path: usersPath, token: b.admin.token, body: `{"name":"anna","role":"member"}`}).status, "the name is free")
}
