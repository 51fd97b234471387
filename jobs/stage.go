package jobs

import (
	"context"
	"errors"
	"log/slog"

	"github.com/riverqueue/river"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/store"
)

// stage makes the staging folder, with what an earlier attempt has fetched where this worker sees it.
func (a *attempt) stage(ctx context.Context) (err error) {
	if a.fetch.LeftOn != "" {
		a.log.WarnContext(ctx, "download begins anew: what was fetched is on another volume", slog.String("volume", a.fetch.LeftOn))
		queue.Say(ctx, queue.Warning, "Begins anew: what was fetched before is on a volume that this worker does not see.")
	}
	a.dir, a.fetched, err = a.library.Stage(ctx, a.fetch.Content.ID, a.fetch.Generation)
	if a.fetched && err == nil {
		a.log.InfoContext(ctx, "download goes on with what was fetched")
		queue.Say(ctx, queue.Info, "Goes on with what was fetched before.")
	}
	return err
}

// leave keeps what was fetched for the next attempt, or removes it if there is none, or if it had better begin anew.
// Nobody writes to the folder any more.
func (a *attempt) leave(ctx context.Context, verdict error) {
	if a.fetch.Generation == 0 {
		return // it has not begun: whatever is there is another's
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	content, generation := a.fetch.Content.ID, a.fetch.Generation
	if a.keeps(ctx, verdict) {
		if err := a.library.Release(content, generation); err != nil {
			a.log.WarnContext(ctx, "staging folder not released", "err", err)
		}
		return
	}
	if err := a.library.Discard(content, generation); err != nil {
		a.log.WarnContext(ctx, "staging folder not removed", "err", err)
	}
	if errors.Is(verdict, store.ErrSuperseded) {
		return // where the content is staged is for others to say
	}
	if err := a.store.ForgetStaged(ctx, content, generation); err != nil {
		a.log.WarnContext(ctx, "staging folder not forgotten", "err", err)
	}
}

// keeps tells whether what was fetched is of use to a next attempt.
func (a *attempt) keeps(ctx context.Context, verdict error) bool {
	var ended *river.JobCancelError
	switch {
	case verdict == nil, errors.As(verdict, &ended):
		return false
	case errors.Is(verdict, store.ErrSuperseded):
		// Somebody else goes on with it, unless the job was ended behind our back.
		unfinished, err := a.store.ContentUnfinished(ctx, a.fetch.Content.ID)
		return err != nil || unfinished
	case !a.fetched:
		return false
	}
	failure := reason.Find(verdict)
	if failure == nil {
		return true // handed back, or put off
	}
	// What could not be taken over is as it was.
	doubts := failure.Reason.Doubts() && a.dir != ""
	if failure.Reason.Policy() == reason.Retry || failure.Reason.Policy() == reason.ParkHost {
		// A last attempt that fails, unlike one that waits, ends the job.
		return a.job.Attempt < a.job.MaxAttempts && !doubts
	}
	return !doubts
}
