package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/api"
)

var asBrowser = map[string]string{"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}

func (b *bundle) page(path string, status int) string {
	b.t.Helper()
	a := b.do(request{method: "GET", path: path, header: asBrowser})
	require.Equal(b.t, status, a.status, "body: %s", a.body)
	require.Equal(b.t, "text/html; charset=utf-8", a.header.Get("Content-Type"))
	return string(a.body)
}

// elsewhere matches what a page would load from another host, or what the policy does not let run.
var elsewhere = regexp.MustCompile(`(?i)(<script|<style|\sstyle=|\son[a-z]+=|javascript:|<iframe|(src|href|action)="(https?:)?//)`)

// Pages work without the internet and under their own policy: they load two files of ours and nothing else.
func TestPagesStandAlone(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{}, func(_ *bundle, o *api.Options) {
		o.BasePath = "/media"
		o.RiverUI = http.NotFoundHandler()
		o.Health = func(context.Context) []api.Check {
			return []api.Check{{Name: "redis", State: api.HealthDegraded, Detail: "no answer"}}
		}
	})
	links := regexp.MustCompile(`(?:src|href|action)="([^"#]+)(?:#[^"]*)?"`)
	anchors := regexp.MustCompile(`href="#([^"]+)"`)
	for path, says := range map[string]string{
		"/media/": "It works, but not all of it.", "/media/docs": "Download something", "/media/login": "API token",
		"/media/nothing": "There is nothing at this path.",
	} {
		status := http.StatusOK
		if path == "/media/nothing" {
			status = http.StatusNotFound
		}
		page := b.page(path, status)
		require.Contains(t, page, says)
		require.Empty(t, elsewhere.FindAllString(page, -1), path)
		require.NotContains(t, page, "ZgotmplZ", "the template engine refused something")
		for _, link := range links.FindAllStringSubmatch(page, -1) {
			require.True(t, strings.HasPrefix(link[1], "/media/"), "%s links to %s", path, link[1])
			target := strings.ReplaceAll(link[1], "&amp;", "&")
			got := b.do(request{method: "GET", path: target, header: asBrowser})
			require.NotEqual(t, http.StatusNotFound, got.status, "%s links to %s", path, target)
		}
		for _, anchor := range anchors.FindAllStringSubmatch(page, -1) {
			require.Contains(t, page, `id="`+anchor[1]+`"`, "%s links to #%s", path, anchor[1])
		}
	}
}

// The page describes every operation, schema, problem and reason that there is.
func TestDocsAreComplete(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{}, func(_ *bundle, o *api.Options) { o.PublicURL = "https://home.example" })
	page := b.page("/docs", http.StatusOK)
	var document struct {
		OpenAPI string
		Servers []struct{ URL string }
		Paths   map[string]map[string]struct {
			OperationID string
			Responses   map[string]json.RawMessage
		}
		Components struct{ Schemas map[string]json.RawMessage }
	}
	a := b.do(request{method: "GET", path: "/openapi.json"})
	require.Equal(t, "application/openapi+json", a.header.Get("Content-Type"))
	a.into(&document)
	require.Equal(t, "3.1.0", document.OpenAPI)
	require.Equal(t, "/", document.Servers[0].URL)
	for path, methods := range document.Paths {
		for method, operation := range methods {
			require.Contains(t, page, `<article id="`+operation.OperationID+`">`, "%s %s", method, path)
			require.Contains(t, operation.Responses, "default", "%s %s", method, path)
		}
	}
	for name := range document.Components.Schemas {
		require.Contains(t, page, `id="schema-`+name+`"`)
		require.NotContains(t, name, "ErrorModel")
	}
	require.Contains(t, page, `id="problem-not_found"`, "where the type of a problem links to")
	require.Contains(t, page, `id="reason-no_media"`)
	require.Contains(t, page, `curl \
  -H &#34;Authorization: Bearer $MEDIANEST_TOKEN&#34; \
  -H &#39;Content-Type: application/json&#39; \
  -d &#39;{ &#34;url&#34;: &#34;https://example.org/watch/42&#34; }&#39; \
  &#34;https://home.example/api/v1/downloads&#34;`)
	// Every operation of the API is in the document, and nothing else.
	for _, route := range b.api.Routes() {
		if !strings.HasPrefix(route.Path, "/api/") {
			continue
		}
		path := pathParameter.ReplaceAllString(route.Path, "{$1}")
		require.Contains(t, document.Paths[path], strings.ToLower(route.Method), path)
	}
}

func TestStaticFiles(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{})
	for name, contentType := range map[string]string{"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"} {
		a := b.do(request{method: "GET", path: "/static/" + name + "?v=1"})
		require.Equal(t, http.StatusOK, a.status)
		require.Equal(t, contentType, a.header.Get("Content-Type"))
		require.Contains(t, a.header.Get("Cache-Control"), "immutable")
	}
	for _, name := range []string{"layout.html", "..%2fapi.go", "nothing"} {
		b.do(request{method: "GET", path: "/static/" + name}).problem(http.StatusNotFound, api.CodeNoSuchRoute)
	}
}

// What a user or a site wrote is text on our pages.
func TestPagesEscape(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{})
	page := b.page("/login?next=%2F%22%3E%3Cscript%3E", http.StatusOK)
	require.NotContains(t, page, "<script>")
	r := request{method: "GET", path: "/docs", header: asBrowser}.http(t)
	r.Host = `x"><script>alert(1)</script>`
	require.NotContains(t, string(b.serve(r).body), "<script>")
}

func TestBasePath(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{}, func(_ *bundle, o *api.Options) { o.BasePath = "/media" })
	a := b.do(request{method: "GET", path: "/media"})
	require.Equal(t, http.StatusMovedPermanently, a.status)
	require.Equal(t, "/media/", a.header.Get("Location"))
	b.do(request{method: "GET", path: "/livez"}).problem(http.StatusNotFound, api.CodeNoSuchRoute)
	require.Equal(t, http.StatusOK, b.do(request{method: "GET", path: "/media/livez"}).status)
	require.Len(t, b.lines("request"), 3)
	p := b.do(request{method: "GET", path: "/media/api/v1/downloads"}).problem(http.StatusUnauthorized, api.CodeUnauthenticated)
	require.Equal(t, "/media/docs#problem-unauthenticated", p.Type)
}
