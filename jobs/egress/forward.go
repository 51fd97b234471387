package egress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

// dial connects for this session, and counts what goes over the connection.
func (s *Session) dial(ctx context.Context, _, target string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx) // a Transport goes on dialling for requests that are over
	defer cancel()
	done, ok := s.onClose(cancel)
	if !ok {
		return nil, net.ErrClosed
	}
	defer done()
	conn, err := s.proxy.guard.dial(ctx, target)
	if err != nil {
		return nil, err
	}
	s.connections.Add(1)
	return &idleConn{
		Conn: conn, activity: newActivity(), limit: s.proxy.guard.options.IdleTimeout, in: &s.in, out: &s.out,
	}, nil
}

// newTransport returns what carries the session's plain requests. It is the session's own, so that no connection made
// for one is ever used by another. It follows no redirect, asks no other proxy, and leaves encodings as they are.
func (s *Session) newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            s.dial,
		DisableCompression:     true,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        s.proxy.guard.options.IdleTimeout / 2,
		MaxIdleConnsPerHost:    4,
		MaxResponseHeaderBytes: 4 * maxHeaderBytes,
		ResponseHeaderTimeout:  s.proxy.guard.options.HeaderTimeout,
	}
}

// newReverseProxy returns what forwards plain requests. A ReverseProxy does all that a forward proxy must: it drops
// the headers of the hop (the credentials among them), streams both ways, and breaks the answer off where the host's
// breaks off.
func (s *Session) newReverseProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.RawQuery = r.In.URL.RawQuery // otherwise cleaned of what Go would not parse
		},
		Transport:     s.transport,
		FlushInterval: -1,
		ErrorHandler:  s.fail,
		ErrorLog:      slog.NewLogLogger(s.proxy.guard.options.Logger.Handler(), slog.LevelDebug),
	}
}

// forward carries a request for an http address.
func (s *Session) forward(w http.ResponseWriter, r *http.Request) {
	r.Header.Del("Upgrade") // what follows one would not be HTTP
	// A host may answer before it has the whole request, which the server would read first otherwise.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		s.fail(w, r, err)
		return
	}
	s.plain.ServeHTTP(w, r)
}

// tunnel connects the two ends of a CONNECT, and returns when both are done.
func (s *Session) tunnel(w http.ResponseWriter, r *http.Request) {
	remote, err := s.dial(r.Context(), "tcp", r.URL.Host)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer func() { _ = remote.Close() }()
	s.proxy.running.Add(1) // before the server stops counting the connection
	defer s.proxy.running.Done()
	hijacked, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer func() { _ = hijacked.Close() }()
	done, ok := s.onClose(func() {
		_ = hijacked.Close()
		_ = remote.Close()
	})
	if !ok {
		return
	}
	defer done()
	if err := hijacked.SetDeadline(time.Time{}); err != nil { // the server's
		return
	}
	upstream, ok := remote.(*idleConn)
	if !ok {
		return
	}
	client := &idleConn{Conn: hijacked, activity: upstream.activity, limit: upstream.limit}
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	early, err := buffered.Peek(buffered.Reader.Buffered()) // sent before our answer was awaited
	if err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { pipe(upstream, client, early) })
	both.Go(func() { pipe(client, upstream, nil) })
	both.Wait()
}

// pipe copies what src sends, after early, until its end, which is passed on. Where either end breaks off, both are
// closed, so that the other direction ends too.
func pipe(dst, src *idleConn, early []byte) {
	_, err := io.Copy(struct{ io.Writer }{dst}, io.MultiReader(bytes.NewReader(early), struct{ io.Reader }{src}))
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		_ = dst.Close()
		_ = src.Close()
	}
}
