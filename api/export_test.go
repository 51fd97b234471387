package api

import (
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
)

// Routes are all routes, for tests that walk them.
func (a *API) Routes() gin.RoutesInfo { return a.router.Routes() }

// Network is what one party has at its disposal.
func Network(address string) string { return network(address).String() }

// WatchEvery sets how often it is looked whether a stream's reader may still read.
func (a *API) WatchEvery(d time.Duration) { a.watchEvery = d }

// HashPassword and PasswordMatches are for users of tests.
func HashPassword(password string) (string, error) { return hashPassword(password), nil }

// PasswordMatches checks one.
func PasswordMatches(password, hash string) bool { return passwordMatches(password, hash) }

// SignSession is what the cookie of a session holds.
func (a *API) SignSession(id uuid.UUID) string { return a.signSession(id, a.now()) }

// RoleScopes are what each role may do; AllScopes all there are.
func RoleScopes(role string) []Scope { return roleScopes[role] }

// AllScopes are all there are.
func AllScopes() []Scope { return allScopes }

// ScopeOf is the scope that an operation declares, "" if it is public, by method and path.
func (a *API) ScopeOf(method, path string) (scope Scope, public, found bool) {
	d, found := a.declared[method+" "+path]
	return d.scope, d.public, found
}

// LocalPath is where the sign-in form may lead.
func (a *API) LocalPath(next string) string { return a.localPath(next) }

// MaxBodyBytes is the largest body.
const MaxBodyBytes = maxBodyBytes

// AddRoute adds a route for a test, behind the middleware.
func (a *API) AddRoute(method, path string, handler gin.HandlerFunc) {
	a.router.Handle(method, path, handler)
}
