package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"

	"medianest/api/client"
)

var (
	// errRefused says that the platform does not let this user in; asking again is of no use.
	errRefused = errors.New("refused")
	// errBadRequest says that the platform does not take this URL; others it may.
	errBadRequest = errors.New("not accepted")
)

const (
	// requestTimeout bounds one request, createRetries how often one is sent again while the platform starts or restarts.
	requestTimeout = 15 * time.Second
	createRetries  = 3
	// maxFilter is how many downloads the event stream may be narrowed to; more are picked out here.
	maxFilter = 100
	// pageSize is the largest page of a list.
	pageSize = 200
)

// apiPlatform is remotePlatform over HTTP. Its errors are for people: they say what to do.
type apiPlatform struct {
	server, origin string // origin says where the token is from
	transport      *http.Transport
	client         *client.ClientWithResponses
	wanted         []uuid.UUID // what was created here
}

func newPlatform(server, token, origin string) (*apiPlatform, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
	c, err := client.New(server, token, client.WithHTTPClient(&http.Client{Transport: transport}))
	if err != nil {
		return nil, usageError("%v", err)
	}
	return &apiPlatform{server: server, origin: origin, transport: transport, client: c}, nil
}

// close lets go of the connections that are kept for further requests.
func (p *apiPlatform) close() { p.transport.CloseIdleConnections() }

func (p *apiPlatform) create(ctx context.Context, address, key string) (remoteDownload, bool, error) {
	for attempt := 0; ; attempt++ {
		d, created, err := p.createOnce(ctx, address, key)
		if !isPassing(err) || attempt == createRetries {
			return d, created, p.explain(err)
		}
		select { // the same key: what was created although its answer was lost is not created twice
		case <-ctx.Done():
			return d, false, ctx.Err()
		case <-time.After(time.Second << attempt):
		}
	}
}

func (p *apiPlatform) createOnce(ctx context.Context, address, key string) (remoteDownload, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := p.client.CreateDownloadWithResponse(ctx, &client.CreateDownloadParams{IdempotencyKey: &key}, client.DownloadRequest{URL: address})
	if err != nil {
		return remoteDownload{}, false, err
	}
	if err := client.Fault(answer); err != nil {
		return remoteDownload{}, false, err
	}
	created := answer.JSON202 != nil
	d := answer.JSON202
	if !created {
		d = answer.JSON200
	}
	if d == nil {
		return remoteDownload{}, false, errNotMediaNest
	}
	p.wanted = append(p.wanted, d.ID)
	return fromAPI(*d), created, nil
}

func (p *apiPlatform) find(ctx context.Context, id string) (remoteDownload, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := p.client.FindDownloadWithResponse(ctx, uuid.MustParse(id))
	if err == nil {
		err = client.Fault(answer)
	}
	switch {
	case err != nil:
		return remoteDownload{}, p.explain(err)
	case answer.JSON200 == nil:
		return remoteDownload{}, p.explain(errNotMediaNest)
	}
	return fromAPI(*answer.JSON200), nil
}

func (p *apiPlatform) children(ctx context.Context, id string) ([]remoteDownload, error) {
	parent, limit := uuid.MustParse(id), int64(pageSize)
	params := &client.ListDownloadsParams{ParentID: &parent, Limit: &limit}
	var children []remoteDownload
	for {
		page, err := p.page(ctx, params)
		if err != nil {
			return nil, p.explain(err)
		}
		for _, d := range page.Items {
			children = append(children, fromAPI(d))
		}
		if page.NextCursor == nil || *page.NextCursor == "" {
			return children, nil
		}
		params.Cursor = page.NextCursor
	}
}

func (p *apiPlatform) page(ctx context.Context, params *client.ListDownloadsParams) (*client.DownloadList, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := p.client.ListDownloadsWithResponse(ctx, params)
	if err == nil {
		err = client.Fault(answer)
	}
	if err == nil && answer.JSON200 == nil {
		err = errNotMediaNest
	}
	if err != nil {
		return nil, err
	}
	return answer.JSON200, nil
}

// cancel takes a download that has ended for cancelled: nothing of it goes on.
func (p *apiPlatform) cancel(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := p.client.CancelDownloadWithResponse(ctx, uuid.MustParse(id))
	if err == nil {
		err = client.Fault(answer)
	}
	if problem, ok := errors.AsType[*client.Problem](err); ok && problem.Code == client.CodeConflict {
		return nil
	}
	return p.explain(err)
}

func (p *apiPlatform) events(ctx context.Context, l listener) error {
	options := client.EventsOptions{
		Topics:      []string{client.EventDownloadState, client.EventJobProgress},
		OnConnected: l.connected,
		OnLost:      func(error) { l.lost() }, // it is said in words
	}
	if len(p.wanted) <= maxFilter {
		options.DownloadIDs = p.wanted
	}
	for event, err := range client.Events(ctx, p.client, options) {
		if err != nil {
			return p.explain(err)
		}
		if e, ok := fromStream(event); ok {
			l.event(e)
		}
	}
	return nil
}

// fromStream reads the events that the command listens to; a malformed one is skipped, the next poll has the truth.
func fromStream(event client.Event) (streamEvent, bool) {
	switch event.Type {
	case client.EventReset:
		return streamEvent{Type: eventReset}, true
	case client.EventDownloadState:
		var data client.DownloadStateEvent
		if event.Decode(&data) != nil {
			return streamEvent{}, false
		}
		e := streamEvent{Type: eventDownloadState, DownloadID: data.DownloadID.String(), JobID: data.JobID, State: data.State}
		if data.ParentID != nil {
			e.ParentID = data.ParentID.String()
		}
		return e, true
	case client.EventJobProgress:
		var data client.ProgressEvent
		if event.Decode(&data) != nil {
			return streamEvent{}, false
		}
		e := streamEvent{Type: eventProgress, JobID: data.JobID, Progress: remoteProgress{
			Phase: data.Phase, Percent: data.Percent, DownloadedBytes: data.DownloadedBytes, TotalBytes: data.TotalBytes,
			SpeedBytesPerS: data.SpeedBytesPerS, ETAS: data.ETAS,
		}}
		if data.Subject != nil && data.Subject.Type == "download" {
			e.DownloadID = data.Subject.ID.String()
		}
		return e, true
	}
	return streamEvent{}, false
}

func fromAPI(d client.Download) remoteDownload {
	r := remoteDownload{
		ID: d.ID.String(), URL: d.URL, Title: d.Title, State: string(d.State), NextTryAt: d.NextTryAt,
		WaitingOn: value(d.WaitingOn), JobID: value(d.JobID), IsCollection: d.IsCollection,
	}
	if d.ParentID != nil {
		r.ParentID = d.ParentID.String()
	}
	if w := d.Waiting; w != nil {
		r.Waiting = &remoteWaiting{
			Reason: string(w.Reason), Key: value(w.Key), Position: int(value(w.Position)), NotBefore: w.NotBefore,
		}
	}
	if p := d.Progress; p != nil {
		r.Progress = &remoteProgress{
			Phase: value(p.Phase), Percent: p.Percent, DownloadedBytes: value(p.DownloadedBytes), TotalBytes: value(p.TotalBytes),
			SpeedBytesPerS: value(p.SpeedBytesPerS), ETAS: value(p.EtaS),
		}
	}
	for _, f := range d.Files {
		r.Files = append(r.Files, remoteFile{Path: f.Path, SizeBytes: f.SizeBytes})
	}
	if d.Failure != nil {
		r.Failure = &remoteFailure{Reason: d.Failure.Reason, Detail: d.Failure.Detail}
	}
	return r
}

// value is what p points to, or nothing.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

var errNotMediaNest = errors.New("the answer is not one of MediaNest's")

// isPassing tells errors that a moment may mend: the platform is restarting, or its database is.
func isPassing(err error) bool {
	if problem, ok := errors.AsType[*client.Problem](err); ok {
		return problem.Status == http.StatusServiceUnavailable || problem.Status == http.StatusBadGateway ||
			problem.Code == client.CodeTooManyRequests
	}
	return false
}

// explain makes an error that tells a person what to do.
func (p *apiPlatform) explain(err error) error {
	if err == nil {
		return nil
	}
	if problem, ok := errors.AsType[*client.Problem](err); ok {
		switch problem.Status {
		case http.StatusUnauthorized:
			return plain(errRefused, "the platform at %s does not accept the token from %s: it is unknown there, revoked or expired", p.server, p.origin)
		case http.StatusForbidden:
			return plain(errRefused, "the platform at %s does not allow this: %v", p.server, problem)
		case http.StatusNotFound:
			if problem.Code == client.CodeNotFound {
				return fmt.Errorf("%w on %s", errNoDownload, p.server)
			}
			return fmt.Errorf("what answers at %s is not MediaNest, or not at this path", p.server)
		case http.StatusUnprocessableEntity, http.StatusBadRequest:
			if problem.Detail != nil && *problem.Detail != "" {
				return plain(errBadRequest, "%s", *problem.Detail)
			}
			return plain(errBadRequest, "%v", problem)
		case http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
			return fmt.Errorf("the platform at %s cannot answer now, perhaps because its database is away; %s/readyz tells: %w", p.server, p.server, problem)
		}
		return fmt.Errorf("the platform at %s: %w", p.server, problem)
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("no platform answers at %s (%w); start one with `medianest up`, or name another with --server or MEDIANEST_SERVER", p.server, cause(err))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the platform at %s did not answer within %s", p.server, requestTimeout)
	}
	if errors.Is(err, errNotMediaNest) {
		return fmt.Errorf("what answers at %s is not MediaNest", p.server)
	}
	return fmt.Errorf("the platform at %s: %w", p.server, cause(err))
}

// plainError is of a kind that callers test for, and says only what is for people.
type plainError struct {
	kind error
	text string
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.kind }

func plain(kind error, format string, args ...any) error {
	return &plainError{kind, fmt.Sprintf(format, args...)}
}

// cause takes off what net/http puts before an error: method and address, which are said already.
func cause(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}
