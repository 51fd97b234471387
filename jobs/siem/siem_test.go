package siem_test

import (
	"bufio"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/siem"
)

var form = regexp.MustCompile(`^<(\d+)>1 2026-01-02T03:04:05\.000006Z \S+ medianest \d+ (\S+) - (.*)$`)

func records() []siem.Record {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	return []siem.Record{
		{At: at, ID: "set-limit", JSON: []byte(`{"n":1}`)},
		{At: at, ID: "auth. password\n<13>1 forged", Fail: true, JSON: []byte(`{"n":2,"text":"ä\n"}`)},
	}
}

func requireRecords(t *testing.T, got []string) {
	t.Helper()
	require.Len(t, got, 2)
	first, second := form.FindStringSubmatch(got[0]), form.FindStringSubmatch(got[1])
	require.Equal(t, []string{"109", "set-limit", `{"n":1}`}, first[1:], "facility 13, severity 5")
	require.Equal(t, []string{"108", "auth.password<13>1forged", `{"n":2,"text":"ä\n"}`}, second[1:])
}

func TestSendByTCP(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // the test ends
	received := make(chan []string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		r := bufio.NewReader(conn)
		var got []string
		for {
			size, err := r.ReadString(' ')
			if err != nil {
				received <- got
				return
			}
			n, _ := strconv.Atoi(strings.TrimSpace(size))
			message := make([]byte, n)
			if _, err := io.ReadFull(r, message); err != nil {
				received <- nil
				return
			}
			got = append(got, string(message))
		}
	}()
	c, err := siem.Parse("syslog+tcp://" + l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, c.Send(t.Context(), records()))
	requireRecords(t, <-received)
}

func TestSendByUDP(t *testing.T) {
	t.Parallel()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // the test ends
	c, err := siem.Parse("syslog://" + l.LocalAddr().String())
	require.NoError(t, err)
	require.NoError(t, c.Send(t.Context(), records()))
	require.NoError(t, l.SetReadDeadline(time.Now().Add(30*time.Second)))
	var got []string
	for range 2 {
		buffer := make([]byte, 2000)
		n, _, err := l.ReadFrom(buffer)
		require.NoError(t, err)
		got = append(got, string(buffer[:n]))
	}
	requireRecords(t, got)
}

// A collector without a certificate that the system trusts gets nothing.
func TestSendByTLSOnlyToWhoIsTrusted(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() {
		if conn, err := l.Accept(); err == nil {
			_ = conn.Close()
		}
	}()
	defer l.Close() //nolint:errcheck // the test ends
	c, err := siem.Parse("syslog+tls://" + l.Addr().String())
	require.NoError(t, err)
	require.Error(t, c.Send(t.Context(), records()))
}

func TestParse(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"syslog://a": "a:514", "syslog+udp://a:1": "a:1", "syslog+tcp://a": "a:601", "syslog+tls://[::1]": "[::1]:6514",
	} {
		c, err := siem.Parse(raw)
		require.NoError(t, err, raw)
		require.Equal(t, want, c.Address())
	}
	for _, raw := range []string{"", "syslog://", "http://a", "a:514", "syslog://user:password@a", "syslog://a/path", "syslog://a?b=c"} {
		_, err := siem.Parse(raw)
		require.Error(t, err, raw)
		require.NotContains(t, err.Error(), "password")
	}
}
