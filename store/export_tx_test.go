package store

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Interpret is interpret.
var Interpret = interpret

// InTx is inTx.
func (s *Store) InTx(ctx context.Context, fn func(pgx.Tx) error) error { return s.inTx(ctx, fn) }

// RetryTx is retryTx.
func (s *Store) RetryTx(ctx context.Context, fn func(pgx.Tx) error) error { return s.retryTx(ctx, fn) }
