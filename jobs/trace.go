package jobs

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"medianest/jobs/reason"
)

// traced runs a step of an attempt in a span below the attempt's. Where nothing is traced it costs next to nothing.
func traced(ctx context.Context, name string, step func(ctx context.Context) error) error {
	ctx, span := trace.SpanFromContext(ctx).TracerProvider().Tracer("medianest/jobs").Start(ctx, name)
	defer span.End()
	err := step(ctx)
	if err != nil {
		text := "failed" // an error's own text is for the log
		if failure := reason.Find(err); failure != nil {
			text = failure.Describe()
			span.SetAttributes(attribute.String("medianest.reason", string(failure.Reason)))
		}
		span.SetStatus(codes.Error, text)
	}
	return err
}
