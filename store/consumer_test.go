package store_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

// followAll lets the consumer do all that there is.
func (b *bundle) followAll() {
	b.t.Helper()
	_, _, err := b.worker.AdvanceTick(b.t.Context())
	require.NoError(b.t, err)
	b.follow()
}

// follow is followAll without a tick.
func (b *bundle) follow() { b.t.Helper(); b.followBy(100) }

func (b *bundle) followBy(limit int) {
	b.t.Helper()
	for n := limit; n == limit; {
		var err error
		n, err = b.worker.FollowJobs(b.t.Context(), limit)
		require.NoError(b.t, err)
	}
}

// setupFollowed is setup with a consumer that is up to date.
func setupFollowed(t *testing.T) *bundle {
	t.Helper()
	b := setup(t)
	b.followAll()
	return b
}

func (b *bundle) requireState(d store.Download, state string) store.Download {
	b.t.Helper()
	b.followAll()
	found := b.find(d)
	require.Equal(b.t, state, found.State)
	return found
}

// setReason is what the worker's middleware leaves in the job at the end of an attempt.
func (b *bundle) setReason(id int64, reason string) {
	b.t.Helper()
	b.exec(`
		UPDATE river.river_job
		SET metadata = metadata || jsonb_build_object('reason', $2::text, 'reason_attempt', attempt::text)
		WHERE id = $1`, id, reason)
}

// riverExecutor runs the very statements of River's own services.
func (b *bundle) riverExecutor() riverdriver.Executor {
	return riverpgxv5.New(b.pool).GetExecutor()
}

func (b *bundle) riverQueue() riverQueue { return newRiverQueue(b.t, b.pool) }

func TestDownloadFollowsItsJob(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	d := b.create(b.user("ada"), "https://example.com/a")
	b.requireState(d, store.StateQueued)

	b.setJob(*d.JobID, "running")
	got := b.requireState(d, store.StateRunning)
	require.NotNil(t, got.StartedAt)
	started := *got.StartedAt

	b.exec(`UPDATE river.river_job SET scheduled_at = '2030-01-02T03:04:05Z' WHERE id = $1`, *d.JobID)
	b.setJob(*d.JobID, "retryable")
	got = b.requireState(d, store.StateWaiting)
	require.Equal(t, store.WaitingOnRetry, got.WaitingOn)
	require.Equal(t, "2030-01-02T03:04:05Z", got.NextTryAt.Format(time.RFC3339))

	b.setJob(*d.JobID, "available")
	got = b.requireState(d, store.StateQueued)
	require.Empty(t, got.WaitingOn)
	require.Nil(t, got.NextTryAt)

	b.fetch(d, "a.mp4")
	got = b.requireState(d, store.StateCompleted)
	require.Equal(t, started, *got.StartedAt)
	require.NotNil(t, got.FinishedAt)
	require.Len(t, got.Files, 1)
}

// A job that its worker put off once showed as queued, without a word of why or until when.
func TestDownloadOfAParkedJobSaysWhatItWaitsOn(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ben := b.user("ben")
	for i, c := range []struct{ reason, state, waitingOn string }{
		{"disk_full", store.StateWaiting, store.WaitingOnDisk},
		{"upcoming", store.StateWaiting, store.WaitingOnLive},
		{"rate_limited", store.StateWaiting, store.WaitingOnRetry},
		{"", store.StateQueued, ""},
	} {
		url := fmt.Sprintf("https://example.com/parked/%d", i)
		d := b.create(b.user(fmt.Sprintf("ann%d", i)), url)
		b.setJob(*d.JobID, "running")
		b.exec(`UPDATE river.river_job SET attempt = 1 WHERE id = $1`, *d.JobID)
		if c.reason != "" {
			b.setReason(*d.JobID, c.reason)
		}
		// As River snoozes: the attempt is taken back in the same statement.
		b.exec(`UPDATE river.river_job SET state = 'scheduled', attempt = 0, scheduled_at = '2030-01-02T03:04:05Z' WHERE id = $1`, *d.JobID)
		for _, got := range []store.Download{b.requireState(d, c.state), b.create(ben, url)} {
			require.Equal(t, c.state, got.State, c.reason)
			require.Equal(t, c.waitingOn, got.WaitingOn)
			require.Equal(t, c.waitingOn != "", got.NextTryAt != nil)
		}
		b.setJob(*d.JobID, "available")
		require.Empty(t, b.requireState(d, store.StateQueued).WaitingOn)
	}
}

// A job that came and went between two rounds is followed to its end all the same.
func TestDownloadFollowsAJobThatWasQuick(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	d := b.create(b.user("ada"), "https://example.com/a")
	b.fetch(d, "a.mp4")
	got := b.requireState(d, store.StateCompleted)
	require.NotNil(t, got.StartedAt)
	require.NotNil(t, got.FinishedAt)

	// Nor does it matter that River's retention was faster still.
	e := b.create(b.user("bob"), "https://example.com/b")
	b.setJob(*e.JobID, "completed")
	b.exec(`DELETE FROM river.river_job WHERE id = $1`, *e.JobID)
	b.requireState(e, store.StateCompleted)
}

// Ends and beginnings that no code of ours saw.
func TestDownloadFollowsWhatRiverDoes(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada := b.user("ada")
	ctx := t.Context()

	t.Run("CancelOfAWaitingJob", func(t *testing.T) { //nolint:paralleltest // one database, one consumer
		d := b.create(ada, "https://example.com/cancel")
		_, err := b.riverQueue().client.JobCancel(ctx, *d.JobID) // what River UI's button does
		require.NoError(t, err)
		got := b.requireState(d, store.StateCancelled)
		require.Empty(t, got.FailureReason)
		require.NotNil(t, got.FinishedAt)

		_, err = b.riverQueue().client.JobRetry(ctx, *d.JobID)
		require.NoError(t, err)
		got = b.requireState(d, store.StateQueued)
		require.Nil(t, got.FinishedAt)
	})

	t.Run("CancelOfARunningJob", func(t *testing.T) { //nolint:paralleltest // as above
		d := b.create(ada, "https://example.com/cancel-running")
		b.setJob(*d.JobID, "running")
		_, err := b.riverQueue().client.JobCancel(ctx, *d.JobID)
		require.NoError(t, err)
		b.requireState(d, store.StateRunning)
		b.setReason(*d.JobID, "network") // whatever its worker died of
		b.setJob(*d.JobID, "cancelled")
		require.Empty(t, b.requireState(d, store.StateCancelled).FailureReason)
	})

	t.Run("Rescue", func(t *testing.T) { //nolint:paralleltest // as above
		d := b.create(ada, "https://example.com/rescue")
		b.setJob(*d.JobID, "running")
		b.requireState(d, store.StateRunning)
		now := time.Now()
		rescue := func(state rivertype.JobState, finalized *time.Time) {
			_, err := b.riverExecutor().JobRescueMany(ctx, &riverdriver.JobRescueManyParams{
				ID: []int64{*d.JobID}, Error: [][]byte{[]byte(`{}`)}, FinalizedAt: []*time.Time{finalized},
				ScheduledAt: []time.Time{now}, State: []string{string(state)}, StuckHorizon: now.Add(time.Hour), Schema: "river",
			})
			require.NoError(t, err)
		}
		rescue(rivertype.JobStateRetryable, nil)
		b.requireState(d, store.StateWaiting)

		_, err := b.riverExecutor().JobSchedule(ctx, &riverdriver.JobScheduleParams{Max: 10, Now: &now, Schema: "river"})
		require.NoError(t, err)
		b.requireState(d, store.StateQueued) // promoted

		b.setJob(*d.JobID, "running")
		rescue(rivertype.JobStateDiscarded, &now)
		got := b.requireState(d, store.StateFailed)
		require.Equal(t, "unknown", got.FailureReason)
		require.NotEmpty(t, got.FailureDetail)

		_, err = b.riverQueue().client.JobRetry(ctx, *d.JobID)
		require.NoError(t, err)
		got = b.requireState(d, store.StateQueued)
		require.Empty(t, got.FailureReason)
		require.Empty(t, got.FailureDetail)
	})

	t.Run("Snooze", func(t *testing.T) { //nolint:paralleltest // as above
		d := b.create(ada, "https://example.com/snooze")
		b.setJob(*d.JobID, "running")
		b.requireState(d, store.StateRunning)
		later := time.Now().Add(time.Hour)
		_, err := b.riverExecutor().JobSetStateIfRunningMany(ctx, &riverdriver.JobSetStateIfRunningManyParams{
			ID: []int64{*d.JobID}, Attempt: []*int{new(int)}, ErrData: [][]byte{nil}, FinalizedAt: []*time.Time{nil},
			MetadataDoMerge: []bool{true}, MetadataUpdates: [][]byte{[]byte(`{"snoozes": 1}`)}, ScheduledAt: []*time.Time{&later},
			State: []rivertype.JobState{rivertype.JobStateScheduled}, Schema: "river",
		})
		require.NoError(t, err)
		b.requireState(d, store.StateQueued)
	})

	t.Run("Delete", func(t *testing.T) { //nolint:paralleltest // as above
		d := b.create(ada, "https://example.com/delete")
		b.exec(`DELETE FROM river.river_job WHERE id = $1`, *d.JobID)
		got := b.requireState(d, store.StateFailed)
		require.Equal(t, "job_deleted", got.FailureReason)
		require.NotEmpty(t, got.FailureDetail)
		require.NotNil(t, got.FinishedAt)
	})

	t.Run("RetentionOfWhatEnded", func(t *testing.T) { //nolint:paralleltest // as above
		d := b.create(ada, "https://example.com/retention")
		b.fetch(d, "retention.mp4")
		before := b.requireState(d, store.StateCompleted)
		b.exec(`DELETE FROM river.river_job WHERE id = $1`, *d.JobID)
		require.Equal(t, before, b.requireState(d, store.StateCompleted))
	})
}

func TestFailureSaysWhy(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada := b.user("ada")
	fail := func(name, state, reason, detail string) store.Download {
		d := b.create(ada, "https://example.com/"+name)
		b.setJob(*d.JobID, "running")
		require.NoError(t, b.worker.SaveFailure(t.Context(), d.ContentID, 0, detail))
		b.setReason(*d.JobID, reason)
		b.setJob(*d.JobID, state)
		return b.requireState(d, store.StateFailed)
	}

	got := fail("gone", "cancelled", "gone", "The video was removed.") // permanent: the worker cancels its job
	require.Equal(t, "gone", got.FailureReason)
	require.Equal(t, "The video was removed.", got.FailureDetail)

	got = fail("network", "discarded", "network", "The host refused the connection.")
	require.Equal(t, "network", got.FailureReason)
	require.Equal(t, "The host refused the connection.", got.FailureDetail)

	// The last attempt took its worker down and said nothing: what the one before said is not passed off as its reason.
	d := b.create(ada, "https://example.com/crash")
	b.setJob(*d.JobID, "running")
	b.setReason(*d.JobID, "network")
	b.setJob(*d.JobID, "retryable")
	b.setJob(*d.JobID, "running")
	b.setJob(*d.JobID, "discarded")
	require.Equal(t, "unknown", b.requireState(d, store.StateFailed).FailureReason)
}

func TestCancelledDownloadFollowsNothing(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada, bob := b.user("ada"), b.user("bob")
	mine, theirs := b.create(ada, "https://example.com/a"), b.create(bob, "https://example.com/a")
	require.Equal(t, mine.JobID, theirs.JobID)
	b.setJob(*mine.JobID, "running")
	b.followAll()
	_, err := b.api.CancelDownload(t.Context(), mine.ID, store.Viewer{UserID: ada.ID})
	require.NoError(t, err)

	b.fetch(theirs, "a.mp4")
	b.requireState(theirs, store.StateCompleted)
	b.requireState(mine, store.StateCancelled)
}

func TestCollectionFollowsItsChildren(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada := b.user("ada")
	list := b.create(ada, "https://example.com/list")
	b.setJob(*list.JobID, "running")
	require.NoError(t, b.worker.Expand(t.Context(), list.ContentID, rowOf(list), []store.NewEntry{
		entry("https://example.com/1"), entry("https://example.com/2"), entry("https://example.com/3"),
	}, "", completeJob(*list.JobID)))
	b.requireState(list, store.StateRunning)

	children := b.children(list)
	require.Len(t, children, 3)
	b.fetch(children[0], "1.mp4")
	b.requireState(list, store.StateRunning)
	b.setJob(*children[1].JobID, "discarded")
	b.requireState(list, store.StateRunning)

	// The last child is a collection itself: the state goes up through two.
	b.setJob(*children[2].JobID, "running")
	require.NoError(t, b.worker.Expand(t.Context(), children[2].ContentID, rowOf(children[2]), []store.NewEntry{
		entry("https://example.com/4"), entry("https://example.com/5"),
	}, "", completeJob(*children[2].JobID)))
	b.requireState(children[2], store.StateRunning)
	for _, d := range b.children(children[2]) {
		b.requireState(list, store.StateRunning)
		b.fetch(d, d.ID.String()+".mp4")
	}
	b.requireState(children[2], store.StateCompleted)
	got := b.requireState(list, store.StateCompleted)
	require.Equal(t, "some_children_failed", got.FailureReason)
	require.NotNil(t, got.FinishedAt)

	// A child that River UI brings back to life brings its collection back.
	_, err := b.riverQueue().client.JobRetry(t.Context(), *children[1].JobID)
	require.NoError(t, err)
	got = b.requireState(list, store.StateRunning)
	require.Empty(t, got.FailureReason)
	b.setJob(*children[1].JobID, "completed")
	got = b.requireState(list, store.StateCompleted)
	require.Empty(t, got.FailureReason)
}

// What was never made an item is missing like one that failed, until the page is read again.
func TestCollectionSaysWhatWasLeftOut(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada := b.user("ada")
	list := b.create(ada, "https://example.com/list")
	expand := func(leftOut string) {
		b.setJob(*list.JobID, "running")
		require.NoError(t, b.worker.Expand(t.Context(), list.ContentID, rowOf(list), []store.NewEntry{
			entry("https://example.com/1"), entry("https://example.com/2"),
		}, leftOut, completeJob(*list.JobID)))
		b.followAll()
	}
	expand("Only two were taken.")
	children := b.children(list)
	b.fetch(children[0], "1.mp4")
	require.Empty(t, b.requireState(list, store.StateRunning).FailureReason)
	b.setJob(*children[1].JobID, "discarded")
	got := b.requireState(list, store.StateCompleted)
	require.Equal(t, "some_children_failed", got.FailureReason)
	require.Equal(t, "Some of the items could not be downloaded. Only two were taken.", got.FailureDetail)

	_, err := b.riverQueue().client.JobRetry(t.Context(), *children[1].JobID)
	require.NoError(t, err)
	b.fetch(children[1], "2.mp4")
	got = b.requireState(list, store.StateCompleted)
	require.Equal(t, "some_children_failed", got.FailureReason)
	require.Equal(t, "Only two were taken.", got.FailureDetail)

	list, err = b.api.RetryDownload(t.Context(), list.ID, ada.Viewer())
	require.NoError(t, err)
	expand("")
	got = b.requireState(list, store.StateCompleted)
	require.Empty(t, got.FailureReason)
	require.Empty(t, got.FailureDetail)
}

func TestCollectionWhoseExpansionFailsFails(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	list := b.create(b.user("ada"), "https://example.com/list")
	b.setJob(*list.JobID, "running")
	b.setReason(*list.JobID, "no_media")
	b.setJob(*list.JobID, "cancelled")
	require.Equal(t, "no_media", b.requireState(list, store.StateFailed).FailureReason)
}

// A transaction that somebody forgot holds one download, or a collection: all others go on, and these catch up.
func TestLockedRowsAreDoneLater(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada := b.user("ada")
	held, free := b.create(ada, "https://example.com/held"), b.create(ada, "https://example.com/free")
	list := b.create(ada, "https://example.com/list")
	b.setJob(*list.JobID, "running")
	require.NoError(t, b.worker.Expand(t.Context(), list.ContentID, rowOf(list), []store.NewEntry{
		entry("https://example.com/1"), entry("https://example.com/2"),
	}, "", completeJob(*list.JobID)))
	b.followAll()
	child := b.children(list)[0]

	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT FROM medianest.downloads WHERE id = ANY($1) FOR UPDATE`, []uuid.UUID{held.ID, list.ID})
	require.NoError(t, err)

	for _, d := range []store.Download{held, free, child} {
		b.setJob(*d.JobID, "completed")
	}
	b.requireState(free, store.StateCompleted)
	b.requireState(held, store.StateQueued)
	b.requireState(child, store.StateQueued)
	b.setJob(*held.JobID, "running") // later news of it changes nothing
	b.requireState(held, store.StateQueued)
	b.setJob(*held.JobID, "completed")

	require.NoError(t, tx.Rollback(t.Context()))
	b.requireState(held, store.StateCompleted)
	b.requireState(child, store.StateCompleted)
	b.setJob(*b.children(list)[1].JobID, "completed")
	b.requireState(list, store.StateCompleted)
	require.Zero(t, b.count(`SELECT coalesce(array_length(behind, 1), 0) FROM medianest.consumer`))
}

func TestRebuildReadsThePresent(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]string{
		"PositionLost":     `DELETE FROM medianest.consumer`,
		"AnotherEpoch":     `UPDATE medianest.consumer SET epoch = 'feedfeedfeed'`,
		"TickTrimmed":      `DELETE FROM medianest.tick WHERE id < (SELECT max(id) FROM medianest.tick)`,
		"TickToCome":       `UPDATE medianest.consumer SET tick = tick + 1000`,
		"DatabaseRestored": `UPDATE medianest.epoch SET random = gen_random_uuid()`,
		"EventsLeftOut":    `TRUNCATE medianest.event, medianest.tick, medianest.epoch, medianest.consumer`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupFollowed(t)
			ada := b.user("ada")
			var downloads []store.Download
			for i := range 250 {
				downloads = append(downloads, b.create(ada, fmt.Sprintf("https://example.com/%d", i)))
			}
			list := b.create(ada, "https://example.com/list")
			b.followAll()
			ended := b.create(ada, "https://example.com/ended")
			b.fetch(ended, "ended.mp4")
			endedBefore := b.requireState(ended, store.StateCompleted)
			b.exec(`DELETE FROM river.river_job WHERE id = $1`, *ended.JobID)

			// What happens now is known from the jobs alone.
			b.setJob(*downloads[0].JobID, "running")
			b.setJob(*downloads[101].JobID, "completed")
			b.setJob(*downloads[202].JobID, "discarded")
			b.exec(`DELETE FROM river.river_job WHERE id = $1`, *downloads[249].JobID)
			b.setJob(*list.JobID, "running")
			require.NoError(t, b.worker.Expand(t.Context(), list.ContentID, rowOf(list), []store.NewEntry{
				entry("https://example.com/x"), entry("https://example.com/y"),
			}, "", completeJob(*list.JobID)))
			for _, c := range b.children(list) {
				b.setJob(*c.JobID, "completed")
			}
			if name == "TickTrimmed" {
				_, ticked, err := b.worker.AdvanceTick(t.Context())
				require.NoError(t, err)
				require.True(t, ticked)
			}
			b.exec(lose)

			b.requireState(downloads[0], store.StateRunning)
			b.requireState(downloads[101], store.StateCompleted)
			require.Equal(t, "unknown", b.requireState(downloads[202], store.StateFailed).FailureReason)
			require.Equal(t, "job_deleted", b.requireState(downloads[249], store.StateFailed).FailureReason)
			require.Equal(t, endedBefore, b.requireState(ended, store.StateCompleted))
			b.requireState(list, store.StateCompleted)
			b.requireState(downloads[1], store.StateQueued)
			require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.consumer WHERE rebuilt_to IS NULL`))

			b.setJob(*downloads[0].JobID, "completed")
			b.requireState(downloads[0], store.StateCompleted)
		})
	}
}

// Told twice, the same events change nothing, and tell nobody.
func TestFollowingTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada := b.user("ada")
	position := func() (tick, id int64) {
		require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT tick, event_id FROM medianest.consumer`).Scan(&tick, &id))
		return tick, id
	}
	tick, id := position()
	list := b.create(ada, "https://example.com/list")
	b.expand(list, entry("https://example.com/1"), entry("https://example.com/2"))
	for i, c := range b.children(list) {
		b.setJob(*c.JobID, []string{"completed", "discarded"}[i])
	}
	d := b.create(ada, "https://example.com/d")
	b.setJob(*d.JobID, "running")
	b.followAll()
	b.followAll()
	rows := `SELECT array_agg((d.*)::text ORDER BY d.id)::text FROM medianest.downloads d`
	snapshot := func() (s string) {
		require.NoError(t, b.pool.QueryRow(t.Context(), rows).Scan(&s))
		return s
	}
	before, events := snapshot(), b.count(`SELECT count(*) FROM medianest.event`)
	b.exec(`UPDATE medianest.consumer SET tick = $1, event_id = $2`, tick, id)
	b.follow()
	require.Equal(t, before, snapshot())
	require.Equal(t, events, b.count(`SELECT count(*) FROM medianest.event`))
}

// Any number of processes may be at it: the position moves with the rows that it stands for.
func TestManyConsumersDoTheWorkOfOne(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ada := b.user("ada")
	var downloads []store.Download
	for i := range 60 {
		downloads = append(downloads, b.create(ada, fmt.Sprintf("https://example.com/%d", i)))
	}
	for _, d := range downloads {
		b.setJob(*d.JobID, "running")
		b.setJob(*d.JobID, "completed")
	}
	_, _, err := b.worker.AdvanceTick(t.Context())
	require.NoError(t, err)
	together(t, 8, func(int) error {
		for range 40 {
			if _, err := b.worker.FollowJobs(t.Context(), 7); err != nil {
				return err
			}
		}
		return nil
	})
	b.follow()
	for _, d := range downloads {
		require.Equal(t, store.StateCompleted, b.find(d).State)
	}
	require.Equal(t, 60, b.count(`SELECT count(*) FROM medianest.event WHERE topic = 'download.state' AND state = 'completed'`))
	require.Zero(t, b.deadlocks())
}

// The trigger's plan is made at its first execution: after one row, ten thousand must not be quadratic.
func TestTenThousandEndAtOnce(t *testing.T) {
	t.Parallel()
	const jobs = 10_000
	b := setupFollowed(t)
	ada := b.user("ada")
	b.exec(`
		INSERT INTO medianest.content (id, key, url, profile)
		SELECT gen_random_uuid(), 'best ' || n, 'https://example.com/' || n, 'best' FROM generate_series(1, $1::int) AS n`, jobs)
	conn, err := b.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	exec := func(sql string, args ...any) {
		_, err := conn.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	insert := `
		WITH made AS (
			INSERT INTO river.river_job (args, kind, max_attempts, queue, state, attempt, attempted_at)
			SELECT jsonb_build_object('content_id', c.id), 'download', 8, 'download', 'running', 1, now()
			FROM medianest.content AS c WHERE c.job_id IS NULL ORDER BY c.id LIMIT $1
			RETURNING id, (args ->> 'content_id')::uuid AS content_id
		), tied AS (
			UPDATE medianest.content AS c SET job_id = m.id FROM made AS m WHERE c.id = m.content_id
		)
		INSERT INTO medianest.downloads (id, user_id, content_id, url, profile, state, job_id)
		SELECT gen_random_uuid(), $2, m.content_id, 'https://example.com/', 'best', 'queued', m.id FROM made AS m`
	complete := `
		UPDATE river.river_job SET state = 'completed', finalized_at = now()
		WHERE id IN (SELECT id FROM river.river_job WHERE state = 'running' ORDER BY id LIMIT $1)`

	exec(insert, 1, ada.ID)
	b.followAll()
	exec(complete, 1) // the warm-up
	b.followAll()
	exec(insert, jobs-1, ada.ID)
	_, _, err = b.worker.AdvanceTick(t.Context())
	require.NoError(t, err)
	b.followBy(5000)
	require.Equal(t, jobs-1, b.count(`SELECT count(*) FROM medianest.downloads WHERE state = 'running'`))

	start := time.Now()
	exec(complete, jobs)
	completed := time.Since(start)
	_, _, err = b.worker.AdvanceTick(t.Context())
	require.NoError(t, err)
	b.followBy(5000)
	followed := time.Since(start) - completed
	t.Logf("10,000 jobs completed in %s, their downloads followed in %s", completed, followed)

	require.Equal(t, jobs, b.count(`SELECT count(*) FROM medianest.downloads WHERE state = 'completed' AND finished_at IS NOT NULL`))
	for _, topic := range []string{store.TopicJobState, store.TopicDownloadState} {
		require.Equal(t, jobs, b.count(`
			SELECT count(DISTINCT job_id) FROM medianest.event
			WHERE topic = $1 AND state = 'completed' AND previous_state = 'running'`, topic))
		require.Equal(t, jobs, b.count(`SELECT count(*) FROM medianest.event WHERE topic = $1 AND state = 'completed'`, topic))
	}
	require.Less(t, completed, 3*time.Second)
	require.Less(t, followed, 10*time.Second)
}

func TestOddMetadataStopsNothing(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	// What a site or a person wrote into a job's row is no reason to stop.
	d := b.create(b.user("ada"), "https://example.com/d")
	for _, metadata := range []any{[]int{1}, map[string]any{"reason": map[string]any{"a": 1}, "reason_attempt": []int{2}}, "text"} {
		raw, err := json.Marshal(metadata)
		require.NoError(t, err)
		b.exec(`UPDATE river.river_job SET metadata = $2::jsonb WHERE id = $1`, *d.JobID, string(raw))
		b.setJob(*d.JobID, "discarded")
		b.requireState(d, store.StateFailed)
		b.setJob(*d.JobID, "available")
		b.requireState(d, store.StateQueued)
	}
}
