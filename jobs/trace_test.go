package jobs_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"medianest/jobs"
	"medianest/jobs/media"
	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// From the request that asked for it to what yt-dlp did: the attempt is linked to the request, its steps lie below it.
func TestStepsOfAnAttemptAreTraced(t *testing.T) {
	t.Parallel()

	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	f := newFake(t)
	f.fetch = func(context.Context, ytdlp.FetchRequest) error {
		return &reason.Error{Reason: reason.Gone, Detail: "Removed."}
	}
	b := setup(t, with(f), func(_ *jobs.Deps, options *queue.Options, _ *ytdlp.Options) { options.TracerProvider = provider })

	ctx, request := provider.Tracer("test").Start(t.Context(), "POST /downloads")
	key, url, err := media.ContentKey("best", b.siteURL+"/plain.mp4")
	require.NoError(t, err)
	d, _, err := b.api.CreateDownload(ctx, store.NewDownload{UserID: b.user(t, "anna").ID, URL: url, ContentKey: key, Profile: "best"})
	require.NoError(t, err)
	request.End()
	b.wait(t, d.ID)

	byName := make(map[string]sdktrace.ReadOnlySpan)
	for _, s := range spans.Ended() {
		byName[s.Name()] = s
	}
	work := byName["river.work/download"]
	require.NotNil(t, work)
	require.Len(t, work.Links(), 1)
	require.Equal(t, request.SpanContext().TraceID(), work.Links()[0].SpanContext.TraceID())
	require.Equal(t, byName["river.insert_many"].SpanContext().SpanID(), work.Links()[0].SpanContext.SpanID())
	require.Equal(t, request.SpanContext().SpanID(), byName["river.insert_many"].Parent().SpanID())
	for _, name := range []string{"yt-dlp probe", "yt-dlp fetch"} {
		require.NotNil(t, byName[name])
		require.Equal(t, work.SpanContext().SpanID(), byName[name].Parent().SpanID())
	}
	require.Equal(t, codes.Error, byName["yt-dlp fetch"].Status().Code)
	require.Equal(t, "Removed.", byName["yt-dlp fetch"].Status().Description)
}
