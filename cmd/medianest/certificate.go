package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// certificateLook is how often it is looked whether the files have changed, at most: a handshake that comes sooner goes
	// by what is known.
	certificateLook = time.Second

	// certificateWarning is how long before its end a certificate is warned of, once a day.
	certificateWarning = 14 * 24 * time.Hour
)

// certificate is a pair of files that others renew, as ACME clients and Kubernetes do, while connections go on. A pair that
// cannot be used, because it is half written or does not fit, leaves the one before in use.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time
	expires           prometheus.Gauge
	failures          prometheus.Counter

	mu      sync.Mutex
	current *tls.Certificate
	state   [2]fileState // of the files that current, or the last failure, is from
	looked  time.Time
	warned  time.Time
}

// fileState tells whether a file is another than before: a renewal may replace it, or the folder that a link leads to.
type fileState struct {
	modified time.Time
	size     int64
	info     os.FileInfo
}

func (s fileState) same(other fileState) bool {
	return s.modified.Equal(other.modified) && s.size == other.size && s.info != nil && other.info != nil && os.SameFile(s.info, other.info)
}

// openCertificate reads the pair, which must be usable now.
func openCertificate(certFile, keyFile string, log *slog.Logger, registry prometheus.Registerer) (*certificate, error) {
	c := &certificate{
		certFile: certFile, keyFile: keyFile, log: log, now: time.Now,
		expires: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "medianest_tls_certificate_expires_seconds", Help: "When the certificate in use ends, in seconds since 1970.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "medianest_tls_certificate_failures_total", Help: "Changes of the certificate's files that could not be used.",
		}),
	}
	state, err := c.look()
	if err == nil {
		err = c.load(state)
	}
	if err != nil {
		return nil, err
	}
	return c, errors.Join(registry.Register(c.expires), registry.Register(c.failures))
}

func (c *certificate) look() (state [2]fileState, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return state, err
		}
		state[i] = fileState{info.ModTime(), info.Size(), info}
	}
	return state, nil
}

// load takes the pair into use.
func (c *certificate) load(state [2]fileState) error {
	c.state = state
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return err
		}
	}
	if now := c.now(); now.After(pair.Leaf.NotAfter) {
		return fmt.Errorf("%s ended at %s", c.certFile, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	c.current = &pair
	c.expires.Set(float64(pair.Leaf.NotAfter.Unix()))
	return nil
}

// get is tls.Config's GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if now.Sub(c.looked) < certificateLook {
		return c.current, nil
	}
	c.looked = now
	state, err := c.look()
	if err == nil && !(state[0].same(c.state[0]) && state[1].same(c.state[1])) {
		if err = c.load(state); err == nil {
			c.log.Info("certificate renewed", slog.Time("ends", c.current.Leaf.NotAfter))
		} else {
			c.failures.Inc()
			c.log.Error("the certificate's files cannot be used; the one before goes on", slog.Any("err", err))
		}
	}
	if left := c.current.Leaf.NotAfter.Sub(now); left < certificateWarning && now.Sub(c.warned) > day {
		c.warned = now
		c.log.Warn("the certificate ends soon", slog.Time("ends", c.current.Leaf.NotAfter))
	}
	return c.current, nil
}

// useTLS has the API's listener speak TLS where there is a certificate.
func (a *assembly) useTLS(context.Context) error {
	if a.config.TLSCert == "" {
		return nil
	}
	c, err := openCertificate(a.config.TLSCert, a.config.TLSKey, a.log, a.telemetry.registry)
	if err != nil {
		return usageError("MEDIANEST_TLS_CERT, MEDIANEST_TLS_KEY: %v", err)
	}
	version := uint16(tls.VersionTLS13)
	if a.config.TLSMin == "1.2" {
		version = tls.VersionTLS12
	}
	a.apiTLS = &tls.Config{MinVersion: version, GetCertificate: c.get, NextProtos: []string{"h2", "http/1.1"}} // #nosec G402 -- 1.2 at least
	return nil
}
