package api

import (
	"errors"
	"net/http"
	"net/url"

	"github.com/gin-gonic/gin"
)

// policyRiver is what River UI's own page needs. Its script measures and places elements by style attributes, which
// no policy but 'unsafe-inline' for styles allows; scripts stay confined to its files.
const policyRiver = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// handleRiver lets administrators into River UI, which knows no users. Its buttons act on all jobs, so nothing here
// may be asked for by another site's page, not even by a safe method.
func (a *API) handleRiver(c *gin.Context) {
	if err := a.admitToRiver(c.Request); err != nil {
		if errors.Is(err, errNoToken) {
			if wantsPage(c.Request) {
				c.Redirect(http.StatusSeeOther, a.basePath+"/login?next="+url.QueryEscape(c.Request.URL.RequestURI()))
				return
			}
			err = unauthenticated("")
		}
		a.writeProblem(c, problemOf(c.Request.Context(), err))
		return
	}
	boundBody(c, maxBodyBytes)
	c.Header("Content-Security-Policy", policyRiver)
	// River UI's own caching: its files have hashed names.
	c.Writer.Header().Del("Cache-Control")
	a.riverUI.ServeHTTP(c.Writer, c.Request)
}

func (a *API) admitToRiver(r *http.Request) error {
	if err := a.sameSite(r); err != nil {
		return newProblem(CodeCrossSite, "Open this page from this site, or by its address.").because(err)
	}
	who, err := a.authenticate(r)
	if err != nil {
		return err
	}
	if !who.User.IsAdmin() {
		return newProblem(CodeForbidden, "River UI shows and changes the jobs of all users.")
	}
	return nil
}

var errCrossSite = errors.New("request of another site")

// sameSite is the cross-origin check for every method: another site's page may not even link here. A request without
// the headers of browsers is a program's.
func (a *API) sameSite(r *http.Request) error {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return errCrossSite
	}
	unsafe := *r
	unsafe.Method = http.MethodPost
	return a.crossOrigin.Check(&unsafe)
}
