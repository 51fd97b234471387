package api

import (
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"
)

// corsHeaders are those that scripts of allowed origins may send and read, besides the harmless ones.
const (
	corsSent  = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-CSRF-Token, X-Request-ID"
	corsRead  = "Location, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, X-Request-ID"
	corsVerbs = "GET, POST, PUT, PATCH, DELETE"
	corsAge   = "600"
)

// cors lets the scripts of other origins, of those that are listed and no others, use the API (Fetch standard, CORS
// protocol). They show a token, or a ticket for an event stream: our cookies are not for other sites.
func (a *API) cors(c *gin.Context) {
	h := c.Writer.Header()
	h.Add("Vary", "Origin")
	origin := c.GetHeader("Origin")
	if !a.isAPIPath(c.Request.URL.Path) || !slices.Contains(a.corsOrigins, origin) || origin == "" {
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", corsRead)
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	if c.Request.Method == http.MethodOptions && c.GetHeader("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Methods", corsVerbs)
		h.Set("Access-Control-Allow-Headers", corsSent)
		h.Set("Access-Control-Max-Age", corsAge)
		c.AbortWithStatus(http.StatusNoContent)
	}
}
