package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

func ptr[T any](v T) *T { return &v }

func (b *bundle) limit(l store.Limit) {
	b.t.Helper()
	_, err := b.api.SetLimit(b.t.Context(), l)
	require.NoError(b.t, err)
}

// admit makes the download's job available, as a round of admission does that chose it.
func (b *bundle) admit(d store.Download) {
	b.t.Helper()
	require.NoError(b.t, pgx.BeginFunc(b.t.Context(), b.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(b.t.Context(), `SELECT set_config('medianest.admit', 'on', true)`); err != nil {
			return err
		}
		_, err := tx.Exec(b.t.Context(), `UPDATE river.river_job SET state = 'available' WHERE id = $1`, *d.JobID)
		return err
	}))
}

// waiting is what the download and its job, which agree, wait for as the viewer sees it.
func (b *bundle) waiting(d store.Download, v store.Viewer) *store.Waiting {
	b.t.Helper()
	found, err := b.api.FindDownload(b.t.Context(), d.ID, v)
	require.NoError(b.t, err)
	job, err := b.api.FindJob(b.t.Context(), *d.JobID, v)
	require.NoError(b.t, err)
	require.Equal(b.t, job.Waiting, found.Waiting)
	if found.Waiting == nil || found.Waiting.Reason == store.WaitsForSlots {
		require.Equal(b.t, store.StateQueued, found.State)
		return found.Waiting
	}
	require.Equal(b.t, store.StateWaiting, found.State)
	require.Equal(b.t, found.Waiting.NotBefore, found.NextTryAt)
	require.Equal(b.t, found.Waiting.Reason == store.WaitsForBreaker, found.WaitingOn == store.WaitingOnBreaker)
	return found.Waiting
}

func TestWaitingSaysWhy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	running, next := b.create(ann, "https://www.site.test/1"), b.create(ben, "https://cdn.site.test/2")
	require.Equal(t, &store.Waiting{Reason: store.WaitsForSlots, Position: 2}, b.waiting(next, ben.Viewer()))
	b.admit(running)
	require.Nil(t, b.waiting(running, ann.Viewer()), "it waits for nothing but a worker's look")

	// Whatever changes last, the answer is true at once.
	b.limit(store.Limit{Key: "host:site.test", MaxRunning: ptr(1)})
	require.Equal(t, &store.Waiting{Key: "host:site.test", Reason: store.WaitsForLimit, Position: 1}, b.waiting(next, ben.Viewer()))
	b.limit(store.Limit{Key: "host:site.test", MaxRunning: ptr(2)})
	require.Equal(t, store.WaitsForSlots, b.waiting(next, ben.Viewer()).Reason)
	b.limit(store.Limit{Key: "host:*", MaxRunning: ptr(1)})
	require.Equal(t, store.WaitsForSlots, b.waiting(next, ben.Viewer()).Reason, "its own limit goes before that of its form")
	require.NoError(t, b.api.DeleteLimit(t.Context(), "host:site.test"))
	require.Equal(t, "host:site.test", b.waiting(next, ben.Viewer()).Key)
	b.setJob(*running.JobID, "completed")
	require.Equal(t, store.WaitsForSlots, b.waiting(next, ben.Viewer()).Reason)

	// Forms of which none may begin, with and without an exception, and queues.
	b.limit(store.Limit{Key: "host:*", MaxRunning: ptr(0)})
	require.Equal(t, store.WaitsForLimit, b.waiting(next, ben.Viewer()).Reason)
	b.limit(store.Limit{Key: "host:site.test"})
	require.Equal(t, store.WaitsForSlots, b.waiting(next, ben.Viewer()).Reason)
	b.limit(store.Limit{Key: "queue:download", MaxRunning: ptr(0)})
	require.Equal(t, "queue:download", b.waiting(next, ben.Viewer()).Key)
	require.NoError(t, b.api.DeleteLimit(t.Context(), "queue:download"))

	// A pace: the start that was, and those in the period.
	const use = `
		INSERT INTO medianest.limit_use (key, last_at, next_at, starts)
		VALUES ('host:site.test', $1::timestamptz, $1::timestamptz + interval '15 s', ARRAY[$1::timestamptz - interval '30 s', $1])
		ON CONFLICT (key) DO UPDATE
		SET last_at = excluded.last_at, next_at = excluded.next_at, starts = excluded.starts`
	at := time.Now().UTC().Truncate(time.Second)
	b.exec(use, at)
	b.limit(store.Limit{Key: "host:site.test", SpacingS: 10, JitterS: 10})
	w := b.waiting(next, ben.Viewer())
	require.Equal(t, store.WaitsForPace, w.Reason)
	require.WithinDuration(t, at.Add(15*time.Second), *w.NotBefore, 0)
	b.limit(store.Limit{Key: "host:site.test", SpacingS: 60})
	require.WithinDuration(t, at.Add(time.Minute), *b.waiting(next, ben.Viewer()).NotBefore, 0)
	b.limit(store.Limit{Key: "host:site.test", MaxStarts: ptr(2), PeriodS: ptr(100)})
	require.WithinDuration(t, at.Add(70*time.Second), *b.waiting(next, ben.Viewer()).NotBefore, 0)
	b.limit(store.Limit{Key: "host:site.test", MaxStarts: ptr(3), PeriodS: ptr(100)})
	b.exec(use, at.Add(-time.Hour))
	require.Equal(t, store.WaitsForSlots, b.waiting(next, ben.Viewer()).Reason)

	// A breaker: until its time, and while its probe is under way, without any limit.
	require.NoError(t, b.api.DeleteLimit(t.Context(), "host:site.test"))
	require.NoError(t, b.api.DeleteLimit(t.Context(), "host:*"))
	b.exec(`INSERT INTO medianest.breaker (key, open_until) VALUES ('host:site.test', $1)`, at.Add(time.Minute))
	w = b.waiting(next, ben.Viewer())
	require.Equal(t, []string{"host:site.test", store.WaitsForBreaker}, []string{w.Key, w.Reason})
	require.WithinDuration(t, at.Add(time.Minute), *w.NotBefore, 0)
	b.exec(`UPDATE medianest.breaker SET open_until = now()`)
	require.Equal(t, store.WaitsForSlots, b.waiting(next, ben.Viewer()).Reason)
	probe := b.create(ann, "https://site.test/3")
	b.admit(probe)
	b.exec(`UPDATE medianest.breaker SET probe_job = $1`, *probe.JobID)
	require.Equal(t, store.WaitsForBreaker, b.waiting(next, ben.Viewer()).Reason)
	b.setJob(*probe.JobID, "completed")
	require.Equal(t, store.WaitsForSlots, b.waiting(next, ben.Viewer()).Reason)
}

// The user is who asked first. Who joins is not told who that is.
func TestWaitingKeepsUsersApart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	d, bens := b.create(ann, "https://site.test/1"), b.create(ben, "https://site.test/1")
	require.Equal(t, *d.JobID, *bens.JobID)
	b.limit(store.Limit{Key: "user:*", MaxRunning: ptr(0)})
	require.Equal(t, "user:"+ann.ID.String(), b.waiting(d, ann.Viewer()).Key)
	require.Equal(t, "user:"+ann.ID.String(), b.waiting(d, store.Viewer{Admin: true}).Key)
	require.Equal(t, "user:*", b.waiting(bens, ben.Viewer()).Key)
}

// What is shown as waiting for a limit is found as waiting, and counted as waiting.
func TestWaitingInListsAndCounts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	page := b.create(ann, "https://site.test/page")
	b.expand(page, entry("https://site.test/1"), entry("https://site.test/2"), entry("https://other.test/3"))
	single := b.create(ann, "https://site.test/4")
	other := b.create(ann, "https://other.test/5")
	list := func(f store.DownloadFilter) (urls []string) {
		f.Viewer = ann.Viewer()
		f.Limit = 1
		for {
			found, next, err := b.api.ListDownloads(t.Context(), f)
			require.NoError(t, err)
			for _, d := range found {
				require.Contains(t, f.States, d.State)
				require.Zero(t, d.Waiting.Position, "lists do not count")
				urls = append(urls, d.URL)
			}
			if f.Cursor = next; next == "" {
				return urls
			}
		}
	}
	queued, waiting := []string{store.StateQueued}, []string{store.StateWaiting}
	require.Equal(t, []string{other.URL, single.URL}, list(store.DownloadFilter{States: queued}))
	require.Empty(t, list(store.DownloadFilter{States: waiting}))

	b.limit(store.Limit{Key: "host:site.test", MaxRunning: ptr(0)})
	require.Equal(t, []string{other.URL}, list(store.DownloadFilter{States: queued}))
	require.Equal(t, []string{single.URL}, list(store.DownloadFilter{States: waiting}))
	require.Equal(t, []string{other.URL, single.URL}, list(store.DownloadFilter{States: append(waiting, queued...)}))
	require.Equal(t, []string{"https://other.test/3"}, list(store.DownloadFilter{ParentID: &page.ID, States: queued}))
	require.Equal(t, []string{"https://site.test/1", "https://site.test/2"}, list(store.DownloadFilter{ParentID: &page.ID, States: waiting}))
	counts := b.find(page).Children
	require.Equal(t, []int{1, 2, 3}, []int{counts.Queued, counts.Waiting, counts.Total})

	jobs, _, err := b.api.ListJobs(t.Context(), store.JobFilter{Viewer: ann.Viewer(), States: []string{"pending"}})
	require.NoError(t, err)
	waits := map[store.Waiting]int{}
	for _, j := range jobs {
		waits[*j.Waiting]++
	}
	require.Equal(t, map[store.Waiting]int{
		{Reason: store.WaitsForLimit, Key: "host:site.test"}: 3, {Reason: store.WaitsForSlots}: 2,
	}, waits)

	b.limit(store.Limit{Key: "host:other.test"})
	b.limit(store.Limit{Key: "host:*", MaxRunning: ptr(0)})
	require.NoError(t, b.api.DeleteLimit(t.Context(), "host:site.test"))
	require.Equal(t, []string{other.URL}, list(store.DownloadFilter{States: queued}), "the form's limit, and an exception")
	require.NoError(t, b.api.DeleteLimit(t.Context(), "host:*"))
	require.Equal(t, []string{other.URL, single.URL}, list(store.DownloadFilter{States: queued}))
}

// The place in line is the one in which rounds serve: by priority, the user who has least running first.
func TestWaitingPosition(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben, eve := b.user("ann"), b.user("ben"), b.user("eve")
	var anns []store.Download
	for i := range 20 {
		anns = append(anns, b.create(ann, fmt.Sprintf("https://site.test/%d", i)))
	}
	bens := b.create(ben, "https://other.test/1")
	eves := []store.Download{b.create(eve, "https://other.test/2"), b.create(eve, "https://other.test/3")}
	position := func(d store.Download) int { return b.waiting(d, store.Viewer{Admin: true}).Position }

	// In turn: ann, ben, eve, ann, eve, ann, ann, ...
	require.Equal(t, 1, position(anns[0]))
	require.Equal(t, 2, position(bens), "not behind ann's twenty")
	require.Equal(t, 3, position(eves[0]))
	require.Equal(t, 4, position(anns[1]))
	require.Equal(t, 5, position(eves[1]))
	require.Equal(t, 6, position(anns[2]))
	require.Equal(t, 23, position(anns[19]))

	b.admit(anns[0])
	require.Equal(t, []int{1, 2}, []int{position(bens), position(eves[0])}, "ann has one running")
	require.Equal(t, 3, position(anns[1]))
	b.exec(`INSERT INTO medianest.limit_use (key, last_at, next_at) VALUES ($1, now(), now())`, "user:"+ben.ID.String())
	require.Equal(t, []int{2, 1}, []int{position(bens), position(eves[0])}, "eve was served longer ago")
	b.exec(`UPDATE river.river_job SET priority = 3 WHERE id = $1`, *eves[0].JobID)
	require.Equal(t, 22, position(eves[0]))
	require.Equal(t, 1, position(eves[1]))
}

// A look at the line takes as long whatever its length, and so does one at a page of those in it.
func TestWaitingIsCheapAtManyJobs(t *testing.T) {
	t.Parallel()
	const jobs, most = 100_000, 1000
	pool := storetest.Pool(t, "")
	_, err := pool.Exec(t.Context(), `
		INSERT INTO medianest.admission (row_id, queue, priority, keys, user_key, scheduled_at, admitted_at, blocked_on)
		SELECT n, 'download', 1, ARRAY['host:' || n % 1000, 'kind:download', 'user:' || n % 500], 'user:' || n % 500,
			'2026-01-01'::timestamptz + n * interval '1 s', CASE WHEN n <= 80 THEN now() END,
			CASE WHEN n % 2 = 0 THEN '' ELSE 'host:' || n % 1000 END
		FROM generate_series(1, $1::int) AS n`, jobs)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), `
		INSERT INTO medianest.limits (key, max_running) SELECT 'host:' || n, 1 FROM generate_series(0, 999) AS n`)
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), `VACUUM (ANALYZE) medianest.admission, medianest.limits, medianest.limit_use`)
	require.NoError(t, err)
	for _, row := range []int64{82, 50_000, 99_999, 100_000} {
		sql, args, err := store.PositionQuery(t.Context(), pool, row)
		require.NoError(t, err)
		require.LessOrEqual(t, rowsLookedAt(t, pool, sql, args), 6*most, "row %d", row)
	}
	require.LessOrEqual(t, rowsLookedAt(t, pool, store.GatesSQL), 3*most+10*80)
}

// Each content is a job of the site that it comes from and of who asked first, whoever joins or retries later.
func TestEnqueueNamesKeys(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	keys := func(d store.Download) (keys []string) {
		require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT keys FROM medianest.admission WHERE row_id = $1`, *d.JobID).Scan(&keys))
		return keys
	}
	of := func(host string, id uuid.UUID) []string {
		return []string{"host:" + host, "kind:download", "user:" + id.String()}
	}
	for url, host := range map[string]string{
		"https://www.youtube.com/watch?v=1":      "youtube.com",
		"https://M.YouTube.com/watch?v=1":        "youtube.com",
		"https://media.service.co.uk/1":          "service.co.uk",
		"http://ann.github.io/film":              "ann.github.io",
		"http://www.site.test:8080/":             "site.test",
		"http://localhost:8080/":                 "localhost",
		"http://127.0.0.1:8080/":                 "127.0.0.1",
		"http://[2001:DB8::1]:8080/":             "2001:db8::1",
		"http://xn--bcher-kva.example/auslage/1": "xn--bcher-kva.example",
	} {
		require.Equal(t, of(host, ann.ID), keys(b.create(ann, url)), url)
	}
	first, joined := b.create(ann, "https://site.test/a"), b.create(ben, "https://site.test/a")
	require.Equal(t, of("site.test", ann.ID), keys(joined))
	b.expand(first, entry("https://a.other.test/1"))
	require.Equal(t, of("other.test", ann.ID), keys(b.children(joined)[0]), "ann asked first for the page")

	single := b.create(ann, "https://site.test/b")
	b.end(single, "discarded", store.StateFailed)
	bens := b.create(ben, "https://site.test/b")
	require.Equal(t, of("site.test", ben.ID), keys(bens))
	b.end(bens, "discarded", store.StateFailed)
	again, err := b.api.RetryDownload(t.Context(), single.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, of("site.test", ann.ID), keys(again))
}
