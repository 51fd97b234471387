package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
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

// metadataKeys are the keys, an array of strings, under which a job needs admission.
const metadataKeys = "keys"

// refusedPause is how long a job rests that was fetched by a process that may not work it. Such a process has some of
// its connections only, and would fetch the job again at once.
const refusedPause = time.Second

// outcome is how an attempt ended, as a metric label and in logs.
type outcome string

const (
	completed   outcome = "completed"
	retried     outcome = "retried"     // failed, and will be tried again
	failed      outcome = "failed"      // failed for good: a permanent reason, or the attempts are used up
	snoozed     outcome = "snoozed"     // put off without spending an attempt
	interrupted outcome = "interrupted" // handed back by a worker that stops or is cut off, without spending an attempt
	lost        outcome = "lost"        // taken from this process meanwhile: what became of it here is of no account
	cancelled   outcome = "cancelled"   // ended because somebody asked for it
)

// attempts is the middleware around each attempt. It writes a log line at the start and at the end, counts and times
// it, puts the reason into the job's metadata (so that the trigger sees it in the very UPDATE that changes the state),
// and ends it when the presence says so: a cancel that River's notification did not tell of, a job that is not this
// process's any more, a process that is cut off.
type attempts struct {
	river.PluginDefaults

	log      *slog.Logger
	metrics  *metrics
	presence *presence
	breakers *breakers
	onFree   func()             // keys were freed
	ends     together[*attempt] // see free
}

// attempt is one that runs. Its context knows it.
type attempt struct {
	job      *rivertype.JobRow
	begun    time.Time
	breakers *breakers
	bytes    atomic.Int64 // see NoteBytes
	log      jobLog       // see Say
	kept     bool         // what is to be told of its end is
}

type attemptKey struct{}

// attemptOf is the attempt whose context it is, or nil.
func attemptOf(ctx context.Context) *attempt {
	at, _ := ctx.Value(attemptKey{}).(*attempt)
	return at
}

var _ rivertype.WorkerMiddleware = (*attempts)(nil)

// Work implements rivertype.WorkerMiddleware.
func (a *attempts) Work(ctx context.Context, job *rivertype.JobRow, work func(context.Context) error) (err error) {
	if superseded(job) { // somebody made the row available again, as River UI lets one
		a.log.LogAttrs(ctx, slog.LevelWarn, "superseded row not worked", logAttrs(job)...)
		return &attemptError{err: river.JobCancel(&reason.Error{
			Reason: reason.Cancelled, Detail: "The job goes on as another row.",
		})}
	}
	at := &attempt{job: job, begun: time.Now(), breakers: a.breakers}
	at.log.write = func(lines []line) { a.writeLog(ctx, job, lines) }
	a.log.LogAttrs(ctx, slog.LevelInfo, "job started", logAttrs(job)...)
	a.metrics.begin(job)

	// A snoozed or interrupted attempt's number is given out again: what it left behind must not pass for this one's.
	// It is set aside before the work, because JobCompleteTx writes in its midst. A job that never failed has nothing
	// to set aside, and its success costs no metadata.
	if hasReason(job.Metadata) {
		a.setReason(ctx, job, "")
	}

	workCtx, release := a.presence.enter(context.WithValue(ctx, attemptKey{}, at), job.ID)
	ended := false
	defer func() {
		cause := release()
		if !ended { // a panic, which River records with its stack
			err = errors.New("panic")
		}
		end := judge(ctx, job, err, cause)
		if end.reason != "" {
			a.setReason(ctx, job, end.reason)
			a.breakers.settle(ctx, job, end.reason)
		}
		a.keep(ctx, at, end, cause, err)
		took := time.Since(at.begun)
		a.metrics.end(job, end, took)
		trace.SpanFromContext(ctx).SetAttributes(
			attribute.String("medianest.outcome", string(end.outcome)), attribute.String("medianest.reason", string(end.reason)))
		a.logEnd(ctx, job, end, took, err)
		if ended {
			err = a.result(job, err, cause)
		}
	}()
	if err = context.Cause(workCtx); errors.Is(err, ErrFenced) {
		err = &refused{err}
	} else {
		if err = work(workCtx); err == nil && workCtx.Err() == nil {
			a.free(ctx, at)
		}
	}
	ended = true
	return err
}

// refused is an attempt that did not begin because its process is cut off.
type refused struct{ error }

func (r *refused) Unwrap() error { return r.error }

// result is what River gets for an attempt that returned err and was ended here because of cause.
func (a *attempts) result(job *rivertype.JobRow, err, cause error) error {
	var unbegun *refused
	switch {
	case errors.Is(cause, ErrSuperseded):
		return &unreported{cause}
	case err == nil:
		return nil
	case errors.As(err, &unbegun):
		return river.JobSnooze(refusedPause)
	case errors.Is(cause, ErrFenced):
		// River would try to write until the database answers, and what it tried before may arrive as well, when the row
		// runs again.
		a.presence.handBack(job)
		return &unreported{cause}
	}
	return &attemptError{err: err, asked: errors.Is(cause, river.ErrJobCancelledRemotely)}
}

// unreported is the error of an attempt that River must write nothing of: the row may be another attempt's by now, and
// River's own guard is the row's state alone. River takes an error with these methods for that of a batch of jobs and
// reports each of them on its own; here there are none. A cancel asked for is written all the same.
type unreported struct{ error }

// Jobs are those to report: none.
func (*unreported) Jobs() []*rivertype.JobRow { return nil }

// ErrorsByID are those of the jobs to report: none.
func (*unreported) ErrorsByID() map[int64]error { return nil }

func (u *unreported) Unwrap() error { return u.error }

// setReason says why the attempt ended, to be written along with its end.
func (a *attempts) setReason(ctx context.Context, job *rivertype.JobRow, r reason.Reason) {
	err := errors.Join(
		river.MetadataSet(ctx, metadataReason, string(r)),
		river.MetadataSet(ctx, metadataReasonAttempt, strconv.Itoa(job.Attempt)),
	)
	if err != nil {
		a.log.LogAttrs(ctx, slog.LevelError, "job's reason not kept",
			append(logAttrs(job), slog.String("reason", string(r)), slog.Any("err", err))...)
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

// judge says what becomes of an attempt that returned err. ctx is the attempt's own, as River made it; cause tells that
// the presence ended it. It mirrors what River does with the attempt's result.
func judge(ctx context.Context, job *rivertype.JobRow, err, cause error) end {
	var (
		cancel *river.JobCancelError
		snooze *river.JobSnoozeError
	)
	switch {
	case errors.Is(cause, ErrSuperseded):
		return end{lost, ""}
	case err == nil:
		return end{completed, ""}
	case errors.Is(cause, ErrFenced):
		return end{interrupted, ""}
	case errors.Is(cause, river.ErrJobCancelledRemotely) || errors.Is(context.Cause(ctx), river.ErrJobCancelledRemotely):
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

// logAttrs name the attempt: by the job's public id, and by its row where the job has had others.
func logAttrs(job *rivertype.JobRow) []slog.Attr {
	id := PublicID(job)
	attrs := []slog.Attr{
		slog.Int64("job_id", id), slog.String("kind", job.Kind), slog.String("queue", job.Queue),
		slog.Int("attempt", job.Attempt),
	}
	if id != job.ID {
		attrs = append(attrs, slog.Int64("row_id", job.ID))
	}
	return attrs
}

func (a *attempts) logEnd(ctx context.Context, job *rivertype.JobRow, e end, took time.Duration, err error) {
	level := slog.LevelInfo
	switch {
	case e.reason == reason.Internal:
		level = slog.LevelError
	case e.outcome == retried, e.outcome == lost, e.outcome == failed && e.reason.Policy() != reason.Permanent:
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
	asked bool // ended because its cancel was asked for
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
		h.log.LogAttrs(ctx, slog.LevelError, "job could not be worked", append(logAttrs(job), slog.Any("err", err))...)
	}
	return nil
}

// HandlePanic implements river.ErrorHandler.
func (h *errorHandler) HandlePanic(ctx context.Context, job *rivertype.JobRow, panicked any, stack string) *river.ErrorHandlerResult {
	h.log.LogAttrs(ctx, slog.LevelError, "job panicked",
		append(logAttrs(job), slog.String("err", fmt.Sprint(panicked)), slog.String("stack", stack))...)
	return nil
}
