// Package store is all of the platform's data access: Postgres by pgx, Redis by go-redis, one file a table or concern.
//
// Every method takes a context, is bounded by a key or a limit, and returns only this package's sentinels, wrapped
// with what was being done: callers test with errors.Is and never see a driver's error type. What a user may not see
// is ErrNotFound, never a refusal that says it exists.
//
// Creating work writes the domain row and the job in one transaction. The store does not know the queue: whoever
// assembles the process gives it one with WithQueue.
package store
