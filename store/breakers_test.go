package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

func (b *bundle) breakers(cursor string, limit int) ([]store.Breaker, string) {
	b.t.Helper()
	list, next, err := b.api.ListBreakers(b.t.Context(), cursor, limit)
	require.NoError(b.t, err)
	return list, next
}

func TestBreakers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.create(b.user("ann"), "https://site.test/1")
	b.exec(`INSERT INTO medianest.breaker (key, step, open_until, reason) VALUES ('host:site.test', 1, now() + interval '1 min', 'rate_limited')`)
	list, _ := b.breakers("", 0)
	require.Len(t, list, 1)
	require.Equal(t, []any{store.BreakerOpen, 1, 1, "rate_limited"}, []any{list[0].State, list[0].Step, list[0].Trips, list[0].Reason})
	require.WithinDuration(t, time.Now().Add(time.Minute), list[0].OpenUntil, 30*time.Second)

	b.exec(`UPDATE medianest.breaker SET open_until = now(), probe_job = $1`, *d.JobID)
	state := func() string {
		list, _ := b.breakers("", 0)
		require.Equal(t, list[0].State == store.BreakerProbing, list[0].ProbeJob != nil)
		return list[0].State
	}
	require.Equal(t, store.BreakerDue, state(), "its job is not admitted")
	b.admit(d)
	require.Equal(t, store.BreakerProbing, state())
	b.setJob(*d.JobID, "retryable")
	require.Equal(t, store.BreakerDue, state())

	b.exec(`INSERT INTO medianest.breaker (key, open_until) SELECT 'service:' || n, now() FROM generate_series(1, 4) AS n`)
	var keys []string
	for cursor, pages := "", 0; cursor != "" || pages == 0; pages++ {
		list, next := b.breakers(cursor, 2)
		for _, found := range list {
			keys = append(keys, found.Key)
		}
		cursor = next
	}
	require.Equal(t, []string{"host:site.test", "service:1", "service:2", "service:3", "service:4"}, keys)

	require.NoError(t, b.api.ResetBreaker(t.Context(), "host:site.test"))
	require.ErrorIs(t, b.api.ResetBreaker(t.Context(), "host:site.test"), store.ErrNotFound)
	require.ErrorIs(t, b.api.ResetBreaker(t.Context(), "host:www.site.test"), store.ErrInvalid)
	_, _, err := b.api.ListBreakers(t.Context(), "?", 0)
	require.ErrorIs(t, err, store.ErrInvalid)
	_, _, err = b.api.ListBreakers(t.Context(), "", 201)
	require.ErrorIs(t, err, store.ErrInvalid)
}

// A breaker that nothing was tried under for a week is forgotten, but not one whose probe takes its time.
func TestTrimBreakers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	probe := b.create(b.user("ann"), "https://probing.test/1")
	b.admit(probe)
	b.exec(`
		INSERT INTO medianest.breaker (key, open_until, probe_job)
		VALUES ('host:left', now() - interval '8 d', NULL), ('host:lately', now() - interval '6 d', NULL),
			('host:probing.test', now() - interval '8 d', $1), ('host:open', now() + interval '1 d', NULL)`, *probe.JobID)
	for n, by := range []*store.Store{b.worker, b.api} {
		trimmed, err := by.TrimDomain(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Equal(t, store.Trimmed{Breakers: int64(1 - n)}, trimmed, fmt.Sprint(n))
	}
	list, _ := b.breakers("", 0)
	require.Len(t, list, 3)
}
