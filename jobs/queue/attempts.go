package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"medianest/jobs/reason"
)

// Keys of river_job.metadata that the outbox's triggers read: why an attempt ended as it did, and which attempt said
// so. Both are strings.
const (
	metadataReason        = "reason"
	metadataReasonAttempt = "reason_attempt"
)

// outcome is how an attempt ended, as a metric label and in logs.
type outcome string

const (
	completed   outcome = "completed"
	retried     outcome = "retried"     // failed, and will be tried again
	failed      outcome = "failed"      // failed for good: a permanent reason, or the attempts are used up
	snoozed     outcome = "snoozed"     // put off without spending an attempt
	interrupted outcome = "interrupted" // handed back by a worker that stops, without spending an attempt
	cancelled   outcome = "cancelled"   // ended because somebody asked for it
)

// attempts is the middleware around each attempt. It writes a log line at the start and at the end, counts and times
// it, puts the reason into the job's metadata (so that the trigger sees it in the very UPDATE that changes the state),
// and ends it when a cancel is found in the database that River's notification did not tell of.
type attempts struct {
	river.PluginDefaults

	log     *slog.Logger
	metrics *metrics
	cancels *cancels
}

var _ rivertype.WorkerMiddleware = (*attempts)(nil)

// Work implements rivertype.WorkerMiddleware.
func (a *attempts) Work(ctx context.Context, job *rivertype.JobRow, work func(context.Context) error) (err error) {
	begun := time.Now()
	a.log.LogAttrs(ctx, slog.LevelInfo, "job started", logAttrs(job)...)
	a.metrics.begin(job)

	// A snoozed or interrupted attempt's number is given out again: what it left behind must not pass for this one's.
	// It is set aside before the work, because JobCompleteTx writes in its midst. A job that never failed has nothing
	// to set aside, and its success costs no metadata.
	if hasReason(job.Metadata) {
		a.setReason(ctx, job, "")
	}

	workCtx, release := a.cancels.enter(ctx, job.ID)
	ended := false
	defer func() {
		asked := release()
		if !ended { // a panic, which River records with its stack
			err = errors.New("panic")
		}
		end := judge(ctx, job, err, asked)
		if end.reason != "" {
			a.setReason(ctx, job, end.reason)
		}
		took := time.Since(begun)
		a.metrics.end(job, end, took)
		trace.SpanFromContext(ctx).SetAttributes(
			attribute.String("medianest.outcome", string(end.outcome)), attribute.String("medianest.reason", string(end.reason)))
		a.logEnd(ctx, job, end, took, err)
		if ended && err != nil {
			err = &attemptError{err: err, asked: asked}
		}
	}()
	err = work(workCtx)
	ended = true
	return err
}

// setReason says why the attempt ended, to be written along with its end.
func (a *attempts) setReason(ctx context.Context, job *rivertype.JobRow, r reason.Reason) {
	err := errors.Join(
		river.MetadataSet(ctx, metadataReason, string(r)),
		river.MetadataSet(ctx, metadataReasonAttempt, strconv.Itoa(job.Attempt)),
	)
	if err != nil {
		a.log.ErrorContext(ctx, "job's reason not kept", "job_id", job.ID, "reason", string(r), "err", err)
	}
}

func hasReason(metadata []byte) bool {
	if !bytes.Contains(metadata, []byte(`"`+metadataReason+`"`)) {
		return false
	}
	var kept struct {
		Reason *string `json:"reason"`
	}
	return json.Unmarshal(metadata, &kept) == nil && kept.Reason != nil && *kept.Reason != ""
}

// end is what became of an attempt.
type end struct {
	outcome outcome
	reason  reason.Reason
}

// judge says what becomes of an attempt that returned err. ctx is the attempt's own, as River made it; asked tells
// that the cancel watch ended it. It mirrors what River does with the error.
func judge(ctx context.Context, job *rivertype.JobRow, err error, asked bool) end {
	var (
		cancel *river.JobCancelError
		snooze *river.JobSnoozeError
	)
	switch {
	case err == nil:
		return end{completed, ""}
	case asked || errors.Is(context.Cause(ctx), river.ErrJobCancelledRemotely):
		return end{cancelled, reason.Cancelled}
	case errors.As(err, &snooze):
		return end{snoozed, reasonOf(err, "")}
	case errors.As(err, &cancel):
		why := reasonOf(err, reason.Internal)
		if why == reason.Cancelled {
			return end{cancelled, why}
		}
		return end{failed, why}
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return end{interrupted, ""}
	case job.Attempt >= job.MaxAttempts:
		return end{failed, reasonOf(err, reason.Internal)}
	}
	return end{retried, reasonOf(err, reason.Internal)}
}

// reasonOf finds the reason in err. An error without one is a fault of ours, unless otherwise says otherwise.
func reasonOf(err error, otherwise reason.Reason) reason.Reason {
	if e := reason.Find(err); e != nil {
		return e.Reason
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return reason.Timeout
	}
	return otherwise
}

func logAttrs(job *rivertype.JobRow) []slog.Attr {
	return []slog.Attr{
		slog.Int64("job_id", job.ID), slog.String("kind", job.Kind), slog.String("queue", job.Queue), slog.Int("attempt", job.Attempt),
	}
}

func (a *attempts) logEnd(ctx context.Context, job *rivertype.JobRow, e end, took time.Duration, err error) {
	level := slog.LevelInfo
	switch {
	case e.reason == reason.Internal:
		level = slog.LevelError
	case e.outcome == retried, e.outcome == failed && e.reason.Policy() != reason.Permanent:
		level = slog.LevelWarn
	}
	attrs := append(logAttrs(job),
		slog.String("outcome", string(e.outcome)), slog.String("reason", string(e.reason)), slog.Int64("duration_ms", took.Milliseconds()))
	if err != nil {
		attrs = append(attrs, slog.String("err", private(err)))
	}
	a.log.LogAttrs(ctx, level, "job ended", attrs...)
}

// attemptError is what River gets to see of an attempt's error: it behaves as the error does, and tells the error
// handler that the attempt is already in the log. Its text is kept in the row and shown to whoever may see the job, so
// it is what people may be told; the whole story is in the log.
type attemptError struct {
	err   error
	asked bool // ended by the cancel watch
}

func (e *attemptError) Error() string {
	failure := reason.Find(e.err)
	if failure == nil {
		failure = &reason.Error{Reason: reasonOf(e.err, reason.Internal)}
	}
	return string(failure.Reason) + ": " + failure.Describe()
}

func (e *attemptError) Unwrap() []error {
	if e.asked {
		return []error{river.ErrJobCancelledRemotely, e.err}
	}
	return []error{e.err}
}

// private is the error's text, without the prefix that River's cancel error puts before its cause.
func private(err error) string {
	var cancel *river.JobCancelError
	if errors.As(err, &cancel) {
		if cause := cancel.Unwrap(); cause != nil {
			return cause.Error()
		}
	}
	return err.Error()
}

// errorHandler logs what no middleware sees: rows that River cannot decode, kinds that it does not know, and the stack
// of a panic. It changes nobody's fate.
type errorHandler struct{ log *slog.Logger }

var _ river.ErrorHandler = (*errorHandler)(nil)

// HandleError implements river.ErrorHandler.
func (h *errorHandler) HandleError(ctx context.Context, job *rivertype.JobRow, err error) *river.ErrorHandlerResult {
	var seen *attemptError
	if !errors.As(err, &seen) {
		h.log.ErrorContext(ctx, "job could not be worked", "job_id", job.ID, "kind", job.Kind, "queue", job.Queue, "attempt", job.Attempt, "err", err)
	}
	return nil
}

// HandlePanic implements river.ErrorHandler.
func (h *errorHandler) HandlePanic(ctx context.Context, job *rivertype.JobRow, panicked any, stack string) *river.ErrorHandlerResult {
	h.log.ErrorContext(ctx, "job panicked", "job_id", job.ID, "kind", job.Kind, "queue", job.Queue, "attempt", job.Attempt,
		"err", fmt.Sprint(panicked), "stack", stack)
	return nil
}
