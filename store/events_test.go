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

func (b *bundle) head() store.Head {
	b.t.Helper()
	h, err := b.api.Head(b.t.Context())
	require.NoError(b.t, err)
	return h
}

func (b *bundle) tick() {
	b.t.Helper()
	_, ticked, err := b.worker.AdvanceTick(b.t.Context())
	require.NoError(b.t, err)
	require.True(b.t, ticked)
}

func (b *bundle) events(q store.EventQuery) []store.Event {
	b.t.Helper()
	if q.Limit == 0 {
		q.Limit = 100_000
	}
	if q.Epoch == "" {
		q.Epoch = b.head().Epoch
	}
	events, err := b.api.EventsAfter(b.t.Context(), q)
	require.NoError(b.t, err)
	return events
}

func TestTicksComeWithNewsOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.api.Head(t.Context())
	require.ErrorIs(t, err, store.ErrNoHistory)
	b.tick() // begins the history
	h := b.head()
	require.Equal(t, h.Oldest, h.Newest)
	require.NotEmpty(t, h.Epoch)
	require.GreaterOrEqual(t, h.Age.Nanoseconds(), int64(0))
	_, ticked, err := b.worker.AdvanceTick(t.Context())
	require.NoError(t, err)
	require.False(t, ticked)

	d := b.create(b.user("ada"), "https://example.com/a")
	b.tick()
	require.Equal(t, store.Head{Epoch: h.Epoch, Oldest: h.Oldest, Newest: h.Newest + 1, Age: b.head().Age}.End(), b.head().End())
	events := b.events(store.EventQuery{After: h.End(), ToTick: h.Newest + 1})
	require.Len(t, events, 2)
	require.Equal(t, store.TopicJobState, events[0].Topic)
	require.Equal(t, []store.EventViewer{{UserID: d.UserID, DownloadID: d.ID}}, events[0].Viewers)
	require.Equal(t, store.TopicDownloadState, events[1].Topic)
	require.Equal(t, d.ID, *events[1].DownloadID)
	require.Equal(t, d.UserID, *events[1].UserID)

	// A transaction that changes nothing of ours is no news, nor is one that is rolled back.
	b.exec(`CREATE TABLE elsewhere (n int)`)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `DELETE FROM river.river_job`)
	require.NoError(t, err)
	require.NoError(t, tx.Rollback(t.Context()))
	_, ticked, err = b.worker.AdvanceTick(t.Context())
	require.NoError(t, err)
	require.False(t, ticked)
}

// A transaction that began before others and commits after them comes in the tick after its commit, whatever its number.
func TestLateCommitsAreNotLost(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada := b.user("ada")
	early, late := b.create(ada, "https://example.com/a"), b.create(ada, "https://example.com/b")
	b.tick()
	start := b.head()

	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `UPDATE river.river_job SET state = 'running' WHERE id = $1`, *late.JobID)
	require.NoError(t, err)
	for _, state := range []string{"running", "retryable", "available"} {
		b.setJob(*early.JobID, state)
		b.tick()
	}
	_, ticked, err := b.worker.AdvanceTick(t.Context())
	require.NoError(t, err)
	require.False(t, ticked, "what is under way is no news")
	require.NoError(t, tx.Commit(t.Context()))
	b.tick()

	events := b.events(store.EventQuery{After: start.End(), ToTick: b.head().Newest})
	require.Len(t, events, 4)
	require.Equal(t, *late.JobID, events[3].JobID)
	require.Less(t, events[3].ID, events[0].ID, "it drew its number first")
	require.Positive(t, events[3].Compare(events[2].Cursor))
}

func TestPagesMakeTheWhole(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada, bob := b.user("ada"), b.user("bob")
	start := b.head()
	var jobs []int64
	for i := range 30 {
		u := []store.User{ada, bob}[i%2]
		jobs = append(jobs, *b.create(u, fmt.Sprintf("https://example.com/%d", i)).JobID)
		if i%3 == 0 {
			b.tick()
		}
	}
	b.exec(`UPDATE river.river_job SET state = 'running' WHERE id = ANY($1)`, jobs) // many in one tick
	b.tick()
	head := b.head()
	for _, user := range []*uuid.UUID{nil, &ada.ID} {
		whole := b.events(store.EventQuery{After: start.End(), ToTick: head.Newest, UserID: user})
		require.Len(t, whole, map[bool]int{true: 90, false: 45}[user == nil])
		for _, limit := range []int{1, 2, 7, 44, 45, 90, 91} {
			var pages []store.Event
			for after := start.End(); ; {
				page := b.events(store.EventQuery{After: after, ToTick: head.Newest, Limit: limit, UserID: user})
				pages = append(pages, page...)
				if len(page) < limit {
					break
				}
				after = page[limit-1].Cursor
			}
			require.Equal(t, whole, pages)
		}
		for i := 1; i < len(whole); i++ {
			require.Positive(t, whole[i].Compare(whole[i-1].Cursor))
		}
	}
}

func TestCursorsOutsideOfWhatThereIs(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	b.create(b.user("ada"), "https://example.com/a")
	b.tick()
	h := b.head()
	require.NoError(t, h.Check(h.End()))
	require.NoError(t, h.Check(store.Cursor{Tick: h.Oldest + 1}))
	require.NoError(t, h.Check(store.Cursor{Tick: h.Newest, ID: 1 << 40}))
	require.ErrorIs(t, h.Check(store.Cursor{Tick: h.Oldest, ID: 5}), store.ErrCursorExpired)
	require.ErrorIs(t, h.Check(store.Cursor{}), store.ErrCursorExpired)
	require.ErrorIs(t, h.Check(store.Cursor{Tick: h.Newest + 1, ID: 1}), store.ErrInvalid)
	require.ErrorIs(t, h.Check(store.Cursor{Tick: h.Newest + 2}), store.ErrInvalid)

	_, err := b.api.EventsAfter(t.Context(), store.EventQuery{Epoch: h.Epoch, After: store.Cursor{Tick: h.Oldest}, ToTick: h.Newest, Limit: 10})
	require.ErrorIs(t, err, store.ErrCursorExpired)
	_, err = b.api.EventsAfter(t.Context(), store.EventQuery{Epoch: "feedfeedfeed", After: h.End(), ToTick: h.Newest, Limit: 10})
	require.ErrorIs(t, err, store.ErrCursorExpired)
}

// What the consumer has not read stays, however old it is; what has gone is told apart from what never was.
func TestTrimKeepsWhatIsNeeded(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	d := b.create(b.user("ada"), "https://example.com/a")
	b.tick()
	for _, state := range []string{"running", "retryable", "running"} {
		b.setJob(*d.JobID, state)
		b.tick()
	}
	before := b.head()
	trim := func() {
		_, err := b.worker.TrimEvents(t.Context(), 0)
		require.NoError(t, err)
	}
	trim()
	require.Len(t, b.events(store.EventQuery{After: store.Cursor{Tick: before.Newest - 3}, ToTick: before.Newest}), 5, "not read yet")

	b.follow() // its own changes are new events
	b.tick()
	trim()
	h := b.head()
	require.Equal(t, before.Newest, h.Oldest, "the consumer goes on from there")
	b.follow()
	trim()
	h = b.head()
	require.Equal(t, h.Newest, h.Oldest)
	require.ErrorIs(t, h.Check(store.Cursor{Tick: before.Newest}), store.ErrCursorExpired)
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.event`))

	b.setJob(*d.JobID, "completed")
	b.tick()
	require.Len(t, b.events(store.EventQuery{After: h.End(), ToTick: b.head().Newest}), 1)
	b.requireState(d, store.StateCompleted)

	n, err := b.worker.TrimEvents(t.Context(), 1<<40)
	require.NoError(t, err)
	require.Zero(t, n, "nothing is that old")
}

func TestTrimGoesInBatches(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	b.exec(`
		INSERT INTO medianest.tick (id, snapshot, at)
		SELECT 100 + n, pg_current_snapshot(), now() - interval '2 days' FROM generate_series(1, 12000) AS n`)
	b.exec(`UPDATE medianest.consumer SET tick = 12101, event_id = 0`)
	b.exec(`INSERT INTO medianest.event (topic, state, previous_state) SELECT 'job.state', 'running', '' FROM generate_series(1, 12000)`)
	b.tick()
	_, err := b.worker.TrimEvents(t.Context(), 24*time.Hour)
	require.NoError(t, err)
	require.Equal(t, 2, b.count(`SELECT count(*) FROM medianest.tick`))
	require.Equal(t, 12000, b.count(`SELECT count(*) FROM medianest.event`), "the last tick is young")
	b.exec(`UPDATE medianest.tick SET at = now() - interval '2 days'`)
	b.follow()
	_, err = b.worker.TrimEvents(t.Context(), 24*time.Hour)
	require.NoError(t, err)
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.tick`))
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.event`))
}

// Neither reading a tick nor the question whether there is news reads more of the outbox than is new.
func TestReadingATickUsesTheIndex(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	b.exec(`INSERT INTO medianest.event (topic, state, previous_state) SELECT 'job.state', 'running', '' FROM generate_series(1, 200000)`)
	b.exec(`ANALYZE medianest.event`)
	b.tick()
	h := b.head()
	b.create(b.user("ada"), "https://example.com/a")
	b.tick()

	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(t.Context()) //nolint:errcheck // nothing to keep
	read := func() (sequential, rows int) {
		require.NoError(t, tx.QueryRow(t.Context(), `
			SELECT seq_scan, seq_tup_read + coalesce(idx_tup_fetch, 0)
			FROM pg_stat_xact_user_tables
			WHERE relid = 'medianest.event'::regclass`).Scan(&sequential, &rows))
		return sequential, rows
	}
	for range 7 { // past the fifth execution, after which plans are kept
		got, err := tx.Query(t.Context(), `SELECT id FROM medianest.events_after($1, $2, 0, $2, 1000, NULL)`, h.Epoch, h.Newest+1)
		require.NoError(t, err)
		ids, err := pgx.CollectRows(got, pgx.RowTo[int64])
		require.NoError(t, err)
		require.Len(t, ids, 2)
		_, err = tx.Exec(t.Context(), `SELECT medianest.advance_tick()`)
		require.NoError(t, err)
	}
	sequential, rows := read()
	require.Zero(t, sequential)
	require.Less(t, rows, 200)

	// The plan itself, as EXPLAIN has it.
	lines, err := tx.Query(t.Context(), `
		EXPLAIN (COSTS OFF) SELECT FROM medianest.event AS e
		WHERE e.xid >= pg_snapshot_xmax(pg_current_snapshot()) AND e.xid < pg_snapshot_xmax(pg_current_snapshot())`)
	require.NoError(t, err)
	plan, err := pgx.CollectRows(lines, pgx.RowTo[string])
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(plan), "event_xid_idx")
}

// A dump of an older history brings ticks whose snapshots mean nothing in this cluster: the next tick begins anew.
func TestForeignTicksAreDropped(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	before := b.head()
	b.exec(`UPDATE medianest.tick SET snapshot = '4000000000:4000000000:'`)
	b.exec(`INSERT INTO medianest.event (xid, topic, state, previous_state) VALUES ('4000000001', 'job.state', 'running', '')`)
	b.exec(`UPDATE medianest.epoch SET random = gen_random_uuid()`) // what a restore does
	_, err := b.api.Head(t.Context())
	require.ErrorIs(t, err, store.ErrNoHistory)
	n, err := b.worker.FollowJobs(t.Context(), 10)
	require.NoError(t, err)
	require.Zero(t, n)

	b.tick()
	h := b.head()
	require.NotEqual(t, before.Epoch, h.Epoch)
	require.Greater(t, h.Newest, before.Newest)
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.event WHERE xid = '4000000001'`))
	d := b.create(b.user("ada"), "https://example.com/a")
	b.tick()
	require.Len(t, b.events(store.EventQuery{After: h.End(), ToTick: b.head().Newest}), 2)
	b.setJob(*d.JobID, "running")
	b.requireState(d, store.StateRunning)
}

// The epoch is another in each database, also of one cluster and of one template.
func TestEpochIsOfOneDatabase(t *testing.T) {
	t.Parallel()
	epochs := make(map[string]bool)
	for range 3 {
		s := storetest.New(t)
		_, _, err := s.AdvanceTick(t.Context())
		require.NoError(t, err)
		h, err := s.Head(t.Context())
		require.NoError(t, err)
		epochs[h.Epoch] = true
	}
	require.Len(t, epochs, 3)
}
