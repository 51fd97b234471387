package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/store"
	"medianest/store/storetest"
)

const schedulesPath = "/api/v1/schedule"

// schedulingQueue is a riverQueue with one kind that can be scheduled.
type schedulingQueue struct{ riverQueue }

type sweepArgs struct {
	Depth int `json:"depth"`
}

func (sweepArgs) Kind() string { return "sweep" }

func (schedulingQueue) ScheduleKinds() []store.ScheduleKind {
	return []store.ScheduleKind{{Kind: "sweep", Description: "Sweeps.", Args: json.RawMessage(`{"depth":1}`)}}
}

func (schedulingQueue) CheckScheduledArgs(kind string, args json.RawMessage) error {
	if kind != "sweep" {
		return &store.InvalidError{Field: "kind", Reason: "is none of sweep"}
	}
	if err := json.Unmarshal(args, &sweepArgs{}); err != nil {
		return &store.InvalidError{Field: "args", Reason: "is not what jobs of kind sweep take"}
	}
	return nil
}

func (q schedulingQueue) EnqueueScheduledTx(ctx context.Context, tx pgx.Tx, job store.ScheduledJob) (int64, error) {
	inserted, err := q.client.InsertTx(ctx, tx, sweepArgs{}, &river.InsertOpts{ScheduledAt: job.RunAt})
	if err != nil {
		return 0, err
	}
	return inserted.Job.ID, nil
}

// setupSchedules is setup with a queue that schedules.
func setupSchedules(t *testing.T) *bundle {
	t.Helper()
	return setup(t, func(b *bundle, o *api.Options) {
		pool := storetest.OpenPool(t, b.pool.Config().ConnString(), store.RoleAPI)
		b.store = store.New(pool).WithQueue(schedulingQueue{b.queue})
		o.Store = b.store
	})
}

// asAdmin sends a request and requires that status.
func (b *bundle) asAdmin(status int, method, path string, body any) answer {
	b.t.Helper()
	a := b.do(request{method: method, path: path, token: b.admin.token, body: body})
	require.Equal(b.t, status, a.status, "%s %s: %s", method, path, a.body)
	return a
}

func (a answer) schedule() (s api.Schedule) {
	a.t.Helper()
	a.into(&s)
	return s
}

// The whole life of a schedule.
func TestSchedules(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	require.JSONEq(t, `{"items":[{"kind":"sweep","description":"Sweeps.","args":{"depth":1}}]}`,
		string(b.asAdmin(200, "GET", "/api/v1/schedule-kinds", nil).body))
	require.JSONEq(t, `{"items":[]}`, string(b.asAdmin(200, "GET", "/api/v1/schedules", nil).body))

	made := b.asAdmin(201, "POST", "/api/v1/schedules", map[string]any{
		"name": "nightly", "kind": "sweep", "args": map[string]int{"depth": 2}, "cron": "30 2 * * *", "timezone": "Europe/Berlin",
	})
	s := made.schedule()
	b.golden("schedule.json", made.body, s.ID.String(), "ID")
	require.Len(t, s.NextRuns, 10)
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	for i, at := range s.NextRuns {
		require.Equal(t, time.UTC, at.Location())
		require.Contains(t, []string{"02:30", "03:00"}, at.In(berlin).Format("15:04"))
		if i > 0 {
			require.InDelta(t, 24, at.Sub(s.NextRuns[i-1]).Hours(), 1)
		}
	}
	path := "/api/v1/schedules/" + s.ID.String()
	require.Equal(t, s, b.asAdmin(200, "GET", path, nil).schedule())

	change := map[string]any{"name": "hourly", "kind": "sweep", "interval_s": 3600, "revision": s.Revision, "overlap": "queue_one"}
	changed := b.asAdmin(200, "PUT", path, change).schedule()
	require.Equal(t, 3600, changed.IntervalS)
	require.Empty(t, changed.Cron)
	require.JSONEq(t, `{}`, string(changed.Args), "what is left out has its default")
	require.Equal(t, "queue_one", changed.Overlap)
	require.Equal(t, time.Hour, changed.NextRuns[9].Sub(changed.NextRuns[8]))
	stale := b.asAdmin(409, "PUT", path, change).problem(409, api.CodeConflict)
	require.Contains(t, stale.Detail, "changed since that revision")

	paused := b.asAdmin(200, "POST", path+"/pause", nil).schedule()
	require.False(t, paused.Enabled)
	require.Empty(t, paused.NextRuns)
	require.Equal(t, paused, b.asAdmin(200, "POST", path+"/pause", nil).schedule())

	b.asAdmin(202, "POST", path+"/run", nil)
	var waits api.ScheduleRun
	b.asAdmin(202, "POST", path+"/run", nil).into(&waits)
	require.Equal(t, "waiting", waits.State)
	require.Contains(t, b.asAdmin(409, "POST", path+"/run", nil).problem(409, api.CodeConflict).Detail, "has not ended")
	var runs api.ScheduleRunList
	b.asAdmin(200, "GET", path+"/runs?limit=1", nil).into(&runs)
	require.Equal(t, "waiting", runs.Items[0].State)
	older := b.asAdmin(200, "GET", path+"/runs?cursor="+runs.NextCursor, nil)
	b.golden("schedule_runs.json", older.body)

	require.True(t, b.asAdmin(200, "POST", path+"/resume", nil).schedule().Enabled)
	var list api.ScheduleList
	b.asAdmin(200, "GET", "/api/v1/schedules", nil).into(&list)
	require.Len(t, list.Items, 1)
	require.Len(t, list.Items[0].NextRuns, 1)
	b.asAdmin(204, "DELETE", path, nil)
	for _, route := range []struct{ method, path string }{
		{"GET", path}, {"DELETE", path}, {"POST", path + "/run"}, {"GET", path + "/runs"}, {"POST", path + "/pause"}, {"POST", path + "/resume"},
	} {
		detail := b.asAdmin(404, route.method, route.path, nil).problem(404, api.CodeNotFound).Detail
		require.Contains(t, detail, "schedule")
	}
	b.asAdmin(404, "PUT", path, change)

	require.NoError(t, b.store.EnsureSchedules(t.Context(), []store.SystemSchedule{{Key: "own", Spec: store.ScheduleSpec{
		Name: "own", Enabled: true, Kind: "sweep", Interval: time.Hour,
	}}}))
	b.asAdmin(200, "GET", "/api/v1/schedules", nil).into(&list)
	require.True(t, list.Items[0].System)
	own := "/api/v1/schedules/" + list.Items[0].ID.String()
	require.Contains(t, b.asAdmin(409, "DELETE", own, nil).problem(409, api.CodeConflict).Detail, "pause it instead")
}

func TestBadSchedules(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	for name, c := range map[string]struct{ change, location, says string }{
		"no name":         {`"name": ""`, "body.name", "length"},
		"unknown kind":    {`"kind": "explode"`, "body.kind", "is none of sweep"},
		"args of a list":  {`"args": [1]`, "body.args", "no JSON object"},
		"args of text":    {`"args": {"depth": "deep"}`, "body.args", "is not what jobs of kind sweep take"},
		"invalid cron":    {`"cron": "61 * * * *"`, "body.cron", "above maximum"},
		"cron of seconds": {`"cron": "* * * * * *"`, "body.cron", "is no cron expression"},
		"cron of never":   {`"cron": "0 0 31 2 *"`, "body.cron", "has no time"},
		"zone in cron":    {`"cron": "TZ=UTC 0 0 * * *"`, "body.cron", "which timezone is for"},
		"unknown zone":    {`"timezone": "Mars/Olympus"`, "body.timezone", "is no time zone of the IANA database"},
		"local zone":      {`"timezone": "Local"`, "body.timezone", "is no time zone of the IANA database"},
		"both":            {`"interval_s": 60`, "body.interval_s", "goes without cron"},
		"neither":         {`"cron": ""`, "body.cron", "is missing"},
		"short interval":  {`"cron": "", "interval_s": 1`, "body.interval_s", "must be from 10"},
		"no time at all":  {`"cron": "", "interval_s": -9223372036854775808`, "body.interval_s", "must be from 10"},
		"endless":         {`"cron": "", "interval_s": 9223372036854775807`, "body.interval_s", "must be from 10"},
		"overlap":         {`"overlap": "all"`, "body.overlap", "one of"},
		"misfire":         {`"misfire": "all"`, "body.misfire", "one of"},
		"misfire_max":     {`"misfire_max": 1000`, "body.misfire_max", "100"},
		"jitter":          {`"jitter_s": -1`, "body.jitter_s", "0"},
		"unknown field":   {`"every": "day"`, "body.every", "unexpected"},
		"a revision":      {`"revision": 1`, "body.revision", "unexpected"},
	} {
		body := `{"name": "a", "kind": "sweep", "cron": "0 0 * * *", ` + c.change + `}`
		p := b.asAdmin(422, "POST", "/api/v1/schedules", body).problem(422, api.CodeValidationFailed)
		require.NotEmpty(t, p.Errors, name)
		require.Equal(t, c.location, p.Errors[0].Location, name)
		require.Contains(t, p.Errors[0].Message, c.says, name)
	}
	b.asAdmin(422, "GET", "/api/v1/schedules/7", nil)
	b.asAdmin(422, "GET", "/api/v1/schedules?cursor=x", nil)
	b.asAdmin(422, "PUT", "/api/v1/schedules/"+uuid.NewString(), `{"name": "a", "kind": "sweep", "cron": "@daily"}`)
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.schedule`))

	first := `{"name": "a", "kind": "sweep", "cron": "@daily"}`
	b.asAdmin(201, "POST", "/api/v1/schedules", first)
	p := b.asAdmin(422, "POST", "/api/v1/schedules", first).problem(422, api.CodeValidationFailed)
	require.Equal(t, "body.name", p.Errors[0].Location)
	require.Contains(t, p.Errors[0].Message, "is another schedule's")
}

func TestSchedulesAreForAdmins(t *testing.T) {
	t.Parallel()
	b := setupSchedules(t)
	made := b.asAdmin(201, "POST", "/api/v1/schedules", `{"name": "a", "kind": "sweep", "cron": "@daily"}`).schedule()
	walked := 0
	for _, route := range b.api.Routes() {
		if !strings.HasPrefix(route.Path, schedulesPath) {
			continue
		}
		walked++
		for _, id := range []string{made.ID.String(), uuid.NewString()} {
			path := strings.ReplaceAll(route.Path, ":id", id)
			b.do(request{method: route.Method, path: path, token: b.anna.token}).problem(http.StatusForbidden, api.CodeForbidden)
			b.do(request{method: route.Method, path: path}).problem(http.StatusUnauthorized, api.CodeUnauthenticated)
		}
	}
	require.Equal(t, 10, walked)
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.schedule_run`))
}
