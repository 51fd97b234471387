package egress

import (
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

func TestRefuses(t *testing.T) {
	t.Parallel()

	t.Run("PrivateAddressesInEveryForm", func(t *testing.T) {
		t.Parallel()
		var visits atomic.Int64
		_, address := startSite(t, false, func(http.ResponseWriter, *http.Request) { visits.Add(1) })
		proxy := startProxy(t, Options{Resolver: newNames(map[string][]string{"inner.example": {"127.0.0.1"}, "mapped.example": {"::ffff:127.0.0.1"}})})
		for _, host := range []string{
			"127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::1]", "inner.example", "INNER.example.", "mapped.example",
		} {
			target := host + ":" + strconv.Itoa(int(address.Port()))
			for _, request := range []string{
				"CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n",
				"GET http://" + target + "/secret HTTP/1.1\r\nHost: " + target + "\r\n",
				"POST http://user:pass@" + target + "/ HTTP/1.1\r\nHost: allowed.example\r\nContent-Length: 0\r\n",
			} {
				session := openSession(t, proxy)
				conn, in := dialProxy(t, proxy)
				status, body := ask(t, conn, in, request+basic(t, session)+"\r\n")
				require.Equal(t, http.StatusForbidden, status, request)
				said := requireReason(t, reason.EgressDenied, session.Denied(), request)
				require.Equal(t, said, strings.TrimSpace(body))
				require.Contains(t, said, "an address of this machine")
				require.Zero(t, session.Stats().Connections)
			}
		}
		require.Zero(t, visits.Load())
	})

	t.Run("RedirectsIntoThem", func(t *testing.T) {
		t.Parallel()
		var visits atomic.Int64
		_, inner := startSite(t, false, func(http.ResponseWriter, *http.Request) { visits.Add(1) })
		for _, encrypted := range []bool{false, true} {
			site, address := startSite(t, encrypted, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://localhost:"+strconv.Itoa(int(inner.Port()))+"/admin", http.StatusFound)
			})
			session := openSession(t, startProxy(t, Options{
				Policy:   mustAllow(t, address.String()),
				Resolver: newNames(map[string][]string{"localhost": {"::1 127.0.0.1"}}),
			}))
			status, _, err := get(t, clientOf(t, session, site), site.URL)
			require.NoError(t, err)
			require.Equal(t, http.StatusForbidden, status)
			require.Contains(t, requireReason(t, reason.EgressDenied, session.Denied()), "The host localhost")
		}
		require.Zero(t, visits.Load())
	})

	t.Run("NamesThatChangeTheirMind", func(t *testing.T) {
		t.Parallel()
		var visits atomic.Int64
		_, address := startSite(t, false, func(http.ResponseWriter, *http.Request) { visits.Add(1) })
		guard := NewGuard(Options{Resolver: newNames(map[string][]string{"rebind.example": {"93.184.215.14", "127.0.0.1"}})})
		proxy, err := guard.StartProxy(t.Context())
		require.NoError(t, err)
		t.Cleanup(proxy.Close)
		rawURL := "http://rebind.example:" + strconv.Itoa(int(address.Port())) + "/"
		require.NoError(t, guard.CheckURL(t.Context(), rawURL))
		session := openSession(t, proxy)
		status, _, err := get(t, clientOf(t, session), rawURL)
		require.NoError(t, err)
		require.Equal(t, http.StatusForbidden, status)
		requireReason(t, reason.EgressDenied, session.Denied())
		require.Zero(t, visits.Load())
	})

	t.Run("AddressesThatOnlyANameAllows", func(t *testing.T) {
		t.Parallel()
		site, address := startSite(t, true, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
		session := openSession(t, startProxy(t, Options{
			Policy:   mustAllow(t, "nas.example.com"),
			Resolver: newNames(map[string][]string{"nas.example.com": {"127.0.0.1"}, "evil.example.com": {"127.0.0.1"}}),
		}))
		port := ":" + strconv.Itoa(int(address.Port()))
		client := clientOf(t, session, site)
		_, body, err := get(t, client, "https://nas.example.com"+port)
		require.NoError(t, err)
		require.Equal(t, "hello", body)
		require.NoError(t, session.Denied())
		_, _, err = get(t, client, "https://evil.example.com"+port)
		require.ErrorContains(t, err, "Forbidden")
		_, _, err = get(t, client, "https://127.0.0.1"+port)
		require.ErrorContains(t, err, "Forbidden")
		require.Contains(t, requireReason(t, reason.EgressDenied, session.Denied()), "evil.example.com", "the first refusal is kept")
	})

	t.Run("OurOwnListeners", func(t *testing.T) {
		t.Parallel()
		var visits atomic.Int64
		_, own := startSite(t, false, func(http.ResponseWriter, *http.Request) { visits.Add(1) })
		guard := NewGuard(Options{Policy: mustAllow(t, "0.0.0.0/0,::/0"), Forbidden: []netip.AddrPort{own}})
		proxy, err := guard.StartProxy(t.Context())
		require.NoError(t, err)
		session := openSession(t, proxy)
		for _, target := range []netip.AddrPort{own, proxy.address} {
			status, body, err := get(t, clientOf(t, session), "http://"+target.String())
			require.NoError(t, err)
			require.Equal(t, http.StatusForbidden, status)
			require.Contains(t, body, "a service of this platform itself")
		}
		require.Zero(t, visits.Load())
		proxy.Close()
		require.NoError(t, guard.CheckURL(t.Context(), "http://"+proxy.address.String()), "a port given back is somebody else's")
	})

	t.Run("WhatIsNoProxyRequest", func(t *testing.T) {
		t.Parallel()
		proxy := startProxy(t, Options{Resolver: newNames(nil)})
		session := openSession(t, proxy)
		conn, in := dialProxy(t, proxy)
		for request, want := range map[string]int{
			"GET / HTTP/1.1\r\nHost: site.example\r\n":                            http.StatusBadRequest,
			"GET https://site.example/ HTTP/1.1\r\nHost: site.example\r\n":        http.StatusBadRequest,
			"GET ftp://site.example/ HTTP/1.1\r\nHost: site.example\r\n":          http.StatusBadRequest,
			"CONNECT site.example HTTP/1.1\r\nHost: site.example\r\n":             http.StatusBadRequest,
			"CONNECT site.example:0 HTTP/1.1\r\nHost: site.example:0\r\n":         http.StatusBadRequest,
			"CONNECT 1.2.3.4.5:80 HTTP/1.1\r\nHost: 1.2.3.4.5:80\r\n":             http.StatusBadRequest,
			"CONNECT [fe80::1%25lo]:80 HTTP/1.1\r\nHost: [fe80::1%25lo]:80\r\n":   http.StatusBadRequest,
			"OPTIONS * HTTP/1.1\r\nHost: site.example\r\n":                        http.StatusBadRequest,
			"CONNECT a..example:443 HTTP/1.1\r\nHost: site.example:443\r\n":       http.StatusBadRequest,
			"CONNECT _nope.invalid.:443 HTTP/1.1\r\nHost: _nope.invalid.:443\r\n": http.StatusBadGateway,
		} {
			status, _ := ask(t, conn, in, request+basic(t, session)+"\r\n")
			require.Equal(t, want, status, request)
		}
		require.NoError(t, session.Denied(), "none of it is a refusal")
	})
}
