package store

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
)

// Rate is how many requests a minute are allowed, spread over the minute, with up to half of them at once.
type Rate int

func (r Rate) burst() int { return max(1, int(r)/2) }

// RateResult is what became of a request that asked.
type RateResult struct {
	Allowed    bool
	Remaining  int           // that would be allowed now
	ResetAfter time.Duration // until as many as ever are allowed at once
	RetryAfter time.Duration // until one is allowed; 0 if it was
}

// RateLimiter counts requests in Redis, for all replicas together (GCRA). Without an answer it counts those of this
// process alone: a Redis that is away lets more in, and nobody out.
type RateLimiter struct {
	shared *redis_rate.Limiter
	log    *slog.Logger
	now    func() time.Time

	mu    sync.Mutex
	local map[string]time.Time // theoretical arrival time of the next request, by key
	away  time.Time            // until when Redis is not asked
}

const (
	rateTimeout = 100 * time.Millisecond // how long a request waits for Redis
	rateRetry   = 5 * time.Second        // how long Redis is left alone that did not answer
	maxRateKeys = 10_000
)

// NewRateLimiter counts in the client's Redis.
func NewRateLimiter(client redis.UniversalClient, log *slog.Logger) *RateLimiter {
	return &RateLimiter{shared: redis_rate.NewLimiter(client), log: log, now: time.Now, local: map[string]time.Time{}}
}

// Allow counts a request under the key and says whether it is within the rate.
func (l *RateLimiter) Allow(ctx context.Context, key string, r Rate) RateResult {
	now := l.now()
	if !l.isAway(now) {
		asked, cancel := context.WithTimeout(ctx, rateTimeout)
		defer cancel()
		res, err := l.shared.Allow(asked, key, redis_rate.Limit{Rate: int(r), Period: time.Minute, Burst: r.burst()})
		if err == nil {
			return RateResult{Allowed: res.Allowed > 0, Remaining: res.Remaining, ResetAfter: res.ResetAfter, RetryAfter: max(0, res.RetryAfter)}
		}
		if ctx.Err() == nil {
			l.leaveAlone(ctx, now, err)
		}
	}
	return l.allowLocal(key, r, now)
}

func (l *RateLimiter) isAway(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.away)
}

func (l *RateLimiter) leaveAlone(ctx context.Context, now time.Time, err error) {
	l.mu.Lock()
	first := !now.Before(l.away)
	l.away = now.Add(rateRetry)
	l.mu.Unlock()
	if first {
		l.log.WarnContext(ctx, "rates are counted by this process alone while redis does not answer", slog.Any("err", err))
	}
}

// allowLocal is the generic cell rate algorithm (ITU-T I.371) that the shared counter uses, in this process.
func (l *RateLimiter) allowLocal(key string, r Rate, now time.Time) RateResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	interval := time.Minute / time.Duration(r)
	tolerance := interval * time.Duration(r.burst())
	tat := l.local[key]
	if tat.Before(now) {
		tat = now
	}
	next := tat.Add(interval)
	if wait := next.Add(-tolerance).Sub(now); wait > 0 {
		return RateResult{RetryAfter: wait, ResetAfter: tat.Sub(now)}
	}
	if len(l.local) >= maxRateKeys {
		for k, t := range l.local {
			if t.Before(now) {
				delete(l.local, k)
			}
		}
		if len(l.local) >= maxRateKeys {
			clear(l.local)
		}
	}
	l.local[key] = next
	return RateResult{Allowed: true, Remaining: int((tolerance - next.Sub(now)) / interval), ResetAfter: next.Sub(now)}
}
