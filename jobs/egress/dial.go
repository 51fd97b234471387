package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"medianest/jobs/reason"
)

const (
	// headStart is how long an address is tried alone before the next one is tried beside it (RFC 8305).
	headStart = 250 * time.Millisecond
	// maxAddresses bounds how many addresses of one name are tried.
	maxAddresses = 8
)

// dial connects to one of the allowed addresses of "host:port". Errors are *reason.Error.
func (g *Guard) dial(ctx context.Context, target string) (net.Conn, error) {
	host, text, err := net.SplitHostPort(target)
	if err != nil {
		return nil, unsupported("The target is not a host and a port.")
	}
	port, err := parsePort(text)
	if err != nil {
		return nil, unsupported("The port in the address " + err.Error() + ".")
	}
	name, addresses, err := g.resolve(ctx, host, port)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, g.options.DialTimeout)
	defer cancel()
	conn, err := g.dialFirst(ctx, name, addresses[:min(len(addresses), maxAddresses)])
	if err == nil {
		return conn, nil
	}
	if refusal := reason.Find(err); refusal != nil {
		return nil, refusal
	}
	failure := &reason.Error{Reason: reason.Network, Detail: "The host " + shorten(name) + " cannot be connected to.", Err: err}
	if isTimeout(err) {
		failure.Reason, failure.Detail = reason.Timeout, "The host "+shorten(name)+" does not answer."
	}
	return nil, failure
}

// dialContext is dial in the form that a Transport wants.
func (g *Guard) dialContext(ctx context.Context, _, target string) (net.Conn, error) {
	return g.dial(ctx, target)
}

// dialFirst tries the addresses in their order, each with a head start before the next, and returns the first
// connection that is made. The error is that of the first address.
func (g *Guard) dialFirst(ctx context.Context, name string, addresses []netip.AddrPort) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
		at   int
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result)
	begun, ended := 0, 0
	begin := func() {
		at := begun
		begun++
		go func() {
			conn, err := g.dialAddress(ctx, name, addresses[at])
			results <- result{conn, err, at}
		}()
	}
	failures := make([]error, len(addresses))
	next := time.NewTimer(headStart)
	defer next.Stop()
	begin()
	for ended < begun {
		select {
		case <-next.C:
			if begun < len(addresses) {
				begin()
				next.Reset(headStart)
			}
		case r := <-results:
			ended++
			if r.err == nil {
				cancel()
				for ; ended < begun; ended++ { // cancelled, so they end at once
					if late := <-results; late.err == nil {
						_ = late.conn.Close()
					}
				}
				return r.conn, nil
			}
			failures[r.at] = r.err
			if begun < len(addresses) && ctx.Err() == nil {
				begin()
				next.Reset(headStart)
			}
		}
	}
	return nil, failures[0]
}

// dialAddress connects to one address, and judges it once more at the last moment: whatever led here, no connection
// leaves that decide has not seen.
func (g *Guard) dialAddress(ctx context.Context, name string, address netip.AddrPort) (net.Conn, error) {
	dialer := g.dialer
	dialer.ControlContext = func(_ context.Context, _, actual string, _ syscall.RawConn) error {
		target, err := netip.ParseAddrPort(actual)
		if err != nil {
			return fmt.Errorf("read the address to connect to: %w", err)
		}
		return g.decide(name, netip.AddrPortFrom(target.Addr().Unmap(), target.Port()))
	}
	return dialer.DialContext(ctx, "tcp", address.String())
}

// isTimeout reports whether something took longer than we wait, here or in the network.
func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// activity is when a byte last went either way in a conversation, of which one or both ends share it.
type activity struct {
	begun time.Time
	last  atomic.Int64 // nanoseconds after begun, so that it follows the monotonic clock
}

func newActivity() *activity { return &activity{begun: time.Now()} }

func (a *activity) touch() { a.last.Store(int64(time.Since(a.begun))) }

func (a *activity) idle() time.Duration { return time.Since(a.begun) - time.Duration(a.last.Load()) }

// idleConn is a connection that fails with a timeout once its activity has been idle for too long, and that counts
// its bytes.
type idleConn struct {
	net.Conn
	activity *activity
	limit    time.Duration
	in, out  *atomic.Int64 // bytes read and written; nil is not counted
}

// Read ends with a timeout only where nothing went the other way either: who sends for minutes may wait as long for
// the answer.
func (c *idleConn) Read(p []byte) (int, error) {
	for {
		left := c.limit - c.activity.idle()
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		if err := c.SetReadDeadline(time.Now().Add(left)); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		if n > 0 {
			c.activity.touch()
			if c.in != nil {
				c.in.Add(int64(n))
			}
		}
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
}

// Write ends with a timeout where the other end takes nothing for too long.
func (c *idleConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.activity.touch()
		if c.out != nil {
			c.out.Add(int64(n))
		}
	}
	return n, err
}

// CloseWrite says that nothing more will be sent.
func (c *idleConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
