package api

import (
	"net/netip"
	"sync"
	"time"
)

// throttle makes an address that fails to sign in wait before it may try again: nothing for the first few failures,
// then 1 s, 2 s, 4 s, up to a minute. It is kept by this process alone and forgets after a quarter of an hour: tokens
// cannot be guessed anyway, so this is against noise and load.
type throttle struct {
	now func() time.Time

	mu       sync.Mutex
	failures map[netip.Prefix]failures
}

type failures struct {
	count int
	last  time.Time
	until time.Time
}

const (
	freeFailures     = 3
	longestWait      = time.Minute
	failuresMemory   = 15 * time.Minute
	maxThrottledNets = 10_000
)

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, failures: make(map[netip.Prefix]failures)}
}

// wait returns how long the address has to wait; 0 means that it may try.
func (t *throttle) wait(address string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, t.failures[network(address)].until.Sub(t.now()))
}

// failed counts a failure of the address.
func (t *throttle) failed(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, key := t.now(), network(address)
	f, known := t.failures[key]
	if !known && len(t.failures) >= maxThrottledNets {
		t.forget(now)
	}
	if now.Sub(f.last) > failuresMemory {
		f = failures{}
	}
	f.count++
	f.last = now
	if over := f.count - freeFailures; over > 0 {
		f.until = now.Add(min(longestWait, time.Second<<min(over-1, 6)))
	}
	t.failures[key] = f
}

// succeeded forgets the address's failures.
func (t *throttle) succeeded(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.failures, network(address))
}

// forget makes room: whoever failed long ago goes, and if that is nobody, everybody.
func (t *throttle) forget(now time.Time) {
	for key, f := range t.failures {
		if now.Sub(f.last) > failuresMemory {
			delete(t.failures, key)
		}
	}
	if len(t.failures) >= maxThrottledNets {
		clear(t.failures)
	}
}

// network is what one party has at its disposal: an IPv4 address, or an IPv6 network of 64 bits. Whatever is no address
// shares one place.
func network(address string) netip.Prefix {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}
	}
	ip = ip.Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
