package store_test

import (
	"context"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

// ownedTables are those with a user_id, but for codes, which are looked up by their secret alone.
func ownedTables(t *testing.T, b *bundle) []string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `
		SELECT c.relname
		FROM pg_class AS c
		JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'user_id' AND NOT a.attisdropped
		WHERE c.relnamespace = 'medianest'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname NOT IN ('one_time', 'event', 'admission', 'attempt')
			AND NOT c.relispartition
		ORDER BY c.relname`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return append(tables, "refresh_token")
}

// The role of the API sees nothing that belongs to a user unless it acts for that user, whatever the statement asks for; and
// changes nothing either.
func TestRowsOfUsersAreBehindASecondWall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	b.create(ann, "https://site.test/1")
	b.exec(`INSERT INTO medianest.files (id, content_id, user_id, path, size_bytes, sha256)
		SELECT gen_random_uuid(), d.content_id, d.user_id, 'ann/x', 1, sha256('') FROM medianest.downloads AS d`)
	b.exec(`INSERT INTO medianest.idempotency (user_id, key, fingerprint, resource_id) VALUES ($1, 'k', sha256(''), $1)`, ann.ID)
	_, err := b.api.CreateToken(t.Context(), store.NewToken{UserID: ann.ID, Name: "t", Hash: [32]byte{1}})
	require.NoError(t, err)
	session, err := b.api.CreateSession(t.Context(), store.NewSession{UserID: ann.ID, Method: "password", Refresh: [32]byte{2}})
	require.NoError(t, err)
	require.Equal(t, ann.ID, session.UserID)
	require.NoError(t, b.api.LinkIdentity(t.Context(), ann.ID, store.ExternalIdentity{Provider: "plex", Subject: "1"}))

	_, err = b.api.WithKeys(keyring(t, store.NewKey())).SetSecret(t.Context(), "plex:user:ann", []byte("x"), &ann.ID, nil)
	require.NoError(t, err)

	tables := ownedTables(t, b)
	require.Equal(t, []string{"downloads", "files", "idempotency", "job_viewer", "secret", "session", "tokens", "user_identity", "refresh_token"}, tables)
	pool := storetest.OpenPool(t, b.url, store.RoleAPI)
	s := store.New(pool)
	for _, table := range tables {
		require.Positive(t, b.count(`SELECT count(*) FROM medianest.`+table), table)
		for name, v := range map[string]store.Viewer{"nobody": {}, "another": ben.Viewer()} {
			require.Zero(t, s.CountAs(t.Context(), t, v, table), "%s as %s", table, name)
			for _, change := range []string{`DELETE FROM medianest.`, `UPDATE medianest.`} {
				sql := change + table
				if change[0] == 'U' {
					sql += map[bool]string{true: ` SET used_at = now()`, false: ` SET user_id = user_id`}[table == "refresh_token"]
				}
				require.Zero(t, s.ExecAs(t.Context(), t, v, sql), "%s as %s", sql, name)
			}
		}
		require.Positive(t, s.CountAs(t.Context(), t, ann.Viewer(), table), "%s as its own", table)
		require.Positive(t, s.CountAs(t.Context(), t, store.Viewer{Admin: true}, table), "%s for everyone", table)
	}
	// Nor can anything be made another's.
	_, err = s.TryAs(t.Context(), ben.Viewer(), `INSERT INTO medianest.idempotency (user_id, key, fingerprint, resource_id) VALUES ('`+ann.ID.String()+`', 'x', sha256(''), gen_random_uuid())`)
	require.ErrorContains(t, err, "row-level security")
	_, err = s.TryAs(t.Context(), ann.Viewer(), `UPDATE medianest.downloads SET user_id = '`+ben.ID.String()+`'`)
	require.ErrorContains(t, err, "row-level security")

	// A plain connection in the role, as psql makes it.
	conn, err := pgx.Connect(t.Context(), b.url)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // the test ends
	_, err = conn.Exec(t.Context(), `SET ROLE medianest_api`)
	require.NoError(t, err)
	for _, table := range tables {
		var n int
		require.NoError(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM medianest.`+table).Scan(&n))
		require.Zero(t, n, table)
	}
}

// Connections go from user to user; none keeps whom it acted for before, also when a request broke off.
func TestConnectionsActForOneUserAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	users := make([]store.User, 4)
	for i := range users {
		users[i] = b.user("user-" + string(rune('a'+i)))
		for n := range i + 1 {
			b.create(users[i], "https://site.test/"+uuid.NewString()+string(rune('0'+n)))
		}
	}
	pool, err := store.OpenPool(t.Context(), store.PoolOptions{URL: b.url, Role: store.RoleAPI, MaxConns: 3})
	require.NoError(t, err)
	defer pool.Close()
	s := store.New(pool)
	var wg sync.WaitGroup
	for range 4 {
		for i, u := range users {
			wg.Go(func() {
				for n := range 40 {
					ctx, cancel := context.WithCancel(t.Context())
					if n%5 == 0 {
						go cancel()
					}
					rows, err := s.TryAs(ctx, u.Viewer(), `SELECT FROM medianest.downloads`)
					if err == nil && rows != int64(i+1) {
						t.Errorf("user %d sees %d downloads", i, rows)
					}
					cancel()
				}
			})
		}
	}
	wg.Wait()
}
