// Package ytdlptest is a media site to download from: films made by ffmpeg in the shapes that sites offer them in, and
// the faults that sites have. Tests run against it, and so does the demo; `/` lists what there is.
package ytdlptest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// HostileTitle is the title of the film at /hostile: what a careless program makes a path, a flag or a terminal
// command of.
var HostileTitle = "-rf ../../etc/passwd\x07\x1b[31m /\\:*?\"<>|%(id)s $(id) `id` \u202egpj.exe\u2028 🎬é" + strings.Repeat("长", 120)

// Site is the sample site. It is an http.Handler; all methods may be called from several goroutines.
type Site struct {
	dir     string // of the media
	mux     *http.ServeMux
	log     requestLog
	expired atomic.Int64 // how often Expire was called
	cuts    atomic.Int64 // bodies cut at /cut-once.mp4
	turned  atomic.Pointer[string]
}

// New makes the media with ffmpeg where dir does not have them yet, which takes some seconds, and returns the site. An
// empty dir means CacheDir.
func New(ctx context.Context, dir, ffmpeg string) (*Site, error) {
	if dir == "" {
		dir = CacheDir()
	}
	dir, err := makeMedia(ctx, dir, ffmpeg)
	if err != nil {
		return nil, err
	}
	s := &Site{dir: dir, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /{$}", s.index)
	for _, e := range s.exhibits() {
		s.mux.HandleFunc("GET "+e.pattern, e.handle)
	}
	return s, nil
}

// exhibit is one thing that the site has.
type exhibit struct {
	pattern string // of http.ServeMux
	try     string // an address to try; empty: not in the index
	what    string
	handle  http.HandlerFunc
}

func (s *Site) exhibits() []exhibit {
	return []exhibit{
		{"/plain.mp4", "/plain.mp4", "a plain MP4 of 5 seconds", s.film("plain.mp4")},
		{"/big.mp4", "/big.mp4?mb=20", "an MP4 of mb megabytes, rate bytes a second if given", s.big},
		{"/slow.mp4", "/slow.mp4?rate=65536", "a plain MP4 at rate bytes a second", s.slow},
		{"/items/{name}", "", "", s.item},
		{"/hls/{rest...}", "/hls/master.m3u8", "an HLS stream of 6 seconds in two sizes (rate for bytes a second; long/index.m3u8 for 60 fragments)", s.hls},
		{"/ffmpeg.m3u8", "/ffmpeg.m3u8", "an HLS stream that yt-dlp leaves to ffmpeg", s.encrypted("/key")},
		{"/ffmpeg-hang.m3u8", "", "the same, whose key never comes", s.encrypted("/hang")},
		{"/key", "", "", s.key},
		{"/dash/{rest...}", "/dash/manifest.mpd", "a DASH stream of 6 seconds, picture and sound apart, in two sizes (rate; long/manifest.mpd)", s.dash},
		{"/list.m3u8", "/list.m3u8?segment=/hls/low/0.ts", "an HLS stream of any segment (map and key likewise; method for the key's)", s.list},
		{"/turning.ts", "/turning.ts", "an MPEG transport stream until Turn is called", s.turning("hls/high/0.ts")},
		{"/turning.mp4", "/turning.mp4", "an MP4 until Turn is called", s.turning("plain.mp4")},
		{"/turning.mpd", "/turning.mpd", "a DASH stream of picture and sound apart, until Turn is called", s.apart},
		{"/ranges.m3u8", "/ranges.m3u8", "the long HLS stream as ranges of one file, each behind the one before (rate)", s.ranges},
		{"/ranges.ts", "", "", s.rangesFile},
		{"/turning.m3u8", "/turning.m3u8", "the long HLS stream alone (rate), with another beside or instead after Turn", s.turningMaster},
		{"/hls/long/turning.m3u8", "/hls/long/turning.m3u8", "the long HLS stream (rate) until Turn is called", s.turningList(s.hls, "index.m3u8", "application/vnd.apple.mpegurl")},
		{"/dash/long/turning.mpd", "/dash/long/turning.mpd", "the long DASH stream (rate) until Turn is called", s.turningList(s.dash, "manifest.mpd", "application/dash+xml")},
		{"/drm", "/drm", "a DASH stream that says it is protected", s.file("dash/protected.mpd")},
		{"/page", "/page", "a page with one film (n to choose, or film for one at any address)", s.page},
		{"/gallery", "/gallery", "a page with five films", s.gallery},
		{"/feed.rss", "/feed.rss", "a feed with five films enclosed", s.feed(true)},
		{"/feed-pages.rss", "/feed-pages.rss", "a feed of five pages with a film each", s.feed(false)},
		{"/single.rss", "/single.rss", "a feed with one film", s.single},
		{"/empty.rss", "/empty.rss", "a feed without entries", s.emptyFeed},
		{"/hostile", "/hostile", "a page with one film and a hostile title", s.hostile},
		{"/expiring", "/expiring", "a page whose film's address is good until Expire is called", s.expiring},
		{"/expiring.mp4", "", "", s.expiringFilm},
		{"/redirect", "/redirect?to=/plain.mp4", "a redirect to any address", s.redirect},
		{"/novideo", "/novideo", "a page without a film", s.noVideo},
		{"/text.txt", "/text.txt", "no film but a text", s.text},
		{"/status/{code}", "/status/503", "an answer with this status", s.status},
		{"/401", "/401", "sign-in wanted", s.fixed(http.StatusUnauthorized)},
		{"/403", "/403", "forbidden", s.fixed(http.StatusForbidden)},
		{"/404", "/404", "nothing there", s.fixed(http.StatusNotFound)},
		{"/410", "/410", "gone", s.fixed(http.StatusGone)},
		{"/429", "/429", "too many requests, Retry-After: 7", s.fixed(http.StatusTooManyRequests)},
		{"/forbidden-film", "/forbidden-film", "a page whose film is refused", s.forbiddenFilm},
		{"/hang", "/hang", "no answer until the client leaves", s.hang},
		{"/stall.mp4", "/stall.mp4", "a film that stops half way until the client leaves", s.stall},
		{"/cut.mp4", "/cut.mp4", "a film whose body is cut off half way, always", s.cut},
		{"/cut-once.mp4", "/cut-once.mp4", "a film whose body is cut off half way once", s.cutOnce},
	}
}

// ServeHTTP implements http.Handler.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	entry := s.log.begin(r)
	defer s.log.end(entry)
	s.mux.ServeHTTP(&recorder{ResponseWriter: w, log: &s.log, entry: entry}, r)
}

// Path is the file behind a film of the site such as "plain.mp4" or "item-3.mp4".
func (s *Site) Path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// SHA256 is the sum, in hexadecimal, of a film of the site such as "plain.mp4" or "item-3.mp4". What is fetched from
// /plain.mp4 or /items/3.mp4 has the same, if nothing repacks it.
func (s *Site) SHA256(name string) (string, error) {
	content, err := os.ReadFile(s.Path(name))
	if err != nil {
		return "", fmt.Errorf("sum sample film: %w", err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:]), nil
}

// Expire makes the addresses that /expiring gave out answer 403; the page gives out new ones.
func (s *Site) Expire() { s.expired.Add(1) }

func (s *Site) index(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	b.WriteString("<!doctype html><html lang=en><meta charset=utf-8><title>Sample media site</title><h1>Sample media site</h1><ul>")
	for _, e := range s.exhibits() {
		if e.try != "" {
			fmt.Fprintf(&b, "<li><a href=%q>%s</a>: %s</li>\n", e.try, html.EscapeString(e.try), html.EscapeString(e.what))
		}
	}
	b.WriteString("</ul></html>\n")
	page(w, b.String())
}

// --- films

func (s *Site) film(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		content, err := os.ReadFile(s.Path(name))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		serveFilm(w, r, bytes.NewReader(content))
	}
}

// serveFilm answers with Range support, at most rate bytes a second where the query says so.
func serveFilm(w http.ResponseWriter, r *http.Request, content io.ReadSeeker) {
	w.Header().Set("Content-Type", "video/mp4")
	http.ServeContent(throttle(w, r), r, "", time.Time{}, content)
}

func (s *Site) item(w http.ResponseWriter, r *http.Request) {
	s.film("item-"+path.Base(r.PathValue("name")))(w, r)
}

func (s *Site) slow(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("rate") == "" {
		r.URL.RawQuery = "rate=65536"
	}
	s.film("plain.mp4")(w, r)
}

func (s *Site) big(w http.ResponseWriter, r *http.Request) {
	megabytes, err := strconv.ParseInt(r.URL.Query().Get("mb"), 10, 64)
	if err != nil || megabytes < 1 || megabytes > 1<<20 {
		megabytes = 20
	}
	film, err := os.ReadFile(s.Path("plain.mp4"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	serveFilm(w, r, newPadded(film, megabytes<<20))
}

// --- streams

func (s *Site) hls(w http.ResponseWriter, r *http.Request) {
	name := path.Join("hls", path.Clean("/"+r.PathValue("rest")))
	if path.Ext(name) != ".m3u8" {
		w.Header().Set("Content-Type", "video/mp2t")
		http.ServeFile(throttle(w, r), r, s.Path(name))
		return
	}
	list, err := os.ReadFile(s.Path(name))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
	for line := range strings.Lines(string(list)) {
		line = strings.TrimSpace(line)
		if rate := r.URL.Query().Get("rate"); rate != "" && line != "" && !strings.HasPrefix(line, "#") {
			line += "?rate=" + url.QueryEscape(rate)
		}
		fmt.Fprintln(w, line)
	}
}

// encrypted is a stream whose method yt-dlp does not know and ffmpeg does. Its segments have nothing encrypted in them,
// which is all the same to ffmpeg.
func (s *Site) encrypted(key string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
		fmt.Fprintf(w, "#EXTM3U\n#EXT-X-VERSION:5\n#EXT-X-TARGETDURATION:2\n#EXT-X-PLAYLIST-TYPE:VOD\n#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"%s\"\n", key)
		for n := range 3 {
			fmt.Fprintf(w, "#EXTINF:2.0,\n/hls/low/%d.ts\n", n)
		}
		fmt.Fprintln(w, "#EXT-X-ENDLIST")
	}
}

func (s *Site) key(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 16)) }

func (s *Site) dash(w http.ResponseWriter, r *http.Request) {
	name := path.Join("dash", path.Clean("/"+r.PathValue("rest")))
	rate := r.URL.Query().Get("rate")
	if path.Ext(name) != ".mpd" || rate == "" {
		s.file(name)(w, r)
		return
	}
	manifest, err := os.ReadFile(s.Path(name))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/dash+xml")
	_, _ = w.Write(bytes.ReplaceAll(manifest, []byte(`.m4s"`), []byte(`.m4s?rate=`+url.QueryEscape(rate)+`"`)))
}

// ranges lists the fragments of the long stream by their sizes alone: where one begins is known from those before it.
func (s *Site) ranges(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
	fmt.Fprintf(w, "#EXTM3U\n#EXT-X-VERSION:4\n#EXT-X-TARGETDURATION:1\n#EXT-X-PLAYLIST-TYPE:VOD\n")
	for n := range longFragments {
		info, err := os.Stat(s.longFragment(n))
		if err != nil {
			panic(err) // the media are made before the site is
		}
		fmt.Fprintf(w, "#EXTINF:0.5,\n#EXT-X-BYTERANGE:%d\n/ranges.ts?rate=%s\n", info.Size(), url.QueryEscape(r.URL.Query().Get("rate")))
	}
	fmt.Fprintln(w, "#EXT-X-ENDLIST")
}

func (s *Site) rangesFile(w http.ResponseWriter, r *http.Request) {
	var all bytes.Buffer
	for n := range longFragments {
		content, err := os.ReadFile(s.longFragment(n))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		all.Write(content)
	}
	w.Header().Set("Content-Type", "video/mp2t")
	http.ServeContent(throttle(w, r), r, "", time.Time{}, bytes.NewReader(all.Bytes()))
}

func (s *Site) longFragment(n int) string { return s.Path(fmt.Sprintf("hls/long/%d.ts", n)) }

func (s *Site) file(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch path.Ext(name) {
		case ".mpd":
			w.Header().Set("Content-Type", "application/dash+xml")
		case ".m4s":
			w.Header().Set("Content-Type", "video/iso.segment")
		}
		http.ServeFile(throttle(w, r), r, s.Path(name))
	}
}

// list is a stream of one segment at any address, of this site or not. An address of a segment may be a local file's.
func (s *Site) list(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
	fmt.Fprintf(w, "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:10\n#EXT-X-PLAYLIST-TYPE:VOD\n")
	if key := query.Get("key"); key != "" {
		fmt.Fprintf(w, "#EXT-X-KEY:METHOD=%s,URI=\"%s\"\n", cmp.Or(query.Get("method"), "AES-128"), key)
	}
	if start := query.Get("map"); start != "" {
		fmt.Fprintf(w, "#EXT-X-MAP:URI=\"%s\"\n", start)
	}
	fmt.Fprintf(w, "#EXTINF:2.0,\n%s\n#EXT-X-ENDLIST\n", query.Get("segment"))
}

// The playlists that Turn can make /turning.m3u8 be.
const (
	TurnedBeside  = longVariant + highVariant
	TurnedInstead = highVariant

	longVariant = "#EXT-X-STREAM-INF:BANDWIDTH=300000,RESOLUTION=256x144,CODECS=\"avc1.42c00c,mp4a.40.2\"\n/hls/long/index.m3u8\n"
	highVariant = "#EXT-X-STREAM-INF:BANDWIDTH=900000,RESOLUTION=640x360,CODECS=\"avc1.42c01e,mp4a.40.2\"\n/hls/high/index.m3u8\n"
)

func (s *Site) turningMaster(w http.ResponseWriter, r *http.Request) {
	list := longVariant
	if turned := s.turned.Load(); turned != nil {
		list = *turned
	}
	if rate := r.URL.Query().Get("rate"); rate != "" {
		list = strings.ReplaceAll(list, ".m3u8\n", ".m3u8?rate="+url.QueryEscape(rate)+"\n")
	}
	w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
	_, _ = io.WriteString(w, "#EXTM3U\n#EXT-X-VERSION:3\n"+list)
}

// Turn makes the /turning films be something else from now on, whatever their names say.
func (s *Site) Turn(content string) { s.turned.Store(&content) }

func (s *Site) turning(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		turned := s.turned.Load()
		if turned == nil {
			s.film(name)(w, r)
			return
		}
		serveFilm(w, r, strings.NewReader(*turned))
	}
}

// turningList is the playlist or manifest of a long stream, or what it was turned into.
func (s *Site) turningList(stream http.HandlerFunc, name, contentType string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if turned := s.turned.Load(); turned != nil {
			w.Header().Set("Content-Type", contentType)
			_, _ = io.WriteString(w, *turned)
			return
		}
		r.SetPathValue("rest", "long/"+name)
		stream(w, r)
	}
}

func (s *Site) apart(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/dash+xml")
	fmt.Fprint(w, `<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT5S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
<AdaptationSet mimeType="video/mp4"><Representation id="picture" codecs="avc1.42c01e" width="640" height="360" bandwidth="500000"><BaseURL>/turning.mp4</BaseURL></Representation></AdaptationSet>
<AdaptationSet mimeType="audio/mp4"><Representation id="sound" codecs="mp4a.40.2" bandwidth="64000"><BaseURL>/turning.mp4?sound</BaseURL></Representation></AdaptationSet>
</Period></MPD>
`)
}

// --- pages and feeds

func page(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, body)
}

func filmPage(w http.ResponseWriter, title string, films ...string) {
	var b strings.Builder
	fmt.Fprintf(&b, "<!doctype html><html lang=en><head><meta charset=utf-8><title>%s</title></head><body>\n", html.EscapeString(title))
	for _, film := range films {
		fmt.Fprintf(&b, "<p><video controls><source src=\"%s\" type=\"video/mp4\"></video></p>\n", html.EscapeString(film))
	}
	b.WriteString("</body></html>\n")
	page(w, b.String())
}

func itemURL(n int) string { return fmt.Sprintf("/items/%d.mp4", n) }

func (s *Site) page(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	n, err := strconv.Atoi(query.Get("n"))
	if err != nil || n < 1 || n > galleryVideos {
		n = 1
	}
	filmPage(w, fmt.Sprintf("Holiday film %d", n), cmp.Or(query.Get("film"), itemURL(n)))
}

func (s *Site) gallery(w http.ResponseWriter, _ *http.Request) {
	var films []string
	for i := range galleryVideos {
		films = append(films, itemURL(i+1))
	}
	filmPage(w, "Holiday gallery", films...)
}

func (s *Site) hostile(w http.ResponseWriter, _ *http.Request) {
	filmPage(w, HostileTitle, itemURL(2))
}

func (s *Site) feed(enclosed bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var items strings.Builder
		for n := range galleryVideos {
			base := "http://" + r.Host
			fmt.Fprintf(&items, "<item><title>Episode %d</title><link>%s/page?n=%d</link><guid isPermaLink=\"false\">episode-%d</guid>", n+1, base, n+1, n+1)
			if enclosed {
				fmt.Fprintf(&items, "<enclosure url=\"%s%s\" type=\"video/mp4\" length=\"1\"/>", base, itemURL(n+1))
			}
			items.WriteString("</item>\n")
		}
		rss(w, "Holiday feed", items.String())
	}
}

func (s *Site) single(w http.ResponseWriter, r *http.Request) {
	rss(w, "Feed of one", fmt.Sprintf("<item><title>The only episode</title><enclosure url=\"http://%s%s\" type=\"video/mp4\" length=\"1\"/></item>", r.Host, itemURL(3)))
}

func (s *Site) emptyFeed(w http.ResponseWriter, _ *http.Request) { rss(w, "Empty feed", "") }

func rss(w http.ResponseWriter, title, items string) {
	w.Header().Set("Content-Type", "application/rss+xml; charset=utf-8")
	fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<rss version=\"2.0\"><channel><title>%s</title><link>/</link><description>sample</description>\n%s</channel></rss>\n", title, items)
}

func (s *Site) expiring(w http.ResponseWriter, _ *http.Request) {
	filmPage(w, "Expiring film", fmt.Sprintf("/expiring.mp4?token=%d", s.expired.Load()))
}

func (s *Site) expiringFilm(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("token") != strconv.FormatInt(s.expired.Load(), 10) {
		http.Error(w, "this address has expired", http.StatusForbidden)
		return
	}
	s.film("plain.mp4")(w, r)
}

func (s *Site) noVideo(w http.ResponseWriter, _ *http.Request) {
	page(w, "<!doctype html><html lang=en><head><meta charset=utf-8><title>A page of text</title></head><body><p>Nothing to see here.</p></body></html>\n")
}

func (s *Site) text(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "Nothing to see here either.\n")
}

// --- faults

func (s *Site) redirect(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound) //nolint:gosec // to anywhere is what it is for
}

func (s *Site) status(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil || code < 200 || code > 599 {
		code = http.StatusInternalServerError
	}
	s.fixed(code)(w, r)
}

func (s *Site) fixed(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if code == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "7")
		}
		http.Error(w, http.StatusText(code), code)
	}
}

func (s *Site) forbiddenFilm(w http.ResponseWriter, _ *http.Request) {
	filmPage(w, "Forbidden film", "/status/403")
}

func (s *Site) hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func (s *Site) stall(w http.ResponseWriter, r *http.Request) {
	s.cutAfterHalf(w, r)
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// cutAfterHalf sends what the request wants of the film's first half, under headers that promise all of it.
func (s *Site) cutAfterHalf(w http.ResponseWriter, r *http.Request) {
	film, err := os.ReadFile(s.Path("plain.mp4"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var from int
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err != nil || from < 0 || from >= len(film) {
		from = 0
	}
	w.Header().Set("Content-Type", "video/mp4")
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Length", strconv.Itoa(len(film)-from))
	status := http.StatusOK
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(film)-1, len(film)))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if half := len(film) / 2; from < half && r.Method != http.MethodHead {
		_, _ = w.Write(film[from:half])
	}
}

func (s *Site) cut(w http.ResponseWriter, r *http.Request) {
	s.cutAfterHalf(w, r)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler) // how a handler cuts a connection
}

func (s *Site) cutOnce(w http.ResponseWriter, r *http.Request) {
	// The first answer is for whoever looks what it is; the second for who fetches it.
	if r.Method == http.MethodGet && s.cuts.Add(1) == 2 {
		s.cut(w, r)
		return
	}
	s.film("plain.mp4")(w, r)
}

// throttled sends at most rate bytes a second, in ten portions.
type throttled struct {
	http.ResponseWriter
	ctx  context.Context //nolint:containedctx // the request's, for the time of one response
	rate int
}

// throttle returns w, slowed down to the rate in the request's query, if there is one.
func throttle(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	rate, err := strconv.Atoi(r.URL.Query().Get("rate"))
	if err != nil || rate < 1 {
		return w
	}
	return &throttled{ResponseWriter: w, ctx: r.Context(), rate: rate}
}

// Write implements http.ResponseWriter.
func (t *throttled) Write(b []byte) (int, error) {
	written := 0
	portion := max(1, t.rate/10)
	for written < len(b) {
		n, err := t.ResponseWriter.Write(b[written:min(len(b), written+portion)])
		written += n
		if err != nil {
			return written, err
		}
		if err := http.NewResponseController(t.ResponseWriter).Flush(); err != nil {
			return written, err
		}
		timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(t.rate))
		select {
		case <-timer.C:
		case <-t.ctx.Done():
			timer.Stop()
			return written, t.ctx.Err()
		}
	}
	return written, nil
}
