package queue

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Who may reclaim has been with the database for a whole TTL, in which everybody else could renew their presence too: a
// gap, and a database's clock that was set, begin it anew.
func TestSteadiness(t *testing.T) {
	t.Parallel()

	settings, err := Presence{}.withDefaults(true)
	require.NoError(t, err)
	const boot = 1000 * time.Second
	wall := time.Date(2026, 3, 29, 1, 59, 0, 0, time.UTC)
	setup := func(t *testing.T) (p *presence, renew func(at, clock time.Duration)) {
		t.Helper()
		p = newPresence(Options{Logger: slog.New(slog.DiscardHandler)}, settings, newMetrics())
		p.renewed, p.steady = boot, boot
		renew = func(at, clock time.Duration) { p.settle(t.Context(), boot+at, wall.Add(clock)) }
		renew(0, 0)
		for at := 5 * time.Second; at <= 30*time.Second; at += 5 * time.Second {
			require.Equal(t, at >= 25*time.Second, p.isSteady(boot+at))
			renew(at, at)
		}
		require.True(t, p.isSteady(boot+30*time.Second))
		return p, renew
	}

	t.Run("OneRenewalMissed", func(t *testing.T) {
		t.Parallel()
		p, renew := setup(t)
		renew(42*time.Second, 42*time.Second)
		require.True(t, p.isSteady(boot+42*time.Second))
	})
	t.Run("Outage", func(t *testing.T) {
		t.Parallel()
		p, renew := setup(t)
		require.False(t, p.isSteady(boot+50*time.Second), "others may be lost since, or the database is away")
		renew(50*time.Second, 50*time.Second)
		require.False(t, p.isSteady(boot+50*time.Second))
	})
	for name, clock := range map[string]time.Duration{"SetForward": 90 * time.Second, "SetBack": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, renew := setup(t)
			renew(35*time.Second, clock)
			require.False(t, p.isSteady(boot+35*time.Second))
			for at := 40 * time.Second; at <= 60*time.Second; at += 5 * time.Second {
				renew(at, clock+at-35*time.Second)
			}
			require.True(t, p.isSteady(boot+60*time.Second))
		})
	}
}
