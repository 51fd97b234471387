// Package siem sends records to a collector of security events: syslog (RFC 5424) over UDP, TCP or TLS.
package siem

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Record is a message for the collector.
type Record struct {
	At   time.Time
	ID   string // what kind of record it is, such as "set-limit"
	Fail bool   // it was refused or failed
	JSON []byte // the record itself, one line
}

// Collector is where records go.
type Collector struct {
	network, address string
	tls              bool
	host             string // of this machine, in the header
}

// sendTimeout bounds a batch.
const sendTimeout = 15 * time.Second

// Parse reads where the collector is: syslog://host[:514] by UDP, syslog+tcp://host[:601], syslog+tls://host[:6514] with a
// certificate that the system's authorities vouch for.
func Parse(rawURL string) (*Collector, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" {
		return nil, errors.New("is not an address like syslog+tls://collector.example:6514")
	}
	c := &Collector{}
	port := u.Port()
	switch u.Scheme {
	case "syslog", "syslog+udp":
		c.network = "udp"
		if port == "" {
			port = "514" // RFC 5426
		}
	case "syslog+tcp":
		c.network = "tcp"
		if port == "" {
			port = "601" // RFC 3195's, in use for plain TCP
		}
	case "syslog+tls":
		c.network, c.tls = "tcp", true
		if port == "" {
			port = "6514" // RFC 5425
		}
	default:
		return nil, errors.New("is neither syslog, syslog+tcp nor syslog+tls")
	}
	c.address = net.JoinHostPort(u.Hostname(), port)
	if c.host, err = os.Hostname(); err != nil || c.host == "" {
		c.host = "-"
	}
	return c, nil
}

// Address is where the records go, as host:port.
func (c *Collector) Address() string { return c.address }

// Send sends the records in their order. An error says that some may not have arrived; over UDP none says that all have.
func (c *Collector) Send(ctx context.Context, records []Record) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	var (
		conn net.Conn
		err  error
	)
	if c.tls {
		conn, err = (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12}}).DialContext(ctx, c.network, c.address)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, c.network, c.address)
	}
	if err != nil {
		return fmt.Errorf("reach the collector: %w", err)
	}
	defer conn.Close() //nolint:errcheck // closed below, where it matters
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return fmt.Errorf("send to the collector: %w", err)
		}
	}
	for _, r := range records {
		message := c.message(r)
		if c.network == "tcp" {
			message = strconv.Itoa(len(message)) + " " + message // octet counting: RFC 6587, 3.4.1
		}
		if _, err := conn.Write([]byte(message)); err != nil {
			return fmt.Errorf("send to the collector: %w", err)
		}
	}
	if err := conn.Close(); err != nil {
		return fmt.Errorf("send to the collector: %w", err)
	}
	return nil
}

// Facility and severities of RFC 5424, 6.2.1: security messages; what was done is a notice, what was refused a warning.
const (
	facility = 13 // log audit
	notice   = 5
	warning  = 4
	nilValue = "-"
)

// message is a record in the form of RFC 5424.
func (c *Collector) message(r Record) string {
	severity := notice
	if r.Fail {
		severity = warning
	}
	return fmt.Sprintf("<%d>1 %s %s medianest %d %s %s %s", facility*8+severity, r.At.UTC().Format("2006-01-02T15:04:05.000000Z"),
		header(c.host, 255), os.Getpid(), header(r.ID, 32), nilValue, r.JSON)
}

// header is a field of the header: printable US-ASCII without spaces, of bounded length.
func header(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r < 33 || r > 126 {
			return -1
		}
		return r
	}, text)
	if text == "" {
		return nilValue
	}
	return text[:min(len(text), most)]
}
