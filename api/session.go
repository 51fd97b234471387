package api

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
)

const (
	// sessionAge is how long a browser stays signed in, unless the token expires before.
	sessionAge = 30 * 24 * time.Hour

	maxFormBytes = 8 << 10
)

// loginPage is what the sign-in form shows.
type loginPage struct {
	Next  string // where to go afterwards, a path of ours
	Fault string // why the last attempt failed
}

// handleLoginForm shows the form that turns a token into a cookie.
func (a *API) handleLoginForm(c *gin.Context) {
	a.renderPage(c, http.StatusOK, "login.html", loginPage{Next: a.localPath(c.Query("next"))})
}

// handleLogin checks the token of the form and sets the cookie. Addresses that fail again and again have to wait.
func (a *API) handleLogin(c *gin.Context) {
	if err := a.crossOrigin.Check(c.Request); err != nil {
		a.writeProblem(c, newProblem(CodeCrossSite, "").because(err))
		return
	}
	boundBody(c, maxFormBytes)
	if err := c.Request.ParseForm(); err != nil {
		a.writeProblem(c, newProblem(CodeInvalidBody, "The form could not be read.").because(err))
		return
	}
	page := loginPage{Next: a.localPath(c.PostForm("next"))}
	if wait := a.throttle.wait(c.ClientIP()); wait > 0 {
		a.metrics.signIns.WithLabelValues("slowed_down").Inc()
		p := newProblem(CodeTooManyAttempts, "").retryAfter(wait)
		a.complete(c.Request.Context(), p)
		c.Header("Retry-After", p.header.Get("Retry-After"))
		page.Fault = "Too many attempts failed. Try again in " + p.header.Get("Retry-After") + " s."
		a.renderPage(c, p.Status, "login.html", page)
		return
	}
	who, err := a.identify(c.Request.Context(), strings.TrimSpace(c.PostForm("token")))
	if problem, ok := errors.AsType[*Problem](err); ok && problem.Code == CodeUnauthenticated {
		a.throttle.failed(c.ClientIP())
		a.metrics.signIns.WithLabelValues("refused").Inc()
		a.complete(c.Request.Context(), problem)
		page.Fault = problem.Detail
		a.renderPage(c, problem.Status, "login.html", page)
		return
	}
	if err != nil {
		a.writeProblem(c, problemOf(c.Request.Context(), err))
		return
	}
	a.throttle.succeeded(c.ClientIP())
	a.metrics.signIns.WithLabelValues("ok").Inc()
	scopeOf(c.Request.Context()).identity = who
	http.SetCookie(c.Writer, a.cookie(c.Request, strings.TrimSpace(c.PostForm("token")), cookieAge(who)))
	c.Redirect(http.StatusSeeOther, page.Next)
}

// handleLogout forgets the cookie.
func (a *API) handleLogout(c *gin.Context) {
	if err := a.crossOrigin.Check(c.Request); err != nil {
		a.writeProblem(c, newProblem(CodeCrossSite, "").because(err))
		return
	}
	http.SetCookie(c.Writer, a.cookie(c.Request, "", -1))
	c.Redirect(http.StatusSeeOther, a.basePath+"/")
}

// cookieAge is in seconds.
func cookieAge(who *identity) int {
	age := sessionAge
	if expires := who.Token.ExpiresAt; expires != nil {
		age = min(age, time.Until(*expires))
	}
	return max(1, int(age.Seconds()))
}

func (a *API) cookie(r *http.Request, value string, maxAge int) *http.Cookie {
	return &http.Cookie{
		Name: cookieName, Value: value, Path: a.basePath + "/", MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: a.isSecure(r),
	}
}

// isSecure reports whether the browser reaches us by https. The forwarded header is believed from anyone: who forges
// it only makes their own cookie stricter.
func (a *API) isSecure(r *http.Request) bool {
	return a.publicURL != nil && a.publicURL.Scheme == "https" || r.TLS != nil ||
		strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
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
