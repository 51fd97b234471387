package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrNotFound says that no such row exists, or that the viewer may not see it.
	ErrNotFound = errors.New("not found")

	// ErrConflict says that the row is not in a state that allows the change, or that another one holds its unique
	// value.
	ErrConflict = errors.New("conflict")

	// ErrIdempotencyMismatch says that an idempotency key was used before, for a different request.
	ErrIdempotencyMismatch = errors.New("idempotency key was used for a different request")

	// ErrSuperseded says that a worker's job is no longer its own: cancelled, or gone on elsewhere. What the
	// worker did must not be written.
	ErrSuperseded = errors.New("superseded")

	// ErrStagedElsewhere says that what has been fetched of a content so far lies on another volume, and that it is
	// still left to the workers of that volume to go on with it.
	ErrStagedElsewhere = errors.New("staged on another volume")

	// ErrOtherJob says that another job is at the content: this one has nothing to do and nobody to do it for.
	ErrOtherJob = errors.New("another job is at it")

	// ErrQuota says that the user has as much as they may have.
	ErrQuota = errors.New("quota reached")

	// ErrReused says that a refresh token came that was used before, and that its session has ended for that.
	ErrReused = errors.New("refresh token was used before")

	// ErrInvalid says that the database refuses a value: too large, malformed, against a check.
	ErrInvalid = errors.New("invalid value")

	// ErrUnavailable says that the database cannot answer now: down, starting, failing over, out of connections or
	// space, or too slow for the set time-outs. The same call may succeed later.
	ErrUnavailable = errors.New("database unavailable")
)

// interpret turns an error of the driver into one of the package's sentinels, keeping the cause beside it for the log.
// What it does not know passes unchanged, as do contexts' errors and sentinels. A method calls it once, where it wraps
// the error with what was being done:
//
//	return fmt.Errorf("load download %s: %w", id, interpret(err))
func interpret(err error) error {
	if err == nil {
		return nil
	}
	sentinel := classify(err)
	if sentinel == nil || errors.Is(err, sentinel) {
		return err
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}

func classify(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNotFound
	}
	// A statement of a caller that left is cancelled on the server as well: the caller's leaving comes first.
	if errors.Is(err, context.Canceled) {
		return nil
	}
	pgErr, fromServer := errors.AsType[*pgconn.PgError](err)
	// Before the deadlines, since an attempt to connect has one of its own.
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		if fromServer {
			return classifyRefusal(pgErr.Code)
		}
		return ErrUnavailable
	}
	if fromServer {
		return classifyCode(pgErr.Code)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	if brokenConn(err) {
		return ErrUnavailable
	}
	return nil
}

// brokenConn reports whether err is of a connection that ended under a statement.
func brokenConn(err error) bool {
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return pgconn.SafeToRetry(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// classifyRefusal maps what a server says to a client that it does not let in. A wrong password, a role or a database that
// does not exist are no sentinel's: neither is a value of the caller's at fault, nor does waiting help.
func classifyRefusal(code string) error {
	if err := classifyCode(code); errors.Is(err, ErrUnavailable) {
		return err
	}
	return nil
}

// classifyCode maps SQLSTATE codes, by class where the whole class means one thing.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func classifyCode(code string) error {
	switch code {
	case "23505", "23503", "23001", "23P01": // unique, foreign key, restrict, exclusion
		return ErrConflict
	case "23502", "23514": // not null, check
		return ErrInvalid
	case "25006", // read only: the primary we knew is a standby now
		"55P03", // lock_timeout
		"57014", // statement_timeout; a cancelled context surfaces as the context's error
		"25P03", // idle_in_transaction_session_timeout
		"40001", "40P01":
		return ErrUnavailable
	}
	switch {
	case strings.HasPrefix(code, "22"):
		return ErrInvalid
	case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "53"), strings.HasPrefix(code, "57P"), strings.HasPrefix(code, "58"):
		return ErrUnavailable
	}
	return nil
}
