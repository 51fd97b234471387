package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strconv"

	"github.com/gin-gonic/gin"
)

// policyRiver is what River UI's own page needs. Its script measures and places elements by style attributes, which
// no policy but 'unsafe-inline' for styles allows; scripts stay confined to its files.
const policyRiver = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// handleRiver lets administrators into River UI, which knows no users. Its buttons act on all jobs, so nothing here
// may be asked for by another site's page, not even by a safe method.
func (a *API) handleRiver(c *gin.Context) {
	if err := a.admitToRiver(c); err != nil {
		if p, ok := errors.AsType[*Problem](err); errors.Is(err, errNoToken) || ok && p.Code == CodeSessionEnded {
			if wantsPage(c.Request) {
				c.Redirect(http.StatusSeeOther, a.basePath+"/login?next="+url.QueryEscape(c.Request.URL.RequestURI()))
				return
			}
			if !ok {
				err = unauthenticated("")
			}
		}
		a.writeProblem(c, problemOf(c.Request.Context(), err))
		return
	}
	if page := a.currentPage(c); page != "" {
		c.Redirect(http.StatusFound, page)
		return
	}
	boundBody(c, maxBodyBytes)
	c.Header("Content-Security-Policy", policyRiver)
	// River UI's own caching: its files have hashed names.
	c.Writer.Header().Del("Cache-Control")
	if c.Request.Method != http.MethodGet {
		a.auditRiver(c)
		return
	}
	a.riverUI.ServeHTTP(c.Writer, c.Request)
}

// riverJobPage is the path of a job's page in River UI, below riverPath.
var riverJobPage = regexp.MustCompile(`^/jobs/([1-9][0-9]{0,18})$`)

// currentPage returns where the page of a job is that has another row than the one asked for, or "". River UI knows
// rows; links, logs and this API name a job by its first one, which after the loss of a worker is not the one that runs.
// Where the row cannot be found, River UI itself says why there is nothing to see.
func (a *API) currentPage(c *gin.Context) string {
	match := riverJobPage.FindStringSubmatch(c.Param("path"))
	if match == nil || c.Request.Method != http.MethodGet {
		return ""
	}
	id, err := parseJobID(match[1])
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), requestTimeout)
	defer cancel()
	row, err := a.store.CurrentRow(ctx, id)
	if err != nil || int64(row) == id {
		return ""
	}
	page := *c.Request.URL
	page.Path = a.basePath + riverPath + "/jobs/" + strconv.FormatInt(int64(row), 10)
	return page.RequestURI()
}

func (a *API) admitToRiver(c *gin.Context) error {
	if err := a.sameSite(c.Request); err != nil {
		return newProblem(CodeCrossSite, "Open this page from this site, or by its address.").because(err)
	}
	who, err := a.authenticate(c)
	class := RateRead
	if !isSafe(c.Request.Method) {
		class = RateWrite
	}
	if p := a.tooMany(c, class, who, err); p != nil {
		return p
	}
	if err != nil {
		return err
	}
	scopeOf(c.Request.Context()).need = ScopeRiver
	if p := who.permit(ScopeRiver); p != nil {
		return p
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
