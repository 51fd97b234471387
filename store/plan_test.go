package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

// lists are the pages that are asked for, as the eighth of many users and as an admin.
type lists struct {
	downloads map[string]store.DownloadFilter
	jobs      map[string]store.JobFilter
}

// manyRows fills a database with downloads and jobs of fifty users, a twentieth of the downloads failed, a thousandth of
// the jobs running, as many failed for a reason, and a hundredth of them, the running ones included, in their second row. The eighth user has a
// collection of a hundredth of all.
func manyRows(t testing.TB, pool *pgxpool.Pool, rows int) lists {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		for _, sql := range []string{
			// Without triggers and foreign keys: nothing here looks at events.
			`SET LOCAL session_replication_role = replica`,
			`CREATE FUNCTION pg_temp.nth(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
				$$ SELECT ('0190' || lpad(to_hex($1), 8, '0') || '70008000' || lpad(to_hex($1), 12, '0'))::uuid $$`,
			`CREATE FUNCTION pg_temp.rows() RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT ` + strconv.Itoa(rows) + ` $$`,
			`INSERT INTO medianest.users (id, name, role)
				SELECT pg_temp.nth(n), 'user-' || n, 'member' FROM generate_series(1, 50) AS n`,
			`INSERT INTO medianest.content (id, key, url, profile)
				SELECT pg_temp.nth(n), 'k' || n, 'https://site.test/' || n, 'best' FROM generate_series(1, pg_temp.rows() / 5) AS n`,
			`INSERT INTO medianest.downloads (id, user_id, content_id, parent_id, position, url, profile, state, job_id, is_collection)
				SELECT pg_temp.nth(n), pg_temp.nth(CASE WHEN n / (pg_temp.rows() / 100) = 50 THEN 8 ELSE 1 + (n::bigint * 7919) % 50 END),
					pg_temp.nth(1 + n % (pg_temp.rows() / 5)),
					CASE WHEN n / (pg_temp.rows() / 100) = 50 AND n <> pg_temp.rows() / 2 THEN pg_temp.nth(pg_temp.rows() / 2) END,
					n % 1000, 'https://site.test/', 'best', CASE WHEN n % 20 = 0 THEN 'failed' ELSE 'completed' END, n, n = pg_temp.rows() / 2
				FROM generate_series(1, pg_temp.rows()) AS n`,
			`INSERT INTO medianest.files (id, content_id, user_id, path, size_bytes, sha256)
				SELECT d.id, d.content_id, d.user_id, 'p' || d.id, 1, sha256('') FROM medianest.downloads AS d WHERE d.job_id % 3 = 0`,
			`INSERT INTO river.river_job (id, kind, queue, args, state, finalized_at, attempt, max_attempts, metadata)
				SELECT n, 'download', 'download', jsonb_build_object('content_id', pg_temp.nth(1 + n % (pg_temp.rows() / 5))),
					(CASE WHEN n % 100 = 0 THEN 'discarded' ELSE 'completed' END)::river.river_job_state, now(), 1, 8,
					CASE WHEN n % 100 = 0 THEN jsonb_build_object('superseded_by', (n + pg_temp.rows())::text) ELSE '{}' END
				FROM generate_series(1, pg_temp.rows()) AS n`,
			`INSERT INTO river.river_job (id, kind, queue, args, state, finalized_at, attempt, max_attempts, metadata)
				SELECT n + pg_temp.rows(), 'download', 'download', jsonb_build_object('content_id', pg_temp.nth(1 + n % (pg_temp.rows() / 5))),
					(CASE n % 1000 WHEN 0 THEN 'running' WHEN 500 THEN 'discarded' ELSE 'completed' END)::river.river_job_state,
					CASE WHEN n % 1000 <> 0 THEN now() - interval '1 h' END, 1, 8, jsonb_build_object('public_id', n::text)
						|| CASE WHEN n % 1000 = 500 THEN '{"reason": "network", "reason_attempt": "1", "keys": ["host:rare.test"]}' ELSE '{}' END::jsonb
				FROM generate_series(100, pg_temp.rows(), 100) AS n`,
			`SELECT setval('river.river_job_id_seq', 3 * pg_temp.rows())`,
			`INSERT INTO medianest.job_map (public_id, row_id)
				SELECT n, n + pg_temp.rows() FROM generate_series(100, pg_temp.rows(), 100) AS n`,
			`INSERT INTO medianest.job_viewer (job_id, user_id, download_id)
				SELECT d.job_id, d.user_id, d.id FROM medianest.downloads AS d`,
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	}))
	_, err := pool.Exec(ctx, `VACUUM (ANALYZE) medianest.downloads, medianest.content, medianest.files, medianest.job_viewer, medianest.job_map,
		river.river_job`)
	require.NoError(t, err)

	var one, collection uuid.UUID
	require.NoError(t, pool.QueryRow(ctx, `SELECT d.id, d.user_id FROM medianest.downloads AS d WHERE d.is_collection`).Scan(&collection, &one))
	user, admin := store.Viewer{UserID: one}, store.Viewer{Admin: true}
	s := store.New(pool)
	deep := func(v store.Viewer) string {
		_, next, err := s.ListDownloads(ctx, store.DownloadFilter{Viewer: v, Limit: 100})
		require.NoError(t, err)
		require.NotEmpty(t, next)
		return next
	}
	deepJobs := func(v store.Viewer) string {
		_, next, err := s.ListJobs(ctx, store.JobFilter{Viewer: v, Limit: 100})
		require.NoError(t, err)
		require.NotEmpty(t, next)
		return next
	}
	return lists{
		downloads: map[string]store.DownloadFilter{
			"newest":         {Viewer: user, Limit: 50},
			"next page":      {Viewer: user, Limit: 50, Cursor: deep(user)},
			"failed":         {Viewer: user, Limit: 50, States: []string{store.StateFailed}},
			"all":            {Viewer: admin, Limit: 50},
			"all, next page": {Viewer: admin, Limit: 50, Cursor: deep(admin)},
			"all failed":     {Viewer: admin, Limit: 50, States: []string{store.StateFailed}},
			"children":       {Viewer: user, Limit: 50, ParentID: &collection},
		},
		jobs: map[string]store.JobFilter{
			"newest":         {Viewer: user, Limit: 50},
			"next page":      {Viewer: user, Limit: 50, Cursor: deepJobs(user)},
			"completed":      {Viewer: user, Limit: 50, States: []string{"completed"}},
			"all":            {Viewer: admin, Limit: 50},
			"all, next page": {Viewer: admin, Limit: 50, Cursor: deepJobs(admin)},
			"all running":    {Viewer: admin, Limit: 50, States: []string{"running"}},
			"all completed":  {Viewer: admin, Limit: 50, States: []string{"completed"}, Kinds: []string{"download"}},
			"of a queue":     {Viewer: admin, Limit: 50, Queues: []string{"empty"}},
			"dead letters":   {Viewer: admin, Limit: 50, States: []string{"discarded"}},
			"of a reason":    {Viewer: admin, Limit: 50, Reasons: []string{"network"}},
			"of a key":       {Viewer: admin, Limit: 50, Key: "host:rare.test"},
			"of a user":      {Viewer: admin, Limit: 50, UserID: one},
		},
	}
}

// Each list goes by an index, from the cursor on, and stops at the page's end, whatever lies behind.
func TestListsGoByIndexes(t *testing.T) {
	t.Parallel()
	const rows = 10_000
	pool := storetest.Pool(t, "")
	lists := manyRows(t, pool, rows)
	for name, f := range lists.downloads {
		sql, args, err := store.DownloadsQuery(f)
		require.NoError(t, err)
		most := rows / 5
		if name == "failed" {
			most = 150 // the one that failed of the user's many, a collection, and its children
		}
		require.LessOrEqual(t, rowsLookedAt(t, pool, sql, args), most, "downloads, %s", name)
	}
	for name, f := range lists.jobs {
		sql, args, err := store.JobsQuery(f)
		require.NoError(t, err)
		require.LessOrEqual(t, rowsLookedAt(t, pool, sql, args), rows/5, "jobs, %s", name)
	}
	for name, f := range map[string]store.JobFilter{
		"of a reason": {Reasons: []string{"network"}}, "of a key": {Key: "host:rare.test"}, "of a state": {States: []string{"discarded"}},
	} {
		sql, args, err := store.CountQuery(store.BulkRetry, f)
		require.NoError(t, err)
		require.LessOrEqual(t, rowsLookedAt(t, pool, sql, args), rows/5, "bulk, %s", name)
	}
}

// Whoever looks for a job by its public id finds its present row by indexes.
func TestJobsAreFoundByIndexes(t *testing.T) {
	t.Parallel()
	const rows = 10_000
	url := storetest.DB(t)
	pool := storetest.OpenPool(t, url, "")
	manyRows(t, pool, rows)
	b := &bundle{t: t, pool: pool, url: url}
	rec := &recorder{}
	cfg := pool.Config()
	cfg.ConnConfig.Tracer = rec
	traced, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(traced.Close)
	s := store.New(traced).WithQueue(newRiverQueue(t, pool))
	ctx, admin := t.Context(), store.Viewer{Admin: true}
	var d store.Download
	require.NoError(t, pool.QueryRow(ctx, `
		SELECT d.id, d.content_id, d.user_id, d.job_id
		FROM medianest.downloads AS d
		WHERE d.job_id = 1000`).Scan(&d.ID, &d.ContentID, &d.UserID, &d.JobID))
	b.exec(`UPDATE medianest.content SET job_id = $2 WHERE id = $1`, d.ContentID, *d.JobID)
	b.exec(`UPDATE medianest.downloads SET state = 'running' WHERE id = $1`, d.ID)
	b.exec(`UPDATE medianest.downloads SET cancelled_at = now(), state = 'cancelled' WHERE content_id = $2 AND id <> $1`, d.ID, d.ContentID)
	for range 2 { // a history, and the consumer's place in it
		_, _, err := s.AdvanceTick(ctx)
		require.NoError(t, err)
		for n := 1; n > 0; {
			n, err = s.FollowJobs(ctx, 5000)
			require.NoError(t, err)
		}
	}
	many := make([]int64, 200)
	for i := range many {
		many[i] = int64(50 * (i + 1))
	}

	for _, c := range []struct {
		name string
		call func() error
	}{
		{"FindJob", func() error { _, err := s.FindJob(ctx, *d.JobID, store.Viewer{UserID: d.UserID}); return err }},
		{"FindJobByRow", func() error { _, err := s.FindJob(ctx, *d.JobID+rows, admin); return err }},
		{"CurrentRow", func() error { _, err := s.CurrentRow(ctx, *d.JobID); return err }},
		{"WatchedJobs", func() error { _, err := s.WatchedJobs(ctx, many); return err }},
		{"ContentUnfinished", func() error { _, err := s.ContentUnfinished(ctx, d.ContentID); return err }},
		{"BeginFetch", func() error { _, err := s.BeginFetch(ctx, begin(d.ContentID, *d.JobID+rows)); return err }},
		{"FollowJobs", func() error {
			b.exec(`UPDATE river.river_job SET state = 'retryable' WHERE id = $1`, *d.JobID+rows)
			if _, _, err := s.AdvanceTick(ctx); err != nil {
				return err
			}
			_, err := s.FollowJobs(ctx, 1000)
			return err
		}},
		{"CancelJob", func() error { _, err := s.CancelJob(ctx, *d.JobID, admin); return err }},
		{"RetryJob", func() error { _, err := s.RetryJob(ctx, *d.JobID, admin); return err }},
		{"CancelDownload", func() error { _, err := s.CancelDownload(ctx, d.ID, admin); return err }},
		{"RetryDownload", func() error { _, err := s.RetryDownload(ctx, d.ID, admin); return err }},
	} {
		rec.take()
		require.NoError(t, c.call(), c.name)
		queries := rec.take()
		require.NotEmpty(t, queries)
		for _, q := range queries {
			require.LessOrEqual(t, rowsLookedAt(t, pool, q.SQL, q.Args...), rows/5, "%s: %s", c.name, q.SQL)
		}
	}
}

// recorder keeps the statements that go over its connections.
type recorder struct {
	mu      sync.Mutex
	queries []pgx.TraceQueryStartData
}

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch verb, _, _ := strings.Cut(strings.TrimSpace(q.SQL), " "); strings.TrimSpace(verb) {
	case "begin", "commit", "rollback", "savepoint", "release":
	default:
		r.queries = append(r.queries, q)
	}
	return ctx
}

func (r *recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// take returns what was recorded and begins anew.
func (r *recorder) take() []pgx.TraceQueryStartData {
	r.mu.Lock()
	defer r.mu.Unlock()
	queries := r.queries
	r.queries = nil
	return queries
}

// planNode is a part of what EXPLAIN says.
type planNode struct {
	Type    string     `json:"Node Type"`
	Rows    float64    `json:"Actual Rows"`
	Removed float64    `json:"Rows Removed by Filter"`
	Loops   float64    `json:"Actual Loops"`
	Plans   []planNode `json:"Plans"`
}

// rowsLookedAt runs the query and returns how many rows it read from tables and indexes.
func rowsLookedAt(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) int {
	t.Helper()
	var raw []byte
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.Background())
	require.NoError(t, tx.QueryRow(t.Context(), `EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) `+sql, args...).Scan(&raw), sql)
	var plan []struct{ Plan planNode }
	require.NoError(t, json.Unmarshal(raw, &plan))
	var walk func(n planNode) float64
	walk = func(n planNode) (sum float64) {
		if len(n.Plans) == 0 {
			sum = (n.Rows + n.Removed) * n.Loops
		}
		for _, p := range n.Plans {
			sum += walk(p)
		}
		return sum
	}
	return int(walk(plan[0].Plan))
}

func BenchmarkLists(b *testing.B) {
	pool := storetest.Pool(b, "")
	lists := manyRows(b, pool, 1_000_000)
	s := store.New(pool)
	for name, f := range lists.downloads {
		b.Run("downloads/"+name, func(b *testing.B) {
			for b.Loop() {
				_, _, err := s.ListDownloads(b.Context(), f)
				require.NoError(b, err)
			}
		})
	}
	for name, f := range lists.jobs {
		b.Run("jobs/"+name, func(b *testing.B) {
			for b.Loop() {
				_, _, err := s.ListJobs(b.Context(), f)
				require.NoError(b, err)
			}
		})
	}
	for name, f := range map[string]store.JobFilter{"of a reason": {Reasons: []string{"network"}}, "all": {Kinds: []string{"download"}}} {
		b.Run("bulk dry run/"+name, func(b *testing.B) {
			for b.Loop() {
				_, _, err := s.CountJobs(b.Context(), store.BulkDelete, f)
				require.NoError(b, err)
			}
		})
	}
}
