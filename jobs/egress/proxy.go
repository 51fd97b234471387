package egress

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"medianest/jobs/reason"
)

// maxHeaderBytes bounds the header of a request to the proxy; answers may have four times as much.
const maxHeaderBytes = 64 << 10

// Proxy is a forward proxy on loopback: CONNECT for whatever is encrypted, requests in absolute form for http. Each
// request is authorised by the credentials of a Session, whatever connection it comes by.
type Proxy struct {
	guard    *Guard
	address  netip.AddrPort
	listener net.Listener
	server   *http.Server
	stop     sync.Once
	running  sync.WaitGroup // the accept loop, connections, and requests that have taken theirs over

	mu       sync.Mutex
	closed   bool
	sessions map[string]*Session
}

// StartProxy starts a proxy on a free port of loopback. It runs until Close; ctx bounds only the start.
func (g *Guard) StartProxy(ctx context.Context) (*Proxy, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		var err6 error
		if listener, err6 = config.Listen(ctx, "tcp6", "[::1]:0"); err6 != nil {
			return nil, fmt.Errorf("listen on loopback for the egress proxy: %w", errors.Join(err, err6))
		}
	}
	address, err := netip.ParseAddrPort(listener.Addr().String())
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("read the egress proxy's address: %w", err)
	}
	g.Forbid(address)
	p := &Proxy{guard: g, address: address, listener: listener, sessions: map[string]*Session{}}
	base := context.WithoutCancel(ctx)
	p.server = &http.Server{
		Handler:           p,
		ReadHeaderTimeout: g.options.HeaderTimeout,
		IdleTimeout:       g.options.IdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,

		DisableGeneralOptionsHandler: true, // without credentials nothing is answered

		ErrorLog:    slog.NewLogLogger(g.options.Logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return base },
		ConnState:   p.track,
	}
	p.running.Go(func() { _ = p.server.Serve(listener) }) // ends by Close alone, so the error says nothing
	return p, nil
}

// track counts connections that the server serves. Those taken over are counted by their request.
func (p *Proxy) track(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		p.running.Add(1)
	case http.StateHijacked, http.StateClosed:
		p.running.Done()
	case http.StateActive, http.StateIdle:
	}
}

// Session opens a session. The caller closes it. A session of a closed proxy is refused everything.
func (p *Proxy) Session() *Session {
	s := newSession(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.sessions[s.id] = s
	}
	return s
}

// Close severs everything, frees the port, and waits until no request is served any more.
func (p *Proxy) Close() { p.stop.Do(p.close) }

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	sessions := p.sessions
	p.sessions = map[string]*Session{}
	p.mu.Unlock()
	for _, s := range sessions {
		s.Close()
	}
	_ = p.server.Close() // of a listener, which has nothing to say
	p.running.Wait()
	p.guard.allow(p.address)
}

func (p *Proxy) forget(s *Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s.id)
}

// authorise finds the session whose credentials a request carries, or nil.
func (p *Proxy) authorise(r *http.Request) *Session {
	scheme, encoded, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
	if !strings.EqualFold(scheme, "Basic") {
		return nil
	}
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return nil
	}
	id, password, _ := strings.Cut(string(plain), ":")
	p.mu.Lock()
	s := p.sessions[id]
	p.mu.Unlock()
	if s == nil || !s.knows(password) {
		return nil
	}
	return s
}

// ServeHTTP answers one request to the proxy.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := p.authorise(r)
	if s == nil {
		w.Header().Set("Proxy-Authenticate", `Basic realm="medianest egress"`)
		http.Error(w, "These credentials are not known, or not any more.", http.StatusProxyAuthRequired)
		return
	}
	s.requests.Add(1)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	control := http.NewResponseController(w)
	done, ok := s.onClose(func() {
		cancel()
		// A body that nobody takes or sends does not see the end of the context. Both fail only on connections that
		// have been taken over, which sever themselves.
		_ = control.SetReadDeadline(time.Unix(1, 0))
		_ = control.SetWriteDeadline(time.Unix(1, 0))
	})
	if !ok {
		http.Error(w, "The session was closed.", http.StatusProxyAuthRequired)
		return
	}
	defer func() {
		if done() {
			panic(http.ErrAbortHandler) // closes the connection, which has no usable deadlines any more
		}
	}()
	r = r.WithContext(ctx)
	switch {
	case r.Method == http.MethodConnect:
		s.tunnel(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		s.forward(w, r)
	default:
		http.Error(w, "This is a proxy: ask by CONNECT, or for an absolute http address.", http.StatusBadRequest)
	}
}

// fail answers a request whose host was refused or could not be reached, with the reason as RFC 9209 says it.
func (s *Session) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, kind, text := http.StatusBadGateway, "connection_terminated", "The host ended the connection, or did not speak HTTP."
	failure := reason.Find(err)
	switch {
	case failure != nil && failure.Reason == reason.EgressDenied:
		status, kind, text = http.StatusForbidden, "destination_ip_prohibited", failure.Detail
		s.deny(failure)
		s.proxy.guard.options.Logger.InfoContext(r.Context(), "egress refused",
			slog.String("session", s.ID()), slog.String("url_host", r.URL.Hostname()), slog.Any("err", err))
	case failure != nil && failure.Reason == reason.Unsupported:
		status, kind, text = http.StatusBadRequest, "http_request_error", failure.Detail
	case failure != nil && failure.Reason == reason.Timeout:
		status, kind, text = http.StatusGatewayTimeout, "connection_timeout", failure.Detail
	case failure != nil:
		kind, text = "destination_unavailable", failure.Detail
	case isTimeout(err):
		status, kind, text = http.StatusGatewayTimeout, "http_response_timeout", "The host took too long to answer."
	}
	if status != http.StatusForbidden {
		s.proxy.guard.options.Logger.DebugContext(r.Context(), "egress failed",
			slog.String("session", s.ID()), slog.String("url_host", r.URL.Hostname()), slog.Any("err", err))
	}
	w.Header().Set("Proxy-Status", "medianest-egress; error="+kind)
	http.Error(w, text, status)
}
