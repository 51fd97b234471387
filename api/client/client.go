package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// New returns a client of the platform at server, the URL that its pages are below, which acts as the token's user.
// Requests have no time-out of their own: they end with their contexts.
func New(server, token string, options ...ClientOption) (*ClientWithResponses, error) {
	u, err := url.Parse(server)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("server %q is not an http or https URL", server)
	}
	authorize := WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		return nil
	})
	return NewClientWithResponses(server, append([]ClientOption{authorize}, options...)...)
}

// Answer is what every operation returns.
type Answer interface {
	StatusCode() int
	GetBody() []byte
}

// Fault is the problem that an answer tells of, a *Problem, or nil if all went well:
//
//	answer, err := c.FindDownloadWithResponse(ctx, id)
//	if err == nil {
//		err = client.Fault(answer)
//	}
func Fault(a Answer) error {
	return fault(a.StatusCode(), a.GetBody())
}

// The codes of problems that programs act on. The platform's own page /docs has them all.
const (
	CodeConflict        = "conflict"
	CodeInvalidURL      = "invalid_url"
	CodeNotFound        = "not_found"
	CodeTooManyRequests = "too_many_requests"
	CodeUnauthenticated = "unauthenticated"
	CodeUnavailable     = "unavailable"
)

func fault(status int, body []byte) error {
	if status < http.StatusBadRequest {
		return nil
	}
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Title == "" {
		// Not ours: a proxy in between, or another server.
		p = Problem{Title: strings.TrimSpace(fmt.Sprintf("HTTP %d %s", status, http.StatusText(status)))}
	}
	p.Status = int64(status)
	return &p
}

// Error is the problem in words.
func (p *Problem) Error() string {
	text := p.Title
	if p.Detail != nil {
		text += ": " + *p.Detail
	}
	if p.Errors != nil {
		for _, e := range *p.Errors {
			if p.Detail != nil && e.Message == *p.Detail {
				continue
			}
			text += ": " + e.Message
			if e.Location != nil {
				text += " (" + *e.Location + ")"
			}
		}
	}
	return text
}
