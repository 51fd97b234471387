package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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
		session := openSession(t, startProxy(t, Options{Policy: loopback, HeaderTimeout: 500 * time.Millisecond}))
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
			session := openSession(t, startProxy(t, Options{Policy: loopback, IdleTimeout: 500 * time.Millisecond}))
			status, body, err := get(t, clientOf(t, session, site), site.URL)
			require.Equal(t, http.StatusOK, status)
			require.Equal(t, "half", body)
			require.Error(t, err)
		}
	})

	t.Run("ItIsSlowButSteady", func(t *testing.T) {
		t.Parallel()
		const idle = 800 * time.Millisecond
		for _, encrypted := range []bool{false, true} {
			site, _ := startSite(t, encrypted, func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithTimeout(r.Context(), 2*idle)
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
		const idle = 800 * time.Millisecond
		site, _ := startSite(t, false, func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprint(w, n > 0)
		})
		session := openSession(t, startProxy(t, Options{Policy: loopback, IdleTimeout: idle}))
		body, send := io.Pipe()
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*idle)
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

// freeAddress is an address of loopback where nobody listens. Somebody may begin to before it is used.
func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, listener.Close()) }()
	return listener.Addr().String()
}

// silentAddress is an address of loopback where connections are taken and nothing is ever said.
func silentAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
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
