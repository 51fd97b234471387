package main

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHostsOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		url, port string
		want      []string
	}{
		{"redis://127.0.0.1:7000/0", "6379", []string{"127.0.0.1:7000"}},
		{"rediss://user:p@ss@cache", "6379", []string{"cache:6379"}},
		{"redis://a:1,b,c:3/0", "6379", []string{"a:1", "b:6379", "c:3"}},
		{"redis://a:1?addr=b:2&addr=c:3", "6379", []string{"a:1", "b:2", "c:3"}},
		{"http://[::1]:4318", "4318", []string{"[::1]:4318"}},
		{"http://[::1]", "4318", []string{"[::1]:4318"}},
		{"https://media.lan/medianest", "", []string{"media.lan:https"}},
		{"", "6379", nil},
		{"unix:/run/redis", "6379", nil},
	} {
		require.Equal(t, c.want, hostsOf(c.url, c.port), c.url)
	}
}

// A worker of a fleet once knew its own listener only: with a generous MEDIANEST_EGRESS_ALLOW a download could read the
// admin listener of an API replica on the same machine.
func TestWorkerKeepsAwayFromTheAPIBesideIt(t *testing.T) {
	t.Parallel()
	a := &assembly{mode: modeWork, config: Config{
		Listen: ":8080", AdminListen: "127.0.0.1:9090", PublicURL: "http://127.0.0.1:8443",
		RedisURL: "redis://127.0.0.1:7000,127.0.0.1:7001/0",
	}}
	own := a.ownAddresses(t.Context())
	for _, want := range []string{"0.0.0.0:8080", "127.0.0.1:9090", "127.0.0.1:8443", "127.0.0.1:7000", "127.0.0.1:7001"} {
		require.Contains(t, own, netip.MustParseAddrPort(want))
	}
}
