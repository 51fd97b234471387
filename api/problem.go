package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"medianest/jobs/reason"
	"medianest/store"
)

// Code names a kind of problem for programs. Codes are an interface: they never change meaning.
type Code string

// The codes that this API answers with. What each means for people is in problemKinds.
const (
	CodeBodyTimeout          Code = "body_timeout"
	CodeBodyTooLarge         Code = "body_too_large"
	CodeConflict             Code = "conflict"
	CodeCrossSite            Code = "cross_site"
	CodeCSRF                 Code = "csrf_token"
	CodeForbidden            Code = "forbidden"
	CodeIdempotencyMismatch  Code = "idempotency_mismatch"
	CodeInternal             Code = "internal"
	CodeInvalidBody          Code = "invalid_body"
	CodeInvalidURL           Code = "invalid_url"
	CodeMethodNotAllowed     Code = "method_not_allowed"
	CodeNoSuchRoute          Code = "no_such_route"
	CodeNotFound             Code = "not_found"
	CodeQuotaReached         Code = "quota_reached"
	CodeSessionEnded         Code = "session_ended"
	CodeTimeout              Code = "timeout"
	CodeTooManyAttempts      Code = "too_many_attempts"
	CodeTooManyRequests      Code = "too_many_requests"
	CodeTooManyStreams       Code = "too_many_streams"
	CodeUnauthenticated      Code = "unauthenticated"
	CodeUnavailable          Code = "unavailable"
	CodeUnsupportedMediaType Code = "unsupported_media_type"
	CodeValidationFailed     Code = "validation_failed"
)

// statusClientGone is what the log and the metrics say of a request whose client left before the answer; nobody
// receives it. The number is nginx's.
const statusClientGone = 499

// problemKind is what all problems of one code have in common.
type problemKind struct {
	status int
	title  string
	help   string // what to do about it, for the documentation
}

var problemKinds = map[Code]problemKind{
	CodeBodyTimeout:          {http.StatusRequestTimeout, "The request's body did not arrive in time", "Send the request again, on a connection that is quick enough."},
	CodeBodyTooLarge:         {http.StatusRequestEntityTooLarge, "The request's body is too large", "Send less: bodies are limited to 1 MiB."},
	CodeConflict:             {http.StatusConflict, "The state does not allow this", "Read the resource: what was asked for has been done already, or can not be done in its state."},
	CodeCrossSite:            {http.StatusForbidden, "The request comes from another site", "Requests that carry the browser's cookies are accepted from this site's own pages only. Programs use a bearer token."},
	CodeCSRF:                 {http.StatusForbidden, "The request does not carry the token of our pages", "Send the value of the cookie medianest_csrf as the header X-CSRF-Token. Programs use a bearer token, and need none."},
	CodeForbidden:            {http.StatusForbidden, "You may not do this", "GET /api/v1/users/me tells which scopes you have. Ask an administrator for more."},
	CodeIdempotencyMismatch:  {http.StatusUnprocessableEntity, "The Idempotency-Key was used before for another request", "Use a new key for each new request, and the same key only to send the very same request again."},
	CodeInternal:             {http.StatusInternalServerError, "Something went wrong on our side", "Try again later. The server's log tells what happened, under the request_id."},
	CodeInvalidBody:          {http.StatusBadRequest, "The request's body is missing or is no JSON", "Send a JSON object."},
	CodeInvalidURL:           {http.StatusUnprocessableEntity, "This is not an address that can be downloaded from", "Send an absolute http or https URL."},
	CodeMethodNotAllowed:     {http.StatusMethodNotAllowed, "This method is not allowed here", "The Allow header names the methods that are."},
	CodeNoSuchRoute:          {http.StatusNotFound, "There is nothing at this path", "See /docs for all paths."},
	CodeNotFound:             {http.StatusNotFound, "There is no such thing", "It does not exist, or it belongs to somebody else."},
	CodeQuotaReached:         {http.StatusTooManyRequests, "Your quota is reached", "GET /api/v1/users/me tells what you have and may have. Delete what you do not need, or ask an administrator for more."},
	CodeSessionEnded:         {http.StatusUnauthorized, "The session has ended", "Sign in again."},
	CodeTimeout:              {http.StatusGatewayTimeout, "It took too long", "Try again later; where that may be, with the same Idempotency-Key."},
	CodeTooManyAttempts:      {http.StatusTooManyRequests, "Too many attempts", "Wait for as many seconds as the Retry-After header says."},
	CodeTooManyRequests:      {http.StatusTooManyRequests, "Too many requests", "Wait for as many seconds as the Retry-After header says. The RateLimit headers tell how many are allowed a minute."},
	CodeTooManyStreams:       {http.StatusTooManyRequests, "You have too many event streams open", "Close one, or wait for as many seconds as the Retry-After header says. One stream can follow everything."},
	CodeUnauthenticated:      {http.StatusUnauthorized, "A valid token or a session is needed", "Send the header Authorization: Bearer with an API token, or sign in."},
	CodeUnavailable:          {http.StatusServiceUnavailable, "The service is not available now", "Try again after as many seconds as the Retry-After header says. /readyz tells what is down."},
	CodeUnsupportedMediaType: {http.StatusUnsupportedMediaType, "The request's body is of a type that is not understood", "Send the header Content-Type: application/json."},
	CodeValidationFailed:     {http.StatusUnprocessableEntity, "The request is not valid", "The errors say what and where."},
}

// Problem is the body of every error (RFC 9457). It carries text that is safe to be shown; the cause stays inside, for
// the log.
type Problem struct {
	Type      string         `json:"type" format:"uri-reference" doc:"A link to what this kind of problem is." example:"/docs#problem-not_found"`
	Title     string         `json:"title" doc:"What kind of problem it is, in words." example:"There is no such thing"`
	Status    int            `json:"status" doc:"The HTTP status." example:"404"`
	Detail    string         `json:"detail,omitempty" doc:"What is wrong with this request." example:"There is no such download, or it is not yours."`
	Code      Code           `json:"code" doc:"What kind of problem it is, for programs; never changes meaning." example:"not_found"`
	RequestID string         `json:"request_id,omitempty" doc:"Finds this request in the server's log." example:"0199aa3e-5b77-7000-8000-000000000000"`
	Errors    []ProblemError `json:"errors,omitempty" nullable:"false" doc:"Each fault of the request, where there can be several."`

	cause  error
	header http.Header
}

// ProblemError is one of several faults of a request.
type ProblemError struct {
	Location string `json:"location,omitempty" doc:"Where it is: body, query, path or header, and the name." example:"body.url"`
	Message  string `json:"message" doc:"What is wrong." example:"expected length >= 1"`
}

// newProblem returns a problem of that code. The detail says what is wrong with this very request; it may be empty.
func newProblem(code Code, detail string) *Problem {
	kind := problemKinds[code]
	return &Problem{Title: kind.title, Status: kind.status, Code: code, Detail: detail}
}

// because keeps the cause for the log.
func (p *Problem) because(err error) *Problem {
	p.cause = err
	return p
}

// retryAfter says when a next try makes sense. It rounds up to whole seconds.
func (p *Problem) retryAfter(d time.Duration) *Problem {
	p.header = http.Header{"Retry-After": {strconv.Itoa(int((d + time.Second - 1) / time.Second))}}
	return p
}

// Error is the private text: what the log says.
func (p *Problem) Error() string {
	text := string(p.Code)
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	if p.cause != nil {
		text += ": " + p.cause.Error()
	}
	return text
}

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.cause }

// GetStatus makes a Problem a huma.StatusError: huma writes it as it is.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders makes a Problem a huma.HeadersError.
func (p *Problem) GetHeaders() http.Header { return p.header }

// ContentType makes a Problem a huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return problemType }

const problemType = "application/problem+json"

// problemOf finds the problem that err is to a client. Every error of every handler passes here.
func problemOf(ctx context.Context, err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	var (
		invalid *store.InvalidError
		quota   *store.QuotaError
	)
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return &Problem{Status: statusClientGone, Title: "The client left", cause: err}
	case errors.Is(err, store.ErrNotFound):
		return newProblem(CodeNotFound, "").because(err)
	case errors.Is(err, store.ErrConflict):
		return newProblem(CodeConflict, "").because(err)
	case errors.Is(err, store.ErrIdempotencyMismatch):
		return newProblem(CodeIdempotencyMismatch, "").because(err)
	case errors.As(err, &quota):
		return quotaProblem(quota)
	case errors.As(err, &invalid):
		p := newProblem(CodeValidationFailed, "").because(err)
		p.Errors = []ProblemError{{Location: location(invalid.Field), Message: invalid.Reason}}
		return p
	case errors.Is(err, store.ErrInvalid):
		return newProblem(CodeValidationFailed, "A value is malformed or out of range.").because(err)
	case errors.Is(err, store.ErrUnavailable):
		return newProblem(CodeUnavailable, "").because(err).retryAfter(unavailableRetry)
	case errors.Is(err, context.DeadlineExceeded):
		return newProblem(CodeTimeout, "").because(err)
	}
	return newProblem(CodeInternal, "").because(err)
}

// location is where a request has a field that the store refuses.
func location(field string) string {
	switch field {
	case "cursor", "limit", "state":
		return "query." + field
	case "key":
		return "path." + field
	case "idempotency_key":
		return "header.Idempotency-Key"
	}
	return "body." + field
}

// unavailableRetry is how long a client should wait for a database that is away: a restart takes about that long.
const unavailableRetry = 5 * time.Second

// notFound is problemOf's not_found with words of the resource, other errors unchanged.
func notFound(err error, what string) error {
	if errors.Is(err, store.ErrNotFound) {
		return newProblem(CodeNotFound, "There is no such "+what+", or it is not yours.").because(err)
	}
	return err
}

// conflict is problemOf's conflict with a sentence, other errors unchanged.
func conflict(err error, sentence string) error {
	if errors.Is(err, store.ErrConflict) {
		return newProblem(CodeConflict, sentence).because(err)
	}
	return err
}

// invalidURL tells why a wish's address is refused.
func invalidURL(err error) *Problem {
	detail := "The address must be an absolute http or https URL."
	if failure := reason.Find(err); failure != nil {
		detail = failure.Describe()
	}
	p := newProblem(CodeInvalidURL, detail).because(err)
	p.Errors = []ProblemError{{Location: "body.url", Message: detail}}
	return p
}

// ofHuma turns huma's own errors (bodies, parameters, validation) into problems. Values are left out: they are the
// sender's own, but may be large or secret, and a problem may end in somebody's log.
func ofHuma(m *huma.ErrorModel) *Problem {
	var p *Problem
	switch m.Status {
	case http.StatusBadRequest:
		p = newProblem(CodeInvalidBody, "")
	case http.StatusRequestTimeout:
		p = newProblem(CodeBodyTimeout, "")
	case http.StatusRequestEntityTooLarge:
		p = tooLarge()
	case http.StatusUnsupportedMediaType:
		return unsupportedType()
	case http.StatusUnprocessableEntity:
		p = newProblem(CodeValidationFailed, "")
	default:
		return newProblem(CodeInternal, "").because(m)
	}
	for _, detail := range m.Errors {
		if detail != nil {
			p.Errors = append(p.Errors, ProblemError{Location: detail.Location, Message: detail.Message})
		}
	}
	// huma collects faults from maps: an order makes answers repeatable.
	slices.SortStableFunc(p.Errors, func(a, b ProblemError) int { return strings.Compare(a.Location, b.Location) })
	if p.Detail == "" && len(p.Errors) == 0 {
		p.Detail = m.Detail
	}
	return p
}
