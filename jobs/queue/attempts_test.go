package queue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
)

func TestReasonIsInTheEventOfTheEnd(t *testing.T) {
	t.Parallel()

	const ( // what the worker does
		ok = iota
		snoozeThenOK
		retryThenCompleteTx
		permanent
		usedUp
		internal
		panics
		notice
		timeout
	)
	var b *bundle
	b = setup(t, func(ctx context.Context, job *river.Job[synthetic]) error {
		again := len(job.Errors) > 0 || job.Metadata != nil && len(job.Metadata) > len(`{}`)
		switch job.Args.N {
		case snoozeThenOK:
			if !again {
				return errors.Join(river.JobSnooze(0), &reason.Error{Reason: reason.DiskFull})
			}
		case retryThenCompleteTx:
			if !again {
				return fmt.Errorf("fetch: %w", &reason.Error{Reason: reason.Network, Detail: "connection reset"})
			}
			return pgx.BeginFunc(ctx, b.owner, func(tx pgx.Tx) error {
				_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
				return err
			})
		case permanent:
			return river.JobCancel(&reason.Error{Reason: reason.Gone, Detail: "removed by its uploader", Err: errors.New("a secret")})
		case usedUp:
			return &reason.Error{Reason: reason.RateLimited}
		case internal:
			return errors.New("a fault of ours")
		case panics:
			panic("a worse fault of ours")
		case notice:
			return river.JobCancel(&reason.Error{Reason: reason.Cancelled})
		case timeout:
			return fmt.Errorf("fetch: %w", context.DeadlineExceeded)
		}
		return nil
	}, func(o *queue.Options) { o.Queues = map[string]int{"test": 1} })

	for _, c := range []struct {
		name        string
		n           int
		maxAttempts int
		want        []event
		errs        []string
	}{
		{"Completed", ok, 5, []event{{"available", 0, ""}, {"running", 1, ""}, {"completed", 1, ""}}, nil},
		{
			"CompletedAfterSnoozeCarriesNoOldReason", snoozeThenOK, 5,
			[]event{{"available", 0, ""}, {"running", 1, ""}, {"available", 0, "disk_full"}, {"running", 1, ""}, {"completed", 1, ""}}, nil,
		},
		{"Permanent", permanent, 5, []event{{"available", 0, ""}, {"running", 1, ""}, {"cancelled", 1, "gone"}}, []string{"gone: removed by its uploader"}},
		{"UsedUp", usedUp, 1, []event{{"available", 0, ""}, {"running", 1, ""}, {"discarded", 1, "rate_limited"}}, []string{"rate_limited: " + reason.RateLimited.Sentence()}},
		{"Internal", internal, 1, []event{{"available", 0, ""}, {"running", 1, ""}, {"discarded", 1, "internal"}}, []string{"internal: " + reason.Internal.Sentence()}},
		{"Panic", panics, 1, []event{{"available", 0, ""}, {"running", 1, ""}, {"discarded", 1, "internal"}}, []string{"a worse fault of ours"}},
		{"CancelledByItsWorker", notice, 5, []event{{"available", 0, ""}, {"running", 1, ""}, {"cancelled", 1, "cancelled"}}, []string{"cancelled: " + reason.Cancelled.Sentence()}},
		{"Timeout", timeout, 1, []event{{"available", 0, ""}, {"running", 1, ""}, {"discarded", 1, "timeout"}}, []string{"timeout: " + reason.Timeout.Sentence()}},
	} {
		// One after the other: the lines of all are read at the end.
		t.Run(c.name, func(t *testing.T) {
			id := b.insert(t, river.InsertOpts{MaxAttempts: c.maxAttempts}, synthetic{N: c.n})[0]
			last := c.want[len(c.want)-1]
			row := b.waitState(t, id, rivertype.JobState(last.State))
			require.Equal(t, c.want, b.events(t, id))
			var errs []string
			for _, e := range row.Errors {
				errs = append(errs, e.Error)
			}
			require.Equal(t, c.errs, errs)
		})
	}

	t.Run("CompleteTxAfterFailure", func(t *testing.T) {
		id := b.insert(t, river.InsertOpts{}, synthetic{N: retryThenCompleteTx})[0]
		b.waitState(t, id, rivertype.JobStateCompleted) // River's own first pause is a second
		require.Equal(t, []event{
			{"available", 0, ""}, {"running", 1, ""}, {"available", 1, "network"}, {"running", 2, ""}, {"completed", 2, ""},
		}, b.events(t, id))
	})

	t.Run("Lines", func(t *testing.T) {
		ends := b.logs.find("job ended")
		require.Len(t, b.logs.find("job started"), len(ends))
		outcomes := make(map[string]slog.Level)
		for _, l := range ends {
			require.Subset(t, []string{"job_id", "kind", "queue", "attempt", "outcome", "reason", "duration_ms", "err"}, keys(l.attrs))
			outcomes[fmt.Sprintf("%s %s", l.attrs["outcome"], l.attrs["reason"])] = l.level
		}
		require.Equal(t, map[string]slog.Level{
			"completed ":          slog.LevelInfo,
			"snoozed disk_full":   slog.LevelInfo,
			"retried network":     slog.LevelWarn,
			"failed gone":         slog.LevelInfo,
			"failed rate_limited": slog.LevelWarn,
			"failed internal":     slog.LevelError,
			"failed timeout":      slog.LevelWarn,
			"cancelled cancelled": slog.LevelInfo,
		}, outcomes)
		require.Len(t, b.logs.find("job panicked"), 1)
		require.Contains(t, b.logs.find("job panicked")[0].attrs["stack"], "attempts_test.go")
	})
}

func keys(m map[string]any) []string {
	found := make([]string, 0, len(m))
	for k := range m {
		found = append(found, k)
	}
	return found
}

// A row that River cannot decode into the worker's arguments fails like any other attempt; nothing else sees it.
func TestArgumentsThatDoNotDecode(t *testing.T) {
	t.Parallel()

	b := setup(t, func(context.Context, *river.Job[synthetic]) error { return nil }, nil)
	var id int64
	require.NoError(t, b.owner.QueryRow(t.Context(), `
		INSERT INTO river.river_job (kind, queue, args, max_attempts) VALUES ('synthetic', 'test', '{"n": "no number"}', 1)
		RETURNING id`).Scan(&id))
	b.waitState(t, id, rivertype.JobStateDiscarded)
	require.Equal(t, event{"discarded", 1, "internal"}, b.events(t, id)[2])
}

func TestSpanOfAnAttemptIsLinkedToTheOneThatEnqueued(t *testing.T) {
	t.Parallel()

	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	b := setup(t, func(context.Context, *river.Job[synthetic]) error {
		return river.JobCancel(&reason.Error{Reason: reason.DRM})
	}, func(o *queue.Options) { o.TracerProvider = provider })

	ctx, request := provider.Tracer("test").Start(t.Context(), "POST /downloads")
	inserted, err := b.River().Insert(ctx, synthetic{}, &river.InsertOpts{Queue: "test"})
	require.NoError(t, err)
	request.End()
	b.waitState(t, inserted.Job.ID, rivertype.JobStateCancelled)

	var worked sdktrace.ReadOnlySpan
	require.Eventually(t, func() bool {
		for _, s := range spans.Ended() {
			if s.Name() == "river.work/synthetic" {
				worked = s
			}
		}
		return worked != nil
	}, 5*time.Second, 5*time.Millisecond)
	require.Len(t, worked.Links(), 1)
	require.Equal(t, request.SpanContext().TraceID(), worked.Links()[0].SpanContext.TraceID())
	attrs := make(map[string]string)
	for _, a := range worked.Attributes() {
		attrs[string(a.Key)] = a.Value.AsString()
	}
	require.Equal(t, "drm", attrs["medianest.reason"])
	require.Equal(t, "failed", attrs["medianest.outcome"])
}
