package api

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"medianest/store"
)

// RateLimiter counts requests.
type RateLimiter interface {
	// Allow counts a request under the key, and says whether it is within the rate.
	Allow(ctx context.Context, key string, r store.Rate) store.RateResult
}

// RateClass is a class of routes whose requests are counted together.
type RateClass string

// All classes. Requests of somebody who is known are counted by user, and those by a token by that as well, at two thirds of
// the user's rate: one script that runs wild leaves something for the rest. Others are counted by address.
const (
	RateRead      RateClass = "read"
	RateWrite     RateClass = "write"
	RateStream    RateClass = "stream"    // event streams that are opened
	RateSignIn    RateClass = "sign_in"   // tries to sign in
	RateAnonymous RateClass = "anonymous" // everything else of who is not known
)

// DefaultRates are requests a minute.
var DefaultRates = map[RateClass]int{RateRead: 1200, RateWrite: 600, RateStream: 120, RateSignIn: 30, RateAnonymous: 300}

// rateWindow is the time that a rate is told for.
const rateWindow = 60

// within counts the request under who sends it, or under the address if it is nobody, and answers with a problem when it is one
// too many.
func (a *API) within(c *gin.Context, class RateClass, who *identity) *Problem {
	rate := store.Rate(a.rates[class])
	if a.limiter == nil || rate <= 0 {
		return nil
	}
	ctx := c.Request.Context()
	if who == nil {
		return a.spend(ctx, c, class, "address:"+network(c.ClientIP()).String(), rate)
	}
	if who.Token != nil && who.Session == nil {
		if p := a.spend(ctx, c, class, "token:"+who.Token.ID.String(), max(1, rate*2/3)); p != nil {
			return p
		}
	}
	return a.spend(ctx, c, class, "user:"+who.User.ID.String(), rate)
}

func (a *API) spend(ctx context.Context, c *gin.Context, class RateClass, who string, rate store.Rate) *Problem {
	res := a.limiter.Allow(ctx, "medianest:"+string(class)+":"+who, rate)
	seconds := func(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }
	c.Header("RateLimit-Policy", fmt.Sprintf("%d;w=%d", rate, rateWindow))
	c.Header("RateLimit-Limit", strconv.Itoa(int(rate)))
	c.Header("RateLimit-Remaining", strconv.Itoa(res.Remaining))
	c.Header("RateLimit-Reset", seconds(res.ResetAfter))
	if res.Allowed {
		return nil
	}
	a.metrics.limited.WithLabelValues(string(class)).Inc()
	return newProblem(CodeTooManyRequests, "").retryAfter(res.RetryAfter)
}

// rateClassOf is the class of an operation.
func rateClassOf(method string, d described) RateClass {
	switch {
	case d.public:
		return RateSignIn
	case d.scope == ScopeEventsRead && method == http.MethodGet:
		return RateStream
	case isSafe(method):
		return RateRead
	}
	return RateWrite
}
