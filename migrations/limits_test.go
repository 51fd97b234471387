package migrations_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/migrations"
)

// A new platform has limits. What an administrator makes of them stays, whatever is migrated later.
func TestDefaultLimits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	limits := func() []string {
		rows, err := b.pool.Query(t.Context(), `
			SELECT concat_ws(' ', key, max_running, spacing_s, jitter_s)
			FROM medianest.limits
			ORDER BY key`)
		require.NoError(t, err)
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return found
	}
	b.up(t)
	require.Equal(t, []string{"host:youtube.com 2 10 10", "kind:download 6 0 0", "user:* 2 0 0"}, limits())
	b.exec(t, `UPDATE medianest.limits SET max_running = 9, updated_by = $1 WHERE key = 'user:*'`, uuid.New())
	b.exec(t, `DELETE FROM medianest.limits WHERE key = 'kind:download'`)
	want := []string{"host:youtube.com 2 10 10", "user:* 9 0 0"}
	b.up(t)
	require.Equal(t, want, limits())

	// Taken back and applied again, it leaves alone what is an administrator's.
	const before = 6
	later := len(b.status(t).Migrations) - before
	require.NoError(t, migrations.Down(t.Context(), b.pool, later, b.log))
	require.Equal(t, []string{"user:* 9 0 0"}, limits())
	b.up(t)
	require.Equal(t, []string{"host:youtube.com 2 10 10", "kind:download 6 0 0", "user:* 9 0 0"}, limits())
}
