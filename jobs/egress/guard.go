package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"medianest/jobs/reason"
)

// Resolver finds the addresses of a name. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Options is what a Guard needs. The zero value is a guard that allows nothing private.
type Options struct {
	// Policy is what is allowed although it is not globally routable.
	Policy Policy
	// Forbidden are our own listeners, refused whatever the policy allows. An unspecified address (0.0.0.0, ::)
	// stands for every address of this machine.
	Forbidden []netip.AddrPort
	// Resolver finds addresses. Default: net.DefaultResolver.
	Resolver Resolver
	// Logger gets refusals (info) and the faults of connections (debug). Default: none.
	Logger *slog.Logger

	// LookupTimeout bounds the resolution of a name. Default: 10 s.
	LookupTimeout time.Duration
	// DialTimeout bounds connecting to a host, all its addresses together. Default: 10 s.
	DialTimeout time.Duration
	// HeaderTimeout bounds the wait for the header of an answer, and for that of a request. Default: 60 s.
	HeaderTimeout time.Duration
	// IdleTimeout ends connections on which no byte went either way for so long. How long they take as a whole is not
	// bounded. Default: 90 s.
	IdleTimeout time.Duration
}

// Guard decides which addresses may be connected to. It is safe for concurrent use.
type Guard struct {
	options Options
	dialer  net.Dialer

	mu        sync.RWMutex
	forbidden []netip.AddrPort
}

// NewGuard returns a guard.
func NewGuard(options Options) *Guard {
	if options.Resolver == nil {
		options.Resolver = net.DefaultResolver
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	options.LookupTimeout = cmp.Or(options.LookupTimeout, 10*time.Second)
	options.DialTimeout = cmp.Or(options.DialTimeout, 10*time.Second)
	options.HeaderTimeout = cmp.Or(options.HeaderTimeout, 60*time.Second)
	options.IdleTimeout = cmp.Or(options.IdleTimeout, 90*time.Second)
	g := &Guard{options: options, dialer: net.Dialer{KeepAlive: 30 * time.Second}}
	g.Forbid(options.Forbidden...)
	return g
}

// Forbid adds listeners of our own that came up after the guard.
func (g *Guard) Forbid(listeners ...netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range listeners {
		g.forbidden = append(g.forbidden, netip.AddrPortFrom(l.Addr().Unmap().WithZone(""), l.Port()))
	}
}

// allow takes back what Forbid said of one listener, which is no more.
func (g *Guard) allow(listener netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.forbidden, listener); i >= 0 {
		g.forbidden = slices.Delete(g.forbidden, i, i+1)
	}
}

// CheckURL tells whether a job for this address stands a chance: it can be read, and its host has an address that may
// be connected to. Errors are *reason.Error: Unsupported, EgressDenied, or Network where the name cannot be resolved.
func (g *Guard) CheckURL(ctx context.Context, rawURL string) error {
	u, err := ParseURL(rawURL)
	if err != nil {
		return err
	}
	port := defaultPort(u.Scheme)
	if text := u.Port(); text != "" {
		if port, err = parsePort(text); err != nil {
			return unsupported("The port in the address " + err.Error() + ".")
		}
	}
	_, _, err = g.resolve(ctx, u.Hostname(), port)
	return err
}

// resolve returns the canonical name of a host that a person or program wrote, and those of its addresses that may be
// connected to at this port. There is at least one without an error. Errors are those of CheckURL.
func (g *Guard) resolve(ctx context.Context, host string, port uint16) (name string, allowed []netip.AddrPort, err error) {
	name, addr, err := canonicalHost(host)
	if err != nil {
		return "", nil, unsupported("The host in the address " + err.Error() + ".")
	}
	found := []netip.Addr{addr}
	if !addr.IsValid() {
		if found, err = g.lookup(ctx, name); err != nil {
			return name, nil, err
		}
	}
	var refusal error
	for _, addr := range found {
		target := netip.AddrPortFrom(addr.Unmap(), port)
		if err := g.decide(name, target); err != nil {
			refusal = cmp.Or(refusal, err)
			continue
		}
		allowed = append(allowed, target)
	}
	if len(allowed) == 0 {
		return name, nil, refusal
	}
	return name, allowed, nil
}

// lookup finds the addresses of a canonical name; at least one without an error.
func (g *Guard) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, g.options.LookupTimeout)
	defer cancel()
	found, err := g.options.Resolver.LookupNetIP(ctx, "ip", name)
	if err == nil && len(found) == 0 {
		err = errors.New("no addresses")
	}
	if err != nil {
		detail := "The name " + shorten(name) + " could not be resolved."
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			detail = "There is no host named " + shorten(name) + "."
		}
		return nil, &reason.Error{Reason: reason.Network, Detail: detail, Err: fmt.Errorf("resolve %s: %w", name, err)}
	}
	return found, nil
}

// decide judges one address that a connection is about to be made to. host is what was asked for, canonical.
func (g *Guard) decide(host string, target netip.AddrPort) error {
	ends := []netip.Addr{target.Addr().Unmap()}
	if inner, ok := embedded(ends[0]); ok {
		ends = append(ends, inner)
	}
	for _, addr := range ends {
		if g.isOwn(addr, target.Port()) {
			return denied(host, target, "a service of this platform itself", "own listener", false)
		}
	}
	policy := g.options.Policy
	if policy.allowsName(host, target.Port()) {
		return nil
	}
	if target.Addr().Zone() != "" {
		return denied(host, target, "a link-local address", "RFC 4007", true)
	}
	if policy.allowsAddr(ends[0], target.Port()) {
		return nil
	}
	for _, addr := range ends {
		if policy.allowsAddr(addr, target.Port()) {
			continue
		}
		if s, ok := findSpecial(addr); ok {
			return denied(host, target, s.kind, s.source, true)
		}
	}
	return nil
}

// isOwn reports whether a connection to addr would reach a listener of ours.
func (g *Guard) isOwn(addr netip.Addr, port uint16) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, own := range g.forbidden {
		if own.Port() != port {
			continue
		}
		switch {
		case own.Addr() == addr.WithZone(""):
			return true
		case own.Addr().IsUnspecified() && isLocal(addr):
			return true
		case addr.IsUnspecified() && (own.Addr().IsLoopback() || own.Addr().IsUnspecified()):
			return true // connecting to 0.0.0.0 or :: is connecting to loopback
		}
	}
	return false
}

// isLocal reports whether addr is one of this machine's. Where that cannot be found out, every special address is.
func isLocal(addr netip.Addr) bool {
	if addr.IsLoopback() || addr.IsUnspecified() {
		return true
	}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		_, ok := findSpecial(addr)
		return ok
	}
	return slices.ContainsFunc(interfaces, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap() == addr.WithZone("")
	})
}

// denied is the refusal to connect. People are told the host that they named and what kind of address it has; the
// address itself, which tells how the own network is built, is for the log.
func denied(host string, target netip.AddrPort, kind, source string, allowable bool) error {
	detail := "The host " + shorten(host) + " may not be connected to: it is " + kind + "."
	if allowable {
		detail += " An administrator can allow it."
	}
	return &reason.Error{
		Reason: reason.EgressDenied,
		Detail: detail,
		Err:    fmt.Errorf("connect to %s at %s: %s (%s)", host, target, kind, source),
	}
}
