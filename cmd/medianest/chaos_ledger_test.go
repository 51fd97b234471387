//go:build chaos

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"medianest/api/client"
)

// violations are what must not have happened. Safe for concurrent use.
type violations struct {
	mu    sync.Mutex
	count int
	texts []string
}

// maxViolations bounds how many are told in words.
const maxViolations = 50

func (v *violations) add(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.count++
	if len(v.texts) < maxViolations {
		v.texts = append(v.texts, fmt.Sprintf(format, args...))
	}
}

func (v *violations) all() (count int, texts []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.count, slices.Clone(v.texts)
}

// ledger is what one reader of the event stream has seen. Every job's and every download's states must form a chain: each
// event says the state before, which must be the last one that was seen.
type ledger struct {
	name string
	bad  *violations

	mu         sync.Mutex
	ids        []string
	lines      []string          // of the events with an id, in order: what two readers must agree on
	states     map[string]string // by "job 1" or "download UUID"
	runs       map[string][]time.Time
	progress   int
	reconnects int
	workers    map[string]int // events of workers, by type
	changed    chan struct{}
}

func newLedger(name string, bad *violations) *ledger {
	return &ledger{
		name: name, bad: bad, states: map[string]string{}, runs: map[string][]time.Time{}, workers: map[string]int{},
		changed: make(chan struct{}),
	}
}

// read follows a replica's stream from an event on until ctx ends.
func (l *ledger) read(ctx context.Context, c *client.ClientWithResponses, from string) {
	options := client.EventsOptions{LastEventID: from, MaxRetry: time.Second, OnLost: func(error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.reconnects++
	}}
	for event, err := range client.Events(ctx, c, options) {
		if err != nil {
			l.bad.add("%s: the stream ended for good: %v", l.name, err)
			return
		}
		l.take(event)
	}
}

func (l *ledger) take(event client.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch event.Type {
	case client.EventOpen:
		return
	case client.EventReset:
		l.bad.add("%s: the stream could not go on: %s", l.name, event.Data)
		return
	case client.EventJobProgress:
		l.progress++
		return
	case client.EventJobState:
		var data client.JobStateEvent
		if err := event.Decode(&data); err != nil {
			l.bad.add("%s: %v", l.name, err)
			return
		}
		l.chain("job "+data.JobID, data.PreviousState, data.State, event.ID)
		if data.State == "running" {
			l.runs[data.JobID] = append(l.runs[data.JobID], data.At)
		}
	case client.EventDownloadState:
		var data client.DownloadStateEvent
		if err := event.Decode(&data); err != nil {
			l.bad.add("%s: %v", l.name, err)
			return
		}
		l.chain("download "+data.DownloadID.String(), data.PreviousState, data.State, event.ID)
	default:
		if !strings.HasPrefix(event.Type, "worker.") {
			l.bad.add("%s: an event of unknown type %s", l.name, event.Type)
		}
		l.workers[event.Type]++
	}
	if event.ID == "" {
		l.bad.add("%s: a change of state without an id: %s", l.name, event.Data)
	}
	l.ids = append(l.ids, event.ID)
	l.lines = append(l.lines, event.Type+" "+string(event.Data))
	close(l.changed)
	l.changed = make(chan struct{})
}

// chain checks one change against the one before.
func (l *ledger) chain(what, previous, state, id string) {
	if known := l.states[what]; known != previous {
		l.bad.add("%s: %s went from %q to %q at %s, but was last seen %q", l.name, what, previous, state, id, known)
	}
	if previous == "completed" && state != "deleted" {
		l.bad.add("%s: %s was completed and then %s", l.name, what, state)
	}
	l.states[what] = state
}

// length is how many events with an id there were.
func (l *ledger) length() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ids)
}

// awaitLength returns whether n events have come, or more, before ctx ended.
func (l *ledger) awaitLength(ctx context.Context, n int) bool {
	for {
		l.mu.Lock()
		have, changed := len(l.ids), l.changed
		l.mu.Unlock()
		if have >= n {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// ranAfter is when a job was first seen to run after a moment.
func (l *ledger) ranAfter(job string, moment time.Time) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.runs[job] {
		if at.After(moment) {
			return at, true
		}
	}
	return time.Time{}, false
}

// state is what something was last seen to be.
func (l *ledger) state(what string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.states[what]
}

// attempts is how often a job was seen to begin running.
func (l *ledger) attempts(job string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.runs[job])
}

// requireSame compares what two readers saw.
func (l *ledger) requireSame(other *ledger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	other.mu.Lock()
	defer other.mu.Unlock()
	if len(l.ids) != len(other.ids) {
		l.bad.add("%s saw %d events, %s saw %d", l.name, len(l.ids), other.name, len(other.ids))
	}
	for i := range min(len(l.ids), len(other.ids)) {
		if l.ids[i] != other.ids[i] || l.lines[i] != other.lines[i] {
			l.bad.add("event %d: %s saw %s %s, %s saw %s %s", i, l.name, l.ids[i], l.lines[i], other.name, other.ids[i], other.lines[i])
			return
		}
	}
}

// distribution is of durations.
type distribution []time.Duration

// at is the share-th part of the sorted durations; 0.5 is the median.
func (d distribution) at(share float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))].Round(10 * time.Millisecond)
}

func (d distribution) String() string {
	return fmt.Sprintf("n %d, p50 %s, p90 %s, p99 %s, max %s", len(d), d.at(0.5), d.at(0.9), d.at(0.99), d.at(1))
}
