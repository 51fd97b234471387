package jobs_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/jobs"
	"medianest/jobs/egress"
	"medianest/jobs/queue"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// canary is a server that nobody may ever connect to. Its films would be good ones.
type canary struct {
	address     netip.AddrPort
	connections atomic.Int64
}

// startCanary listens on an address of loopback.
func startCanary(t *testing.T, address string, handler http.Handler) *canary {
	t.Helper()
	listener, err := net.Listen("tcp4", address)
	require.NoError(t, err)
	c := &canary{address: netip.MustParseAddrPort(listener.Addr().String())}
	server := httptest.NewUnstartedServer(handler)
	require.NoError(t, server.Listener.Close())
	server.Listener = listener
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			c.connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(func() { require.Zero(t, c.connections.Load(), "somebody connected to %s", c.address) })
	return c
}

// names is a resolver with fixed answers. Each lookup of a name takes its next answer, the last one again and again.
type names struct {
	mu      sync.Mutex
	answers map[string][]string
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	answers := n.answers[host]
	if len(answers) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(answers) > 1 {
		n.answers[host] = answers[1:]
	}
	return []netip.Addr{netip.MustParseAddr(answers[0])}, nil
}

// guarded replaces the guard and the proxy.
func guarded(t *testing.T, options egress.Options) setting {
	t.Helper()
	return func(deps *jobs.Deps, _ *queue.Options, _ *ytdlp.Options) {
		options.Logger = deps.Logger
		deps.Guard = egress.NewGuard(options)
		var err error
		deps.Proxy, err = deps.Guard.StartProxy(t.Context())
		require.NoError(t, err)
		t.Cleanup(deps.Proxy.Close)
	}
}

// TestNothingLeadsInside has a site do what it can to make yt-dlp and ffmpeg go where they must not. The site's own address,
// 127.0.0.1, is allowed; two servers would answer: one beside it that no policy allows, one of the platform's own at an
// allowed address.
func TestNothingLeadsInside(t *testing.T) {
	t.Parallel()

	allowed, err := egress.ParseAllow("127.0.0.1")
	require.NoError(t, err)
	films := http.NewServeMux()
	inner := startCanary(t, "127.0.0.2:0", films)
	own := startCanary(t, "127.0.0.1:0", films)
	resolver := &names{answers: map[string][]string{
		"inner.example": {"127.0.0.2"}, "mapped.example": {"::ffff:127.0.0.2"}, "own.example": {"127.0.0.1"},
		"rebind.example": {"127.0.0.1", "127.0.0.2"},
	}}
	b := setup(t, guarded(t, egress.Options{Policy: allowed, Forbidden: []netip.AddrPort{own.address}, Resolver: resolver}))
	films.Handle("/", b.site)
	site, err := url.Parse(b.siteURL)
	require.NoError(t, err)
	startCanary(t, "127.0.0.2:"+site.Port(), films) // where a name that changed its mind leads
	film := func(protocol string, at *canary) string {
		return protocol + "://" + at.address.String() + "/hls/low/0.ts"
	}
	at := func(host string, c *canary) string {
		return fmt.Sprintf("http://%s:%d/plain.mp4", host, c.address.Port())
	}
	redirect := func(to string, more int) string {
		for range more {
			to = "/redirect?to=" + url.QueryEscape(to)
		}
		return "/redirect?to=" + url.QueryEscape(to)
	}
	page := func(film string) string { return "/page?film=" + url.QueryEscape(film) }
	list := func(pairs ...string) string {
		query := url.Values{"segment": {"/hls/low/0.ts"}}
		for i := 0; i < len(pairs); i += 2 {
			query.Set(pairs[i], pairs[i+1])
		}
		return "/list.m3u8?" + query.Encode()
	}
	const metadata = "http://169.254.169.254/latest/meta-data/"
	b.site.Turn(strings.ReplaceAll(dashInside, "%INSIDE%", film("http", inner)))

	anna := b.user(t, "anna")
	for name, address := range map[string]string{
		"Address":         at("127.0.0.2", inner),
		"Metadata":        metadata,
		"Decimal":         at("2130706434", inner),
		"Octal":           at("0177.0.0.2", inner),
		"Hexadecimal":     at("0x7f000002", inner),
		"Short":           at("127.2", inner),
		"Mapped":          at("[::ffff:127.0.0.2]", inner),
		"MappedMetadata":  "http://[::ffff:a9fe:a9fe]/latest/meta-data/",
		"NAT64Metadata":   "http://[64:ff9b::169.254.169.254]/latest/meta-data/",
		"Name":            at("inner.example", inner),
		"NameMapped":      at("mapped.example", inner),
		"Own":             at("127.0.0.1", own),
		"OwnByName":       at("own.example", own),
		"OwnUnspecified":  at("0.0.0.0", own),
		"RedirectChain":   redirect(metadata, 3),
		"RedirectInside":  redirect(at("inner.example", inner), 0),
		"RedirectDecimal": redirect(at("2130706434", inner), 0),
		"RedirectMapped":  redirect(at("[::ffff:7f00:2]", inner), 0),
		"RedirectOwn":     redirect(at("own.example", own), 1),
		"Rebinding":       at("rebind.example", &canary{address: netip.MustParseAddrPort(site.Host)}),
		"SegmentHTTPS":    list("segment", film("https", inner)),
		"SegmentRTMP":     list("segment", film("rtmp", own)),
		"SegmentFile":     list("segment", "file:///etc/passwd"),
		"PageFile":        page("file:///etc/passwd"),
		"FFmpegSegment":   list("method", "SAMPLE-AES", "key", "/key", "segment", film("http", inner)),
		"PageInside":      page(at("127.0.0.2", inner)),
		"Segment":         list("segment", film("http", inner)),
		"SegmentOwn":      list("segment", film("http", own)),
		"Map":             list("map", film("http", inner)),
		"Key":             list("key", film("http", inner)),
		"DASH":            "/dash/long/turning.mpd",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := b.wait(t, b.wish(t, anna, address).ID)
			require.Equal(t, store.StateFailed, d.State)
			require.Equal(t, "egress_denied", d.FailureReason, d.FailureDetail)
			require.NotEmpty(t, d.FailureDetail)
			require.NotContains(t, d.FailureDetail, "passwd")
			require.Equal(t, 1, b.job(t, d.JobID).Attempt)
		})
	}
	t.Cleanup(func() {
		b.requireLibrary(t)
		require.Empty(t, b.processes(t))
	})
}

// dashInside is a manifest of a segment that is somewhere else.
const dashInside = `<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S" profiles="urn:mpeg:dash:profile:isoff-live:2011"><Period>
<AdaptationSet mimeType="video/mp4"><Representation id="picture" codecs="avc1.42c01e" width="640" height="360" bandwidth="500000">
<SegmentList duration="2"><SegmentURL media="%INSIDE%"/></SegmentList></Representation></AdaptationSet>
</Period></MPD>
`
