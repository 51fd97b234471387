package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// flushTimeout bounds the sending of the last spans when the process stops: a collector that is away must not hold it.
const flushTimeout = 3 * time.Second

// telemetry is what every part reports through.
type telemetry struct {
	log      *slog.Logger
	registry *prometheus.Registry
	tracers  trace.TracerProvider // of no effect when no endpoint is set
	tracing  bool
	shutdown func(ctx context.Context) error
}

// newTelemetry makes the logger, the registry with the metrics of the process, and tracing where an endpoint is set.
func newTelemetry(ctx context.Context, w io.Writer, c Config, m mode) (*telemetry, error) {
	t := &telemetry{
		log:      newLogger(w, c),
		registry: prometheus.NewRegistry(),
		tracers:  noop.NewTracerProvider(),
		shutdown: func(context.Context) error { return nil },
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "medianest_build_info",
		Help: "Always 1; the labels say what is running.",
	}, []string{"version", "go_version", "mode"})
	build.WithLabelValues(buildVersion(), goVersion(), string(m)).Set(1)
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
	if c.OTLPEndpoint == "" || c.traceDisabled {
		return t, nil
	}
	// The exporter and the sampler read the OTEL_* variables themselves, as the standard has it.
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("set up tracing to OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(semconv.ServiceName("medianest-"+string(m)), semconv.ServiceVersion(buildVersion())),
		resource.WithHost(), resource.WithProcessPID(),
		resource.WithFromEnv(), // last, so that OTEL_SERVICE_NAME wins
	)
	if err != nil {
		return nil, fmt.Errorf("set up tracing: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		t.log.Warn("traces are not sent", slog.Any("err", err))
	}))
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	t.tracers, t.tracing = provider, true
	t.shutdown = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			t.log.Warn("the last traces were not sent", slog.Any("err", err))
		}
		return nil
	}
	return t, nil
}

// queryTracer traces the statements of a pool; nil when nothing is traced. Statements hold no values, so no secrets.
func (t *telemetry) queryTracer() pgx.QueryTracer {
	if !t.tracing {
		return nil
	}
	return otelpgx.NewTracer(otelpgx.WithTracerProvider(t.tracers), otelpgx.WithDisableAcquireTracer(), otelpgx.WithTrimSQLInSpanName())
}

// traceRedis traces the commands of a client.
func (t *telemetry) traceRedis(client redis.UniversalClient) error {
	if !t.tracing {
		return nil
	}
	if err := redisotel.InstrumentTracing(client, redisotel.WithTracerProvider(t.tracers), redisotel.WithDBStatement(false)); err != nil {
		return fmt.Errorf("trace redis: %w", err)
	}
	return nil
}

// version is set by the linker; see the Makefile.
var version = ""

// buildVersion is the version this program was built as.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

func goVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.GoVersion
	}
	return ""
}
