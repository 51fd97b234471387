package main

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"medianest/jobs"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
)

// tracedExtractor gives each run of yt-dlp a span, below that of the attempt. Addresses are not in it: they may hold
// what is private.
type tracedExtractor struct {
	jobs.Extractor
	tracer trace.Tracer
}

var _ jobs.Extractor = (*tracedExtractor)(nil)

func newTracedExtractor(e jobs.Extractor, tracers trace.TracerProvider) *tracedExtractor {
	return &tracedExtractor{Extractor: e, tracer: tracers.Tracer("medianest/jobs/ytdlp")}
}

// Probe implements jobs.Extractor.
func (e *tracedExtractor) Probe(ctx context.Context, request ytdlp.ProbeRequest) (ytdlp.Probe, error) {
	ctx, span := e.tracer.Start(ctx, "yt-dlp probe")
	defer span.End()
	probe, err := e.Extractor.Probe(ctx, request)
	note(span, err)
	span.SetAttributes(attribute.String("medianest.extractor", probe.Extractor), attribute.Int("medianest.entries", len(probe.Entries)))
	return probe, err
}

// Fetch implements jobs.Extractor.
func (e *tracedExtractor) Fetch(ctx context.Context, request ytdlp.FetchRequest) (ytdlp.Media, error) {
	ctx, span := e.tracer.Start(ctx, "yt-dlp fetch")
	defer span.End()
	fetched, err := e.Extractor.Fetch(ctx, request)
	note(span, err)
	return fetched, err
}

// note marks a failed span with the failure's reason, not its text.
func note(span trace.Span, err error) {
	if err == nil {
		return
	}
	why := reason.Unknown
	if failure := reason.Find(err); failure != nil {
		why = failure.Reason
	}
	span.SetAttributes(attribute.String("medianest.reason", string(why)))
	span.SetStatus(codes.Error, string(why))
}
