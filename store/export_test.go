package store

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// What tests look at from outside the package, where storetest can be imported.

var CleanJSON = cleanJSON

// TrimBatch is the size of retention's batches.
const TrimBatch = trimBatch

// DownloadsQuery is the statement of a page.
func DownloadsQuery(f DownloadFilter) (string, pgx.StrictNamedArgs, error) {
	q, err := listQuery(f, f.Limit, nil)
	return q.sql(), q.args, err
}

// JobsQuery is the statement of a page.
func JobsQuery(f JobFilter) (string, pgx.StrictNamedArgs, error) { return listJobsQuery(f, f.Limit) }

// CountQuery is the statement of a dry run.
func CountQuery(action string, f JobFilter) (string, pgx.StrictNamedArgs, error) {
	return countQuery(action, f)
}

// GatesSQL is the look at all limits.
var GatesSQL = gatesSQL

// PositionQuery is the statement that counts the line before a row.
func PositionQuery(ctx context.Context, db rowQuerier, row int64) (string, pgx.StrictNamedArgs, error) {
	rows, err := db.Query(ctx, `
		SELECT a.row_id AS job_id, a.row_id, a.queue, a.priority, a.keys, a.user_key, a.scheduled_at, false AS is_put_off, a.blocked_on
		FROM medianest.admission AS a
		WHERE a.row_id = $1`, row)
	if err != nil {
		return "", nil, err
	}
	w, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[waiter])
	return positionSQL, w.positionArgs(), err
}

// TryAs runs a statement for the viewer, and returns how many rows it returned or changed.
func (s *Store) TryAs(ctx context.Context, v Viewer, sql string) (int64, error) {
	tag, err := s.as(v).pool.Exec(ctx, sql)
	return tag.RowsAffected(), err
}

// ExecAs is TryAs of what must not fail.
func (s *Store) ExecAs(ctx context.Context, t testing.TB, v Viewer, sql string) int64 {
	t.Helper()
	n, err := s.TryAs(ctx, v, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// CountAs counts the rows of a table that the viewer sees.
func (s *Store) CountAs(ctx context.Context, t testing.TB, v Viewer, table string) int64 {
	t.Helper()
	return s.ExecAs(ctx, t, v, "SELECT FROM medianest."+table)
}
