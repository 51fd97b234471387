package egress

import (
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

// ownClient is a client of our own, which trusts the given sites.
func ownClient(t testing.TB, guard *Guard, options ClientOptions, sites ...*httptest.Server) *http.Client {
	t.Helper()
	if len(sites) > 0 {
		options.RootCAs = x509.NewCertPool()
		for _, site := range sites {
			options.RootCAs.AddCert(site.Certificate())
		}
	}
	client := guard.Client(options)
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// startCanary starts a server on an address of loopback that no test allows, and fails the test if anybody comes.
func startCanary(t testing.TB) netip.AddrPort {
	t.Helper()
	var visits atomic.Int64
	_, address := startSite(t, false, func(http.ResponseWriter, *http.Request) { visits.Add(1) })
	t.Cleanup(func() { require.Zero(t, visits.Load(), "somebody got in") })
	return address
}

func TestClientRefuses(t *testing.T) {
	t.Parallel()
	const metadata = "http://169.254.169.254/latest/meta-data/"

	t.Run("PrivateAddressesInEveryForm", func(t *testing.T) {
		t.Parallel()
		port := ":" + strconv.Itoa(int(startCanary(t).Port()))
		client := ownClient(t, NewGuard(Options{Resolver: newNames(map[string][]string{
			"inner.example": {"127.0.0.1"}, "mapped.example": {"::ffff:127.0.0.1"}, "both.example": {"::1 127.0.0.1"},
		})}), ClientOptions{})
		for _, host := range []string{
			"127.0.0.1", "127.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "017700000001", "0.0.0.0", "0", "[::1]", "[::]",
			"[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "①②⑦.0.0.1", "inner.example", "INNER.example.", "mapped.example", "both.example",
		} {
			for _, scheme := range []string{"http://", "https://"} {
				_, _, err := get(t, client, scheme+host+port)
				requireReason(t, reason.EgressDenied, err, scheme+host)
			}
		}
	})

	t.Run("OtherProtocols", func(t *testing.T) {
		t.Parallel()
		client := ownClient(t, NewGuard(Options{Policy: mustAllow(t, "0.0.0.0/0")}), ClientOptions{})
		for _, rawURL := range []string{"file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/", "rtmp://127.0.0.1/", "unix:///run/docker.sock"} {
			_, _, err := get(t, client, rawURL)
			require.ErrorContains(t, err, "unsupported protocol scheme", rawURL)
		}
	})

	t.Run("NamesThatChangeTheirMind", func(t *testing.T) {
		t.Parallel()
		_, address := startSite(t, false, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") })
		inner := "127.0.0.2"
		guard := NewGuard(Options{
			Policy:   mustAllow(t, "127.0.0.1"),
			Resolver: newNames(map[string][]string{"rebind.example": {"127.0.0.1", "127.0.0.1", inner}}),
		})
		rawURL := "http://rebind.example:" + strconv.Itoa(int(address.Port()))
		client := ownClient(t, guard, ClientOptions{})
		require.NoError(t, guard.CheckURL(t.Context(), rawURL))
		status, _, err := get(t, client, rawURL)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status)
		_, _, err = get(t, client, rawURL)
		requireReason(t, reason.EgressDenied, err)
		require.ErrorContains(t, errors.Unwrap(reason.Find(err)), inner)
	})

	t.Run("RedirectChainsIntoThem", func(t *testing.T) {
		t.Parallel()
		canary := startCanary(t)
		for last, want := range map[string]string{
			metadata:                    "a link-local address",
			"http://[::ffff:a9fe:a9fe]": "a link-local address",
			"http://0xa9fea9fe/":        "a link-local address",
			"http://inner.example:" + strconv.Itoa(int(canary.Port())): "an address of this machine",
			"file:///etc/passwd":                                    "other than http and https",
			"gopher://127.0.0.1:6379/_FLUSH":                        "other than http and https",
			"//localhost:" + strconv.Itoa(int(canary.Port())) + "/": "an address of this machine",
		} {
			var hops atomic.Int64
			site, address := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
				if hops.Add(1) < 4 {
					http.Redirect(w, r, "/again", http.StatusFound)
					return
				}
				w.Header().Set("Location", last)
				w.WriteHeader(http.StatusTemporaryRedirect)
			})
			guard := NewGuard(Options{
				Policy:   mustAllow(t, address.String()),
				Resolver: newNames(map[string][]string{"inner.example": {"127.0.0.1"}, "localhost": {"::1 127.0.0.1"}}),
			})
			_, _, err := get(t, ownClient(t, guard, ClientOptions{}), site.URL)
			require.Contains(t, requireReason(t, reason.EgressDenied, err, last), want, last)
			require.Equal(t, int64(4), hops.Load())
		}
	})

	t.Run("RedirectsFromHTTPSToHTTP", func(t *testing.T) {
		t.Parallel()
		plain := startCanary(t)
		site, _ := startSite(t, true, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+plain.String(), http.StatusFound)
		})
		client := ownClient(t, NewGuard(Options{Policy: mustAllow(t, "127.0.0.1")}), ClientOptions{}, site)
		_, _, err := get(t, client, site.URL)
		require.Contains(t, requireReason(t, reason.EgressDenied, err), "from https to http")
	})

	t.Run("RedirectsWithoutEnd", func(t *testing.T) {
		t.Parallel()
		for leads, want := range map[int]reason.Reason{maxRedirects: "", maxRedirects + 1: reason.Unsupported} {
			var asked atomic.Int64
			site, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
				if int(asked.Add(1)) <= leads {
					http.Redirect(w, r, "/again", http.StatusFound)
				}
			})
			_, _, err := get(t, ownClient(t, NewGuard(Options{Policy: mustAllow(t, "127.0.0.1")}), ClientOptions{}), site.URL)
			require.Equal(t, int64(maxRedirects+1), asked.Load())
			if want == "" {
				require.NoError(t, err)
				continue
			}
			requireReason(t, want, err)
		}
	})

	t.Run("OurOwnListeners", func(t *testing.T) {
		t.Parallel()
		own := startCanary(t)
		guard := NewGuard(Options{Policy: mustAllow(t, "0.0.0.0/0,::/0,any.example"), Resolver: newNames(map[string][]string{"any.example": {"127.0.0.1"}})})
		guard.Forbid(own)
		for _, host := range []string{"127.0.0.1", "0", "any.example", "[::ffff:127.0.0.1]"} {
			_, _, err := get(t, ownClient(t, guard, ClientOptions{}), "http://"+host+":"+strconv.Itoa(int(own.Port())))
			require.Contains(t, requireReason(t, reason.EgressDenied, err), "a service of this platform itself", host)
		}
	})
}

// What a request carries was meant for the host that it was made for.
func TestClientKeepsSecretsFromOtherOrigins(t *testing.T) {
	t.Parallel()
	got := make(chan http.Header, 1)
	var siteURL, otherURL string
	other, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/back" {
			http.Redirect(w, r, siteURL+"/end", http.StatusFound)
			return
		}
		got <- r.Header
	})
	site, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/same":
			http.Redirect(w, r, "/end", http.StatusFound)
		case "/round":
			http.Redirect(w, r, otherURL+"/back", http.StatusFound)
		case "/end":
			got <- r.Header
		default:
			http.Redirect(w, r, otherURL, http.StatusTemporaryRedirect)
		}
	})
	siteURL, otherURL = site.URL, other.URL
	client := ownClient(t, NewGuard(Options{Policy: mustAllow(t, "127.0.0.1")}), ClientOptions{})
	ask := func(method, path, body string) error {
		request, err := http.NewRequestWithContext(t.Context(), method, site.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		request.Header = http.Header{"X-Plex-Token": {"s3cret"}, "Authorization": {"Bearer s3cret"}, "Cookie": {"a=s3cret"}, "Accept": {"application/json"}}
		response, err := client.Do(request)
		if err == nil {
			_ = response.Body.Close()
		}
		return err
	}
	// One that was led away and back may have been led back to somewhere that it was not meant for.
	for _, path := range []string{"/hook/s3cret?key=s3cret", "/round?key=s3cret"} {
		require.NoError(t, ask(http.MethodGet, path, ""))
		header := <-got
		require.Equal(t, "application/json", header.Get("Accept"))
		require.Equal(t, "MediaNest/dev", header.Get("User-Agent"))
		for name, values := range header {
			require.NotContains(t, strings.Join(values, ""), "s3cret", name)
		}
	}

	for method, body := range map[string]string{http.MethodPost: "code=s3cret", http.MethodDelete: "", http.MethodGet: "code=s3cret"} {
		requireReason(t, reason.EgressDenied, ask(method, "/token", body), method)
		require.Empty(t, got, "%s was handed on", method)
	}

	require.NoError(t, ask(http.MethodGet, "/same", ""))
	header := <-got
	require.Equal(t, "s3cret", header.Get("X-Plex-Token"), "the same origin is given what it was meant to have")
	require.Empty(t, header.Get("Referer"))
}

func TestClientIsBounded(t *testing.T) {
	t.Parallel()
	loopback := NewGuard(Options{Policy: mustAllow(t, "127.0.0.1"), DialTimeout: 300 * time.Millisecond})

	t.Run("Header", func(t *testing.T) {
		t.Parallel()
		site, _ := startSite(t, false, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Big", strings.Repeat("x", 2*maxHeaderBytes))
		})
		_, _, err := get(t, ownClient(t, loopback, ClientOptions{}), site.URL)
		require.ErrorContains(t, err, "header")
		_, _, err = get(t, ownClient(t, loopback, ClientOptions{MaxHeaderBytes: 4 * maxHeaderBytes}), site.URL)
		require.NoError(t, err)
	})

	t.Run("WaitForTheHeader", func(t *testing.T) {
		t.Parallel()
		site, _ := startSite(t, false, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		_, _, err := get(t, ownClient(t, loopback, ClientOptions{HeaderTimeout: 50 * time.Millisecond}), site.URL)
		require.True(t, isTimeout(err), err)
	})

	t.Run("AsAWhole", func(t *testing.T) {
		t.Parallel()
		site, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		_, body, err := get(t, ownClient(t, loopback, ClientOptions{Timeout: 300 * time.Millisecond}), site.URL)
		require.True(t, isTimeout(err), err)
		require.Equal(t, "half", body)
	})

	t.Run("Connecting", func(t *testing.T) {
		t.Parallel()
		_, _, err := get(t, ownClient(t, loopback, ClientOptions{}), "http://"+deafAddress(t))
		requireReason(t, reason.Timeout, err)
		_, _, err = get(t, ownClient(t, loopback, ClientOptions{}), "http://"+freeAddress(t))
		requireReason(t, reason.Network, err)
	})

	t.Run("Handshake", func(t *testing.T) {
		t.Parallel()
		// The kernel takes the connection, and nobody ever reads from it.
		_, _, err := get(t, ownClient(t, loopback, ClientOptions{}), "https://"+silentAddress(t))
		require.True(t, isTimeout(err), err)
	})

	t.Run("ByDefault", func(t *testing.T) {
		t.Parallel()
		client := loopback.Client(ClientOptions{})
		transport := client.Transport.(*namedTransport).Transport
		require.Positive(t, client.Timeout)
		require.Positive(t, transport.ResponseHeaderTimeout)
		require.Nil(t, transport.Proxy, "a proxy of the environment would be asked for private addresses, and would not refuse them")
	})
}

func TestClientSaysWhoItIs(t *testing.T) {
	t.Parallel()
	site, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.UserAgent()) })
	guard := NewGuard(Options{Policy: mustAllow(t, "127.0.0.1")})
	for want, options := range map[string]ClientOptions{
		"MediaNest/dev": {}, "MediaNest/1.2.3": {Version: "1.2.3"}, "Nest of mine": {Version: "1.2.3", UserAgent: "Nest of mine"},
	} {
		_, body, err := get(t, ownClient(t, guard, options), site.URL)
		require.NoError(t, err)
		require.Equal(t, want, body)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, site.URL, nil)
	require.NoError(t, err)
	request.Header.Set("User-Agent", "This once")
	response, err := ownClient(t, guard, ClientOptions{}).Do(request)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, "This once", string(body))
}
