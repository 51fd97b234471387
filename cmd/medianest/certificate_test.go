package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// authority vouches for certificates of tests.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(raw)
	require.NoError(t, err)
	a.pool.AddCert(a.cert)
	return a
}

// issue returns a certificate for 127.0.0.1 and its key, in PEM.
func (a *authority) issue(ends time.Time) (cert, key []byte) {
	a.t.Helper()
	a.n++
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.n), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: ends, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, own.Public(), a.key)
	require.NoError(a.t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(own)
	require.NoError(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

// pair is two files of a test.
type pair struct {
	t         *testing.T
	cert, key string
}

func newPair(t *testing.T, cert, key []byte) *pair {
	t.Helper()
	dir := t.TempDir()
	p := &pair{t, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")}
	p.write(cert, key)
	return p
}

func (p *pair) write(cert, key []byte) {
	p.t.Helper()
	for name, content := range map[string][]byte{p.cert: cert, p.key: key} {
		if content != nil {
			require.NoError(p.t, os.WriteFile(name+".new", content, 0o600))
			require.NoError(p.t, os.Rename(name+".new", name))
		}
	}
}

// The API speaks TLS 1.3, and 1.2 only if it is told to; a certificate is renewed while requests go on, and one that cannot
// be used leaves the one before in use.
func TestCertificateIsRenewedWhileItIsUsed(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	files := newPair(t, nil, nil)
	files.write(a.issue(time.Now().Add(30 * 24 * time.Hour)))
	c, err := openCertificate(files.cert, files.key, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	require.NoError(t, err)
	var skew atomic.Int64 // a look is due with each handshake
	c.now = func() time.Time { return time.Now().Add(time.Duration(skew.Add(1)) * certificateLook) }
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
	u := httpUnit("test", listener, &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: c.get, NextProtos: []string{"h2", "http/1.1"}}, handler, slog.New(slog.DiscardHandler), nil)
	done := make(chan error, 1)
	go func() { done <- u.run(t.Context()) }()

	serial := func(config *tls.Config) (int64, error) {
		config.RootCAs = a.pool
		conn, err := tls.Dial("tcp", listener.Addr().String(), config)
		if err != nil {
			return 0, err
		}
		defer conn.Close() //nolint:errcheck // read only
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			return 0, err
		}
		answer, err := io.ReadAll(conn)
		if err != nil || len(answer) == 0 {
			return 0, fmt.Errorf("no answer: %w", err)
		}
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
	}
	n, err := serial(&tls.Config{})
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
	_, err = serial(&tls.Config{MaxVersion: tls.VersionTLS12})
	require.ErrorContains(t, err, "protocol version")

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := serial(&tls.Config{}); err != nil {
					t.Errorf("a request was lost: %v", err)
					return
				}
			}
		})
	}
	awaitSerial := func(want int64) {
		t.Helper()
		require.Eventually(t, func() bool {
			n, err := serial(&tls.Config{})
			return err == nil && n == want
		}, 30*time.Second, time.Millisecond)
	}
	files.write(a.issue(time.Now().Add(30 * 24 * time.Hour)))
	awaitSerial(3)
	good, goodKey := a.issue(time.Now().Add(30 * 24 * time.Hour))
	past, pastKey := a.issue(time.Now().Add(-time.Hour))
	for name, broken := range map[string][2][]byte{
		"half written": {good[:len(good)/2], nil}, "another's key": {good, pastKey}, "past its time": {past, pastKey}, "empty": {[]byte{}, nil},
	} {
		files.write(broken[0], broken[1])
		for range 3 {
			n, err := serial(&tls.Config{})
			require.NoError(t, err, name)
			require.EqualValues(t, 3, n, name)
		}
	}
	require.NoError(t, os.Remove(files.cert))
	awaitSerial(3)
	files.write(good, goodKey)
	awaitSerial(4)
	close(stop)
	wg.Wait()
	require.NoError(t, u.stop(t.Context()))
	require.NoError(t, <-done)
}

func TestWrongCertificateIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	good, key := a.issue(time.Now().Add(time.Hour))
	past, pastKey := a.issue(time.Now().Add(-time.Hour))
	open := func(p *pair) error {
		_, err := openCertificate(p.cert, p.key, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		return err
	}
	require.NoError(t, open(newPair(t, good, key)))
	require.ErrorContains(t, open(newPair(t, good, pastKey)), "private key does not match")
	require.ErrorContains(t, open(newPair(t, past, pastKey)), "ended at")
	require.ErrorContains(t, open(newPair(t, good, nil)), "no such file")
	require.ErrorContains(t, open(newPair(t, []byte("x"), key)), "PEM")
	code, _, stderr := invoke(t, []string{"MEDIANEST_TLS_CERT=x"}, "up")
	require.Equal(t, exitUsage, code)
	require.Contains(t, stderr, "MEDIANEST_TLS_KEY: goes with MEDIANEST_TLS_CERT")
}

// A client that sends its header slowly, or none, is cut off; one that sends a large one is refused.
func TestSlowAndLargeHeaders(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	u := httpUnit("test", listener, nil, http.NotFoundHandler(), slog.New(slog.DiscardHandler), nil)
	go func() { _ = u.run(t.Context()) }()
	slow, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer slow.Close() //nolint:errcheck // the test ends
	_, err = io.WriteString(slow, "GET / HTTP/1.1\r\nHost: x\r\nX-")
	require.NoError(t, err)
	large, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer large.Close() //nolint:errcheck // the test ends
	go func() {
		_, _ = io.WriteString(large, "GET / HTTP/1.1\r\nHost: x\r\nX: "+string(make([]byte, 128<<10)))
	}()
	require.NoError(t, large.SetReadDeadline(time.Now().Add(30*time.Second)))
	answer := make([]byte, 12)
	_, err = io.ReadFull(large, answer)
	require.NoError(t, err)
	require.Contains(t, []string{"HTTP/1.1 431", "HTTP/1.1 400"}, string(answer))
	require.NoError(t, slow.SetReadDeadline(time.Now().Add(60*time.Second)))
	begin := time.Now()
	rest, err := io.ReadAll(slow)
	require.NoError(t, err, "it was not cut off")
	require.Less(t, time.Since(begin), 40*time.Second)
	require.NotContains(t, string(rest), "200")
}
