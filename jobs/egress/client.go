package egress

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"medianest/jobs/reason"
)

// maxRedirects is how many redirects of one request are followed.
const maxRedirects = 5

// ClientOptions is what a Client may be told. The zero value is good but for the version.
type ClientOptions struct {
	// Version is that of this program, for the User-Agent. Default: dev.
	Version string
	// UserAgent is what requests say that have no User-Agent of their own. Default: MediaNest/ and the version.
	UserAgent string
	// Timeout bounds a request as a whole, with its redirects and the reading of its answer's body. Default: 30 s.
	Timeout time.Duration
	// HeaderTimeout bounds the wait for an answer's header once the request has been sent. Default: 10 s.
	HeaderTimeout time.Duration
	// MaxHeaderBytes bounds an answer's header. Default: 64 KiB.
	MaxHeaderBytes int64
	// RootCAs are who may vouch for https hosts. Default: those that this machine trusts.
	RootCAs *x509.CertPool
}

// Client returns a client for what this program itself asks of hosts that somebody has named: an identity provider, a
// media server, the receiver of a webhook. It keeps its own connections, so one is made for each purpose and kept.
//
// Each connection is judged when it is made, on the very address that it is made to, as the proxy's are: names that lead
// into the own network, or do so the second time they are asked for, get nowhere, and neither do redirects. No proxy is
// asked, whatever the environment says. Up to five redirects are followed, none to anything but http and https and none
// from https to http. What a request holds may be secret (a token in a header, a code in a form): another origin than
// the first is given neither its headers, but for those that say what is wanted, nor its body.
//
// Errors are those of http.Client, a *url.Error: it names the whole address, so what is logged is the error in it. What
// was refused or could not be connected to is a *reason.Error there. A body is not bounded in size: its reader knows what
// it expects.
func (g *Guard) Client(options ClientOptions) *http.Client {
	name := cmp.Or(options.UserAgent, "MediaNest/"+cmp.Or(options.Version, "dev"))
	return &http.Client{
		Transport: &namedTransport{name: name, Transport: &http.Transport{
			DialContext:            g.dialContext,
			IdleConnTimeout:        30 * time.Second,
			MaxIdleConnsPerHost:    2,
			MaxResponseHeaderBytes: cmp.Or(options.MaxHeaderBytes, maxHeaderBytes),
			ResponseHeaderTimeout:  cmp.Or(options.HeaderTimeout, 10*time.Second),
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: options.RootCAs},
			TLSHandshakeTimeout:    g.options.DialTimeout,
		}},
		CheckRedirect: checkRedirect,
		Timeout:       cmp.Or(options.Timeout, 30*time.Second),
	}
}

// namedTransport says who asks where a request does not. The embedded transport's CloseIdleConnections is what
// http.Client looks for.
type namedTransport struct {
	*http.Transport

	name string
}

// RoundTrip implements http.RoundTripper.
func (t *namedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, named := r.Header["User-Agent"]; !named { // one that is there and empty asks for none
		r = r.Clone(r.Context()) // which is the caller's
		r.Header.Set("User-Agent", t.name)
	}
	return t.Transport.RoundTrip(r)
}

// carried are the headers that another origin is given: what is wanted and by whom, never who may have it.
var carried = []string{"Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "Range", "User-Agent"}

// checkRedirect judges the address that an answer leads to. The host is judged when it is connected to.
func checkRedirect(next *http.Request, via []*http.Request) error {
	first, last := via[0], via[len(via)-1]
	switch {
	case len(via) > maxRedirects:
		return unsupported(fmt.Sprintf("The host %s led on and on: more than %d redirects are not followed.", shorten(last.URL.Hostname()), maxRedirects))
	case next.URL.Scheme != "http" && next.URL.Scheme != "https":
		return misled(last, "to something other than http and https")
	case last.URL.Scheme == "https" && next.URL.Scheme == "http":
		return misled(last, "from https to http")
	}
	next.Header.Del("Referer") // an address may be a secret as a whole, as that of a webhook is
	sameOrigin := !slices.ContainsFunc(append(via[1:len(via):len(via)], next), func(r *http.Request) bool {
		return !isSameOrigin(r.URL, first.URL)
	})
	if sameOrigin {
		return nil
	}
	sends := next.Body != nil && next.Body != http.NoBody
	if sends || next.Method != http.MethodGet && next.Method != http.MethodHead {
		return misled(last, "what it was sent to another host")
	}
	for header := range next.Header {
		if !slices.Contains(carried, header) {
			next.Header.Del(header)
		}
	}
	return nil
}

func isSameOrigin(a, b *url.URL) bool {
	port := func(u *url.URL) string { return cmp.Or(u.Port(), portSuffix(defaultPort(u.Scheme))[1:]) }
	return a.Scheme == b.Scheme && a.Hostname() == b.Hostname() && port(a) == port(b)
}

// misled is the refusal to follow a redirect.
func misled(from *http.Request, to string) error {
	return &reason.Error{
		Reason: reason.EgressDenied,
		Detail: "The host " + shorten(from.URL.Hostname()) + " leads " + to + ", which is not followed.",
	}
}
