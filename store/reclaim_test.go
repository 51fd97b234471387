package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// reclaim makes the running row final and lets its job go on as another, as the queue does with a row whose worker is
// lost. It reports whether the row ran, its end was not asked for, and nobody held it.
func reclaim(ctx context.Context, db execer, row int64) (bool, error) {
	tag, err := db.Exec(ctx, `
		WITH lost AS (
			SELECT j.id, nextval('river.river_job_id_seq') AS successor
			FROM river.river_job AS j
			WHERE j.id = $1 AND j.state = 'running' AND NOT j.metadata ? 'cancel_attempted_at'
				AND set_config('medianest.admit', 'on', true) = 'on' -- it keeps the limits that it holds
			FOR UPDATE SKIP LOCKED
		), old AS (
			UPDATE river.river_job AS j
			SET state = 'discarded',
				finalized_at = now(),
				metadata = j.metadata || jsonb_build_object('superseded_by', l.successor::text)
			FROM lost AS l
			WHERE j.id = l.id
			RETURNING j.*, l.successor, medianest.public_id(j.id, j.metadata) AS public_id
		), new AS (
			INSERT INTO river.river_job (id, args, attempt, attempted_by, created_at, errors, kind, max_attempts, metadata,
				priority, queue, state, scheduled_at, tags)
			SELECT o.successor, o.args, o.attempt - 1, o.attempted_by, o.created_at, o.errors, o.kind, o.max_attempts,
				o.metadata - ARRAY['superseded_by', 'cancel_attempted_at', 'reason', 'reason_attempt']
					|| jsonb_build_object('public_id', o.public_id::text, 'losses', 1, 'lost_attempt', o.attempt),
				o.priority, o.queue, 'available', least(o.scheduled_at, now()), o.tags
			FROM old AS o
		)
		INSERT INTO medianest.job_map (public_id, row_id)
		SELECT o.public_id, o.successor
		FROM old AS o
		ON CONFLICT (public_id) DO UPDATE
		SET row_id = excluded.row_id`, row)
	return tag.RowsAffected() == 1, err
}

// reclaim is a reclaim of the job's present row, which runs. It returns the successor.
func (b *bundle) reclaim(jobID int64) store.JobRow {
	b.t.Helper()
	ok, err := reclaim(b.t.Context(), b.river, int64(b.currentRow(jobID)))
	require.NoError(b.t, err)
	require.True(b.t, ok)
	return b.currentRow(jobID)
}

func (b *bundle) currentRow(jobID int64) store.JobRow {
	b.t.Helper()
	row, err := b.api.CurrentRow(b.t.Context(), jobID)
	require.NoError(b.t, err)
	return row
}

// lose lets a worker begin the download's job and be lost.
func (b *bundle) lose(d store.Download) store.JobRow {
	b.t.Helper()
	b.setJob(int64(b.currentRow(*d.JobID)), "running")
	return b.reclaim(*d.JobID)
}

// chain is the job's events as states, each led to by the one before.
func (b *bundle) chain(jobID int64) (states []string) {
	b.t.Helper()
	b.followAll()
	last := ""
	h := b.head()
	for _, e := range b.events(store.EventQuery{After: store.Cursor{Tick: h.Oldest + 1}, ToTick: h.Newest}) {
		if e.Topic == store.TopicJobState && e.JobID == jobID {
			require.Equal(b.t, last, e.PreviousState)
			last = e.State
			states = append(states, e.State)
		}
	}
	return states
}

func TestJobKeepsItsIDFromRowToRow(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ctx := t.Context()
	ann, admin := b.user("ann"), store.Viewer{Admin: true}
	d := b.create(ann, "https://site.test/a")
	second := b.lose(d)
	b.requireState(d, store.StateQueued)
	third := b.lose(d)
	rows := []int64{*d.JobID, int64(second), int64(third)}

	for _, id := range rows {
		for _, v := range []store.Viewer{ann.Viewer(), admin} {
			job, err := b.api.FindJob(ctx, id, v)
			require.NoError(t, err)
			require.Equal(t, *d.JobID, job.ID)
			require.Equal(t, third, job.Row)
			require.Equal(t, "available", job.State)
			require.Zero(t, job.Attempt, "a loss costs no attempt")
			require.Equal(t, d.ID, job.DownloadIDs[0])
		}
		row, err := b.api.CurrentRow(ctx, id)
		require.NoError(t, err)
		require.Equal(t, third, row)
	}
	_, err := b.api.CurrentRow(ctx, 1<<40)
	require.ErrorIs(t, err, store.ErrNotFound)
	_, err = b.api.FindJob(ctx, int64(second), b.user("ben").Viewer())
	require.ErrorIs(t, err, store.ErrNotFound)

	for _, v := range []store.Viewer{ann.Viewer(), admin} {
		page, _, err := b.api.ListJobs(ctx, store.JobFilter{Viewer: v})
		require.NoError(t, err)
		require.Len(t, page, 1)
		require.Equal(t, *d.JobID, page[0].ID)
		require.Equal(t, third, page[0].Row)
	}
	watched, err := b.api.WatchedJobs(ctx, []int64{*d.JobID})
	require.NoError(t, err)
	require.Equal(t, "download", watched[*d.JobID].Kind)
	require.Len(t, watched[*d.JobID].Viewers, 1)
	unfinished, err := b.worker.ContentUnfinished(ctx, d.ContentID)
	require.NoError(t, err)
	require.True(t, unfinished)
	same, created, err := b.api.CreateDownload(ctx, wish(ann, d.URL))
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, d.ID, same.ID)

	b.fetch(d, "a.mp4")
	got := b.requireState(d, store.StateCompleted)
	require.Equal(t, d.JobID, got.JobID)
	require.Len(t, got.Files, 1)
	states := []string{"pending", "running", "available", "running", "available", "running", "completed"}
	require.Equal(t, states, b.chain(*d.JobID))

	// A superseded row speaks for no job, whatever somebody asks of it.
	b.exec(`UPDATE river.river_job SET state = 'available', finalized_at = NULL WHERE id = $1`, *d.JobID)
	require.Equal(t, "discarded", b.jobState(*d.JobID))
	b.exec(`DELETE FROM river.river_job WHERE id = ANY($1)`, rows[:2])
	require.Equal(t, states, b.chain(*d.JobID))
	b.requireState(d, store.StateCompleted)
}

// A page of jobs ends where the next begins, also where jobs have other rows than their first.
func TestListJobsFromRowToRow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	want := make(map[int64]bool)
	for i := range 9 {
		d := b.create(ann, fmt.Sprintf("https://site.test/%d", i))
		want[*d.JobID] = true
		if i%3 == 0 {
			b.lose(d)
		}
	}
	for _, v := range []store.Viewer{ann.Viewer(), {Admin: true}} {
		for _, limit := range []int{1, 2, 9} {
			seen := make(map[int64]bool)
			for f := (store.JobFilter{Viewer: v, Limit: limit, States: []string{"pending", "available", "discarded"}}); ; {
				page, next, err := b.api.ListJobs(t.Context(), f)
				require.NoError(t, err)
				for _, j := range page {
					require.False(t, seen[j.ID], "job %d comes twice", j.ID)
					seen[j.ID] = true
				}
				if f.Cursor = next; next == "" {
					break
				}
			}
			require.Equal(t, want, seen)
		}
	}
}

func TestWorkerOfASupersededRow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	d := b.create(b.user("ann"), "https://site.test/a")
	b.setJob(*d.JobID, "running")
	before, err := b.worker.BeginFetch(ctx, begin(d.ContentID, *d.JobID))
	require.NoError(t, err)
	require.Equal(t, *d.JobID, before.JobID)
	successor := b.reclaim(*d.JobID)

	refused := func() {
		t.Helper()
		_, err = b.worker.BeginFetch(ctx, begin(d.ContentID, *d.JobID))
		require.ErrorIs(t, err, store.ErrSuperseded)
		require.ErrorIs(t, b.worker.Publish(ctx, d.ContentID, rowOf(d), linkNever(t), completeNever(t)), store.ErrSuperseded)
		require.ErrorIs(t, b.worker.Expand(ctx, d.ContentID, rowOf(d), []store.NewEntry{entry("https://site.test/1")}, "",
			completeNever(t)), store.ErrSuperseded)
	}
	refused()
	// The successor's own worker has not begun either.
	_, err = b.worker.BeginFetch(ctx, begin(d.ContentID, int64(successor)))
	require.ErrorIs(t, err, store.ErrSuperseded)

	b.setJob(int64(successor), "running")
	refused()
	// Even if a worker fetched the superseded row, past the trigger that keeps it final.
	b.exec(`
		ALTER TABLE river.river_job DISABLE TRIGGER medianest_keep_superseded;
		UPDATE river.river_job SET state = 'running', finalized_at = NULL WHERE id = ` + strconv.FormatInt(*d.JobID, 10) + `;
		ALTER TABLE river.river_job ENABLE TRIGGER medianest_keep_superseded`)
	refused()
	after, err := b.worker.BeginFetch(ctx, begin(d.ContentID, int64(successor)))
	require.NoError(t, err)
	require.Equal(t, *d.JobID, after.JobID)
	require.Equal(t, before.Wishes, after.Wishes)
	require.Equal(t, before.Generation+1, after.Generation)
	require.NoError(t, b.worker.Expand(ctx, d.ContentID, successor, []store.NewEntry{entry("https://site.test/1")}, "",
		completeJob(int64(successor))))
	require.Len(t, b.children(d), 1)

	_, err = b.worker.BeginFetch(ctx, begin(d.ContentID, 1<<40))
	require.ErrorIs(t, err, store.ErrSuperseded)
}

func linkNever(t *testing.T) store.LinkFunc {
	return func(context.Context, []store.Wish, []store.File) ([]store.File, error) {
		t.Error("linked")
		return nil, nil
	}
}

func completeNever(t *testing.T) store.CompleteFunc {
	return func(context.Context, pgx.Tx) error {
		t.Error("completed")
		return nil
	}
}

func TestCancelAndRetryFromRowToRow(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ctx := t.Context()
	ann, admin := b.user("ann"), store.Viewer{Admin: true}
	d := b.create(ann, "https://site.test/a")
	successor := b.lose(d)

	for _, id := range []int64{*d.JobID, int64(successor)} {
		for _, v := range []store.Viewer{ann.Viewer(), admin} {
			job, err := b.api.CancelJob(ctx, id, v)
			require.NoError(t, err)
			require.Equal(t, *d.JobID, job.ID)
			require.Equal(t, "cancelled", job.State)
			b.requireState(d, store.StateCancelled)
			job, err = b.api.RetryJob(ctx, id, ann.Viewer())
			require.NoError(t, err)
			require.Equal(t, *d.JobID, job.ID)
			require.Equal(t, successor, job.Row)
			require.Equal(t, "pending", job.State)
			b.requireState(d, store.StateQueued)
		}
	}
	_, err := b.api.CancelDownload(ctx, d.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, "cancelled", b.jobState(int64(successor)))
	require.Equal(t, "discarded", b.jobState(*d.JobID))
	again, err := b.api.RetryDownload(ctx, d.ID, ann.Viewer())
	require.NoError(t, err)
	require.NotEqual(t, d.JobID, again.JobID, "a cancelled job is over")
	require.NoError(t, b.api.DeleteDownload(ctx, d.ID, ann.Viewer()))
	require.Equal(t, "cancelled", b.jobState(*again.JobID))

	// Of the jobs at a content, the one that went on counts.
	other := b.create(ann, "https://site.test/b")
	b.lose(other)
	bens := b.create(b.user("ben"), "https://site.test/b")
	require.Equal(t, other.JobID, bens.JobID)
	require.Equal(t, store.StateQueued, bens.State)
}

// Whoever waits for the row of a job while it is superseded goes on with the row that follows it: it is joined,
// cancelled or published once.
func TestReclaimWhileItsRowIsWaitedFor(t *testing.T) {
	t.Parallel()
	type call struct {
		do   func(b *bundle, d store.Download, ben store.User) error
		then func(*testing.T, *bundle, store.Download, error)
	}
	for name, c := range map[string]call{
		"Join": {
			do: func(b *bundle, d store.Download, ben store.User) error {
				_, _, err := b.api.CreateDownload(context.Background(), wish(ben, d.URL))
				return err
			},
			then: func(t *testing.T, b *bundle, d store.Download, err error) {
				require.NoError(t, err)
				require.Equal(t, 2, b.count(`SELECT count(*) FROM medianest.downloads WHERE job_id = $1`, *d.JobID))
				require.Equal(t, 1, b.count(`
					SELECT count(*) FROM medianest.downloads WHERE state = 'queued' AND started_at IS NULL`),
					"it joined a job that waits")
				b.fetch(d, "a.mp4")
				require.Equal(t, 2, b.count(`SELECT count(*) FROM medianest.files`))
			},
		},
		"Cancel": {
			do: func(b *bundle, d store.Download, _ store.User) error {
				_, err := b.api.CancelDownload(context.Background(), d.ID, store.Viewer{Admin: true})
				return err
			},
			then: func(t *testing.T, b *bundle, d store.Download, err error) {
				require.NoError(t, err)
				require.Equal(t, "cancelled", b.jobState(int64(b.currentRow(*d.JobID))))
				b.requireState(d, store.StateCancelled)
				require.Equal(t, []string{"pending", "running", "available", "cancelled"}, b.chain(*d.JobID))
			},
		},
		"CancelJob": {
			do: func(b *bundle, d store.Download, _ store.User) error {
				_, err := b.api.CancelJob(context.Background(), *d.JobID, store.Viewer{Admin: true})
				return err
			},
			then: func(t *testing.T, b *bundle, d store.Download, err error) {
				require.NoError(t, err)
				require.Equal(t, "cancelled", b.jobState(int64(b.currentRow(*d.JobID))))
			},
		},
		"RetryDownload": {
			do: func(b *bundle, d store.Download, _ store.User) error {
				_, err := b.api.RetryDownload(context.Background(), d.ID, store.Viewer{Admin: true})
				return err
			},
			then: func(t *testing.T, _ *bundle, _ store.Download, err error) {
				require.ErrorIs(t, err, store.ErrConflict, "it goes on")
			},
		},
		"BeginFetch": {
			do: func(b *bundle, d store.Download, _ store.User) error {
				_, err := b.worker.BeginFetch(context.Background(), begin(d.ContentID, *d.JobID))
				return err
			},
			then: func(t *testing.T, b *bundle, _ store.Download, err error) {
				require.ErrorIs(t, err, store.ErrSuperseded)
				require.Zero(t, b.count(`SELECT sum(generation) FROM medianest.content`))
			},
		},
		"Publish": {
			do: func(b *bundle, d store.Download, _ store.User) error {
				return b.worker.Publish(context.Background(), d.ContentID, rowOf(d), linkFor("a.mp4"), completeJob(*d.JobID))
			},
			then: func(t *testing.T, b *bundle, d store.Download, err error) {
				require.ErrorIs(t, err, store.ErrSuperseded)
				require.Zero(t, b.count(`SELECT count(*) FROM medianest.files`))
				b.fetch(d, "a.mp4")
				require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.files`))
			},
		},
		"Expand": {
			do: func(b *bundle, d store.Download, _ store.User) error {
				entries := []store.NewEntry{entry("https://site.test/1")}
				return b.worker.Expand(context.Background(), d.ContentID, rowOf(d), entries, "", completeJob(*d.JobID))
			},
			then: func(t *testing.T, b *bundle, d store.Download, err error) {
				require.ErrorIs(t, err, store.ErrSuperseded)
				require.Empty(t, b.children(d))
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupFollowed(t)
			ben := b.user("ben")
			d := b.create(b.user("ann"), "https://site.test/a")
			b.setJob(*d.JobID, "running")
			b.requireState(d, store.StateRunning)
			tx, err := b.river.Begin(t.Context())
			require.NoError(t, err)
			ok, err := reclaim(t.Context(), tx, *d.JobID)
			require.NoError(t, err)
			require.True(t, ok)
			done := make(chan error, 1)
			go func() { done <- c.do(b, d, ben) }()
			b.waitForLockWaiter()
			require.NoError(t, tx.Commit(t.Context()))
			c.then(t, b, d, <-done)
			require.LessOrEqual(t, b.count(`
				SELECT count(*)
				FROM river.river_job
				WHERE kind = 'download' AND args ->> 'content_id' = $1 AND finalized_at IS NULL`, d.ContentID.String()), 1)
		})
	}
}

// Who publishes holds the row: a reclaim leaves it alone, and finds it completed afterwards.
func TestReclaimWhilePublishing(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	d := b.create(b.user("ann"), "https://site.test/a")
	b.setJob(*d.JobID, "running")
	lost := func() bool {
		ok, err := reclaim(t.Context(), b.river, *d.JobID)
		require.NoError(t, err)
		return ok
	}
	link := func(ctx context.Context, wishes []store.Wish, existing []store.File) ([]store.File, error) {
		require.False(t, lost())
		return linkFor("a.mp4")(ctx, wishes, existing)
	}
	require.NoError(t, b.worker.Publish(t.Context(), d.ContentID, rowOf(d), link, completeJob(*d.JobID)))
	require.False(t, lost())
	require.Equal(t, rowOf(d), b.currentRow(*d.JobID))
	require.Len(t, b.requireState(d, store.StateCompleted).Files, 1)
	require.Equal(t, []string{"pending", "running", "completed"}, b.chain(*d.JobID))
}

// An expansion locks the jobs of its items without waiting for one while it holds another.
func TestReclaimWhileManyRowsAreLocked(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ann := b.user("ann")
	item, list := b.create(ann, "https://site.test/1"), b.create(ann, "https://site.test/list")
	b.setJob(*item.JobID, "running")
	b.setJob(*list.JobID, "running")
	tx, err := b.river.Begin(t.Context())
	require.NoError(t, err)
	_, err = reclaim(t.Context(), tx, *item.JobID)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		entries := []store.NewEntry{entry("https://site.test/1")}
		done <- b.worker.Expand(context.Background(), list.ContentID, rowOf(list), entries, "", completeJob(*list.JobID))
	}()
	require.Eventually(t, func() bool {
		return b.holds(`SELECT EXISTS (
			SELECT FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'rollback to savepoint%')`)
	}, 10*time.Second, time.Millisecond, "it tries, and gives back what it has")
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-done)
	children := b.children(list)
	require.Len(t, children, 1)
	require.Equal(t, item.JobID, children[0].JobID)
	require.Equal(t, store.StateQueued, children[0].State)
}

// Workers are lost at any time, and late: per job, each event's previous state is the one before's state.
func TestOrderOfEventsOverLosses(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // only a seed
	t.Logf("seed %d", seed)
	b := setup(t)
	b.tick()
	start := b.head()
	runOutbox(t, store.OutboxOptions{Store: b.worker, Holder: "a", TickInterval: 5 * time.Millisecond})
	ann := b.user("ann")
	var jobs []int64
	for i := range 10 {
		jobs = append(jobs, *b.create(ann, fmt.Sprintf("https://site.test/%d", i)).JobID)
	}
	var (
		wg              sync.WaitGroup
		changes, losses atomic.Int64
		deadline        = time.Now().Add(1500 * time.Millisecond)
	)
	for w := range 8 {
		r := rand.New(rand.NewPCG(seed, uint64(w))) //nolint:gosec // repeatable on purpose
		wg.Go(func() {
			for time.Now().Before(deadline) || losses.Load() < 20 {
				lost, err := b.oneChange(r, jobs[r.IntN(len(jobs))])
				if err != nil {
					t.Errorf("change a job: %v", err)
					return
				}
				if changes.Add(1); lost {
					losses.Add(1)
				}
			}
		})
	}
	wg.Wait()
	b.requireWhole(start.End(), int(changes.Load()))
	t.Logf("%d changes, %d of them losses", changes.Load(), losses.Load())
	require.Zero(t, b.count(`
		SELECT count(*)
		FROM river.river_job AS j
		WHERE NOT j.metadata ? 'superseded_by'
			AND NOT EXISTS (
				SELECT
				FROM medianest.downloads AS d
				LEFT JOIN medianest.job_map AS m ON m.public_id = d.job_id
				WHERE coalesce(m.row_id, d.job_id) = j.id
			)`), "a row stands for no job")
}

// oneChange changes the job's state once, in a transaction that may draw its number early, and reports whether it was a
// loss.
func (b *bundle) oneChange(r *rand.Rand, jobID int64) (lost bool, err error) {
	ctx := context.Background()
	for changed := false; !changed; {
		err := pgx.BeginFunc(ctx, b.river, func(tx pgx.Tx) error {
			if r.IntN(2) == 0 {
				if _, err := tx.Exec(ctx, `SELECT pg_current_xact_id()`); err != nil {
					return err
				}
			}
			var (
				row   int64
				state string
			)
			err := tx.QueryRow(ctx, `
				SELECT j.id, j.state::text
				FROM river.river_job AS j
				WHERE j.id = coalesce((SELECT m.row_id FROM medianest.job_map AS m WHERE m.public_id = $1), $1)
					AND NOT j.metadata ? 'superseded_by'
				FOR UPDATE`, jobID).Scan(&row, &state)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil // superseded while we waited
			}
			if err != nil {
				return err
			}
			changed = true
			if lost = state == "running" && r.IntN(2) == 0; lost {
				_, err = reclaim(ctx, tx, row)
				return err
			}
			_, err = tx.Exec(ctx, `
				UPDATE river.river_job
				SET state = CASE state WHEN 'running' THEN 'retryable' ELSE 'running' END::river.river_job_state, attempt = 1
				WHERE id = $1`, row)
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return lost, nil
}

// Retention: River removes rows that have ended, the first ones before or after those that followed.
func TestTrimDomainFromRowToRow(t *testing.T) {
	t.Parallel()
	b := setupFollowed(t)
	ctx := t.Context()
	admin := store.Viewer{Admin: true}
	d := b.create(b.user("ann"), "https://site.test/a")
	successor := b.lose(d)
	trim := func() store.Trimmed {
		trimmed, err := b.worker.TrimDomain(ctx, 0)
		require.NoError(t, err)
		return trimmed
	}
	b.exec(`UPDATE medianest.content SET created_at = now() - interval '2 d'`)
	b.exec(`DELETE FROM river.river_job WHERE id = $1`, *d.JobID)
	require.Equal(t, store.Trimmed{}, trim(), "the job goes on without its first row")
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.job_viewer WHERE gone_at IS NOT NULL`))
	b.fetch(d, "a.mp4")
	b.requireState(d, store.StateCompleted)

	// A successor that is gone before its first row: the job is gone.
	other := b.create(b.user("ben"), "https://site.test/b")
	b.lose(other)
	b.fetch(other, "b.mp4")
	b.requireState(other, store.StateCompleted)
	b.exec(`DELETE FROM river.river_job WHERE id = $1 OR id = $2`, int64(b.currentRow(*other.JobID)), int64(successor))
	require.Equal(t, store.Trimmed{JobMap: 1}, trim())
	_, err := b.api.FindJob(ctx, *other.JobID, admin)
	require.ErrorIs(t, err, store.ErrNotFound)
	page, _, err := b.api.ListJobs(ctx, store.JobFilter{Viewer: admin})
	require.NoError(t, err)
	require.Empty(t, page)
	b.requireState(other, store.StateCompleted)
	again, err := b.api.RetryDownload(ctx, other.ID, admin)
	require.NoError(t, err)
	require.NotEqual(t, other.JobID, again.JobID)

	b.exec(`DELETE FROM river.river_job`)
	trimmed, err := b.api.TrimDomain(ctx, 0)
	require.NoError(t, err)
	require.Equal(t, int64(1), trimmed.JobMap)
	trim()
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.job_viewer`))
}

func TestTrimJobMapInBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rows := 2*store.TrimBatch + 10
	b.exec(`
		INSERT INTO medianest.job_map (public_id, row_id)
		SELECT n, n + 1000000 FROM generate_series(1, $1::int) AS n`, rows)
	trimmed, err := b.worker.TrimDomain(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, store.Trimmed{JobMap: int64(rows)}, trimmed)
}

// What the triggers and the lists read of a row's metadata is River's and its users' to write.
func TestStrangeMetadata(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, metadata := range []string{
		`{"public_id": "x"}`, `{"public_id": {"a": 1}}`, `{"public_id": null}`, `{"public_id": ""}`, `{"public_id": "-7"}`,
		`{"public_id": "99999999999999999999999999"}`, `[]`, `["public_id", "superseded_by"]`, `"public_id"`, `7`, `null`,
	} {
		var id int64
		require.NoError(t, b.river.QueryRow(t.Context(), `
			INSERT INTO river.river_job (kind, args, max_attempts, metadata)
			VALUES ('other', '{}', 3, $1::jsonb)
			RETURNING id`, metadata).Scan(&id), metadata)
		b.exec(`UPDATE river.river_job SET state = 'running', metadata = $2::jsonb WHERE id = $1`, id, metadata)
		require.Positive(t, b.count(`SELECT count(*) FROM medianest.event WHERE job_id = $1`, id), metadata)
		b.exec(`DELETE FROM river.river_job WHERE id = $1`, id)
	}
}
