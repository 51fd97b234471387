// Package api is the platform's HTTP: typed operations with an OpenAPI document made of them, the event stream, the pages
// for people, and River UI for administrators. Handlers bind, call one method of the store, and answer; what every
// request has in common (ids, log lines, metrics, authentication, bounds, problems) is around them.
//
// Errors are problem documents (RFC 9457) with a stable code: see problem.go. Routes are all in router.go.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"medianest/api/stream"
	"medianest/store"
)

// Store is what the API needs of package store.
type Store interface {
	Identities
	Sessions
	SignIns
	Tokens
	People
	AccessRules
	Secrets
	Downloads
	Jobs
	Workers
	Schedules
	Limits
	Breakers
	Pauses
	Audit
	Bulk
}

// ProgressSource is what the API needs of the progress bus.
type ProgressSource interface {
	// Last returns the last known progress of those of the jobs that have one.
	Last(ctx context.Context, jobIDs []int64) (map[int64]store.Progress, error)
}

// Stream is what the API needs of the event stream's hub.
type Stream interface {
	// Serve answers with an event stream until the client leaves or the hub stops. It fails only before it has written
	// anything, with stream.ErrTooManyStreams.
	Serve(w http.ResponseWriter, r *http.Request, s stream.Subscription) error
}

// Options are what an API is made of.
type Options struct {
	// Store is the data. Required.
	Store Store

	// Keys sign sessions. Required.
	Keys *store.Keyring

	// Progress is merged into downloads and jobs. Without one they have none.
	Progress ProgressSource

	// Stream serves /api/v1/events. Required.
	Stream Stream

	// RiverUI serves /river/ to administrators. It is given whole paths, with BasePath. Without one there is none.
	RiverUI http.Handler

	// Health says how the dependencies are, for /readyz. Without one the process is always ready.
	Health func(ctx context.Context) []Check

	// OnLimits is called after a limit, a breaker, a pause, or the order of what waits was changed: others may be admitted, or
	// must wait again. It must not block. Optional: admission finds out by itself within a second.
	OnLimits func()

	// Queues tells what waits. Optional: without it no queue is listed.
	Queues Queues

	// BasePath is what all paths begin with: empty, or "/x" without a slash at the end.
	BasePath string

	// PublicURL is where users reach the platform, with BasePath. It is shown in examples, its https makes cookies
	// Secure, and its origin is accepted as our own where a proxy hides the Host. Empty: as the request says.
	PublicURL string

	// TrustedProxies are the addresses and networks whose X-Forwarded-For is believed. Nil: loopback and private
	// networks, where reverse proxies are.
	TrustedProxies []string

	// Providers are other ways to sign in. Who comes by one for the first time gets an account with the SignUpRole; without
	// one, only who is tied to a user already gets in.
	Providers  []Provider
	SignUpRole string

	// RateLimiter counts requests, by Rates: requests a minute by class, DefaultRates where it is nil. Without a limiter
	// they are not counted.
	RateLimiter RateLimiter
	Rates       map[RateClass]int

	// CORSOrigins are the other origins whose scripts may use the API, such as https://portal.example. None by default.
	CORSOrigins []string

	// Now is the clock of sessions. Nil: the machine's.
	Now func() time.Time

	// Version is the build's, shown to people.
	Version string

	// Logger is required.
	Logger *slog.Logger

	// Registerer gets the HTTP metrics. Required.
	Registerer prometheus.Registerer

	// TracerProvider traces requests. Without one there are no traces.
	TracerProvider trace.TracerProvider
}

// API answers all HTTP requests of the platform. It is an http.Handler.
type API struct {
	store     Store
	progress  ProgressSource
	stream    Stream
	riverUI   http.Handler
	health    *health
	onLimits  func()
	queues    Queues
	basePath  string
	publicURL *url.URL
	version   string
	log       *slog.Logger
	keys      *store.Keyring
	now       func() time.Time

	providers   []Provider
	signUpRole  string
	limiter     RateLimiter
	rates       map[RateClass]int
	corsOrigins []string

	watchEvery time.Duration // of who reads a stream

	router      *gin.Engine
	huma        huma.API
	operations  []*huma.Operation    // in the order of router.go
	declared    map[string]described // by method and path
	metrics     *metrics
	passwords   *passwords
	crossOrigin *http.CrossOriginProtection
	pages       *pages
	quiet       map[string]bool // routes whose success is no news: probes
}

// trustedByDefault is where reverse proxies are: this machine, and private networks.
var trustedByDefault = []string{"127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"}

// New returns an API for the options.
func New(o Options) (*API, error) {
	if o.Store == nil || o.Stream == nil || o.Keys == nil || o.Logger == nil || o.Registerer == nil {
		return nil, errors.New("api: Store, Stream, Keys, Logger and Registerer are required")
	}
	if o.BasePath != "" && (!strings.HasPrefix(o.BasePath, "/") || strings.HasSuffix(o.BasePath, "/")) {
		return nil, fmt.Errorf("api: base path %q must begin with a slash and not end with one", o.BasePath)
	}
	a := &API{
		store: o.Store, progress: o.Progress, stream: o.Stream, riverUI: o.RiverUI, onLimits: o.OnLimits, queues: o.Queues,
		basePath: o.BasePath, version: o.Version, log: o.Logger,
		keys: o.Keys, now: o.Now, watchEvery: watchEvery, declared: map[string]described{}, passwords: newPasswords(), crossOrigin: http.NewCrossOriginProtection(),
	}
	a.providers, a.signUpRole = o.Providers, o.SignUpRole
	a.limiter, a.rates, a.corsOrigins = o.RateLimiter, o.Rates, o.CORSOrigins
	if a.rates == nil {
		a.rates = DefaultRates
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.onLimits == nil {
		a.onLimits = func() {}
	}
	a.health = newHealth(o.Health, o.Version, o.Logger)
	if o.PublicURL != "" {
		u, err := url.Parse(o.PublicURL)
		if err != nil || u.Host == "" {
			return nil, errors.New("api: the public URL is malformed")
		}
		a.publicURL = u
		if err := a.crossOrigin.AddTrustedOrigin(originOf(u)); err != nil {
			return nil, fmt.Errorf("api: public URL: %w", err)
		}
	}
	var err error
	if a.metrics, err = newMetrics(o.Registerer); err != nil {
		return nil, fmt.Errorf("api: register metrics: %w", err)
	}
	if a.router, err = newRouter(o.TrustedProxies); err != nil {
		return nil, fmt.Errorf("api: trusted proxies: %w", err)
	}
	a.routes(o.TracerProvider)
	if a.pages, err = newPages(a); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	return a, nil
}

// originOf is the origin of a URL as browsers write it.
func originOf(u *url.URL) string {
	host := u.Host
	if port := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]; port != "" {
		host = strings.TrimSuffix(host, port)
	}
	return u.Scheme + "://" + host
}

// newRouter returns a gin that adds nothing of its own: no log, no recovery, no redirects, no release-mode chatter.
func newRouter(trusted []string) (*gin.Engine, error) {
	if trusted == nil {
		trusted = trustedByDefault
	}
	gin.SetMode(gin.ReleaseMode) // gin's only switch for printing every route is the process's
	router := gin.New()
	router.RedirectTrailingSlash = false
	router.HandleMethodNotAllowed = true
	router.ContextWithFallback = false
	return router, router.SetTrustedProxies(trusted)
}

// ServeHTTP answers a request. HEAD is answered like GET: the server leaves the body out.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead && r.URL.Path != a.basePath+eventsPath {
		get := *r
		get.Method = http.MethodGet
		r = &get
	}
	a.router.ServeHTTP(w, r)
}

// isAPIPath reports whether programs rather than people are at this path.
func (a *API) isAPIPath(path string) bool {
	return strings.HasPrefix(path, a.basePath+"/api/") || strings.HasPrefix(path, a.basePath+"/river/api/")
}
