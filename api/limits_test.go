package api_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/jobs/queue"
	"medianest/store"
	"medianest/store/storetest"
)

const limitsPath = "/api/v1/limits"

func limitPath(key string) string { return limitsPath + "/" + url.PathEscape(key) }

func (b *bundle) putLimit(key, body string) api.Limit {
	b.t.Helper()
	a := b.do(request{method: "PUT", path: limitPath(key), token: b.admin.token, body: body})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	var l api.Limit
	a.into(&l)
	return l
}

func (b *bundle) deleteLimit(key string) {
	b.t.Helper()
	a := b.do(request{method: "DELETE", path: limitPath(key), token: b.admin.token})
	require.Equal(b.t, http.StatusNoContent, a.status, "body: %s", a.body)
}

func (b *bundle) limits(query string) (list api.LimitList) {
	b.t.Helper()
	a := b.do(request{method: "GET", path: limitsPath + query, token: b.admin.token})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	a.into(&list)
	return list
}

func TestLimits(t *testing.T) {
	t.Parallel()
	rung := 0
	b := setup(t, func(_ *bundle, o *api.Options) { o.OnLimits = func() { rung++ } })
	require.Empty(t, b.limits("").Items)
	host := b.putLimit("host:youtube.com", `{"max_running":2,"max_starts":100,"period_s":3600,"spacing_s":10,"jitter_s":2.5}`)
	require.Equal(t, &b.admin.ID, host.UpdatedBy)
	require.WithinDuration(t, time.Now(), host.UpdatedAt, time.Minute)
	require.Equal(t, []int{0, 2, 100, 3600}, []int{*host.Running, *host.MaxRunning, *host.MaxStarts, *host.PeriodS})
	require.Equal(t, []float64{10, 2.5}, []float64{host.SpacingS, host.JitterS})
	b.putLimit("user:"+b.anna.ID.String(), `{}`)
	window := b.putLimit("kind:download", `{"windows":[{"days":["sat"],"from":"22:00","to":"06:30"}],"timezone":"Asia/Kolkata"}`)
	require.Equal(t, []api.Window{{Days: []string{"sat"}, From: "22:00", To: "06:30"}}, window.Windows)
	require.Equal(t, "Asia/Kolkata", window.Timezone)
	b.deleteLimit("kind:download")
	all := b.putLimit("user:*", `{"max_running":0}`)
	require.Nil(t, all.Running)

	first := b.limits("?limit=2")
	require.Equal(t, host, first.Items[0])
	require.Equal(t, "user:*", first.Items[1].Key)
	last := b.limits("?limit=2&cursor=" + first.NextCursor)
	require.Equal(t, "user:"+b.anna.ID.String(), last.Items[0].Key)
	require.Empty(t, last.NextCursor)

	// Put again, it is what the last one said and nothing of the first.
	host = b.putLimit("host:youtube.com", `{"max_running":3}`)
	require.Equal(t, 3, *host.MaxRunning)
	require.Nil(t, host.MaxStarts)
	require.Zero(t, host.SpacingS)
	a := b.do(request{method: "GET", path: limitPath("host:youtube.com"), token: b.admin.token})
	var found api.Limit
	a.into(&found)
	require.Equal(t, host, found)

	b.deleteLimit("host:youtube.com")
	require.Equal(t, 7, rung)
	for _, method := range []string{"GET", "DELETE"} {
		p := b.do(request{method: method, path: limitPath("host:youtube.com"), token: b.admin.token})
		require.Contains(t, p.problem(http.StatusNotFound, api.CodeNotFound).Detail, "no limit of its own")
	}
	require.Equal(t, 7, rung, "nothing changed")
}

func TestLimitsThatAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, test := range map[string]struct{ key, body, location, says string }{
		"unknown form":         {"planet:mars", `{}`, "path.key", "begins with none of host: user:"},
		"no form":              {"youtube.com", `{}`, "path.key", "begins with none of"},
		"a form alone":         {"host", `{}`, "path.key", "begins with none of"},
		"another case":         {"Host:youtube.com", `{}`, "path.key", "begins with none of"},
		"no name":              {"kind:", `{}`, "path.key", "letters, digits"},
		"part of a name":       {"kind:down*", `{}`, "path.key", "letters, digits"},
		"NUL":                  {"kind:\x00", `{}`, "path.key", "NUL"},
		"endless":              {"kind:" + strings.Repeat("x", 2000), `{}`, "path.key", "length"},
		"no host":              {"host:", `{}`, "path.key", "names no host"},
		"a server of a site":   {"host:www.youtube.com", `{}`, "path.key", "under host:youtube.com"},
		"a host in capitals":   {"host:YouTube.com", `{}`, "path.key", "under host:youtube.com"},
		"a host with a port":   {"host:localhost:80", `{}`, "path.key", "under host:localhost"},
		"a user's name":        {"user:anna", `{}`, "path.key", "names no user"},
		"nobody":               {"user:" + uuid.NewString(), `{}`, "path.key", "does not exist"},
		"negative":             {"kind:download", `{"max_running":-1}`, "body.max_running", ">= 0"},
		"negative pause":       {"kind:download", `{"spacing_s":-0.5}`, "body.spacing_s", ">= 0"},
		"no starts":            {"kind:download", `{"max_starts":0,"period_s":60}`, "body.max_starts", ">= 1"},
		"no time of the day":   {"kind:download", `{"windows":[{"from":"24:00","to":"01:00"}]}`, "body.windows[0].from", "match pattern"},
		"no day":               {"kind:download", `{"windows":[{"days":["monday"],"from":"00:00","to":"01:00"}]}`, "body.windows[0].days[0]", "one of"},
		"an empty window":      {"kind:download", `{"windows":[{"from":"01:00","to":"01:00"}]}`, "body.windows", "ends when it begins"},
		"unknown zone":         {"kind:download", `{"timezone":"Mars/Olympus"}`, "body.timezone", "no time zone"},
		"a million starts":     {"kind:download", `{"max_starts":1000000,"period_s":60}`, "body.max_starts", "<= 1000"},
		"period without start": {"kind:download", `{"period_s":60}`, "body.max_starts", "is missing"},
		"start without period": {"kind:download", `{"max_starts":5}`, "body.period_s", "is missing"},
		"a half":               {"kind:download", `{"max_running":1.5}`, "body.max_running", "integer"},
		"a word":               {"kind:download", `{"max_running":"many"}`, "body.max_running", "integer"},
		"unknown field":        {"kind:download", `{"max_runing":1}`, "body.max_runing", "unexpected"},
	} {
		a := b.do(request{method: "PUT", path: limitPath(test.key), token: b.admin.token, body: test.body})
		p := a.problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
		require.NotEmpty(t, p.Errors, name)
		require.Equal(t, test.location, p.Errors[0].Location, name)
		require.Contains(t, p.Errors[0].Message, test.says, name)
	}
	b.do(request{method: "GET", path: limitPath("planet:mars"), token: b.admin.token}).problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	b.do(request{method: "DELETE", path: limitPath("planet:mars"), token: b.admin.token}).problem(http.StatusUnprocessableEntity, api.CodeValidationFailed)
	for _, cursor := range []string{"x", "AAAA", "_w"} {
		b.do(request{method: "GET", path: limitsPath + "?cursor=" + cursor, token: b.admin.token}).problem(422, api.CodeValidationFailed)
	}
	for _, key := range []string{"host:127.0.0.1", "host:2001:db8::1", "host:localhost", "service:plex", "cookie:anna.txt", "queue:download"} {
		b.putLimit(key, `{"max_running":1}`)
	}
	require.Len(t, b.limits("").Items, 6)
}

// admission decides in the test's database, as that of each process does, until the test's end. A worker has slots for
// as many jobs, and fetches none.
func (b *bundle) admission(slots int) {
	b.t.Helper()
	b.worker("nas-1", "work")
	b.exec(`UPDATE medianest.worker SET queues = jsonb_build_object('download', $1::int)`, slots)
	pool := storetest.OpenPool(b.t, b.pool.Config().ConnString(), store.RoleRiver)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for range 2 {
		a := queue.NewAdmission(pool, discard)
		running.Go(func() { _ = a.Run(ctx) })
		running.Go(func() {
			for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
				a.Ring()
			}
		})
	}
	b.t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

func (b *bundle) waitForAdmitted(n int) {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		return b.count(`SELECT count(*) FROM river.river_job WHERE state = 'available'`) == n
	}, 10*time.Second, 5*time.Millisecond, "%d are to be admitted", n)
}

func (b *bundle) find(d api.Download) api.Download {
	b.t.Helper()
	a := b.do(request{method: "GET", path: "/api/v1/downloads/" + d.ID.String(), token: b.admin.token})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	return a.download()
}

func (b *bundle) downloads(p person, query string) (list api.DownloadList) {
	b.t.Helper()
	a := b.do(request{method: "GET", path: "/api/v1/downloads" + query, token: p.token})
	require.Equal(b.t, http.StatusOK, a.status, "body: %s", a.body)
	a.into(&list)
	return list
}

// What waits says why, and goes on as soon as the limit allows it.
func TestLimitsBindWhatWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.putLimit("host:site.test", `{"max_running":1}`)
	first, second := b.wish(b.anna, "https://www.site.test/1"), b.wish(b.anna, "https://site.test/2")
	b.admission(3)
	b.waitForAdmitted(1)
	require.Equal(t, "queued", b.find(first).State)
	require.Nil(t, b.find(first).Waiting)
	waits := b.find(second)
	require.Equal(t, []string{"waiting", "limit"}, []string{waits.State, waits.WaitingOn})
	require.Equal(t, &api.Waiting{Reason: "limit", Key: "host:site.test", Position: 1}, waits.Waiting)
	require.Equal(t, 1, *b.limits("").Items[0].Running)
	job := b.do(request{method: "GET", path: "/api/v1/jobs/" + second.JobID, token: b.anna.token})
	b.golden("job_waiting.json", job.body, second.ID.String(), "ID")
	require.Equal(t, second.ID, b.downloads(b.anna, "?state=waiting").Items[0].ID)
	require.Equal(t, first.ID, b.downloads(b.anna, "?state=queued").Items[0].ID)

	// Raised, lowered under what is admitted, taken away.
	b.putLimit("host:site.test", `{"max_running":2}`)
	b.waitForAdmitted(2)
	b.putLimit("host:site.test", `{"max_running":0}`)
	b.waitForAdmitted(0)
	require.Equal(t, "waiting", b.find(first).State)
	b.deleteLimit("host:site.test")
	b.waitForAdmitted(2)

	// Every slot is taken.
	third, fourth := b.wish(b.bert, "https://site.test/3"), b.wish(b.bert, "https://site.test/4")
	b.waitForAdmitted(3)
	require.Nil(t, b.find(third).Waiting)
	require.Equal(t, "queued", b.find(fourth).State)
	require.Equal(t, &api.Waiting{Reason: "slots", Position: 1}, b.find(fourth).Waiting)
	b.exec(`UPDATE river.river_job SET state = 'completed', finalized_at = now() WHERE id = $1`, jobOf(t, first))
	require.Eventually(t, func() bool { return b.find(fourth).Waiting == nil }, 10*time.Second, 5*time.Millisecond)

	// A pace tells when.
	b.putLimit("host:slow.test", `{"spacing_s":3600}`)
	b.exec(`UPDATE river.river_job SET state = 'completed', finalized_at = now() WHERE state = 'available'`)
	b.wish(b.anna, "https://slow.test/1")
	b.waitForAdmitted(1)
	paced := b.find(b.wish(b.anna, "https://slow.test/2"))
	require.Equal(t, []string{"waiting", "limit", "pace"}, []string{paced.State, paced.WaitingOn, paced.Waiting.Reason})
	require.WithinDuration(t, time.Now().Add(time.Hour), *paced.NextTryAt, time.Minute)
}

// When the answer to a lower limit comes, the round that has read the old one is over: nothing is admitted from then on.
func TestLimitIsInForceWhenItIsAnswered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// Each job that is admitted takes a moment, and the round half a second.
	b.exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END'`)
	b.exec(`CREATE TRIGGER slow BEFORE UPDATE ON river.river_job FOR EACH ROW WHEN (NEW.state = 'available') EXECUTE FUNCTION slow()`)
	b.putLimit("kind:x", `{"max_running":50}`)
	b.exec(`
		INSERT INTO river.river_job (kind, args, max_attempts, queue, metadata)
		SELECT 'x', '{}', 1, 'download', jsonb_build_object('keys', ARRAY['kind:x', 'user:' || n])
		FROM generate_series(1, 50) AS n`)
	b.admission(1000)
	require.Eventually(t, func() bool {
		return b.count(`
			SELECT count(*)
			FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event = 'PgSleep'`) == 1
	}, 10*time.Second, time.Millisecond)
	b.putLimit("kind:x", `{"max_running":0}`)
	const admitted = `SELECT count(*) FROM medianest.event WHERE topic = 'job.state' AND state = 'available'`
	before := b.count(admitted)
	b.waitForAdmitted(0)
	require.Equal(t, 50, before, "the round that was under way")
	require.Equal(t, before, b.count(admitted))
}
