package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// requestScope is what is known of one request; the middleware makes it, those inside add to it, and the log line at
// the end tells it. It is used by the request's own goroutine only.
type requestScope struct {
	id       string
	gin      *gin.Context
	identity *identity      // nil until somebody is recognised
	need     Scope          // of the operation
	problem  *Problem       // what the client was told, if it was a problem
	notes    map[string]any // for the audit
	streamed bool           // the answer was an event stream: its duration says nothing
}

type scopeKey struct{}

// scopeOf returns the scope of the request that ctx belongs to. Outside a request it is an empty one.
func scopeOf(ctx context.Context) *requestScope {
	if s, ok := ctx.Value(scopeKey{}).(*requestScope); ok {
		return s
	}
	return &requestScope{}
}

// RequestID returns the id of the request that ctx belongs to, or "". It is in the X-Request-ID header of the answer,
// in the log, and in problems.
func RequestID(ctx context.Context) string { return scopeOf(ctx).id }

const requestIDHeader = "X-Request-ID"

// saneRequestID is what is taken over from a client or a proxy in front: nothing that could forge a line of a log.
var saneRequestID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}$`)

// scope is the outermost part of every request: it gives it an id and a scope, and when all is done, or a handler
// has panicked, it writes the request's one log line.
func (a *API) scope(c *gin.Context) {
	begin := time.Now()
	s := &requestScope{id: c.GetHeader(requestIDHeader), gin: c}
	if !saneRequestID.MatchString(s.id) {
		s.id = uuid.Must(uuid.NewV7()).String()
	}
	c.Request = c.Request.WithContext(context.WithValue(c.Request.Context(), scopeKey{}, s))
	c.Header(requestIDHeader, s.id)
	trace.SpanFromContext(c.Request.Context()).SetAttributes(attribute.String("request_id", s.id))

	a.metrics.inFlight.Inc()
	cut := a.next(c)
	a.metrics.inFlight.Dec()

	status := c.Writer.Status()
	switch {
	case s.problem != nil && s.problem.Status == statusClientGone:
		status = statusClientGone
	case cut:
		status = http.StatusInternalServerError
	}
	took := time.Since(begin)
	a.metrics.observe(c.Request.Method, c.FullPath(), status, took, s.streamed)
	a.logRequest(c, s, status, took)
	if cut {
		panic(http.ErrAbortHandler) // breaks the connection: what the client has must not look whole
	}
}

// next runs what is inside, and turns a panic into a problem. It reports whether the answer had begun by then, and
// thus cannot be ended well.
func (a *API) next(c *gin.Context) (cut bool) {
	defer func() {
		panicked := recover()
		if panicked == nil {
			return
		}
		cut = c.Writer.Written()
		if err, ok := panicked.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			cut = true
			return
		}
		ctx := c.Request.Context()
		if err, ok := panicked.(error); ok && clientGone(err) {
			cut = true
			scopeOf(ctx).problem = &Problem{Status: statusClientGone, cause: err}
			return
		}
		a.log.ErrorContext(ctx, "panic", slog.Any("err", panicked), slog.String("stack", string(debug.Stack())),
			slog.String("request_id", RequestID(ctx)))
		if !cut {
			a.writeProblem(c, newProblem(CodeInternal, ""))
		}
	}()
	c.Next()
	return false
}

// clientGone reports whether err is of a connection that the client has left. huma panics when it cannot write.
func clientGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

// logRequest writes one line: refusals that are expected at info, what will heal at warn, our own faults at error.
// Probes are at debug: what they find is logged when it changes. There is no query in it, since queries may hold what
// is private.
func (a *API) logRequest(c *gin.Context, s *requestScope, status int, took time.Duration) {
	ctx := c.Request.Context()
	level := slog.LevelInfo
	switch {
	case a.quiet[c.FullPath()]:
		level = slog.LevelDebug
	case status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout:
		level = slog.LevelWarn
	case status >= http.StatusInternalServerError:
		level = slog.LevelError
	}
	if !a.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 14)
	attrs = append(attrs,
		slog.String("method", c.Request.Method),
		slog.String("path", c.Request.URL.Path[:min(len(c.Request.URL.Path), 512)]),
		slog.String("route", c.FullPath()),
		slog.Int("status", status),
		slog.Int("size_bytes", max(0, c.Writer.Size())),
		slog.Float64("duration_ms", float64(took.Microseconds())/1000),
		slog.String("request_id", s.id),
		slog.String("client", c.ClientIP()),
	)
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		attrs = append(attrs, slog.String("trace_id", span.TraceID().String()))
	}
	if s.identity != nil {
		attrs = append(attrs, slog.String("user", s.identity.User.Name))
	}
	if s.problem != nil {
		if s.problem.Code != "" {
			attrs = append(attrs, slog.String("code", string(s.problem.Code)))
		}
		if s.problem.cause != nil {
			attrs = append(attrs, slog.Any("err", s.problem.cause))
		}
	}
	a.log.LogAttrs(ctx, level, "request", attrs...)
}

// writeProblem answers with a problem, outside huma, and ends the chain. A browser that asked for a page gets a page.
func (a *API) writeProblem(c *gin.Context, p *Problem) {
	c.Abort()
	a.complete(c.Request.Context(), p)
	if p.Status == statusClientGone {
		return
	}
	for name, values := range p.header {
		c.Writer.Header()[name] = values
	}
	if wantsPage(c.Request) && !a.isAPIPath(c.Request.URL.Path) {
		a.renderPage(c, p.Status, "problem.html", p)
		return
	}
	c.Header("Content-Type", problemType)
	c.PureJSON(p.Status, p) // gin leaves a content type that is set
}

// complete fills what a problem needs of the request, and notes it for the log.
func (a *API) complete(ctx context.Context, p *Problem) {
	s := scopeOf(ctx)
	s.problem = p
	p.RequestID = s.id
	p.Type = a.basePath + "/docs#problem-" + string(p.Code)
}
