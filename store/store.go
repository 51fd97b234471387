package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Queue is what the store needs of the job queue. Every method works inside the caller's transaction, so that a job and
// the row it is about are committed together or not at all.
type Queue interface {
	// EnqueueDownloadsTx inserts one download job for each fetch and returns their ids in the same order.
	EnqueueDownloadsTx(ctx context.Context, tx pgx.Tx, fetches []NewFetch) ([]int64, error)

	// EnqueueRemoveFilesTx inserts one job for each view, which removes the view's files from the library.
	EnqueueRemoveFilesTx(ctx context.Context, tx pgx.Tx, views []ContentView) error

	// CancelTx cancels a waiting job at once, and asks for the end of a running one. A job that is final or gone is
	// no error.
	CancelTx(ctx context.Context, tx pgx.Tx, row JobRow) error

	// RetryTx makes a job that is not running available now.
	RetryTx(ctx context.Context, tx pgx.Tx, row JobRow) error
}

// NewFetch is a content to be fetched, and what the job's limits go by.
type NewFetch struct {
	ContentID uuid.UUID
	Host      string    // the site that it is fetched from, as limits name it; "" if there is none
	UserID    uuid.UUID // who asked for it first
}

// ContentView is one user's view of a content: the paths in the library that are this user's.
type ContentView struct {
	UserID    uuid.UUID
	ContentID uuid.UUID
}

// Viewer is on whose behalf a user-owned row is read or changed. A row that the viewer does not own is ErrNotFound,
// except to an admin. The zero Viewer sees nothing.
type Viewer struct {
	UserID uuid.UUID
	Admin  bool
}

// Store gives access to the platform's data. It is safe for concurrent use and holds no state of its own besides the
// pool. In the role of the API its methods see what belongs to the user whom they are given, and no more.
type Store struct {
	pool  db
	queue Queue
	keys  *Keyring
}

// New returns a store over pool, which stays the caller's to close. Methods that create or cancel work need a queue:
// see WithQueue.
func New(pool *pgxpool.Pool) *Store {
	return &Store{pool: db{Pool: pool}}
}

// WithQueue returns a copy of the store that enqueues with q.
func (s *Store) WithQueue(q Queue) *Store {
	c := *s
	c.queue = q
	return &c
}

// Ping asks the database for an answer.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		return fmt.Errorf("ping database: %w", interpret(err))
	}
	return nil
}

const (
	// rollbackTimeout bounds the rollback of a transaction whose context has ended.
	rollbackTimeout = 5 * time.Second

	// txAttempts is how often retryTx runs its function at most.
	txAttempts = 4
)

// inTx runs fn in a transaction (READ COMMITTED), which it commits if fn returns nil and rolls back otherwise, also
// when fn panics or ctx has ended. fn runs once.
func (s *Store) inTx(ctx context.Context, fn func(tx pgx.Tx) error) error {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", interpret(err))
	}
	committed := false
	defer func() {
		if committed {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		// A rollback that fails closes the connection, which rolls back as well: there is nothing to tell.
		_ = tx.Rollback(ctx)
	}()
	if err := fn(tx); err != nil {
		return interpret(err)
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", interpret(err))
	}
	committed = true
	return nil
}

// retryTx is inTx that runs fn again, in a new transaction, when it lost a deadlock or was not serializable. fn must
// therefore touch nothing but the database, and set its results anew each time.
func (s *Store) retryTx(ctx context.Context, fn func(tx pgx.Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := s.inTx(ctx, fn)
		if attempt == txAttempts || !isTransient(err) {
			return err
		}
	}
}

// isTransient reports whether the transaction lost to a concurrent one and may be run again at once.
func isTransient(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "40001" || pgErr.Code == "40P01")
}
