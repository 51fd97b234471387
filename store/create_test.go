package store_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

func TestCreateDownload(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")

	d := b.create(ann, "https://site.test/a")
	require.Equal(t, store.StateQueued, d.State)
	require.Equal(t, ann.ID, d.UserID)
	require.Equal(t, "https://site.test/a", d.URL)
	require.NotNil(t, d.JobID)
	require.Nil(t, d.ParentID)
	require.Nil(t, d.StartedAt)
	require.Nil(t, d.Children)
	require.Empty(t, d.Files)
	require.Equal(t, 1, b.count(`SELECT count(*) FROM river.river_job WHERE id = $1 AND args ->> 'content_id' = $2`, *d.JobID, d.ContentID.String()))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.content WHERE job_id = $1`, *d.JobID))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.job_viewer WHERE job_id = $1 AND user_id = $2 AND download_id = $3`, *d.JobID, ann.ID, d.ID))

	same, created, err := b.api.CreateDownload(t.Context(), wish(ann, "https://site.test/a"))
	require.NoError(t, err)
	require.False(t, created)
	require.NotNil(t, same.Waiting)
	same.Waiting = nil // what is new does not tell
	require.Equal(t, d, same)

	other := b.create(ben, "https://site.test/a")
	require.NotEqual(t, d.ID, other.ID)
	require.Equal(t, d.ContentID, other.ContentID)
	require.Equal(t, d.JobID, other.JobID)
	require.NotEqual(t, *d.JobID, *b.create(ann, "https://site.test/b").JobID)
}

func TestCreateDownloadTakesTheJobsState(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.create(b.user("first"), "https://site.test/a")

	for i, c := range []struct{ job, state, waitingOn string }{
		{"running", store.StateRunning, ""},
		{"retryable", store.StateWaiting, store.WaitingOnRetry},
		{"scheduled", store.StateQueued, ""},
		{"pending", store.StateQueued, ""},
		{"available", store.StateQueued, ""},
	} {
		b.setJob(*d.JobID, c.job)
		joined := b.create(b.user("joins-"+c.job), "https://site.test/a")
		require.Equal(t, d.JobID, joined.JobID, "%d", i)
		require.Equal(t, c.state, joined.State)
		require.Equal(t, c.waitingOn, joined.WaitingOn)
		require.Equal(t, c.state == store.StateRunning, joined.StartedAt != nil)
		require.Equal(t, c.state == store.StateWaiting, joined.NextTryAt != nil)
	}
}

func TestCreateDownloadDoesNotJoinAJobThatEnds(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"completed", "cancelled", "discarded"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			d := b.create(b.user("ann"), "https://site.test/a")
			b.setJob(*d.JobID, state)
			require.NotEqual(t, *d.JobID, *b.create(b.user("ben"), "https://site.test/a").JobID)
		})
	}
	t.Run("deleted", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		d := b.create(b.user("ann"), "https://site.test/a")
		b.exec(`DELETE FROM river.river_job`)
		require.NotEqual(t, *d.JobID, *b.create(b.user("ben"), "https://site.test/a").JobID)
	})
	t.Run("cancel asked", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		ann, ben := b.user("ann"), b.user("ben")
		d := b.create(ann, "https://site.test/a")
		b.setJob(*d.JobID, "running")
		_, err := b.api.CancelDownload(t.Context(), d.ID, ann.Viewer())
		require.NoError(t, err)
		require.True(t, b.cancelAsked(*d.JobID))

		joined := b.create(ben, "https://site.test/a")
		require.NotEqual(t, *d.JobID, *joined.JobID)
		require.Equal(t, store.StateQueued, joined.State)
	})
}

// The job's end is committed before the outbox's consumer has told the download. Who saw the end on the stream and
// wishes again must not get the download that is about to fail.
func TestCreateDownloadBeforeTheConsumerFollowed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/a")
	b.setJob(*d.JobID, "discarded")
	again := b.create(ann, "https://site.test/a")
	require.NotEqual(t, d.ID, again.ID)
}

func TestHundredUsersWishForTheSameAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	users := make([]store.User, 100)
	for i := range users {
		users[i] = b.user("user-" + uuid.NewString()[:8])
	}
	jobs := make([]int64, len(users))
	together(t, len(users), func(i int) error {
		d, created, err := b.api.CreateDownload(t.Context(), wish(users[i], "https://site.test/a"))
		if err == nil {
			if !created {
				t.Error("not created")
			}
			jobs[i] = *d.JobID
		}
		return err
	})
	for _, id := range jobs {
		require.Equal(t, jobs[0], id)
	}
	require.Equal(t, 1, b.count(`SELECT count(*) FROM river.river_job`))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.content`))
	require.Equal(t, 100, b.count(`SELECT count(*) FROM medianest.downloads`))
	require.Equal(t, 100, b.count(`SELECT count(*) FROM medianest.job_viewer`))
}

func TestHundredIdenticalPosts(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"with one idempotency key": "k-1", "without a key": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			n := wish(b.user("ann"), "https://site.test/a")
			n.IdempotencyKey, n.Fingerprint = key, [32]byte{1}
			var made atomic.Int32
			ids := make([]uuid.UUID, 100)
			together(t, 100, func(i int) error {
				d, created, err := b.api.CreateDownload(t.Context(), n)
				if created {
					made.Add(1)
				}
				ids[i] = d.ID
				return err
			})
			for _, id := range ids {
				require.Equal(t, ids[0], id)
			}
			require.EqualValues(t, 1, made.Load())
			require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.downloads`))
			require.Equal(t, 1, b.count(`SELECT count(*) FROM river.river_job`))
		})
	}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	n := wish(ann, "https://site.test/a")
	n.IdempotencyKey, n.Fingerprint = "key", [32]byte{1}

	d, created, err := b.api.CreateDownload(ctx, n)
	require.NoError(t, err)
	require.True(t, created)

	// Also after the download's end, when the wish alone would make another.
	b.end(d, "discarded", store.StateFailed)
	replay, created, err := b.api.CreateDownload(ctx, n)
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, d.ID, replay.ID)
	require.Equal(t, store.StateFailed, replay.State)

	other := n
	other.Fingerprint = [32]byte{2}
	_, _, err = b.api.CreateDownload(ctx, other)
	require.ErrorIs(t, err, store.ErrIdempotencyMismatch)

	// A key is its user's.
	bens := n
	bens.UserID = ben.ID
	_, created, err = b.api.CreateDownload(ctx, bens)
	require.NoError(t, err)
	require.True(t, created)

	// A key that finds the wish active answers with that from then on.
	active := b.create(ann, "https://site.test/b")
	n2 := wish(ann, "https://site.test/b")
	n2.IdempotencyKey, n2.Fingerprint = "key 2", [32]byte{3}
	for range 2 {
		got, created, err := b.api.CreateDownload(ctx, n2)
		require.NoError(t, err)
		require.False(t, created)
		require.Equal(t, active.ID, got.ID)
		b.end(active, "discarded", store.StateFailed)
	}

	require.NoError(t, b.api.DeleteDownload(ctx, d.ID, ann.Viewer()))
	_, _, err = b.api.CreateDownload(ctx, n)
	require.ErrorIs(t, err, store.ErrConflict)

	// After a day the key is new, also before retention has come by.
	b.exec(`UPDATE medianest.idempotency SET created_at = created_at - interval '25 h'`)
	again, created, err := b.api.CreateDownload(ctx, other)
	require.NoError(t, err)
	require.True(t, created)
	require.NotEqual(t, d.ID, again.ID)
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	n := wish(store.User{ID: uuid.New()}, "https://site.test/a")
	n.IdempotencyKey = "key"
	_, _, err := b.api.CreateDownload(t.Context(), n)
	require.ErrorIs(t, err, store.ErrConflict)
	n.IdempotencyKey = ""
	_, _, err = b.api.CreateDownload(t.Context(), n)
	require.Error(t, err)
	for _, table := range []string{"medianest.downloads", "medianest.content", "medianest.idempotency", "river.river_job"} {
		require.Zero(t, b.count(`SELECT count(*) FROM `+table), table)
	}
}

func TestHostileWishes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	ok := wish(ann, "https://site.test/a")
	ok.IdempotencyKey = "key"
	for name, spoil := range map[string]func(*store.NewDownload){
		"url nul":       func(n *store.NewDownload) { n.URL += "\x00" },
		"url utf-8":     func(n *store.NewDownload) { n.URL += "\xff" },
		"url empty":     func(n *store.NewDownload) { n.URL = "" },
		"url long":      func(n *store.NewDownload) { n.URL += strings.Repeat("a", 1<<20) },
		"key nul":       func(n *store.NewDownload) { n.ContentKey += "\x00" },
		"profile nul":   func(n *store.NewDownload) { n.Profile += "\x00" },
		"idem nul":      func(n *store.NewDownload) { n.IdempotencyKey += "\x00" },
		"idem long":     func(n *store.NewDownload) { n.IdempotencyKey = strings.Repeat("k", 256) },
		"idem utf-8":    func(n *store.NewDownload) { n.IdempotencyKey = "\xc3\x28" },
		"profile empty": func(n *store.NewDownload) { n.Profile = "" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := ok
			spoil(&n)
			_, _, err := b.api.CreateDownload(t.Context(), n)
			require.ErrorIs(t, err, store.ErrInvalid)
			var invalid *store.InvalidError
			require.ErrorAs(t, err, &invalid)
			require.NotEmpty(t, invalid.Field)
			require.NotEmpty(t, invalid.Reason)
		})
	}
}

// Postgres refuses index entries above some 2,700 bytes, which a long address that does not compress reaches.
func TestLongAddress(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	var long strings.Builder
	long.WriteString("https://site.test/")
	for long.Len() < 7000 {
		long.WriteString(uuid.NewString())
	}
	d := b.create(ann, long.String())
	require.Equal(t, long.String(), d.URL)
	require.Equal(t, d.JobID, b.create(ben, long.String()).JobID)
	require.NotEqual(t, *d.JobID, *b.create(ben, long.String()+"a").JobID)
}

// BenchmarkCreateDownload is one wish for a new content at a time, and BenchmarkInsertJob what a job alone costs.
func BenchmarkCreateDownload(b *testing.B) {
	pool := storetest.Pool(b, "")
	s := store.New(pool).WithQueue(newRiverQueue(b, pool))
	u, err := s.CreateUser(b.Context(), store.NewUser{Name: "ann", Role: store.UserMember})
	require.NoError(b, err)
	i := 0
	for b.Loop() {
		i++
		_, _, err := s.CreateDownload(b.Context(), wish(u, fmt.Sprintf("https://site.test/%d", i)))
		require.NoError(b, err)
	}
}

func BenchmarkInsertJob(b *testing.B) {
	pool := storetest.Pool(b, "")
	q := newRiverQueue(b, pool)
	for b.Loop() {
		require.NoError(b, pgx.BeginFunc(b.Context(), pool, func(tx pgx.Tx) error {
			_, err := q.EnqueueDownloadsTx(b.Context(), tx, []store.NewFetch{{ContentID: uuid.New(), Host: "example.org", UserID: uuid.New()}})
			return err
		}))
	}
}
