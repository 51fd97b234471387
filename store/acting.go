package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// acting is for whom a connection in the role of the API reads and writes: what belongs to other users is not there for it
// (row level security, migration 0018). The zero value is nobody.
type acting struct {
	user     uuid.UUID
	everyone bool
}

type actingKey struct{}

// db is the pool, with whom its statements are for.
type db struct {
	*pgxpool.Pool

	acting
}

func (d db) in(ctx context.Context) context.Context {
	return context.WithValue(ctx, actingKey{}, d.acting)
}

// Query is the pool's.
func (d db) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return d.Pool.Query(d.in(ctx), sql, args...)
}

// QueryRow is the pool's.
func (d db) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return d.Pool.QueryRow(d.in(ctx), sql, args...)
}

// Exec is the pool's.
func (d db) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return d.Pool.Exec(d.in(ctx), sql, args...)
}

// Begin is the pool's.
func (d db) Begin(ctx context.Context) (pgx.Tx, error) { return d.Pool.Begin(d.in(ctx)) }

// as returns the store for what is the viewer's.
func (s *Store) as(v Viewer) *Store {
	c := *s
	c.pool.acting = acting{user: v.UserID, everyone: v.Admin}
	return &c
}

// asUser returns the store for what is the user's.
func (s *Store) asUser(id uuid.UUID) *Store { return s.as(Viewer{UserID: id}) }

// Everyone returns the store for what looks across users: duties that any process has for all, and what is decided before
// it is known who asks.
func (s *Store) Everyone() *Store { return s.as(Viewer{Admin: true}) }

// widen has the rest of the transaction act for everyone: what a user does to their own may concern what others have of
// the same content. Whose it is has been found out before, by the viewer's own sight.
func widen(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `SELECT set_config('medianest.everyone', 'on', true)`); err != nil {
		return fmt.Errorf("act for everyone: %w", err)
	}
	return nil
}

// actFor has a connection act for whom the statement that it is taken for is. It costs a round trip when that is another
// than before.
func actFor(ctx context.Context, conn *pgx.Conn) error {
	wanted, _ := ctx.Value(actingKey{}).(acting)
	data := conn.PgConn().CustomData()
	if now, known := data[actingName].(acting); known && now == wanted {
		return nil
	}
	user, everyone := "", "off"
	if wanted.user != uuid.Nil {
		user = wanted.user.String()
	}
	if wanted.everyone {
		everyone = "on"
	}
	delete(data, actingName)
	_, err := conn.Exec(ctx, `SELECT set_config('medianest.user_id', $1, false), set_config('medianest.everyone', $2, false)`, user, everyone)
	if err != nil {
		return err
	}
	data[actingName] = wanted
	return nil
}

const actingName = "medianest.acting"
