package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"medianest/jobs/reason"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names is a resolver with fixed answers. Each lookup of a name takes its next answer, the last one again and again.
type names struct {
	mu      sync.Mutex
	answers map[string][][]netip.Addr
}

func newNames(answers map[string][]string) *names {
	n := &names{answers: map[string][][]netip.Addr{}}
	for name, lookups := range answers {
		for _, lookup := range lookups {
			var addrs []netip.Addr
			for text := range strings.FieldsSeq(lookup) {
				addrs = append(addrs, netip.MustParseAddr(text))
			}
			n.answers[name] = append(n.answers[name], addrs)
		}
	}
	return n
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	lookups := n.answers[host]
	if len(lookups) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if len(lookups) > 1 {
		n.answers[host] = lookups[1:]
	}
	return lookups[0], nil
}

// resolverFunc is a resolver made of a function.
type resolverFunc func(ctx context.Context, host string) ([]netip.Addr, error)

func (f resolverFunc) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	return f(ctx, host)
}

func mustAllow(t testing.TB, list string) Policy {
	t.Helper()
	policy, err := ParseAllow(list)
	require.NoError(t, err)
	return policy
}

// requireReason asks for an error with this reason, and returns what people are told.
func requireReason(t testing.TB, want reason.Reason, err error, about ...any) string {
	t.Helper()
	require.Error(t, err, about...)
	failure := reason.Find(err)
	require.NotNil(t, failure, "%v: %v", about, err)
	require.Equal(t, want, failure.Reason, "%v: %v", about, err)
	return failure.Describe()
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	guard := NewGuard(Options{})
	judge := func(text string) error {
		addr := netip.MustParseAddr(text)
		return guard.decide(text, netip.AddrPortFrom(addr.Unmap(), 443))
	}

	t.Run("RefusesEverySpecialRangeToItsEdges", func(t *testing.T) {
		t.Parallel()
		for _, s := range specials {
			require.Equal(t, s.prefix.Masked(), s.prefix)
			first := s.prefix.Addr()
			require.Error(t, judge(first.String()), s.prefix)
			require.Error(t, judge(lastOf(s.prefix).String()), s.prefix)
		}
	})

	t.Run("RefusesWhatIsBehindOtherForms", func(t *testing.T) {
		t.Parallel()
		for text, want := range map[string]string{
			"169.254.169.254":           "link-local",
			"0.0.0.0":                   "of this machine",
			"255.255.255.255":           "broadcast",
			"::":                        "of this machine",
			"::1":                       "of this machine",
			"::ffff:127.0.0.1":          "of this machine",
			"::ffff:10.1.2.3":           "private",
			"::ffff:0:127.0.0.1":        "not a global address", // SIIT, RFC 2765
			"::127.0.0.1":               "retired form",
			"64:ff9b::10.0.0.1":         "private",
			"64:ff9b::169.254.169.254":  "link-local",
			"64:ff9b:1::8.8.8.8":        "own network",
			"2002:7f00:1::":             "retired tunnel",
			"2001:0:102:304::":          "retired tunnel",
			"2606:4700::5efe:10.0.0.1":  "private", // ISATAP
			"2606:4700::200:5efe:a00:1": "private",
			"fe80::1%eth0":              "link-local",
			"fd00:ec2::254":             "private",
			"4000::1":                   "not a global address",
			"168.63.129.16":             "control plane",
		} {
			require.Contains(t, requireReason(t, reason.EgressDenied, judge(text), text), want, text)
		}
	})

	t.Run("LetsGlobalOnesThroughToTheEdges", func(t *testing.T) {
		t.Parallel()
		for text := range strings.FieldsSeq(`1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255
			128.0.0.0 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0
			198.17.255.255 198.20.0.0 223.255.255.255 2606:4700:4700::1111 2001:200:: 2a00:1450::1 2003::1 2000::1 2400::1
			::ffff:8.8.8.8 64:ff9b::8.8.8.8 2606:4700::5efe:8.8.8.8 2001:db7:ffff::`) {
			require.NoError(t, judge(text), text)
		}
	})
}

// lastOf is the last address of a prefix.
func lastOf(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < 8*len(bytes); bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	resolver := newNames(map[string][]string{
		"site.example":          {"93.184.215.14 2606:2800:21f::1"},
		"xn--bcher-kva.example": {"93.184.215.14"},
		"inner.example":         {"10.1.2.3"},
		"both.example":          {"10.1.2.3 93.184.215.14"},
		"nas.lan":               {"192.168.1.20"},
		"localhost":             {"127.0.0.1"},
	})

	t.Run("JudgesWhereItLeads", func(t *testing.T) {
		t.Parallel()
		guard := NewGuard(Options{Resolver: resolver, Policy: mustAllow(t, "nas.lan:8096,10.9.0.0/16")})
		for rawURL, want := range map[string]reason.Reason{
			"https://site.example/watch?v=1":           "",
			"HTTP://Site.Example.:8080":                "",
			"https://user:secret@site.example/":        "",
			"https://bücher.example/":                  "",
			"https://BÜCHER。example/":                  "",
			"https://8.8.8.8/":                         "",
			"https://134744072/":                       "", // 8.8.8.8
			"https://[2606:4700:4700::1111]/":          "",
			"https://both.example/":                    "", // the proxy connects to the public one
			"http://nas.lan:8096/video.mp4":            "",
			"http://10.9.1.1/":                         "",
			"http://nas.lan/":                          reason.EgressDenied,
			"http://192.168.1.20:8096/":                reason.EgressDenied, // allowed by its name only
			"http://inner.example/":                    reason.EgressDenied,
			"http://localhost/":                        reason.EgressDenied,
			"http://127.0.0.1/":                        reason.EgressDenied,
			"http://127.0.0.1./":                       reason.EgressDenied,
			"http://2130706433/":                       reason.EgressDenied,
			"http://0x7f000001/":                       reason.EgressDenied,
			"http://0X7F.1/":                           reason.EgressDenied,
			"http://0177.0.0.1/":                       reason.EgressDenied,
			"http://127.1/":                            reason.EgressDenied,
			"http://0/":                                reason.EgressDenied,
			"http://①②⑦.0.0.1/":                        reason.EgressDenied,
			"http://127。0。0。1/":                        reason.EgressDenied,
			"http://[::1]/":                            reason.EgressDenied,
			"http://[::ffff:7f00:1]/":                  reason.EgressDenied,
			"http://[64:ff9b::7f00:1]/":                reason.EgressDenied,
			"http://169.254.169.254/latest/meta-data/": reason.EgressDenied,
			"http://nowhere.example/":                  reason.Network,
			"":                                         reason.Unsupported,
			"site.example/watch":                       reason.Unsupported,
			"//site.example/watch":                     reason.Unsupported,
			"file:///etc/passwd":                       reason.Unsupported,
			"ftp://site.example/":                      reason.Unsupported,
			"javascript:alert(1)":                      reason.Unsupported,
			"-rf":                                      reason.Unsupported,
			"--exec=id":                                reason.Unsupported,
			"http:site.example":                        reason.Unsupported,
			"http:///watch":                            reason.Unsupported,
			"http://./":                                reason.Unsupported,
			"http://site..example/":                    reason.Unsupported,
			"http://site.example:0/":                   reason.Unsupported,
			"http://site.example:65536/":               reason.Unsupported,
			"http://site.example:http/":                reason.Unsupported,
			"http://1.2.3.4.5/":                        reason.Unsupported,
			"http://256.1.1.1/":                        reason.Unsupported,
			"http://08.1.1.1/":                         reason.Unsupported,
			"http://site.0x/":                          reason.Unsupported,
			"http://site.example\\@127.0.0.1/":         reason.Unsupported,
			"http://site.example\n/":                   reason.Unsupported,
			"http://site.example/\x7f":                 reason.Unsupported,
			" http://site.example/":                    reason.Unsupported,
			"http://site.example/\xff":                 reason.Unsupported,
			"http://[fe80::1%25eth0]/":                 reason.Unsupported,
			"http://site.example/" + strings.Repeat("a", MaxURLBytes): reason.Unsupported,
			"http://" + strings.Repeat("a", 64) + ".example/":         reason.Unsupported,
			"http://" + strings.Repeat("a.", 127) + "example/":        reason.Unsupported,
		} {
			err := guard.CheckURL(t.Context(), rawURL)
			if want == "" {
				require.NoError(t, err, rawURL)
				continue
			}
			requireReason(t, want, err, rawURL)
		}
	})

	t.Run("NamesTheHostAndNoSecret", func(t *testing.T) {
		t.Parallel()
		guard := NewGuard(Options{Resolver: resolver})
		err := guard.CheckURL(t.Context(), "http://user:hunter2@inner.example/p?token=hunter2")
		said := requireReason(t, reason.EgressDenied, err)
		require.Contains(t, said, "inner.example")
		require.NotContains(t, said, "10.1.2.3", "what a name resolves to in the own network is not for everybody")
		require.ErrorContains(t, err, "10.1.2.3", "but it is for the log")
		require.NotContains(t, err.Error(), "hunter2")
		for _, rawURL := range []string{"http://user:hunter2@ho st/?hunter2", "hunter2://x", "http://hunter2..x"} {
			err := guard.CheckURL(t.Context(), rawURL)
			if !strings.HasPrefix(rawURL, "hunter2:") { // a scheme is no secret
				require.NotContains(t, err.Error(), "hunter2")
			}
		}
	})

	t.Run("WaitsForNoResolver", func(t *testing.T) {
		t.Parallel()
		guard := NewGuard(Options{LookupTimeout: 10 * time.Millisecond, Resolver: resolverFunc(
			func(ctx context.Context, _ string) ([]netip.Addr, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})})
		err := guard.CheckURL(t.Context(), "http://slow.example/")
		requireReason(t, reason.Network, err)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})

	t.Run("TakesAnEmptyAnswerForAFault", func(t *testing.T) {
		t.Parallel()
		guard := NewGuard(Options{Resolver: resolverFunc(
			func(context.Context, string) ([]netip.Addr, error) { return nil, nil })})
		requireReason(t, reason.Network, guard.CheckURL(t.Context(), "http://empty.example/"))
	})
}

func TestOwnListeners(t *testing.T) {
	t.Parallel()
	everything := mustAllow(t, "0.0.0.0/0,::/0,any.example")
	resolver := newNames(map[string][]string{"any.example": {"127.0.0.1"}})

	t.Run("AnUnspecifiedOneIsEveryAddressOfThisMachine", func(t *testing.T) {
		t.Parallel()
		for _, listener := range []string{"0.0.0.0:8080", "[::]:8080"} {
			guard := NewGuard(Options{
				Policy: everything, Resolver: resolver, Forbidden: []netip.AddrPort{netip.MustParseAddrPort(listener)},
			})
			hosts := []string{
				"127.0.0.1", "127.9.9.9", "0.0.0.0", "0", "2130706433", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[64:ff9b::127.0.0.1]", "any.example",
			}
			addresses, err := net.InterfaceAddrs()
			require.NoError(t, err)
			for _, a := range addresses {
				addr := netip.MustParsePrefix(a.String()).Addr()
				if addr.Is4() {
					hosts = append(hosts, addr.String())
				} else {
					hosts = append(hosts, "["+addr.String()+"]")
				}
			}
			for _, host := range hosts {
				said := requireReason(t, reason.EgressDenied, guard.CheckURL(t.Context(), "http://"+host+":8080/"), host, listener)
				require.NotContains(t, said, "administrator", "nobody can allow it")
				require.NoError(t, guard.CheckURL(t.Context(), "http://"+host+":8081/"), host)
			}
			require.NoError(t, guard.CheckURL(t.Context(), "http://192.0.2.77:8080/"), "another machine's")
		}
	})

	t.Run("ASpecificOneIsThatAddress", func(t *testing.T) {
		t.Parallel()
		guard := NewGuard(Options{Policy: everything, Resolver: resolver, Forbidden: []netip.AddrPort{
			netip.MustParseAddrPort("[::ffff:127.0.0.1]:8080"), netip.MustParseAddrPort("192.0.2.1:8080"),
		}})
		for _, host := range []string{"127.0.0.1", "0.0.0.0", "192.0.2.1", "any.example"} {
			requireReason(t, reason.EgressDenied, guard.CheckURL(t.Context(), "http://"+host+":8080/"), host)
		}
		require.NoError(t, guard.CheckURL(t.Context(), "http://127.0.0.2:8080/"))
	})

	t.Run("CanBeToldLater", func(t *testing.T) {
		t.Parallel()
		guard := NewGuard(Options{Policy: everything})
		require.NoError(t, guard.CheckURL(t.Context(), "http://127.0.0.1:9000/"))
		guard.Forbid(netip.MustParseAddrPort("127.0.0.1:9000"))
		requireReason(t, reason.EgressDenied, guard.CheckURL(t.Context(), "http://127.0.0.1:9000/"))
	})
}

// TestDialJudgesAtTheLastMoment goes past the resolution, as a fault there would, and must find the door closed.
func TestDialJudgesAtTheLastMoment(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, listener.Close()) }()
	guard := NewGuard(Options{})
	_, err = guard.dialAddress(t.Context(), "site.example", netip.MustParseAddrPort(listener.Addr().String()))
	requireReason(t, reason.EgressDenied, err)

	require.NoError(t, listener.(*net.TCPListener).SetDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = listener.Accept()
	require.True(t, isTimeout(err), "nothing may have connected, not even for a moment: %v", err)
}

// FuzzCheckURL: whatever the spelling, what passes is a host that resolved to a global address.
func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{
		"http://127.1/", "http://0x7f.1", "http://[::ffff:1]/", "https://user@site.example:8443/p?q#f", "http://①.1.1.1", "http://a\\@b",
		"http://1.1.1.1.", "HTTP://8.8", "http://017700000001/", "http://[::]:1", "http://ß.example/", "http://%31%32%37.1",
	} {
		f.Add(seed)
	}
	inner := NewGuard(Options{Resolver: resolverFunc(func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.1")}, nil
	})})
	f.Fuzz(func(t *testing.T, rawURL string) {
		err := inner.CheckURL(t.Context(), rawURL)
		u, parseErr := ParseURL(rawURL)
		if parseErr != nil {
			require.Error(t, err)
			requireReason(t, reason.Unsupported, parseErr)
			return
		}
		again, parseErr := ParseURL(u.String())
		require.NoError(t, parseErr, u.String())
		require.Equal(t, u.Host, again.Host)
		if err == nil {
			addr, parseErr := netip.ParseAddr(u.Hostname())
			require.NoError(t, parseErr, "names resolve to private addresses here, so only an address can pass")
			_, isSpecial := findSpecial(addr.Unmap())
			require.False(t, isSpecial)
			return
		}
		require.True(t, errors.As(err, new(*reason.Error)))
	})
}
