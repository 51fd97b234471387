package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
