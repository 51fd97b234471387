package queue

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
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

// Who is lost is said by the database's clock. When that was set, and when this process is itself taken for lost, nobody
// is judged before a whole TTL has passed anew.
func TestNobodyIsLostByTheClock(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct {
		set   time.Duration // of the database's clock, since the last renewal
		sql   string
		taken bool
	}{
		"AllIsWell":       {taken: true},
		"SmallStep":       {set: 9 * time.Second, taken: true},
		"SetForward":      {set: 11 * time.Second},
		"SetBack":         {set: -11 * time.Second},
		"OwnRowExpired":   {sql: `UPDATE medianest.worker SET expires_at = now() WHERE id = 'judge'`},
		"OwnRowIsGone":    {sql: `UPDATE medianest.worker SET gone_at = now() WHERE id = 'judge'`},
		"OwnRowIsDeleted": {sql: `DELETE FROM medianest.worker WHERE id = 'judge'`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings, err := Presence{}.withDefaults(false)
			require.NoError(t, err)
			url := storetest.DB(t)
			owner, log := storetest.OpenPool(t, url, ""), slog.New(slog.DiscardHandler)
			p := newPresence(Options{Logger: log, Pool: storetest.OpenPool(t, url, store.RoleRiver)}, settings, newMetrics())
			p.id = "judge"
			require.NoError(t, p.join(t.Context()))
			_, err = owner.Exec(t.Context(), `
				WITH lost AS (
					INSERT INTO medianest.worker (id, mode, host, version, renewed_at, expires_at)
					VALUES ('lost', 'work', 'there', 'v1', now() - interval '26 s', now() - interval '1 s')
				)
				INSERT INTO river.river_job (kind, args, state, attempt, max_attempts, attempted_at, attempted_by)
				VALUES ('synthetic', '{}', 'running', 1, 3, now() - interval '1 min', '{lost}')`)
			require.NoError(t, err)
			if c.sql != "" {
				_, err = owner.Exec(t.Context(), c.sql)
				require.NoError(t, err)
			}
			p.mu.Lock()
			p.steady -= p.TTL
			p.now = p.now.Add(-c.set)
			p.mu.Unlock()
			require.True(t, p.isSteady(sinceBoot()))
			n, err := p.reclaim(t.Context(), false)
			require.NoError(t, err)
			require.Equal(t, c.taken, n == 1)
			require.Equal(t, c.taken, p.isSteady(sinceBoot()), "the grace begins anew")
			var gone bool
			require.NoError(t, owner.QueryRow(t.Context(), `SELECT gone_at IS NOT NULL FROM medianest.worker WHERE id = 'lost'`).Scan(&gone))
			require.Equal(t, c.taken, gone)
		})
	}
}
