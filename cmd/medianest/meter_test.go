package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"medianest/jobs/ytdlp/ytdlptest"
)

// meter is the sample site with any number of addresses for each film, /w/NAME/RATE/..., and an account of what was
// fetched at each. It is what the tests believe when they say that bytes were not fetched twice, or not at all.
type meter struct {
	site *ytdlptest.Site
	url  string

	mu       sync.Mutex
	accounts map[string]*account
	named    int
}

// nextName is a number that no other name of this meter has.
func (m *meter) nextName() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.named++
	return m.named
}

// account is what one name of a meter has given out.
type account struct {
	bytes    int64
	requests int
	active   int       // requests being answered
	asked    time.Time // when the last request came
	last     time.Time // of the last byte

	// overlapping is since when more than one is answered, overlap for how long at most: one fetch asks for one thing
	// at a time.
	overlapping time.Time
	overlap     time.Duration
}

// meteredSite serves the sample site on loopback, metered, and returns the setting that lets downloads go there.
func meteredSite(t *testing.T) (m *meter, allow string) {
	t.Helper()
	site, err := ytdlptest.New(t.Context(), "", testTool(t, "ffmpeg"))
	if err != nil {
		t.Fatal(err)
	}
	m = &meter{site: site, accounts: map[string]*account{}}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.url = server.URL
	return m, "MEDIANEST_EGRESS_ALLOW=" + server.Listener.Addr().String()
}

// address is where the film at path can be had under a name of its own, at rate bytes a second.
func (m *meter) address(name string, rate int, path string) string {
	return fmt.Sprintf("%s/w/%s/%d%s", m.url, url.PathEscape(name), rate, path)
}

// ServeHTTP implements http.Handler.
func (m *meter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// "", "w", NAME, RATE, what the site has
	parts := strings.SplitN(r.URL.Path, "/", 5)
	if len(parts) < 5 || parts[1] != "w" {
		http.NotFound(w, r)
		return
	}
	name, rate := parts[2], parts[3]
	m.enter(name)
	defer m.leave(name)
	inner := r.Clone(r.Context())
	inner.URL.Path = "/" + parts[4]
	query := inner.URL.Query()
	query.Set("rate", rate)
	inner.URL.RawQuery = query.Encode()
	m.site.ServeHTTP(&metered{ResponseWriter: w, meter: m, name: name}, inner)
}

// with gives do the account of a name, which is made if need be.
func (m *meter) with(name string, do func(*account)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.accounts[name]
	if a == nil {
		a = &account{}
		m.accounts[name] = a
	}
	do(a)
}

func (m *meter) enter(name string) {
	m.with(name, func(a *account) {
		a.requests++
		a.asked = time.Now()
		if a.active++; a.active == 2 {
			a.overlapping = time.Now()
		}
	})
}

func (m *meter) leave(name string) {
	m.with(name, func(a *account) {
		if a.active--; a.active == 1 {
			a.overlap = max(a.overlap, time.Since(a.overlapping))
		}
	})
}

// of is the account of a name as it stands.
func (m *meter) of(name string) (found account) {
	m.with(name, func(a *account) { found = *a })
	return found
}

// metered counts the bytes of a body. It is written to in small portions, as the site's rate has it, so that a client
// that is gone costs one of them.
type metered struct {
	http.ResponseWriter
	meter *meter
	name  string
}

// Write implements http.ResponseWriter.
func (w *metered) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.meter.with(w.name, func(a *account) {
		a.bytes += int64(n)
		a.last = time.Now()
	})
	return n, err
}

// Unwrap gives http.ResponseController what is underneath.
func (w *metered) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// film is one of the shapes that the site has films in.
type film struct {
	kind string
	path string
	name string // of the file behind it, where what is fetched has the same bytes; else ""
	size int    // about, in bytes
}

var (
	filmMP4  = film{kind: "MP4", path: "/plain.mp4", name: "plain.mp4", size: 476_000}
	filmHLS  = film{kind: "HLS", path: "/hls/long/index.m3u8", size: 1_730_000}     // 60 fragments
	filmDASH = film{kind: "DASH", path: "/dash/long/manifest.mpd", size: 1_624_000} // 120 fragments, picture and sound
	films    = []film{filmMP4, filmHLS, filmDASH}
)

// rate is how many bytes a second make a fetch of the film last for so long, or a little longer.
func (f film) rate(lasts time.Duration) int { return int(float64(f.size) / lasts.Seconds()) }

// numbered is a name for the n-th of something.
func numbered(prefix string, n int) string { return prefix + strconv.Itoa(n) }
