package egress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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
