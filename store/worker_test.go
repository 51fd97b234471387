package store_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

// joinWorker lets a process join, as the queue does, for a minute or until it leaves or is lost.
func (b *bundle) joinWorker(id, mode, volume string) {
	b.t.Helper()
	b.execRiver(`
		INSERT INTO medianest.worker (id, mode, host, version, volume, queues, running, expires_at)
		VALUES ($1, $2, 'host-' || $1, 'v1', $3,
			CASE WHEN $2 = 'serve' THEN '{}' ELSE '{"download": 4, "file": 2}' END::jsonb, 3, now() + interval '1 min')
		ON CONFLICT (id) DO UPDATE
		SET renewed_at = now(), expires_at = excluded.expires_at, gone_at = NULL`, id, mode, volume)
}

// leaveWorker says that a process is gone: lost, if its presence has run out.
func (b *bundle) leaveWorker(id string) {
	b.t.Helper()
	b.execRiver(`UPDATE medianest.worker SET gone_at = now() WHERE id = $1`, id)
}

func (b *bundle) execRiver(sql string, args ...any) {
	b.t.Helper()
	_, err := b.river.Exec(b.t.Context(), sql, args...)
	require.NoError(b.t, err)
}

func TestListWorkers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	workers, err := b.api.ListWorkers(ctx)
	require.NoError(t, err)
	require.Empty(t, workers)
	for _, id := range []string{"w1", "w2", "w3", "w4"} {
		b.joinWorker(id, "work", "vol")
	}
	b.joinWorker("s1", "serve", "")
	b.joinWorker("gone", "work", "vol")
	b.leaveWorker("gone")
	b.execRiver(`UPDATE medianest.worker SET drain_asked_at = now() WHERE id = 'w2'`)
	b.execRiver(`UPDATE medianest.worker SET drain_asked_at = now(), drained_at = now() WHERE id = 'w3'`)
	b.execRiver(`UPDATE medianest.worker SET expires_at = now() - interval '1 s', drain_asked_at = now() WHERE id = 'w4'`)

	for _, s := range []*store.Store{b.api, b.worker} {
		workers, err = s.ListWorkers(ctx)
		require.NoError(t, err)
		states := make(map[string]string)
		for _, w := range workers {
			states[w.ID] = w.State
		}
		require.Equal(t, map[string]string{
			"w1": store.WorkerRunning, "w2": store.WorkerDraining, "w3": store.WorkerDrained, "w4": store.WorkerLost,
			"s1": store.WorkerRunning,
		}, states)
	}
	w := workers[0]
	require.Equal(t, store.Worker{
		ID: "w1", Mode: "work", Host: "host-w1", Version: "v1", Volume: "vol",
		Queues: map[string]int{"download": 4, "file": 2}, Running: 3,
		StartedAt: w.StartedAt, RenewedAt: w.RenewedAt, ExpiresAt: w.ExpiresAt, State: store.WorkerRunning,
	}, w)
	require.WithinDuration(t, time.Now(), w.StartedAt, time.Minute)
	require.Equal(t, time.Minute, w.ExpiresAt.Sub(w.RenewedAt))
	require.Empty(t, workers[4].Queues)
}

func TestAskDrain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	b.joinWorker("w", "work", "vol")
	b.joinWorker("u", "up", "vol")
	b.joinWorker("s", "serve", "")
	for _, id := range []string{"w", "u"} {
		for range 2 {
			w, err := b.api.AskDrain(ctx, id)
			require.NoError(t, err)
			require.Equal(t, id, w.ID)
			require.Equal(t, store.WorkerDraining, w.State)
			b.exec(`UPDATE medianest.worker SET drain_asked_at = '2026-01-02T03:04:05Z' WHERE id = $1`, id)
		}
		require.Equal(t, 1, b.count(`
			SELECT count(*) FROM medianest.worker WHERE id = $1 AND drain_asked_at = '2026-01-02T03:04:05Z'`, id),
			"asking again changes nothing")
	}
	b.execRiver(`UPDATE medianest.worker SET drained_at = now() WHERE id = 'w'`)
	w, err := b.api.AskDrain(ctx, "w")
	require.NoError(t, err)
	require.Equal(t, store.WorkerDrained, w.State)

	_, err = b.api.AskDrain(ctx, "s")
	require.ErrorIs(t, err, store.ErrConflict)
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.worker WHERE id = 's' AND drain_asked_at IS NOT NULL`))
	_, err = b.api.AskDrain(ctx, "none")
	require.ErrorIs(t, err, store.ErrNotFound)
	b.leaveWorker("u")
	b.leaveWorker("s")
	for _, id := range []string{"u", "s"} {
		_, err = b.api.AskDrain(ctx, id)
		require.ErrorIs(t, err, store.ErrNotFound, "it is gone")
	}
}

// Processes that join, renew, leave, are lost and come back, several at a time. That one is gone is told once. Users see
// nothing of it.
func TestEventsOfWorkers(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ann := b.user("ann")
	start := b.head()
	for range 3 {
		b.joinWorker("w", "work", "vol")
	}
	for range 2 {
		b.leaveWorker("w")
	}
	b.tick()
	b.joinWorker("w", "work", "vol")
	b.joinWorker("s", "serve", "")
	b.execRiver(`UPDATE medianest.worker SET expires_at = now() WHERE id = 'w'`)
	b.leaveWorker("w")
	b.joinWorker("w", "work", "vol")
	b.execRiver(`UPDATE medianest.worker SET expires_at = now()`)
	b.execRiver(`UPDATE medianest.worker SET gone_at = now()`)
	b.exec(`DELETE FROM medianest.worker`)
	// A row that is removed by hand.
	b.joinWorker("w", "work", "vol")
	b.exec(`DELETE FROM medianest.worker`)
	b.followAll()

	var got []string
	for _, e := range b.events(store.EventQuery{After: start.End(), ToTick: b.head().Newest}) {
		require.Empty(t, e.State)
		require.Empty(t, e.PreviousState)
		require.Zero(t, e.JobID)
		require.Nil(t, e.UserID)
		require.NotNil(t, e.Worker)
		got = append(got, e.Topic+" "+e.Worker.ID+" "+e.Worker.Mode+" "+e.Worker.Host)
	}
	slices.Sort(got[6:8]) // of one statement
	require.Equal(t, []string{
		store.TopicWorkerJoined + " w work host-w",
		store.TopicWorkerLeft + " w work host-w",
		store.TopicWorkerJoined + " w work host-w",
		store.TopicWorkerJoined + " s serve host-s",
		store.TopicWorkerLost + " w work host-w",
		store.TopicWorkerJoined + " w work host-w",
		store.TopicWorkerLost + " s serve host-s",
		store.TopicWorkerLost + " w work host-w",
		store.TopicWorkerJoined + " w work host-w",
		store.TopicWorkerLeft + " w work host-w",
	}, got)
	require.Empty(t, b.events(store.EventQuery{After: start.End(), ToTick: b.head().Newest, UserID: &ann.ID}))
	d := b.create(ann, "https://site.test/a")
	b.tick()
	events := b.events(store.EventQuery{After: start.End(), ToTick: b.head().Newest, UserID: &ann.ID})
	require.Len(t, events, 2)
	require.Equal(t, *d.JobID, events[0].JobID)
	require.Nil(t, events[0].Worker)
}

// What was begun on a volume is left for a while to the workers that see it, whether or not there is one now.
func TestBeginFetchOfWhatIsStagedElsewhere(t *testing.T) {
	t.Parallel()
	const wait = time.Minute
	b := setup(t)
	ctx := t.Context()
	d := b.create(b.user("ann"), "https://site.test/a")
	b.setJob(*d.JobID, "running")
	begin := func(volume string, wait time.Duration) (store.Fetch, error) {
		return b.worker.BeginFetch(ctx, store.BeginFetchParams{
			ContentID: d.ContentID, Row: rowOf(d), Volume: volume, Wait: wait,
		})
	}
	begun := func(volume, leftOn string, generation int) {
		t.Helper()
		f, err := begin(volume, wait)
		require.NoError(t, err)
		require.Equal(t, leftOn, f.LeftOn)
		require.Equal(t, generation, f.Generation)
		require.Equal(t, 1, b.count(`
			SELECT count(*) FROM medianest.content WHERE staged_on = $1 AND staged_wait_from IS NULL`, volume))
	}
	waits := func() {
		t.Helper()
		_, err := begin("b", wait)
		require.ErrorIs(t, err, store.ErrStagedElsewhere)
	}
	begun("a", "", 1)
	begun("a", "", 2)

	waits()
	b.exec(`UPDATE medianest.content SET staged_wait_from = staged_wait_from - interval '50 s'`)
	waits()
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.content WHERE generation = 2 AND staged_on = 'a'
		AND staged_wait_from < now() - interval '49 s'`), "it counts from the first time")
	begun("a", "", 3)
	waits()
	b.exec(`UPDATE medianest.content SET staged_wait_from = staged_wait_from - interval '61 s'`)
	begun("b", "a", 4)
}

// A content is left to a volume if there is something to go on with there, and somebody who wishes for it.
func TestBeginFetchOnAnotherVolume(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql    string
		volume string
		leftOn string
	}{
		"AnotherVolume":       {`SELECT`, "b", "wait"},
		"NoVolumeIsSeen":      {`SELECT`, "", "wait"},
		"NobodyWishesForIt":   {`UPDATE medianest.downloads SET cancelled_at = now()`, "b", ""},
		"NothingIsStaged":     {`UPDATE medianest.content SET staged_on = ''`, "b", ""},
		"ItIsTheVolumeItself": {`SELECT`, "a", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			d := b.create(b.user("ann"), "https://site.test/a")
			b.setJob(*d.JobID, "running")
			b.exec(`UPDATE medianest.content SET staged_on = 'a'`)
			b.exec(c.sql)
			p := store.BeginFetchParams{ContentID: d.ContentID, Row: rowOf(d), Volume: c.volume, Wait: time.Minute}
			f, err := b.worker.BeginFetch(t.Context(), p)
			if c.leftOn == "wait" {
				require.ErrorIs(t, err, store.ErrStagedElsewhere)
				// Who does not wait begins at once.
				p.Wait, c.leftOn = 0, "a"
				f, err = b.worker.BeginFetch(t.Context(), p)
			}
			require.NoError(t, err)
			require.Equal(t, c.leftOn, f.LeftOn)
		})
	}
}

// What is published, expanded or given up is staged nowhere.
func TestStagedIsForgotten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann := b.user("ann")
	staged := func(d store.Download) int {
		return b.count(`
			SELECT count(*)
			FROM medianest.content
			WHERE id = $1 AND (staged_on <> '' OR staged_wait_from IS NOT NULL)`, d.ContentID)
	}
	started := func(url string) store.Download {
		d := b.create(ann, url)
		b.setJob(*d.JobID, "running")
		_, err := b.worker.BeginFetch(ctx, begin(d.ContentID, *d.JobID))
		require.NoError(t, err)
		require.Equal(t, 1, staged(d))
		return d
	}
	film := started("https://site.test/a")
	require.NoError(t, b.worker.Publish(ctx, film.ContentID, rowOf(film), linkFor("a.mp4"), completeJob(*film.JobID)))
	require.Zero(t, staged(film))
	list, entries := started("https://site.test/list"), []store.NewEntry{entry("https://site.test/1")}
	require.NoError(t, b.worker.Expand(ctx, list.ContentID, rowOf(list), entries, "", completeJob(*list.JobID)))
	require.Zero(t, staged(list))
	given := started("https://site.test/b")
	b.exec(`UPDATE medianest.content SET staged_wait_from = now()`)
	require.NoError(t, b.worker.ForgetStaged(ctx, given.ContentID, 1))
	require.Zero(t, staged(given))
	require.NoError(t, b.worker.ForgetStaged(ctx, uuid.New(), 1))
}

// What a worker still writes of its fetch when another has begun has no effect, however late it arrives: also when it
// waits for the other's beginning.
func TestLateWritesOfAFetch(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]struct {
		write func(s *store.Store, content uuid.UUID) error
		want  error
	}{
		"SaveProbe": {func(s *store.Store, content uuid.UUID) error {
			return s.SaveProbe(context.Background(), content, 1, store.ProbeResult{Title: "late", Info: json.RawMessage(`{}`)})
		}, store.ErrSuperseded},
		"SaveFailure": {func(s *store.Store, content uuid.UUID) error {
			return s.SaveFailure(context.Background(), content, 1, "late")
		}, store.ErrSuperseded},
		"ForgetStaged": {func(s *store.Store, content uuid.UUID) error {
			return s.ForgetStaged(context.Background(), content, 1)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			ctx := t.Context()
			d := b.create(b.user("ann"), "https://site.test/a")
			b.setJob(*d.JobID, "running")
			_, err := b.worker.BeginFetch(ctx, begin(d.ContentID, *d.JobID))
			require.NoError(t, err)
			successor := b.reclaim(*d.JobID)
			b.setJob(int64(successor), "running")

			// One that is on its way when the successor begins, and one that comes later.
			tx, err := b.pool.Begin(ctx)
			require.NoError(t, err)
			_, err = tx.Exec(ctx, `SELECT FROM medianest.content FOR UPDATE`)
			require.NoError(t, err)
			done := make(chan error, 1)
			go func() { done <- late.write(b.worker, d.ContentID) }()
			require.Eventually(t, func() bool {
				return b.holds(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')`)
			}, 10*time.Second, time.Millisecond)
			_, err = tx.Exec(ctx, `UPDATE medianest.content SET generation = generation + 1, staged_on = 'successor'`)
			require.NoError(t, err)
			require.NoError(t, tx.Commit(ctx))
			require.ErrorIs(t, <-done, late.want)
			require.ErrorIs(t, late.write(b.worker, d.ContentID), late.want)
			require.Equal(t, 1, b.count(`
				SELECT count(*)
				FROM medianest.content
				WHERE title = '' AND probe IS NULL AND failure_detail = '' AND staged_on = 'successor'`))
			require.Empty(t, b.find(d).Title)
		})
	}
}
