package egress

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
)

// Stats counts what a session has done so far.
type Stats struct {
	Requests    int64 // CONNECTs and plain requests, refused ones too
	Connections int64 // made to hosts
	BytesIn     int64 // received from hosts, headers and TLS included
	BytesOut    int64 // sent to hosts
}

// Session is the leave of one job to use the proxy: credentials of its own, connections that are never shared with
// other sessions, and the memory of what was refused. It is safe for concurrent use.
type Session struct {
	proxy  *Proxy
	id     string
	secret [sha256.Size]byte // of the password
	url    string

	plain     *httputil.ReverseProxy // carries requests for http addresses
	transport *http.Transport

	requests, connections, in, out atomic.Int64

	mu      sync.Mutex
	denied  error
	closed  bool
	severs  map[int]func() // end what is going on
	lastKey int
}

func newSession(p *Proxy) *Session {
	id, password := rand.Text(), rand.Text() // 130 bits each
	s := &Session{
		proxy:  p,
		id:     id,
		secret: sha256.Sum256([]byte(password)),
		url:    (&url.URL{Scheme: "http", User: url.UserPassword(id, password), Host: p.listener.Addr().String()}).String(),
		severs: map[int]func(){},
	}
	s.transport = s.newTransport()
	s.plain = s.newReverseProxy()
	return s
}

// URL is the proxy's address with the session's credentials, in the form that http_proxy takes. It is a secret: to be
// given by environment or file, never as an argument.
func (s *Session) URL() string { return s.url }

// ID names the session in logs. It is no secret.
func (s *Session) ID() string { return s.id[:8] }

// String keeps the credentials out of logs.
func (s *Session) String() string { return "egress session " + s.ID() }

// Denied is the first refusal of the session, or nil: a *reason.Error with reason EgressDenied that names the host.
// The program that was refused tells its own story of it, such as "403 Forbidden", so whoever ran it asks here when
// it failed.
func (s *Session) Denied() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.denied
}

// Stats returns the counts so far.
func (s *Session) Stats() Stats {
	return Stats{
		Requests:    s.requests.Load(),
		Connections: s.connections.Load(),
		BytesIn:     s.in.Load(),
		BytesOut:    s.out.Load(),
	}
}

// Close ends the session: its credentials are worth nothing any more, and its connections are severed. It does not
// wait for them to be gone, which Proxy.Close does.
func (s *Session) Close() {
	s.proxy.forget(s)
	s.mu.Lock()
	s.closed = true
	severs := s.severs
	s.severs = nil
	s.mu.Unlock()
	for _, sever := range severs {
		sever()
	}
	s.transport.CloseIdleConnections()
}

// deny remembers a refusal.
func (s *Session) deny(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.denied == nil {
		s.denied = err
	}
}

// onClose has sever called when the session is closed, until done is called, which tells whether it was. It reports
// false where the session is closed already.
func (s *Session) onClose(sever func()) (done func() (severed bool), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	s.lastKey++
	key := s.lastKey
	s.severs[key] = sever
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.severs, key)
		return s.closed
	}, true
}

// knows reports whether this is the session's password, in a time that does not depend on how near it is.
func (s *Session) knows(password string) bool {
	hash := sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(hash[:], s.secret[:]) == 1
}
