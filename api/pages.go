package api

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"path"
	"strings"

	"github.com/gin-gonic/gin"
)

//go:embed page
var pageFiles embed.FS

// pages are the pages for people: made here, from files in the program, without script, and without loading anything
// from elsewhere.
type pages struct {
	templates map[string]*template.Template
	static    map[string]staticFile
	docs      *docs
}

// staticFile is a file that pages load. Its version changes with its content, so browsers may keep it for ever.
type staticFile struct {
	body        []byte
	contentType string
	version     string
}

func newPages(a *API) (*pages, error) {
	p := &pages{templates: map[string]*template.Template{}, static: map[string]staticFile{}}
	for name, contentType := range map[string]string{"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"} {
		body, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			return nil, fmt.Errorf("read page file: %w", err)
		}
		sum := sha256.Sum256(body)
		p.static[name] = staticFile{body: body, contentType: contentType, version: hex.EncodeToString(sum[:6])}
	}
	functions := template.FuncMap{
		"static": func(name string) string {
			return a.basePath + "/static/" + name + "?v=" + p.static[name].version
		},
		"text": prose,
	}
	for _, name := range []string{"root.html", "login.html", "invitation.html", "done.html", "problem.html", "docs.html"} {
		t, err := template.New(name).Funcs(functions).ParseFS(pageFiles, "page/layout.html", "page/"+name)
		if err != nil {
			return nil, fmt.Errorf("parse page %s: %w", name, err)
		}
		p.templates[name] = t
	}
	var err error
	p.docs, err = describeAPI(a.huma.OpenAPI(), a.operations)
	return p, err
}

// pageView is what every page is given.
type pageView struct {
	Base    string // what paths begin with
	Version string
	User    *User  // who is signed in
	CSRF    string // for forms of who is signed in
	Others  bool   // sees what is others', too
	River   bool   // may see River UI
	Page    any
}

// renderPage answers with a page.
func (a *API) renderPage(c *gin.Context, status int, name string, page any) {
	view := pageView{Base: a.basePath, Version: a.version, Page: page}
	if who := scopeOf(c.Request.Context()).identity; who != nil {
		view.User, view.Others, view.River = presentUser(who.User), who.has(ScopeOthersRead), a.riverUI != nil && who.has(ScopeRiver)
		if who.Session != nil {
			view.CSRF = a.csrfToken(who.Session.ID)
		}
	}
	var body bytes.Buffer
	if err := a.pages.templates[name].ExecuteTemplate(&body, "layout", view); err != nil {
		panic(fmt.Errorf("render page %s: %w", name, err)) // a fault of the template: every call would fail
	}
	c.Header("Content-Security-Policy", policyPages)
	c.Data(status, "text/html; charset=utf-8", body.Bytes())
}

// recognise finds who looks at a page that needs no user. Who cannot be found is shown the page of a stranger.
func (a *API) recognise(c *gin.Context) {
	_, _ = a.authenticate(c) //nolint:errcheck // see above; a database that is away shows on the page itself
}

// wantsPage reports whether a browser asks for a page, rather than a program for data.
func wantsPage(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}

func (a *API) handleStatic(c *gin.Context) {
	file, found := a.pages.static[path.Base(c.Param("name"))]
	if !found {
		a.writeProblem(c, newProblem(CodeNoSuchRoute, ""))
		return
	}
	c.Header("Cache-Control", "public, max-age=31536000, immutable")
	c.Data(http.StatusOK, file.contentType, file.body)
}

// rootPage is what the first page shows.
type rootPage struct {
	Health Health
	Server string // where the API is, for examples
}

// handleRoot shows what there is and who is signed in.
func (a *API) handleRoot(c *gin.Context) {
	a.recognise(c)
	a.renderPage(c, http.StatusOK, "root.html", rootPage{Health: a.health.look(c.Request.Context()), Server: a.server(c.Request)})
}

// server is where the request, or PublicURL, says that the API is.
func (a *API) server(r *http.Request) string {
	if a.publicURL != nil {
		return strings.TrimSuffix(a.publicURL.String(), "/")
	}
	scheme := "http"
	if a.isSecure(r) {
		scheme = "https"
	}
	return scheme + "://" + r.Host + a.basePath
}
