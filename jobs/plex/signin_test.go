package plex_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/jobs/plex"
)

const server = "machine-of-ours"

// plexTV speaks plex.tv's shapes.
type plexTV struct {
	confirmed bool
	resources string
	status    int
}

func (p *plexTV) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.status != 0 {
		w.WriteHeader(p.status)
		return
	}
	if r.Header.Get("X-Plex-Client-Identifier") == "" || r.Header.Get("Accept") != "application/json" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	token := "null"
	if p.confirmed {
		token = `"canary-token"`
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /api/v2/pins":
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"id":1234567890,"code":"abcdefghijklmnopqrstuvwxy","expiresIn":900,"authToken":null}`)
	case "GET /api/v2/pins/1234567890":
		fmt.Fprintf(w, `{"id":1234567890,"code":"abcdefghijklmnopqrstuvwxy","authToken":%s}`, token)
	case "GET /api/v2/user", "GET /api/v2/resources":
		if r.Header.Get("X-Plex-Token") != "canary-token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.HasSuffix(r.URL.Path, "user") {
			fmt.Fprint(w, `{"id":7,"username":"carla","title":"Carla","email":"c@example.org"}`)
			return
		}
		fmt.Fprint(w, p.resources)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":1020,"message":"Code not found or expired","status":404}]}`)
	}
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		tv   plexTV
		want error
	}{
		"may use the server":  {plexTV{confirmed: true, resources: `[{"clientIdentifier":"other","provides":"server"},{"clientIdentifier":"` + server + `","provides":"server,client","owned":false}]`}, nil},
		"not yet":             {plexTV{}, plex.ErrPending},
		"other servers":       {plexTV{confirmed: true, resources: `[{"clientIdentifier":"other","provides":"server"}]`}, plex.ErrNoAccess},
		"a player of that id": {plexTV{confirmed: true, resources: `[{"clientIdentifier":"` + server + `","provides":"player"}]`}, plex.ErrNoAccess},
		"no server":           {plexTV{confirmed: true, resources: `[]`}, plex.ErrNoAccess},
		"nonsense":            {plexTV{confirmed: true, resources: `<html>`}, plex.ErrUnavailable},
		"too many requests":   {plexTV{status: http.StatusTooManyRequests}, plex.ErrUnavailable},
		"broken":              {plexTV{status: http.StatusInternalServerError}, plex.ErrUnavailable},
		"pin is gone":         {plexTV{status: http.StatusNotFound}, plex.ErrExpired},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tv := httptest.NewServer(&test.tv)
			defer tv.Close()
			s := plex.NewSignIn(plex.Options{ServerID: server, Version: "v1", Client: tv.Client(), URL: tv.URL})
			status := test.tv.status
			test.tv.status = 0
			pin, err := s.Begin(t.Context())
			require.NoError(t, err)
			test.tv.status = status
			link, err := url.Parse(s.Link(pin, "https://media.example/login/plex/done"))
			require.NoError(t, err)
			require.Contains(t, link.Fragment, "code=abcdefghijklmnopqrstuvwxy")
			require.Contains(t, link.String(), url.QueryEscape("https://media.example/login/plex/done"))
			who, err := s.Finish(t.Context(), pin)
			require.ErrorIs(t, err, test.want)
			if test.want == nil {
				require.Equal(t, plex.Person{ID: "7", Name: "carla", Token: "canary-token"}, who)
				return
			}
			require.NotContains(t, err.Error(), "canary")
		})
	}
}

func TestPlexIsAway(t *testing.T) {
	t.Parallel()
	s := plex.NewSignIn(plex.Options{ServerID: server, Client: http.DefaultClient, URL: "http://127.0.0.1:1"})
	_, err := s.Begin(t.Context())
	require.ErrorIs(t, err, plex.ErrUnavailable)
}
