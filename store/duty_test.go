package store_test

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDuty(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	hold := func(holder string) bool {
		held, err := b.worker.HoldDuty(ctx, "outbox", holder, time.Minute)
		require.NoError(t, err)
		return held
	}
	require.True(t, hold("a"))
	require.True(t, hold("a"), "renewed")
	require.False(t, hold("b"))
	require.NoError(t, b.worker.ReleaseDuty(ctx, "outbox", "b"))
	require.False(t, hold("b"))
	require.NoError(t, b.api.ReleaseDuty(ctx, "outbox", "a"))
	require.True(t, hold("b"))
	b.exec(`UPDATE medianest.duty SET expires_at = now()`)
	require.True(t, hold("a"), "the lease had ended")
	require.False(t, hold("b"))
}

func TestDutyIsHeldByOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var holders atomic.Int32
	together(t, 50, func(i int) error {
		held, err := b.worker.HoldDuty(t.Context(), "outbox", strconv.Itoa(i), time.Minute)
		if held {
			holders.Add(1)
		}
		return err
	})
	require.EqualValues(t, 1, holders.Load())
}
