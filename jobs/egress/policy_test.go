package egress

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseAllow(t *testing.T) {
	t.Parallel()

	t.Run("ReadsEveryForm", func(t *testing.T) {
		t.Parallel()
		for list, want := range map[string]string{
			"":                              "",
			" , ,":                          "",
			"NAS.lan":                       "nas.lan",
			"nas.lan.":                      "nas.lan",
			"nas:8096":                      "nas:8096",
			"my_nas.lan":                    "my_nas.lan",
			"bücher.example:443":            "xn--bcher-kva.example:443",
			"192.168.1.20":                  "192.168.1.20",
			"192.168.1.20:8096":             "192.168.1.20:8096",
			"10.0.0.0/8":                    "10.0.0.0/8",
			"10.0.0.0/8:80":                 "10.0.0.0/8:80",
			"0.0.0.0/0,::/0":                "0.0.0.0/0,::/0",
			"fd00::1":                       "fd00::1",
			"FD00::0001":                    "fd00::1",
			"[fd00::1]":                     "fd00::1",
			"[fd00::1]:8080":                "[fd00::1]:8080",
			"fd00::/8":                      "fd00::/8",
			"[fd00::/8]:80":                 "[fd00::/8]:80",
			"::ffff:10.0.0.1":               "10.0.0.1",
			"a.example, a.example,b:1 ,b:2": "a.example,b:1,b:2",
		} {
			policy, err := ParseAllow(list)
			require.NoError(t, err, list)
			require.Equal(t, want, policy.String(), list)
			again, err := ParseAllow(policy.String())
			require.NoError(t, err, list)
			require.Equal(t, policy, again, list)
		}
	})

	t.Run("RefusesWhatMayMeanSomethingElse", func(t *testing.T) {
		t.Parallel()
		for entry, want := range map[string]string{
			"10.0.0.1/8":      "write 10.0.0.0/8",
			"10.0.0.0/33":     "not a CIDR",
			"nas/24":          "not a CIDR",
			"0177.0.0.1":      "write it as 127.0.0.1",
			"2130706433":      "write it as 127.0.0.1",
			"10.0.0.1.":       "write it as 10.0.0.1",
			"1.2.3.4.5":       "ends in a number",
			"nas:0":           "the port is not a number from 1 to 65535",
			"nas:65536":       "the port is not",
			"nas:+80":         "the port is not",
			"nas:":            "the port is not",
			":80":             "is missing",
			"[10.0.0.1]:80":   "only IPv6 goes in brackets",
			"[fd00::1":        "no closing bracket",
			"[fd00::1]80":     "something other than a port",
			"fe80::1%eth0":    "has a zone",
			"fd00::1::":       "not a valid IPv6 address",
			"http://nas.lan":  "the port is not",
			"*.lan":           "not a valid name",
			"nas lan":         "not a valid name",
			"::ffff:0:0/64":   "",
			"a..b":            "not a valid name",
			"-\x00":           "not a valid name",
			"xn--\u00fc.test": "not a valid international name",
		} {
			_, err := ParseAllow("ok.example," + entry)
			require.ErrorContains(t, err, want, entry)
		}
	})

	t.Run("NamesAllFaultsTogether", func(t *testing.T) {
		t.Parallel()
		_, err := ParseAllow("nas:0,10.0.0.0/8,*.lan")
		require.ErrorContains(t, err, `"nas:0"`)
		require.ErrorContains(t, err, `"*.lan"`)
		require.NotContains(t, err.Error(), "10.0.0.0/8")
	})

	t.Run("HoldsPortsApart", func(t *testing.T) {
		t.Parallel()
		policy, err := ParseAllow("nas:80,10.0.0.0/8:8096,::ffff:192.168.0.0/112")
		require.NoError(t, err)
		require.True(t, policy.allowsName("nas", 80))
		require.False(t, policy.allowsName("nas", 81))
		require.False(t, policy.allowsName("nas.lan", 80))
		require.True(t, policy.allowsAddr(netip.MustParseAddr("10.1.2.3"), 8096))
		require.False(t, policy.allowsAddr(netip.MustParseAddr("10.1.2.3"), 80))
		require.True(t, policy.allowsAddr(netip.MustParseAddr("192.168.7.7"), 1))
	})
}

func FuzzParseAllow(f *testing.F) {
	for _, seed := range []string{"nas.lan:80, 10.0.0.0/8", "[fd00::/8]:80", "::1", "127.1", "a,,b", "[", "ü.example", "1/1:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		policy, err := ParseAllow(list)
		if err != nil {
			require.Equal(t, Policy{}, policy)
			return
		}
		again, err := ParseAllow(policy.String())
		require.NoError(t, err, policy.String())
		require.Equal(t, policy, again)
		if strings.Trim(list, " ,\t\n\v\f\r\u0085\u00a0") == "" {
			require.Empty(t, policy.String())
		}
	})
}
