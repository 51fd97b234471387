package api

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/gin-gonic/gin"

	"medianest/store"
)

const maxFormBytes = 8 << 10

// loginPage is what the sign-in form shows.
type loginPage struct {
	Next     string // where to go afterwards, a path of ours
	Name     string // that was tried
	ByToken  bool   // the form's other half was tried
	Remember bool
	Fault    string // why the last attempt failed

	Providers []providerLink
}

// providerLink is another way in.
type providerLink struct{ Title, Link string }

// loginPage adds the other ways in.
func (a *API) loginPage(p loginPage) loginPage {
	for _, provider := range a.providers {
		p.Providers = append(p.Providers, providerLink{provider.Title(), a.basePath + "/login/" + provider.Name() + "?next=" + url.QueryEscape(p.Next)})
	}
	return p
}

// handleLoginForm shows the form that begins a session.
func (a *API) handleLoginForm(c *gin.Context) {
	a.renderPage(c, http.StatusOK, "login.html", a.loginPage(loginPage{Next: a.localPath(c.Query("next"))}))
}

// readForm reads a form of our own pages.
func (a *API) readForm(c *gin.Context) bool {
	if err := a.crossOrigin.Check(c.Request); err != nil {
		a.writeProblem(c, newProblem(CodeCrossSite, "").because(err))
		return false
	}
	if p := a.within(c, RateSignIn, nil); p != nil {
		a.writeProblem(c, p)
		return false
	}
	boundBody(c, maxFormBytes)
	if err := c.Request.ParseForm(); err != nil {
		a.writeProblem(c, newProblem(CodeInvalidBody, "The form could not be read.").because(err))
		return false
	}
	return true
}

// handleLogin begins a session by a name and a password, or by a token.
func (a *API) handleLogin(c *gin.Context) {
	if !a.readForm(c) {
		return
	}
	page := loginPage{Next: a.localPath(c.PostForm("next")), Name: c.PostForm("name"), Remember: c.PostForm("remember") != ""}
	page.ByToken = c.PostForm("token") != ""
	var err error
	if page.ByToken {
		_, err = a.signInByToken(c.Request.Context(), c, c.PostForm("token"), page.Remember)
	} else {
		_, err = a.signInByPassword(c.Request.Context(), c, page.Name, c.PostForm("password"), page.Remember)
	}
	a.afterForm(c, err, page.Next, "login.html", func(fault string) any { page.Fault = fault; return a.loginPage(page) })
}

// afterForm goes on to where a sign-in was for, or shows the form again with what is wrong.
func (a *API) afterForm(c *gin.Context, err error, next, form string, page func(fault string) any) {
	ctx := c.Request.Context()
	if err == nil {
		c.Redirect(http.StatusSeeOther, next)
		return
	}
	p := problemOf(ctx, err)
	var fault string
	switch p.Code {
	case CodeTooManyAttempts:
		fault = "Too many attempts failed. Try again in " + p.header.Get("Retry-After") + " s."
	case CodeUnauthenticated:
		fault = p.Detail
	case CodeValidationFailed:
		var invalid *store.InvalidError
		if errors.As(err, &invalid) {
			fault = "The " + invalid.Error() + "."
		}
	}
	if fault == "" {
		a.writeProblem(c, p)
		return
	}
	a.complete(ctx, p)
	if wait := p.header.Get("Retry-After"); wait != "" {
		c.Header("Retry-After", wait)
	}
	a.renderPage(c, p.Status, form, page(fault))
}

// handleLogout ends the session. Who has none is signed out already.
func (a *API) handleLogout(c *gin.Context) {
	if !a.readForm(c) {
		return
	}
	ctx := c.Request.Context()
	who, err := a.authenticate(c)
	if err == nil && who.Session != nil {
		if !a.csrfMatches(c.Request, who.Session.ID, c.PostForm(csrfField)) {
			a.writeProblem(c, newProblem(CodeCSRF, ""))
			return
		}
		if err := a.endSession(ctx, c, who); err != nil {
			a.writeProblem(c, problemOf(ctx, err))
			return
		}
	}
	if p := problemOf(ctx, err); err != nil && !errors.Is(err, errNoToken) && p.Status != http.StatusUnauthorized {
		a.writeProblem(c, p)
		return
	}
	a.forgetSession(c)
	c.Redirect(http.StatusSeeOther, a.basePath+"/")
}

// invitationPage is what the form for a first password shows.
type invitationPage struct {
	Code  string
	Fault string
}

// handleInvitationForm asks who was invited for a password. The code is in the address, once: it is good for nothing
// afterwards, and no other site is told the address.
func (a *API) handleInvitationForm(c *gin.Context) {
	code := c.Query("code")
	if len(code) > maxTokenLength {
		code = ""
	}
	c.Header("Referrer-Policy", "no-referrer")
	a.renderPage(c, http.StatusOK, "invitation.html", invitationPage{Code: code})
}

func (a *API) handleInvitation(c *gin.Context) {
	if !a.readForm(c) {
		return
	}
	page := invitationPage{Code: c.PostForm("code")}
	var err error = &store.InvalidError{Field: "passwords", Reason: "are not the same"}
	if c.PostForm("password") == c.PostForm("again") {
		_, err = a.signInByInvitation(c.Request.Context(), c, page.Code, c.PostForm("password"), c.PostForm("remember") != "")
	}
	a.afterForm(c, err, a.basePath+"/", "invitation.html", func(fault string) any { page.Fault = fault; return page })
}

// localPath returns next if it is a path of ours, and the first page otherwise, so that a link to the form cannot lead
// out of here.
func (a *API) localPath(next string) string {
	home := a.basePath + "/"
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(next, home) ||
		strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\r\n\t") || !strings.HasPrefix(path.Clean(u.Path)+"/", home) {
		return home
	}
	return u.RequestURI()
}
