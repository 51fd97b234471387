// Package plex speaks with plex.tv: who somebody is there, and which servers they may use.
package plex

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Where plex.tv's interfaces are. The shapes are those of https://github.com/LukeHagar/plex-api-spec.
const (
	defaultAPI       = "https://plex.tv"
	defaultResources = "https://clients.plex.tv"
	defaultApp       = "https://app.plex.tv"

	maxAnswer = 4 << 20 // somebody may share hundreds of servers
)

var (
	// ErrPending says that the person has not said yes yet.
	ErrPending = errors.New("not confirmed yet")
	// ErrExpired says that the person has not said yes in time.
	ErrExpired = errors.New("not confirmed in time")
	// ErrNoAccess says that the person may not use our server.
	ErrNoAccess = errors.New("no access to the server")
	// ErrUnavailable says that plex.tv does not answer, or not as it should.
	ErrUnavailable = errors.New("plex.tv does not answer")
)

// Options are what a SignIn is made of.
type Options struct {
	ServerID string       // machineIdentifier of the server that people must have access to
	Version  string       // of this program
	Client   *http.Client // guarded: package egress
	URL      string       // instead of plex.tv's, all three: for tests
}

// SignIn lets people in who may use one Plex server.
type SignIn struct {
	options             Options
	api, resources, app string
	clientID            string // stable for an installation: plex.tv shows it as a device
}

// NewSignIn returns one.
func NewSignIn(o Options) *SignIn {
	s := &SignIn{options: o, api: defaultAPI, resources: defaultResources, app: defaultApp}
	if o.URL != "" {
		s.api, s.resources, s.app = o.URL, o.URL, o.URL
	}
	s.clientID = uuid.NewSHA1(uuid.NameSpaceURL, []byte("medianest:"+o.ServerID)).String()
	return s
}

// Pin is a sign-in that waits for the person to say yes on a page of plex.tv.
type Pin struct {
	ID        int64     `json:"id"`
	Code      string    `json:"code"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Person is somebody who may use the server.
type Person struct {
	ID    string // never changes
	Name  string
	Token string // a secret: lets its bearer act as the person on plex.tv
}

// Begin asks for a pin.
func (s *SignIn) Begin(ctx context.Context) (Pin, error) {
	var pin struct {
		ID        int64  `json:"id"`
		Code      string `json:"code"`
		ExpiresIn int    `json:"expiresIn"`
	}
	if err := s.ask(ctx, http.MethodPost, s.api+"/api/v2/pins?strong=true", "", &pin); err != nil {
		return Pin{}, err
	}
	if pin.ID == 0 || pin.Code == "" || pin.ExpiresIn <= 0 {
		return Pin{}, fmt.Errorf("ask for a pin: %w: it is incomplete", ErrUnavailable)
	}
	return Pin{ID: pin.ID, Code: pin.Code, ExpiresAt: time.Now().Add(time.Duration(min(pin.ExpiresIn, 3600)) * time.Second)}, nil
}

// Link is the page where the person says yes; afterwards it leads to forward.
func (s *SignIn) Link(p Pin, forward string) string {
	q := url.Values{
		"clientID": {s.clientID}, "code": {p.Code}, "context[device][product]": {"MediaNest"}, "forwardUrl": {forward},
	}
	return s.app + "/auth#?" + q.Encode()
}

// Finish returns who said yes, if they may use the server: ErrPending before, ErrExpired after its time, ErrNoAccess for
// anybody else with an account there.
func (s *SignIn) Finish(ctx context.Context, p Pin) (Person, error) {
	var pin struct {
		AuthToken string `json:"authToken"`
	}
	address := s.api + "/api/v2/pins/" + strconv.FormatInt(p.ID, 10) + "?code=" + url.QueryEscape(p.Code)
	switch err := s.ask(ctx, http.MethodGet, address, "", &pin); {
	case isStatus(err, http.StatusNotFound):
		return Person{}, ErrExpired
	case err != nil:
		return Person{}, err
	case pin.AuthToken == "":
		return Person{}, ErrPending
	}
	var user struct {
		ID       int64  `json:"id"`
		Username string `json:"username"`
		Title    string `json:"title"`
	}
	if err := s.ask(ctx, http.MethodGet, s.api+"/api/v2/user", pin.AuthToken, &user); err != nil {
		return Person{}, err
	}
	if user.ID == 0 {
		return Person{}, fmt.Errorf("ask who it is: %w: there is no id", ErrUnavailable)
	}
	var servers []struct {
		ClientIdentifier string `json:"clientIdentifier"`
		Provides         string `json:"provides"`
	}
	if err := s.ask(ctx, http.MethodGet, s.resources+"/api/v2/resources?includeHttps=1", pin.AuthToken, &servers); err != nil {
		return Person{}, err
	}
	for _, r := range servers {
		if r.ClientIdentifier == s.options.ServerID && slices.Contains(strings.Split(r.Provides, ","), "server") {
			name := user.Username
			if name == "" {
				name = user.Title // of a managed user
			}
			return Person{ID: strconv.FormatInt(user.ID, 10), Name: name, Token: pin.AuthToken}, nil
		}
	}
	return Person{}, ErrNoAccess
}

// statusError is an answer that is none.
type statusError struct{ status int }

func (e *statusError) Error() string { return fmt.Sprintf("plex.tv answers %d", e.status) }
func (e *statusError) Unwrap() error { return ErrUnavailable }

func isStatus(err error, status int) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && e.status == status
}

// ask sends a request and decodes the answer. Its errors hold neither the token nor the address, which may.
func (s *SignIn) ask(ctx context.Context, method, address, token string, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(nil))
	if err != nil {
		return fmt.Errorf("%w: the request is malformed", ErrUnavailable)
	}
	for name, value := range map[string]string{
		"Accept": "application/json", "X-Plex-Product": "MediaNest", "X-Plex-Version": s.options.Version,
		"X-Plex-Client-Identifier": s.clientID, "X-Plex-Platform": "Linux", "X-Plex-Device": "Server", "X-Plex-Device-Name": "MediaNest",
	} {
		r.Header.Set(name, value)
	}
	if token != "" {
		r.Header.Set("X-Plex-Token", token)
	}
	answer, err := s.options.Client.Do(r)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer answer.Body.Close() //nolint:errcheck // read to its end, or given up
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return &statusError{answer.StatusCode}
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("%w: the answer is no JSON", ErrUnavailable)
	}
	return nil
}
