package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

// A pause is kept until it is taken back, with who, when and why.
func TestPauses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann").ID
	first, err := b.api.SetPause(t.Context(), store.Pause{Key: "host:site.test", Note: "moving", PausedBy: &ann})
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), first.PausedAt, time.Minute)
	again, err := b.api.SetPause(t.Context(), store.Pause{Key: "host:site.test", PausedBy: &ann})
	require.NoError(t, err)
	require.Equal(t, first.PausedAt, again.PausedAt)
	require.Empty(t, again.Note)
	_, err = b.api.SetPause(t.Context(), store.Pause{Key: "cookie:*", PausedBy: &ann})
	require.NoError(t, err)
	list, err := b.api.ListPauses(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"cookie:*", "host:site.test"}, []string{list[0].Key, list[1].Key})

	require.NoError(t, b.api.DeletePause(t.Context(), "host:site.test"))
	require.ErrorIs(t, b.api.DeletePause(t.Context(), "host:site.test"), store.ErrNotFound)
	for key, note := range map[string]string{
		"planet:mars": "", "host:www.site.test": "", "queue:": "", "queue:a b": "", "kind:x": strings.Repeat("x", 501), "kind:y": "\x00",
	} {
		_, err := b.api.SetPause(t.Context(), store.Pause{Key: key, Note: note})
		require.ErrorIs(t, err, store.ErrInvalid, key)
	}
	require.ErrorIs(t, b.api.DeletePause(t.Context(), "planet:mars"), store.ErrInvalid)
}

// A download that waits for a pause says so, before all else that it waits for.
func TestWaitingForAPause(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	d := b.create(ann, "https://site.test/1")
	for _, key := range []string{"host:site.test", "host:*", "queue:download", "queue:*"} {
		_, err := b.api.SetPause(t.Context(), store.Pause{Key: key})
		require.NoError(t, err)
		found := b.find(d)
		require.Equal(t, store.StateWaiting, found.State, key)
		require.Equal(t, store.WaitingOnPause, found.WaitingOn, key)
		require.NotNil(t, found.Waiting)
		require.Equal(t, store.WaitsForPause, found.Waiting.Reason)
		require.Nil(t, found.Waiting.NotBefore, "nobody knows")
		require.NoError(t, b.api.DeletePause(t.Context(), key))
		require.Equal(t, store.StateQueued, b.find(d).State, key)
	}
}

// The pause of a queue is River's as well, whoever sets it and however: jobs without keys obey it, and River UI shows it.
// River forgets queues that nobody works, and their pauses; ours is kept.
func TestPauseOfAQueueIsRivers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	paused := func() bool {
		t.Helper()
		return b.count(`SELECT count(*) FROM river.river_queue WHERE name = 'download' AND paused_at IS NOT NULL`) == 1
	}
	ours := func() (keys []string) {
		t.Helper()
		list, err := b.api.ListPauses(t.Context())
		require.NoError(t, err)
		for _, p := range list {
			keys = append(keys, p.Key)
		}
		return keys
	}
	_, err := b.api.SetPause(t.Context(), store.Pause{Key: "queue:download", Note: "before it was there"})
	require.NoError(t, err)
	announce := func() {
		t.Helper()
		b.exec(`INSERT INTO river.river_queue (name, updated_at) VALUES ('download', now())`)
	}
	announce()
	require.True(t, paused())
	b.exec(`DELETE FROM river.river_queue`)
	require.Equal(t, []string{"queue:download"}, ours(), "River forgets, we do not")
	announce()
	require.True(t, paused())

	require.NoError(t, b.api.DeletePause(t.Context(), "queue:download"))
	require.False(t, paused())
	_, err = b.api.SetPause(t.Context(), store.Pause{Key: "queue:download"})
	require.NoError(t, err)
	require.True(t, paused())

	// By River's client, as River UI does it.
	client := newRiverQueue(t, b.river).client
	require.NoError(t, client.QueueResume(t.Context(), "download", &river.QueuePauseOpts{}))
	require.Empty(t, ours())
	require.NoError(t, client.QueuePause(t.Context(), "download", &river.QueuePauseOpts{}))
	require.Equal(t, []string{"queue:download"}, ours())
	require.NoError(t, client.QueueResume(t.Context(), "*", &river.QueuePauseOpts{}))
	require.Empty(t, ours())
}
