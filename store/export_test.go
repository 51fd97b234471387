package store

import "github.com/jackc/pgx/v5"

// What tests look at from outside the package, where storetest can be imported.

var CleanJSON = cleanJSON

// TrimBatch is the size of retention's batches.
const TrimBatch = trimBatch

// DownloadsQuery is the statement of a page.
func DownloadsQuery(f DownloadFilter) (string, pgx.StrictNamedArgs, error) {
	q, err := listQuery(f, f.Limit)
	return q.sql(), q.args, err
}

// JobsQuery is the statement of a page.
func JobsQuery(f JobFilter) (string, pgx.StrictNamedArgs, error) { return listJobsQuery(f, f.Limit) }
