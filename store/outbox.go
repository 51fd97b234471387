package store

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	outboxDuty = "outbox"

	// followBatch is how many events the consumer does in one transaction.
	followBatch = 5000

	// followInterval is how often the consumer looks for what was left over when no tick rings.
	followInterval = time.Second

	// callTimeout bounds one call to the database, so that a connection to a host that vanished is given up.
	callTimeout = 10 * time.Second

	// roundTimeout bounds one round of the consumer, and one of retention.
	roundTimeout  = time.Minute
	trimTimeout   = 10 * time.Minute
	maxErrorPause = time.Second

	releaseTimeout = time.Second
)

// OutboxOptions says how an Outbox works.
type OutboxOptions struct {
	Store  *Store
	Logger *slog.Logger

	// Holder names this process among those that may hold the duty. Required, and each process's own.
	Holder string

	// TickInterval is the pause between ticks while there is news. Default: 25 ms.
	TickInterval time.Duration

	// IdleInterval is the longest pause between looks for news when there has been none for a while. Default: 100 ms,
	// or TickInterval if that is longer.
	IdleInterval time.Duration

	// Retention is for how long events can be replayed. Default: 24 h.
	Retention time.Duration

	// LeaseTTL is after which time another process takes over from one that vanished. Default: 2 s.
	LeaseTTL time.Duration

	// StandbyInterval is how often a process without the duty asks for it. Default: 1 s.
	StandbyInterval time.Duration

	// TrimInterval and DomainTrimInterval are how often retention runs, for events and for the domain's rows.
	// Default: 1 min, 1 h. A negative TrimInterval leaves retention to others.
	TrimInterval       time.Duration
	DomainTrimInterval time.Duration

	// OnTick is called after each tick of this process, which has the events ready a moment before a reader that polls
	// finds them. It must not block. Optional.
	OnTick func()
}

// Outbox does for the whole fleet what turns rows of the outbox into a stream: ticks, the durable consumer, retention.
// Every process may run one; the one that holds the duty works, the others stand by. Two at work at a time, as may be
// for a moment after a stall, do no harm: each step has its own lock.
type Outbox struct {
	o    OutboxOptions
	news chan struct{} // rings the consumer
}

// NewOutbox returns an outbox that works when Run runs.
func NewOutbox(o OutboxOptions) *Outbox {
	setDefault(&o.TickInterval, 25*time.Millisecond)
	setDefault(&o.IdleInterval, 100*time.Millisecond)
	o.IdleInterval = max(o.IdleInterval, o.TickInterval)
	setDefault(&o.Retention, 24*time.Hour)
	setDefault(&o.LeaseTTL, 2*time.Second)
	setDefault(&o.StandbyInterval, time.Second)
	setDefault(&o.TrimInterval, time.Minute)
	setDefault(&o.DomainTrimInterval, time.Hour)
	if o.OnTick == nil {
		o.OnTick = func() {}
	}
	return &Outbox{o: o, news: make(chan struct{}, 1)}
}

// Run works, or stands by, until ctx ends, and gives the duty up then. What fails is logged and tried again; it returns
// nil.
func (b *Outbox) Run(ctx context.Context) error {
	standby := newStreak(b.o.Logger, "outbox: stand by")
	for ctx.Err() == nil {
		held, err := b.hold(ctx)
		standby.note(ctx, err)
		if held {
			b.lead(ctx)
			continue
		}
		wait(ctx, jitter(b.o.StandbyInterval))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := b.o.Store.ReleaseDuty(ctx, outboxDuty, b.o.Holder); err != nil {
		b.o.Logger.Debug("outbox: duty not given up, its lease will end", "err", err)
	}
	return nil
}

func (b *Outbox) hold(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, min(b.o.LeaseTTL, callTimeout))
	defer cancel()
	return b.o.Store.HoldDuty(ctx, outboxDuty, b.o.Holder, b.o.LeaseTTL)
}

var errDutyLost = errors.New("duty lost")

// lead works until the duty is lost or ctx ends.
func (b *Outbox) lead(ctx context.Context) {
	b.o.Logger.Info("outbox: on duty")
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return b.keepDuty(ctx) })
	group.Go(func() error { b.tick(ctx); return nil })
	group.Go(func() error { b.follow(ctx); return nil })
	if b.o.TrimInterval > 0 {
		group.Go(func() error { b.trim(ctx); return nil })
	}
	if err := group.Wait(); err != nil {
		b.o.Logger.Warn("outbox: duty lost, standing by")
		return
	}
	b.o.Logger.Info("outbox: off duty")
}

// keepDuty renews the lease. A process that can not for as long as a lease lasts stands down: it is of no use, and
// another may be.
func (b *Outbox) keepDuty(ctx context.Context) error {
	renewed := time.Now()
	failures := newStreak(b.o.Logger, "outbox: renew duty")
	for wait(ctx, b.o.LeaseTTL/4) {
		held, err := b.hold(ctx)
		failures.note(ctx, err)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && time.Since(renewed) > b.o.LeaseTTL:
			return errDutyLost
		case err == nil && !held:
			return errDutyLost
		case err == nil:
			renewed = time.Now()
		}
	}
	return nil
}

func (b *Outbox) tick(ctx context.Context) {
	failures := newStreak(b.o.Logger, "outbox: tick")
	lastNews := time.Now()
	for {
		ticked, err := b.advance(ctx)
		pause := b.pace(time.Since(lastNews))
		switch {
		case err != nil:
			pause = failures.pause(b.o.IdleInterval)
		case ticked:
			lastNews, pause = time.Now(), b.o.TickInterval
			ring(b.news)
			b.o.OnTick()
		}
		failures.note(ctx, err)
		if !wait(ctx, pause) {
			return
		}
	}
}

func (b *Outbox) advance(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, ticked, err := b.o.Store.AdvanceTick(ctx)
	return ticked, err
}

// pace is the pause after a look that found nothing, by how long ago there was news: what happens once tends to go on.
func (b *Outbox) pace(quiet time.Duration) time.Duration {
	switch {
	case quiet < time.Second:
		return b.o.TickInterval
	case quiet < 10*time.Second:
		return min(2*b.o.TickInterval, b.o.IdleInterval)
	}
	return b.o.IdleInterval
}

func (b *Outbox) follow(ctx context.Context) {
	failures := newStreak(b.o.Logger, "outbox: follow jobs")
	for {
		n, err := b.followOnce(ctx)
		failures.note(ctx, err)
		switch {
		case err != nil:
			if !wait(ctx, failures.pause(b.o.IdleInterval)) {
				return
			}
		case n < followBatch:
			if !waitOr(ctx, followInterval, b.news) {
				return
			}
		case ctx.Err() != nil:
			return
		}
	}
}

func (b *Outbox) followOnce(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	return b.o.Store.FollowJobs(ctx, followBatch)
}

func (b *Outbox) trim(ctx context.Context) {
	failures := newStreak(b.o.Logger, "outbox: retention")
	nextDomain := time.Now().Add(b.o.TrimInterval)
	for wait(ctx, jitter(b.o.TrimInterval)) {
		domain := !time.Now().Before(nextDomain)
		err := b.trimOnce(ctx, domain)
		failures.note(ctx, err)
		if domain && err == nil {
			nextDomain = time.Now().Add(b.o.DomainTrimInterval)
		}
	}
}

func (b *Outbox) trimOnce(ctx context.Context, domain bool) error {
	ctx, cancel := context.WithTimeout(ctx, trimTimeout)
	defer cancel()
	_, err := b.o.Store.TrimEvents(ctx, b.o.Retention)
	if domain {
		_, domainErr := b.o.Store.TrimDomain(ctx, b.o.Retention)
		err = errors.Join(err, domainErr)
	}
	return err
}

// streak logs the first of a row of failures and their end, not each.
type streak struct {
	log      *slog.Logger
	what     string
	failures int
}

func newStreak(log *slog.Logger, what string) *streak { return &streak{log: log, what: what} }

// note takes one outcome. What fails because ctx ended is none.
func (s *streak) note(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil:
		if s.failures++; s.failures == 1 {
			s.log.Warn(s.what+" fails, trying again", "err", err)
		}
	case s.failures > 0:
		s.log.Info(s.what+" works again", "failures", s.failures)
		s.failures = 0
	}
}

// pause grows with the failures so far.
func (s *streak) pause(base time.Duration) time.Duration {
	return min(base<<min(s.failures, 6), maxErrorPause)
}

// wait waits for d and reports whether ctx goes on.
func wait(ctx context.Context, d time.Duration) bool { return waitOr(ctx, d, nil) }

// waitOr is wait that a bell ends early.
func waitOr(ctx context.Context, d time.Duration, bell <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-bell:
	}
	return ctx.Err() == nil
}

// ring rings a bell of one slot: one ring that nobody has heard yet stands for all.
func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// jitter is d give or take a tenth, so that processes do not march in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
