package jobs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"medianest/jobs/guard"
	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/store"
)

const (
	// recordTimeout bounds what is written about an attempt after its end, when its context may have ended too.
	recordTimeout = 5 * time.Second

	// Parking: a job that waits for something is put off without spending an attempt, but not for ever.
	spacePause    = time.Minute
	untilPause    = 15 * time.Minute // where nobody says until when
	untilPauseMin = time.Minute
	untilPauseMax = 6 * time.Hour
	parkLimit     = 30 * 24 * time.Hour // since the job was made

	// hostPause is how long a job rests whose host's breaker has tripped, before it waits for that.
	hostPause = time.Second

	// stagedPause is how often a worker that does not see what was fetched asks whether another has gone on with it.
	stagedPause = 2 * time.Second
	// handBackPause keeps a job from coming back at once to a worker that cannot work.
	handBackPause = time.Second

	// Patience with a database that is away, for what must not be thrown away because of it: hours of fetching.
	patience         = 2 * time.Minute
	patiencePauseMin = 100 * time.Millisecond
	patiencePauseMax = 5 * time.Second
)

// classify decides what becomes of a job whose attempt returned err; ctx is the attempt's. Every worker returns what it
// returns. An error of River's kind carries the reason inside, for the queue to record:
//
//	cancelled by somebody      ends
//	lost to another worker     nothing: that is not this one's to decide any more
//	the worker stops           back to the queue, no attempt spent
//	the worker is cut off      likewise, also where its children were killed because it stood still for too long
//	somebody ended the child   likewise: a service manager signals all processes of a service
//	staged on another volume   left to its workers for a moment, no attempt spent
//	permanent                  ends
//	park_space, park_until     waits, no attempt spent
//	park_host                  trips the breaker of its host and waits for that with all jobs of the host, no attempt spent
//	retry                      tried again by the kind's schedule, one attempt spent
//
// What is parked for the thirtieth day ends. A job that names no host, as those of kinds that ask none, and one whose
// breaker cannot be tripped since the database is away, is tried again instead of parked with its host.
func classify(ctx context.Context, job *rivertype.JobRow, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), river.ErrJobCancelledRemotely):
		return river.JobCancel(&reason.Error{Reason: reason.Cancelled})
	case errors.Is(context.Cause(ctx), queue.ErrSuperseded):
		return fmt.Errorf("%w: %w", store.ErrSuperseded, context.Cause(ctx))
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("hand back: %w", ctx.Err())
	case errors.Is(err, guard.ErrMissedBeats):
		return fmt.Errorf("hand back: %w, %w", guard.ErrMissedBeats, river.JobSnooze(handBackPause))
	case errors.Is(err, guard.ErrSignalled):
		return fmt.Errorf("hand back: %w, %w", guard.ErrSignalled, river.JobSnooze(handBackPause))
	case errors.Is(err, store.ErrStagedElsewhere):
		return errors.Join(river.JobSnooze(stagedPause), err)
	case errors.Is(err, store.ErrSuperseded):
		// Whatever is returned finds a row that is not this attempt's. An error is what does least harm to it.
		return err
	}
	failure := explain(ctx, err)
	switch failure.Reason.Policy() {
	case reason.Permanent:
		return river.JobCancel(failure)
	case reason.ParkSpace:
		return park(job, spacePause, failure)
	case reason.ParkUntil:
		pause := untilPause
		if !failure.RetryAt.IsZero() {
			pause = min(max(time.Until(failure.RetryAt), untilPauseMin), untilPauseMax)
		}
		return park(job, pause, failure)
	case reason.ParkHost:
		return parkHost(ctx, job, failure)
	case reason.Retry:
	}
	return failure
}

// parkHost has all jobs of the job's host wait.
func parkHost(ctx context.Context, job *rivertype.JobRow, failure *reason.Error) error {
	host := queue.KeyOf(job, "host")
	if host == "" {
		return failure
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	if err := queue.Trip(ctx, host, failure); err != nil {
		return errors.Join(failure, err)
	}
	return park(job, hostPause, failure)
}

// park puts the job off.
func park(job *rivertype.JobRow, pause time.Duration, failure *reason.Error) error {
	if time.Since(job.CreatedAt) > parkLimit {
		return river.JobCancel(failure)
	}
	return errors.Join(river.JobSnooze(pause), failure)
}

// explain gives an error its reason.
func explain(ctx context.Context, err error) *reason.Error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &reason.Error{Reason: reason.Timeout, Detail: "It took longer than a job may.", Err: err}
	}
	if known := reason.Find(err); known != nil {
		return known
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &reason.Error{Reason: reason.DiskFull, Err: err}
	case errors.Is(err, store.ErrUnavailable):
		return &reason.Error{Reason: reason.Internal, Detail: "The database did not answer.", Err: err}
	}
	return &reason.Error{Reason: reason.Internal, Err: err}
}

// patiently calls do until it succeeds, fails for another reason than a database that is away, or patience ends. do
// must be fit to be called again.
func patiently(ctx context.Context, do func() error) error {
	begun := time.Now()
	for pause := patiencePauseMin; ; pause = min(2*pause, patiencePauseMax) {
		err := do()
		if err == nil || !errors.Is(err, store.ErrUnavailable) || time.Since(begun) > patience {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}
