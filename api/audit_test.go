package api_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
)

func (b *bundle) audit(query string) []api.AuditEntry {
	b.t.Helper()
	a := b.do(request{method: "GET", path: "/api/v1/audit" + query, token: b.admin.token})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	var list api.AuditList
	a.into(&list)
	return list.Items
}

// What an administrator changes is written down with what came of it; what others do to their own things is not.
func TestAudit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.putLimit("host:youtube.com", `{"max_running":3}`)
	entry := b.audit("")[0]
	require.Equal(t, []any{"set-limit", "key=host:youtube.com", 200, "admin", b.admin.ID},
		[]any{entry.Action, entry.Subject, entry.Status, entry.Actor, *entry.ActorID})
	require.Equal(t, map[string]any{"max_running": float64(3)}, entry.Detail["asked"], "and to what")
	require.NotEmpty(t, entry.RequestID)
	require.NotEmpty(t, entry.Client)

	b.do(request{method: "PUT", path: limitPath("planet:mars"), token: b.admin.token, body: `{}`}).problem(422, api.CodeValidationFailed)
	d := b.wish(b.anna, "https://site.test/1")
	cancel := request{method: "POST", path: "/api/v1/downloads/" + d.ID.String() + "/cancel", token: b.anna.token}
	require.Equal(t, http.StatusOK, b.do(cancel).status)
	cancel.token = b.admin.token
	require.Equal(t, http.StatusOK, b.do(cancel).status)
	var told []string
	for _, e := range b.audit("") {
		told = append(told, fmt.Sprint(e.Action, " ", e.Subject, " ", e.Status))
	}
	require.Equal(t, []string{"cancel-download id=" + d.ID.String() + " 200", "set-limit key=planet:mars 422", "set-limit key=host:youtube.com 200"}, told)
	require.Len(t, b.audit("?action=set-limit&actor_id="+b.admin.ID.String()+"&since=2020-01-01T00:00:00Z&until=2100-01-01T00:00:00Z"), 2)
	require.Empty(t, b.audit("?action=set"))
	b.do(request{method: "GET", path: "/api/v1/audit", token: b.anna.token}).problem(http.StatusForbidden, api.CodeForbidden)
	b.do(request{method: "GET", path: "/api/v1/audit?cursor=x", token: b.admin.token}).problem(422, api.CodeValidationFailed)
	b.do(request{method: "GET", path: "/api/v1/audit?since=yesterday", token: b.admin.token}).problem(422, api.CodeValidationFailed)

	// What cannot be written down is not done.
	b.exec(`ALTER TABLE medianest.audit RENAME TO lost`)
	a := b.do(request{method: "PUT", path: limitPath("host:youtube.com"), token: b.admin.token, body: `{"max_running":9}`})
	require.GreaterOrEqual(t, a.status, 500)
	b.exec(`ALTER TABLE medianest.lost RENAME TO audit`)
	require.Equal(t, 3, b.count(`SELECT max_running FROM medianest.limits WHERE key = 'host:youtube.com'`))
}

// Every button of River UI is written down and bound by the rules of the queue.
func TestRiverUIIsAuditedAndBound(t *testing.T) {
	t.Parallel()
	b := setup(t, withRiver)
	b.admission(0)
	job := func(url string) string { return b.wish(b.anna, url).JobID }
	state := func(id string) (state string) {
		t.Helper()
		require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT state::text FROM river.river_job WHERE id = $1::bigint`, id).Scan(&state))
		return state
	}
	var pressed []string
	press := func(method, path, body string) answer {
		t.Helper()
		pressed = append(pressed, method+" "+path)
		return b.do(request{method: method, path: "/river/api" + path, body: body, token: b.admin.token})
	}
	ids := func(ids ...string) string { return `{"ids":["` + strings.Join(ids, `","`) + `"]}` }
	entry := func() api.AuditEntry { return b.audit("")[0] }

	retried, cancelled, deleted := job("https://site.test/1"), job("https://site.test/2"), job("https://site.test/3")
	b.exec(`UPDATE river.river_job SET state = 'discarded', finalized_at = now() WHERE id = $1::bigint`, retried)
	require.Equal(t, http.StatusOK, press("POST", "/jobs/retry", ids(retried)).status)
	require.Equal(t, "pending", state(retried), "it waits for its turn")
	require.Equal(t, []any{"river.jobs.retry", ids(retried), 200}, []any{entry().Action, entry().Detail["asked"], entry().Status})
	require.Equal(t, http.StatusOK, press("POST", "/jobs/cancel", ids(cancelled)).status)
	require.Equal(t, "cancelled", state(cancelled))
	require.Equal(t, "river.jobs.cancel", entry().Action)
	require.Equal(t, http.StatusOK, press("POST", "/jobs/delete", ids(deleted)).status)
	require.Zero(t, b.count(`SELECT count(*) FROM river.river_job WHERE id = `+deleted))
	require.Equal(t, "river.jobs.delete", entry().Action)

	b.exec(`UPDATE river.river_job SET state = 'discarded', finalized_at = now(), metadata = metadata || '{"superseded_by": 4711}' WHERE id = $1::bigint`, retried)
	p := press("POST", "/jobs/retry", ids(retried)).problem(http.StatusConflict, api.CodeConflict)
	require.Contains(t, p.Detail, retried)
	require.Equal(t, "discarded", state(retried))
	require.Equal(t, []any{"river.jobs.retry", 409}, []any{entry().Action, entry().Status})

	b.exec(`INSERT INTO river.river_queue (name, updated_at) VALUES ('download', now())`)
	require.Equal(t, http.StatusOK, press("PUT", "/queues/download/pause", "").status)
	require.Equal(t, []string{"river.queues.pause", "queue=download"}, []string{entry().Action, entry().Subject})
	require.Equal(t, "queue:download", b.pauses().Items[0].Key)
	require.Equal(t, http.StatusOK, press("PUT", "/queues/download/resume", "").status)
	require.Empty(t, b.pauses().Items)
	press("PATCH", "/queues/download", `{}`)
	require.Equal(t, []string{"river.queues.patch", "queue=download"}, []string{entry().Action, entry().Subject})
	require.Len(t, b.audit(""), len(pressed))

	// No other endpoint changes anything: a new one in a later version has to be looked at.
	found := []string{}
	directory, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "riverqueue.com/riverui").Output()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(directory)), "*.go"))
	require.NoError(t, err)
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, match := range regexp.MustCompile(`Pattern:\s+"([A-Z]+) /api(/[^"]*)"`).FindAllStringSubmatch(string(source), -1) {
			if endpoint := match[1] + " " + strings.ReplaceAll(match[2], "{name}", "download"); match[1] != "GET" {
				found = append(found, endpoint)
			}
		}
	}
	slices.Sort(found)
	slices.Sort(pressed)
	require.Equal(t, found, slices.Compact(pressed))
}

// What is written down is sealed, and a change is told; all of it can be taken along.
func TestAuditIsVerifiedAndExported(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 250 {
		b.exec(`INSERT INTO medianest.audit (action, subject, status) VALUES ('set-limit', $1, 200)`, strconv.Itoa(i))
	}
	_, err := store.New(b.pool).SealAudit(t.Context())
	require.NoError(t, err)
	verify := func() (chain api.AuditChain) {
		b.do(request{method: "GET", path: "/api/v1/audit/verify", token: b.admin.token}).into(&chain)
		return chain
	}
	chain := verify()
	require.True(t, chain.Intact)
	require.EqualValues(t, 250, chain.Links)
	a := b.do(request{method: "GET", path: "/api/v1/audit/export?action=set-limit", token: b.admin.token})
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, 250, strings.Count(string(a.body), "\n"))
	require.Equal(t, 250, strings.Count(string(a.body), `"action":"set-limit"`))
	b.exec(`ALTER TABLE medianest.audit DISABLE TRIGGER medianest_keep`)
	b.exec(`UPDATE medianest.audit SET subject = 'x' WHERE subject = '7'`)
	chain = verify()
	require.False(t, chain.Intact)
	require.Equal(t, "entry changed", chain.Fault)
	require.EqualValues(t, 8, chain.Last)
}
