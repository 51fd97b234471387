package ytdlptest

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxLogged bounds the request log of a long demo; the oldest go first.
const maxLogged = 10_000

// Request is one request that the site got.
type Request struct {
	At     time.Time
	Method string
	Path   string
	Query  string
	Range  string // the Range header, or empty
	Status int    // 0 while nothing has been answered
	Bytes  int64  // of the body, sent so far
	Done   bool
}

// requestLog keeps requests in the order of their arrival, the unfinished ones included.
type requestLog struct {
	mu       sync.Mutex
	requests []*Request
	active   int
	peak     int
}

func (l *requestLog) begin(r *http.Request) *Request {
	entry := &Request{At: time.Now().UTC(), Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Range: r.Header.Get("Range")}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.requests) >= maxLogged {
		l.requests = slices.Delete(l.requests, 0, maxLogged/10)
	}
	l.requests = append(l.requests, entry)
	l.active++
	l.peak = max(l.peak, l.active)
	return entry
}

func (l *requestLog) end(entry *Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	entry.Done = true
	l.active--
}

// recorder counts what is written to a response.
type recorder struct {
	http.ResponseWriter
	log   *requestLog
	entry *Request
}

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	w.log.mu.Lock()
	w.entry.Status = status
	w.log.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.log.mu.Lock()
	if w.entry.Status == 0 {
		w.entry.Status = http.StatusOK
	}
	w.entry.Bytes += int64(n)
	w.log.mu.Unlock()
	return n, err
}

// Unwrap gives http.ResponseController what is underneath.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Requests returns what was asked for so far, the oldest first: all of it, or what is at the paths with one of the
// prefixes.
func (s *Site) Requests(prefixes ...string) []Request {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	var out []Request
	for _, entry := range s.log.requests {
		if len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(entry.Path, p) }) {
			out = append(out, *entry)
		}
	}
	return out
}

// Active is how many requests are being answered now, Peak how many there were at once at most.
func (s *Site) Active() int {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.active
}

// Peak is the largest number of requests that were being answered at the same time.
func (s *Site) Peak() int {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.peak
}

// Forget empties the request log.
func (s *Site) Forget() {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	s.log.requests = slices.DeleteFunc(s.log.requests, func(r *Request) bool { return r.Done })
	s.log.peak = s.log.active
}
