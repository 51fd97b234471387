package store_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// subscribe hears the bus until the test's end.
func subscribe(t *testing.T, bus *store.ProgressBus) <-chan store.Progress {
	t.Helper()
	received := make(chan store.Progress, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- bus.Subscribe(ctx, func(p store.Progress) {
			select {
			case received <- p:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return received
}

// await publishes until something is heard.
func await(t *testing.T, received <-chan store.Progress, publish func() error) {
	t.Helper()
	require.Eventually(t, func() bool {
		_ = publish()
		return len(received) > 0
	}, 20*time.Second, 20*time.Millisecond)
}

func TestProgressJSON(t *testing.T) {
	t.Parallel()
	raw, err := json.Marshal(store.Progress{JobID: 42, Phase: "downloading", Percent: 41.2, DownloadedBytes: 4321, TotalBytes: 10485, SpeedBytesPerS: 1200, ETAS: 5, At: time.Unix(0, 0).UTC()})
	require.NoError(t, err)
	require.JSONEq(t, `{"job_id":"42","phase":"downloading","percent":41.2,"downloaded_bytes":4321,"total_bytes":10485,"speed_bytes_per_s":1200,"eta_s":5,"at":"1970-01-01T00:00:00Z"}`, string(raw))
}

// Redis goes away and comes back, empty: reports cost next to nothing meanwhile, and are heard again after.
func TestProgressSurvivesRedis(t *testing.T) {
	t.Parallel()
	server := storetest.RealRedis(t)
	client, err := store.OpenRedis(server.URL())
	require.NoError(t, err)
	defer client.Close() //nolint:errcheck // nothing is under way
	bus := store.NewProgressBus(client, discard())
	received := subscribe(t, bus)
	await(t, received, func() error { return bus.Publish(t.Context(), store.Progress{JobID: 1}) })

	server.Stop()
	for range 50 {
		start := time.Now()
		require.ErrorIs(t, bus.Publish(t.Context(), store.Progress{JobID: 1}), store.ErrProgressUnavailable)
		require.Less(t, time.Since(start), 3*time.Second) // half a second, on a machine that does nothing else
	}
	start := time.Now()
	_, err = bus.Last(t.Context(), []int64{1})
	require.ErrorIs(t, err, store.ErrProgressUnavailable)
	require.Error(t, bus.Clear(t.Context(), 1))
	require.Less(t, time.Since(start), 5*time.Second)

	server.Start()
	for len(received) > 0 {
		<-received
	}
	await(t, received, func() error { return bus.Publish(t.Context(), store.Progress{JobID: 2}) })
	require.Equal(t, int64(2), (<-received).JobID)
	require.Eventually(t, func() bool {
		last, err := bus.Last(t.Context(), []int64{1, 2})
		return err == nil && len(last) == 1
	}, 10*time.Second, 10*time.Millisecond)
}
