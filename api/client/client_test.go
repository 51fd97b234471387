package client_test

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/api/client"
)

var update = flag.Bool("update", false, "record that the client was generated from the document")

// The generated code must be made from the document that is committed, and not be edited by hand: the file of sums is
// written when it is generated.
func TestGeneratedFromDocument(t *testing.T) {
	t.Parallel()
	got := ""
	for _, name := range []string{"openapi.json", "client.gen.go"} {
		content, err := os.ReadFile(name)
		require.NoError(t, err)
		sum := sha256.Sum256(content)
		got += fmt.Sprintf("%s  %s\n", hex.EncodeToString(sum[:]), name)
	}
	const file = "generated.sha256"
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "run make generate")
}

func TestNewRefusesWhatIsNoServer(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"", "media.example", "ftp://media.example", "http://", "://", "/api"} {
		_, err := client.New(server, "")
		require.Error(t, err, server)
	}
}

func TestFault(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status     int
		body, want string
	}{
		"none":             {200, `{"state":"ok","version":"v1"}`, ""},
		"a problem":        {500, `{"type":"t","title":"It broke","status":500,"code":"internal"}`, "It broke"},
		"with a detail":    {500, `{"title":"It broke","detail":"Badly.","status":500,"code":"internal"}`, "It broke: Badly."},
		"with errors":      {500, `{"title":"Not valid","code":"c","errors":[{"location":"body.url","message":"too short"},{"message":"odd"}]}`, "Not valid: too short (body.url): odd"},
		"said once":        {500, `{"title":"No","detail":"Not so.","code":"c","errors":[{"location":"body.url","message":"Not so."}]}`, "No: Not so."},
		"a proxy's page":   {502, `<html>`, "HTTP 502 Bad Gateway"},
		"an unknown state": {599, ``, "HTTP 599"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/base/livez" || r.Header.Get("Authorization") != "Bearer mn_secret" {
					w.WriteHeader(http.StatusTeapot)
					return
				}
				if strings.HasPrefix(test.body, "{") {
					w.Header().Set("Content-Type", "application/json")
				}
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			}))
			t.Cleanup(server.Close)
			c, err := client.New(server.URL+"/base", "mn_secret", client.WithHTTPClient(server.Client()))
			require.NoError(t, err)
			answer, err := c.LivezWithResponse(t.Context())
			require.NoError(t, err)
			err = client.Fault(answer)
			if test.want == "" {
				require.NoError(t, err)
				require.Equal(t, "v1", answer.JSON200.Version)
				return
			}
			require.EqualError(t, err, test.want)
			var problem *client.Problem
			require.ErrorAs(t, err, &problem)
			require.Equal(t, int64(test.status), problem.Status)
		})
	}
}
