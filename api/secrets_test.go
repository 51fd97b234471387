package api_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/api"
)

// A secret goes in, and comes out nowhere: not in answers, nor in the audit, nor in the log, nor in the database.
func TestSecretsAreShownNowhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const canary = "canary-5f1e"
	put := b.do(request{method: "PUT", path: "/api/v1/secrets/plex:token", token: b.admin.token, body: map[string]string{"value": canary}})
	require.Equal(t, http.StatusOK, put.status, "body: %s", put.body)
	bad := b.do(request{method: "PUT", path: "/api/v1/secrets/PLEX", token: b.admin.token, body: map[string]string{"value": canary}})
	bad.problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	odd := b.do(request{method: "PUT", path: "/api/v1/secrets/plex:token", token: b.admin.token, body: `{"value":"` + canary + `","x":"` + canary + `"}`})
	odd.problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	list := b.do(request{method: "GET", path: "/api/v1/secrets", token: b.admin.token})
	require.Contains(t, string(list.body), `"name":"plex:token","key_id":"test"`)
	rotation := b.do(request{method: "POST", path: "/api/v1/secrets/rotate", token: b.admin.token})
	require.JSONEq(t, `{"active":"test","sealed":0,"lost":[]}`, string(rotation.body))
	audit := b.do(request{method: "GET", path: "/api/v1/audit?action=set-secret", token: b.admin.token})
	require.Contains(t, string(audit.body), "name=plex:token")
	for name, a := range map[string]answer{"put": put, "bad": bad, "odd": odd, "list": list, "rotation": rotation, "audit": audit} {
		require.NotContains(t, string(a.body), canary, name)
	}
	require.NotContains(t, b.log.String(), canary)
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.audit AS a WHERE a::text LIKE '%`+canary+`%'`))
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.secret WHERE position('`+canary+`'::bytea IN sealed) > 0`))
	value, err := b.store.OpenSecret(t.Context(), "plex:token")
	require.NoError(t, err)
	require.Equal(t, canary, string(value))
	require.Equal(t, http.StatusNoContent, b.do(request{method: "DELETE", path: "/api/v1/secrets/plex:token", token: b.admin.token}).status)
	b.do(request{method: "DELETE", path: "/api/v1/secrets/plex:token", token: b.admin.token}).problem(http.StatusNotFound, api.CodeNotFound)
}
