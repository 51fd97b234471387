package api

import (
	"time"

	"github.com/gin-gonic/gin"
)

// Routes are all routes, for tests that walk them.
func (a *API) Routes() gin.RoutesInfo { return a.router.Routes() }

// Throttle is for tests of the clock.
type Throttle = throttle

// NewThrottle returns a throttle with a clock of the test's.
func NewThrottle(now func() time.Time) *Throttle { return newThrottle(now) }

// Wait and the others call what handlers call.
func (t *throttle) Wait(address string) time.Duration { return t.wait(address) }

// Failed counts a failure.
func (t *throttle) Failed(address string) { t.failed(address) }

// Succeeded forgets failures.
func (t *throttle) Succeeded(address string) { t.succeeded(address) }

// Size is how many networks are remembered.
func (t *throttle) Size() int { return len(t.failures) }

// LocalPath is where the sign-in form may lead.
func (a *API) LocalPath(next string) string { return a.localPath(next) }

// MaxThrottledNets bounds Size.
const MaxThrottledNets = maxThrottledNets

// MaxBodyBytes is the largest body.
const MaxBodyBytes = maxBodyBytes

// AddRoute adds a route for a test, behind the middleware.
func (a *API) AddRoute(method, path string, handler gin.HandlerFunc) {
	a.router.Handle(method, path, handler)
}
