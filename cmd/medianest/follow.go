package main

import (
	"context"
	"errors"
	"slices"
	"time"
)

// remotePlatform is what the download command needs of the API.
type remotePlatform interface {
	// create asks for a URL. created is false when the same wish was active already.
	create(ctx context.Context, url, idempotencyKey string) (d remoteDownload, created bool, err error)
	// find returns errNoDownload when there is none.
	find(ctx context.Context, id string) (remoteDownload, error)
	// children returns a collection's items in their order.
	children(ctx context.Context, id string) ([]remoteDownload, error)
	cancel(ctx context.Context, id string) error
	// events calls connected each time the stream stands, and each for every event, until ctx ends. It reconnects by
	// itself and goes on where it was; lost is called when it does. Only an error that trying again cannot mend ends it.
	events(ctx context.Context, l listener) error
}

// listener is called from one goroutine.
type listener struct {
	connected func()
	lost      func()
	event     func(streamEvent)
}

var errNoDownload = errors.New("there is no such download")

const (
	drawEvery = 100 * time.Millisecond
	// pollEvery is how often the truth is asked for regardless of the stream, which may be cut off without a sign.
	pollEvery = 10 * time.Second
	// outageTold is how long the stream must be away to be worth a line.
	outageTold = 2 * time.Second
)

// follower drives a view from a platform until all downloads have ended. Everything but the calls to the platform
// happens in the goroutine of run.
type follower struct {
	platform remotePlatform
	tracker  *tracker
	view     view

	inbox    chan func()   // what the helpers found, to be done in run's goroutine
	wanted   []string      // ids to ask the platform about
	asking   bool          // a question is under way
	ask      chan []string // to the asker
	lostAt   time.Time     // zero: the stream stands
	told     bool          // that it does not
	failure  error         // ends run
	interval time.Duration
}

func newFollower(p remotePlatform, v view) *follower {
	return &follower{platform: p, tracker: newTracker(), view: v, inbox: make(chan func(), 64), ask: make(chan []string, 1), interval: pollEvery}
}

// run follows until everything has ended, ctx ends, or interrupted says something. It returns true when everything
// that was asked for has ended.
func (f *follower) run(ctx context.Context, interrupted <-chan struct{}) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	helpers := make(chan struct{}, 2)
	go func() { f.listen(ctx); helpers <- struct{}{} }()
	go func() { f.answer(ctx); helpers <- struct{}{} }()
	defer func() {
		cancel()
		<-helpers
		<-helpers
	}()
	f.refetch(f.tracker.unfinished()...)
	draw, poll := time.NewTicker(drawEvery), time.NewTicker(f.interval)
	defer draw.Stop()
	defer poll.Stop()
	for {
		if f.failure != nil {
			return false, f.failure
		}
		if f.tracker.done() && len(f.wanted) == 0 && !f.asking {
			f.view.draw(f.tracker)
			return true, nil
		}
		f.send()
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-interrupted:
			return false, nil
		case do := <-f.inbox:
			do()
		case <-draw.C:
			f.tellOutage()
			f.view.draw(f.tracker)
		case <-poll.C:
			f.refetch(f.tracker.unfinished()...)
		}
	}
}

// later has run's goroutine do something.
func (f *follower) later(ctx context.Context, do func()) {
	select {
	case f.inbox <- do:
	case <-ctx.Done():
	}
}

// listen turns the stream into things to do.
func (f *follower) listen(ctx context.Context) {
	err := f.platform.events(ctx, listener{
		connected: func() { f.later(ctx, f.connected) },
		lost:      func() { f.later(ctx, f.lost) },
		event:     func(e streamEvent) { f.later(ctx, func() { f.hear(e) }) },
	})
	if err != nil && ctx.Err() == nil {
		f.later(ctx, func() { f.failure = err })
	}
}

// connected asks for everything: what happened before the stream stood was not heard.
func (f *follower) connected() {
	if f.told {
		f.view.note("connected again")
	}
	f.lostAt, f.told = time.Time{}, false
	f.refetch(f.tracker.unfinished()...)
}

func (f *follower) lost() {
	if f.lostAt.IsZero() {
		f.lostAt = time.Now()
	}
}

// tellOutage says that the platform is away, once that has lasted a moment: streams end and begin anew now and then.
func (f *follower) tellOutage() {
	if !f.lostAt.IsZero() && !f.told && time.Since(f.lostAt) >= outageTold {
		f.told = true
		f.view.note("lost the connection to the platform, trying again; the downloads are not affected by that")
	}
}

func (f *follower) hear(e streamEvent) {
	refetch, progressed := f.tracker.hear(e)
	f.refetch(refetch...)
	for _, i := range progressed {
		f.view.progressed(i)
	}
}

// refetch notes ids to ask about; asking twice before the answer is asking once.
func (f *follower) refetch(ids ...string) {
	for _, id := range ids {
		if !slices.Contains(f.wanted, id) {
			f.wanted = append(f.wanted, id)
		}
	}
}

// send gives the asker what is wanted, when it is free.
func (f *follower) send() {
	if f.asking || len(f.wanted) == 0 {
		return
	}
	f.asking = true
	f.ask <- f.wanted
	f.wanted = nil
}

// answer is the asker: it asks the platform about ids, so that a slow answer does not stop the picture.
func (f *follower) answer(ctx context.Context) {
	for {
		var ids []string
		select {
		case <-ctx.Done():
			return
		case ids = <-f.ask:
		}
		for _, id := range ids {
			d, err := f.platform.find(ctx, id)
			f.later(ctx, func() { f.found(id, d, err) })
			if err == nil && d.IsCollection {
				children, err := f.platform.children(ctx, id)
				if err == nil {
					f.later(ctx, func() {
						for _, child := range children {
							f.take(child)
						}
					})
				}
			}
		}
		f.later(ctx, func() { f.asking = false })
	}
}

func (f *follower) found(id string, d remoteDownload, err error) {
	switch {
	case errors.Is(err, errNoDownload):
		if i, changed := f.tracker.gone(id); changed {
			f.view.stateChanged(i)
		}
	case errors.Is(err, errRefused):
		f.failure = err
	case err == nil:
		f.take(d)
	}
	// Any other error heals itself: the stream's reconnect or the next poll asks again.
}

func (f *follower) take(d remoteDownload) {
	if i, changed := f.tracker.update(d); changed {
		f.view.stateChanged(i)
	}
}
