package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

// startProxy starts a proxy behind a guard, both gone when the test ends.
func startProxy(t testing.TB, options Options) *Proxy {
	t.Helper()
	proxy, err := NewGuard(options).StartProxy(t.Context())
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	return proxy
}

func openSession(t testing.TB, proxy *Proxy) *Session {
	t.Helper()
	session := proxy.Session()
	t.Cleanup(session.Close)
	return session
}

// startSite starts a web server on loopback, with or without TLS. Hosts are named in its certificate as
// *.example.com.
func startSite(t testing.TB, encrypted bool, handler http.HandlerFunc) (*httptest.Server, netip.AddrPort) {
	t.Helper()
	site := httptest.NewUnstartedServer(handler)
	if encrypted {
		site.StartTLS()
	} else {
		site.Start()
	}
	t.Cleanup(site.Close)
	return site, netip.MustParseAddrPort(site.Listener.Addr().String())
}

// clientOf returns an HTTP client that goes through the session's proxy and trusts the given sites.
func clientOf(t testing.TB, session *Session, sites ...*httptest.Server) *http.Client {
	t.Helper()
	proxyURL, err := url.Parse(session.URL())
	require.NoError(t, err)
	transport := &http.Transport{Proxy: http.ProxyURL(proxyURL), TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	for _, site := range sites {
		if ours, ok := site.Client().Transport.(*http.Transport); ok && ours.TLSClientConfig != nil {
			transport.TLSClientConfig = ours.TLSClientConfig.Clone()
		}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// get returns the status, the body and what went wrong with either.
func get(t testing.TB, client *http.Client, rawURL string) (int, string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, rawURL, nil)
	require.NoError(t, err)
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// dialProxy opens a bare connection to the proxy, for requests that no well-behaved client sends.
func dialProxy(t testing.TB, proxy *Proxy) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", proxy.address.String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn, bufio.NewReader(conn)
}

// basic is the header that carries the session's credentials.
func basic(t testing.TB, session *Session) string {
	t.Helper()
	u, err := url.Parse(session.URL())
	require.NoError(t, err)
	password, _ := u.User.Password()
	request := http.Request{Header: http.Header{}}
	request.SetBasicAuth(u.User.Username(), password)
	return "Proxy-Authorization: " + request.Header.Get("Authorization") + "\r\n"
}

// ask sends a bare request and reads the answer with its body.
func ask(t testing.TB, conn net.Conn, in *bufio.Reader, request string) (int, string) {
	t.Helper()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err := io.WriteString(conn, request)
	require.NoError(t, err)
	method, _, _ := strings.Cut(request, " ")
	response, err := http.ReadResponse(in, &http.Request{Method: method})
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(body)
}

func TestCarries(t *testing.T) {
	t.Parallel()
	loopback := Options{Policy: mustAllow(t, "127.0.0.0/8")}

	t.Run("PlainAndEncrypted", func(t *testing.T) {
		t.Parallel()
		session := openSession(t, startProxy(t, loopback))
		for _, encrypted := range []bool{false, true} {
			site, _ := startSite(t, encrypted, func(w http.ResponseWriter, r *http.Request) {
				_, _ = fmt.Fprintf(w, "%s %s", r.Method, r.URL)
			})
			status, body, err := get(t, clientOf(t, session, site), site.URL+"/a//b%2Fc?x=1;y=2&%zz")
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, status)
			require.Equal(t, "GET /a//b%2Fc?x=1;y=2&%zz", body, "addresses arrive as they were sent")
		}
		require.NoError(t, session.Denied())
		stats := session.Stats()
		require.Equal(t, int64(2), stats.Requests)
		require.Equal(t, int64(2), stats.Connections)
		require.Greater(t, stats.BytesIn, int64(500))
		require.Greater(t, stats.BytesOut, int64(500))
	})

	t.Run("BodiesBothWaysAsTheyCome", func(t *testing.T) {
		t.Parallel()
		session := openSession(t, startProxy(t, loopback))
		for _, encrypted := range []bool{false, true} {
			site, _ := startSite(t, encrypted, func(w http.ResponseWriter, r *http.Request) {
				control := http.NewResponseController(w)
				if err := control.EnableFullDuplex(); err != nil {
					return
				}
				in := bufio.NewReader(r.Body)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					_, _ = io.WriteString(w, strings.ToUpper(line))
					_ = control.Flush()
				}
			})
			body, send := io.Pipe()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, site.URL, body)
			require.NoError(t, err)
			answered := make(chan *http.Response)
			go func() {
				response, err := clientOf(t, session, site).Do(request)
				if err != nil {
					close(answered)
					return
				}
				answered <- response
			}()
			_, err = io.WriteString(send, "one\n")
			require.NoError(t, err)
			response := <-answered
			require.NotNil(t, response)
			out := bufio.NewReader(response.Body)
			for _, line := range []string{"one\n", "two\n", "three\n"} {
				if line != "one\n" {
					_, err = io.WriteString(send, line)
					require.NoError(t, err)
				}
				got, err := out.ReadString('\n') // answered before the request is over
				require.NoError(t, err)
				require.Equal(t, strings.ToUpper(line), got)
			}
			require.NoError(t, send.Close())
			_, err = out.ReadString('\n')
			require.ErrorIs(t, err, io.EOF)
			require.NoError(t, response.Body.Close())
		}
	})

	t.Run("NothingOfTheHop", func(t *testing.T) {
		t.Parallel()
		proxy := startProxy(t, loopback)
		session := openSession(t, proxy)
		var seen http.Header
		_, address := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
			seen = r.Header.Clone()
			w.Header().Set("Connection", "X-Hop")
			w.Header().Set("X-Hop", "1")
			w.Header().Set("Content-Encoding", "gzip") // not ours to take off
			_, _ = io.WriteString(w, "not really")
		})
		conn, in := dialProxy(t, proxy)
		_, err := io.WriteString(conn, "GET http://"+address.String()+"/ HTTP/1.1\r\nHost: other.example\r\n"+basic(t, session)+
			"Proxy-Connection: keep-alive\r\nConnection: X-Mine, Upgrade\r\nX-Mine: 1\r\nUpgrade: websocket\r\nX-Forwarded-For: 10.0.0.1\r\nX-Kept: 1\r\n\r\n")
		require.NoError(t, err)
		response, err := http.ReadResponse(in, nil)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, "not really", string(body))
		require.Empty(t, response.Header.Get("X-Hop"))
		require.Equal(t, "gzip", response.Header.Get("Content-Encoding"))
		require.Equal(t, http.Header{"X-Kept": {"1"}}, seen)
	})

	t.Run("ARealProgram", func(t *testing.T) {
		t.Parallel()
		session := openSession(t, startProxy(t, loopback))
		clip := t.TempDir() + "/clip.wav"
		out, err := exec.CommandContext(t.Context(), "ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=duration=2", clip).CombinedOutput()
		require.NoError(t, err, "ffmpeg must be installed: %s", out)
		for _, encrypted := range []bool{false, true} {
			site, _ := startSite(t, encrypted, func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, clip) })
			probe := exec.CommandContext(t.Context(), "ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", site.URL+"/clip.wav")
			probe.Env = []string{"http_proxy=" + session.URL()} // it asks without credentials first
			out, err := probe.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Equal(t, "2.000000\n", string(out))
		}
		require.NotZero(t, session.Stats().Connections)

		curl, err := exec.LookPath("curl")
		if err != nil {
			t.Log("curl is not installed: ffprobe alone was tried")
			return
		}
		site, _ := startSite(t, true, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, io.LimitReader(r.Body, 1<<20))
		})
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		command := exec.CommandContext(t.Context(), curl, "--silent", "--show-error", "--insecure", "--http1.1", "--data-binary", "@-", site.URL)
		command.Env = []string{"https_proxy=" + session.URL()}
		command.Stdin = bytes.NewReader(sent)
		out, err = command.Output()
		require.NoError(t, err)
		require.True(t, bytes.Equal(sent, out))
	})
}

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

func TestCredentials(t *testing.T) {
	t.Parallel()

	t.Run("AreAskedForEachRequest", func(t *testing.T) {
		t.Parallel()
		var mu sync.Mutex
		var remotes []string
		_, address := startSite(t, false, func(_ http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			remotes = append(remotes, r.RemoteAddr)
		})
		proxy := startProxy(t, Options{Policy: mustAllow(t, "127.0.0.1")})
		a, b := openSession(t, proxy), openSession(t, proxy)
		request := "GET http://" + address.String() + "/ HTTP/1.1\r\nHost: x\r\n"
		conn, in := dialProxy(t, proxy)
		for _, step := range []struct {
			header string
			want   int
		}{
			{basic(t, a), http.StatusOK},
			{"", http.StatusProxyAuthRequired}, // on the connection that a has opened
			{basic(t, b), http.StatusOK},
			{"Proxy-Authorization: Bearer " + strings.Fields(basic(t, a))[2] + "\r\n", http.StatusProxyAuthRequired},
			{"Proxy-Authorization: Basic !\r\n", http.StatusProxyAuthRequired},
			{"Proxy-Authorization: Basic YTpi\r\n", http.StatusProxyAuthRequired},
			{strings.Replace(basic(t, a), "Proxy-", "", 1), http.StatusProxyAuthRequired},
			{basic(t, a), http.StatusOK},
		} {
			status, _ := ask(t, conn, in, request+step.header+"\r\n")
			require.Equal(t, step.want, status, step.header)
		}
		require.Equal(t, int64(2), a.Stats().Requests)
		require.Equal(t, int64(1), b.Stats().Requests)
		require.Len(t, remotes, 3)
		require.Equal(t, remotes[0], remotes[2], "a's own connection is used again")
		require.NotEqual(t, remotes[0], remotes[1], "but never by b")

		a.Close()
		conn, in = dialProxy(t, proxy) // the last answer may have come before its request was over, and was severed
		status, _ := ask(t, conn, in, request+basic(t, a)+"\r\n")
		require.Equal(t, http.StatusProxyAuthRequired, status, "a closed session's credentials are worth nothing")
		status, _ = ask(t, conn, in, request+basic(t, b)+"\r\n")
		require.Equal(t, http.StatusOK, status)
	})

	t.Run("OfOneSessionAreNoUseToAnother", func(t *testing.T) {
		t.Parallel()
		proxy := startProxy(t, Options{})
		a, b := openSession(t, proxy), openSession(t, proxy)
		require.NotEqual(t, a.URL(), b.URL())
		ua, err := url.Parse(a.URL())
		require.NoError(t, err)
		ub, err := url.Parse(b.URL())
		require.NoError(t, err)
		password, _ := ub.User.Password()
		require.GreaterOrEqual(t, len(password), 26) // of 32 letters each: 128 bits and more
		mixed := *ua
		mixed.User = url.UserPassword(ua.User.Username(), password)
		client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&mixed), DisableKeepAlives: true}}
		status, _, err := get(t, client, "http://site.example/")
		require.NoError(t, err)
		require.Equal(t, http.StatusProxyAuthRequired, status)
		require.NotContains(t, fmt.Sprintf("%v %s", a, a), password)
		require.NotContains(t, a.String(), ua.User.Username())
	})

	t.Run("OfAClosedProxyAreRefused", func(t *testing.T) {
		t.Parallel()
		proxy := startProxy(t, Options{})
		proxy.Close()
		proxy.Close() // again, which does nothing
		session := proxy.Session()
		_, _, err := get(t, clientOf(t, session), "http://site.example/")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})
}

// endless sends a byte now and then until its reader is gone.
func endless(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	for {
		if _, err := w.Write([]byte("x")); err != nil {
			return
		}
		_ = control.Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestCloseSevers(t *testing.T) {
	t.Parallel()

	// open starts an endless answer and returns it with its first byte read.
	open := func(t *testing.T, client *http.Client, rawURL string) io.ReadCloser {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, rawURL, nil)
		require.NoError(t, err)
		response, err := client.Do(request)
		require.NoError(t, err)
		t.Cleanup(func() { _ = response.Body.Close() })
		_, err = io.ReadFull(response.Body, make([]byte, 1))
		require.NoError(t, err)
		return response.Body
	}

	t.Run("OneSessionAndNoOther", func(t *testing.T) {
		t.Parallel()
		for _, encrypted := range []bool{false, true} {
			var open2 atomic.Int64
			site, _ := startSite(t, encrypted, func(w http.ResponseWriter, r *http.Request) {
				open2.Add(1)
				defer open2.Add(-1)
				endless(w, r)
			})
			proxy := startProxy(t, Options{Policy: mustAllow(t, "127.0.0.1")})
			a, b := openSession(t, proxy), openSession(t, proxy)
			bodyA := open(t, clientOf(t, a, site), site.URL)
			bodyB := open(t, clientOf(t, b, site), site.URL)
			a.Close()
			a.Close()
			_, err := io.Copy(io.Discard, bodyA)
			require.Error(t, err, "what was cut off must not look whole")
			require.Eventually(t, func() bool { return open2.Load() == 1 }, 10*time.Second, time.Millisecond, "the host's end is closed too")
			_, err = io.ReadFull(bodyB, make([]byte, 3))
			require.NoError(t, err)
		}
	})

	t.Run("TheWholeProxy", func(t *testing.T) {
		t.Parallel()
		plain, _ := startSite(t, false, endless)
		encrypted, _ := startSite(t, true, endless)
		proxy := startProxy(t, Options{Policy: mustAllow(t, "127.0.0.1")})
		session := openSession(t, proxy)
		client := clientOf(t, session, encrypted)
		bodies := []io.ReadCloser{open(t, client, plain.URL), open(t, client, encrypted.URL)}
		proxy.Close()
		for _, body := range bodies {
			_, err := io.Copy(io.Discard, body)
			require.Error(t, err)
		}
		_, err := net.Dial("tcp", proxy.address.String())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	})

	t.Run("BodiesThatNobodyTakes", func(t *testing.T) {
		t.Parallel()
		stuck := make(chan struct{})
		site, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
			block := make([]byte, 64<<10)
			for {
				if _, err := w.Write(block); err != nil {
					close(stuck)
					return
				}
			}
		})
		session := openSession(t, startProxy(t, Options{Policy: mustAllow(t, "127.0.0.1")}))
		open(t, clientOf(t, session), site.URL) // and read no more
		before := session.Stats().BytesIn
		require.Eventually(t, func() bool { // until all buffers on the way are full
			now := session.Stats().BytesIn
			full := now == before && now > 1<<20
			before = now
			return full
		}, 10*time.Second, 50*time.Millisecond)
		session.Close()
		<-stuck
	})
}

func TestFaultsOfHosts(t *testing.T) {
	t.Parallel()
	loopback := mustAllow(t, "127.0.0.0/8,::1,site.example")

	t.Run("NobodyListens", func(t *testing.T) {
		t.Parallel()
		session := openSession(t, startProxy(t, Options{Policy: loopback}))
		address := freeAddress(t)
		status, body, err := get(t, clientOf(t, session), "http://"+address)
		require.NoError(t, err)
		require.Equal(t, http.StatusBadGateway, status)
		require.Contains(t, body, "cannot be connected to")
		_, _, err = get(t, clientOf(t, session), "https://"+address)
		require.ErrorContains(t, err, "Bad Gateway")
		require.NoError(t, session.Denied())
	})

	t.Run("NobodyAccepts", func(t *testing.T) {
		t.Parallel()
		proxy := startProxy(t, Options{Policy: loopback, DialTimeout: 100 * time.Millisecond})
		session := openSession(t, proxy)
		status, body, err := get(t, clientOf(t, session), "http://"+deafAddress(t))
		require.NoError(t, err)
		require.Equal(t, http.StatusGatewayTimeout, status)
		require.Contains(t, body, "does not answer")
	})

	t.Run("OneOfItsAddressesIsDeaf", func(t *testing.T) {
		t.Parallel()
		deaf := netip.MustParseAddrPort(deafAddress(t))
		listener, err := net.Listen("tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), deaf.Port()).String())
		require.NoError(t, err)
		site := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here") }))
		require.NoError(t, site.Listener.Close())
		site.Listener = listener
		site.Start()
		t.Cleanup(site.Close)
		session := openSession(t, startProxy(t, Options{
			Policy:   loopback,
			Resolver: newNames(map[string][]string{"site.example": {"127.0.0.1 127.0.0.3 127.0.0.2"}}),
		}))
		_, body, err := get(t, clientOf(t, session), "http://site.example:"+strconv.Itoa(int(deaf.Port())))
		require.NoError(t, err)
		require.Equal(t, "here", body)
		require.Equal(t, int64(1), session.Stats().Connections)
	})

	t.Run("ItNeverAnswers", func(t *testing.T) {
		t.Parallel()
		site, _ := startSite(t, false, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		session := openSession(t, startProxy(t, Options{Policy: loopback, HeaderTimeout: 50 * time.Millisecond}))
		status, body, err := get(t, clientOf(t, session), site.URL)
		require.NoError(t, err)
		require.Equal(t, http.StatusGatewayTimeout, status)
		require.Contains(t, body, "too long")
	})

	t.Run("ItFallsSilent", func(t *testing.T) {
		t.Parallel()
		for _, encrypted := range []bool{false, true} {
			site, _ := startSite(t, encrypted, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(w, "half")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
			session := openSession(t, startProxy(t, Options{Policy: loopback, IdleTimeout: 200 * time.Millisecond}))
			status, body, err := get(t, clientOf(t, session, site), site.URL)
			require.Equal(t, http.StatusOK, status)
			require.Equal(t, "half", body)
			require.Error(t, err)
		}
	})

	t.Run("ItIsSlowButSteady", func(t *testing.T) {
		t.Parallel()
		const idle = 300 * time.Millisecond
		for _, encrypted := range []bool{false, true} {
			site, _ := startSite(t, encrypted, func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithTimeout(r.Context(), 3*idle)
				defer cancel()
				endless(w, r.WithContext(ctx))
			})
			session := openSession(t, startProxy(t, Options{Policy: loopback, IdleTimeout: idle}))
			_, body, err := get(t, clientOf(t, session, site), site.URL)
			require.NoError(t, err)
			require.NotEmpty(t, body)
		}
	})

	t.Run("ItSaysNothingWhileItIsSentMuch", func(t *testing.T) {
		t.Parallel()
		const idle = 300 * time.Millisecond
		site, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprint(w, n > 0)
		})
		session := openSession(t, startProxy(t, Options{Policy: loopback, IdleTimeout: idle}))
		body, send := io.Pipe()
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 3*idle)
			defer cancel()
			for ctx.Err() == nil {
				_, _ = io.WriteString(send, "x")
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Millisecond):
				}
			}
			_ = send.Close()
		}()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, site.URL, body)
		require.NoError(t, err)
		response, err := clientOf(t, session).Do(request)
		require.NoError(t, err)
		defer func() { _ = response.Body.Close() }()
		require.Equal(t, http.StatusOK, response.StatusCode)
	})

	t.Run("ItCutsTheBodyOff", func(t *testing.T) {
		t.Parallel()
		for _, header := range []string{"Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
			site, _ := startSite(t, false, func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+header)
					_ = conn.Close()
				}
			})
			session := openSession(t, startProxy(t, Options{Policy: loopback}))
			_, body, err := get(t, clientOf(t, session), site.URL)
			require.Equal(t, "half", body)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF, "what was cut off must not look whole")
		}
	})

	t.Run("HeadersThatNeverEnd", func(t *testing.T) {
		t.Parallel()
		site, _ := startSite(t, false, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Big", strings.Repeat("x", 5*maxHeaderBytes))
		})
		session := openSession(t, startProxy(t, Options{Policy: loopback}))
		status, _, err := get(t, clientOf(t, session), site.URL)
		require.NoError(t, err)
		require.Equal(t, http.StatusBadGateway, status)

		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, site.URL, nil)
		require.NoError(t, err)
		request.Header.Set("X-Big", strings.Repeat("x", 2*maxHeaderBytes))
		response, err := clientOf(t, session).Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, response.StatusCode)
	})

	t.Run("TheClientSpeaksBeforeItIsAnswered", func(t *testing.T) {
		t.Parallel()
		site, address := startSite(t, false, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "early") })
		_ = site
		proxy := startProxy(t, Options{Policy: loopback})
		session := openSession(t, proxy)
		conn, in := dialProxy(t, proxy)
		_, err := io.WriteString(conn, "CONNECT "+address.String()+" HTTP/1.1\r\nHost: x\r\n"+basic(t, session)+"\r\n"+
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		require.NoError(t, err)
		response, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusOK, response.StatusCode)
		response, err = http.ReadResponse(in, nil)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, "early", string(body))
	})
}

// TestSessionsComeAndGo has many sessions fetch at once while half of them are closed half way: none hangs, none
// sees another's bytes, nothing is left running (TestMain).
func TestSessionsComeAndGo(t *testing.T) {
	t.Parallel()
	plain, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat(r.URL.Query().Get("who")+"\n", 20_000))
	})
	encrypted, _ := startSite(t, true, plain.Config.Handler.ServeHTTP)
	proxy := startProxy(t, Options{Policy: mustAllow(t, "127.0.0.1")})
	var all sync.WaitGroup
	faults := make(chan error, 100)
	for i := range 40 {
		all.Go(func() {
			session := proxy.Session()
			defer session.Close()
			client := clientOf(t, session, encrypted)
			for _, site := range []string{plain.URL, encrypted.URL} {
				response, err := client.Get(site + "/?who=" + strconv.Itoa(i))
				if err != nil {
					if i%2 == 0 {
						faults <- err
					}
					return
				}
				if i%2 == 1 {
					_, _ = io.ReadFull(response.Body, make([]byte, 1000))
					session.Close()
				}
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if i%2 == 0 && (err != nil || string(body) != strings.Repeat(strconv.Itoa(i)+"\n", 20_000)) {
					faults <- errors.Join(err, fmt.Errorf("session %d: %d bytes", i, len(body)))
				}
			}
		})
	}
	all.Wait()
	close(faults)
	for err := range faults {
		require.NoError(t, err)
	}
	require.Empty(t, proxy.sessions)
}

// freeAddress is an address of loopback where nobody listens. Somebody may begin to before it is used.
func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, listener.Close()) }()
	return listener.Addr().String()
}

// deafAddress is an address of loopback that answers no attempt to connect: a listener whose queue is full.
func deafAddress(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port)).String()
	for { // until one more waits in vain
		conn, err := net.DialTimeout("tcp4", address, 100*time.Millisecond)
		if err != nil {
			require.True(t, isTimeout(err), err)
			return address
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// ExampleGuard shows what a worker does: check, open a session, run a program through it, ask what was refused.
func ExampleGuard() {
	ctx := context.Background()
	policy, err := ParseAllow("nas.lan,10.20.0.0/16:8096")
	if err != nil {
		fmt.Println(err)
		return
	}
	guard := NewGuard(Options{Policy: policy})
	fmt.Println(guard.CheckURL(ctx, "http://10.20.0.7:8096/video.mp4"))

	proxy, err := guard.StartProxy(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer proxy.Close()
	session := proxy.Session()
	defer session.Close()
	through, err := url.Parse(session.URL())
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(through), DisableKeepAlives: true}}
	response, err := client.Get("http://169.254.169.254/latest/meta-data/")
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = response.Body.Close()
	fmt.Println(response.StatusCode)
	fmt.Println(reason.Find(session.Denied()).Detail)
	// Output:
	// <nil>
	// 403
	// The host 169.254.169.254 is not reachable for downloads: it is a link-local address. An administrator can allow it.
}
