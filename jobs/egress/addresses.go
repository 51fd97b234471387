package egress

import (
	"encoding/binary"
	"net/netip"
)

// special is a range of addresses that lead into the own network, or nowhere.
type special struct {
	prefix netip.Prefix
	kind   string // as people are told, after "is"
	source string
}

// specials are the ranges that are not globally routable, after the special-purpose registries of IANA (RFC 6890),
// most telling first where they overlap. For IPv6 that is what lies within 2000::/3, the only space given out for
// global unicast, and the parts outside it that deserve a name; the rest of the outside is refused without one.
var specials = []special{
	{netip.MustParsePrefix("0.0.0.0/8"), "an address of this machine", "RFC 791"}, // connecting to 0.0.0.0 reaches loopback
	{netip.MustParsePrefix("10.0.0.0/8"), "a private address", "RFC 1918"},
	{netip.MustParsePrefix("100.64.0.0/10"), "an address of a provider's inner network", "RFC 6598"},
	{netip.MustParsePrefix("127.0.0.0/8"), "an address of this machine", "RFC 1122"},
	{netip.MustParsePrefix("168.63.129.16/32"), "an address of the cloud's control plane", "Azure"}, // global by its looks, but answered by the host below the virtual machine
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address", "RFC 3927"},                   // clouds serve credentials at 169.254.169.254
	{netip.MustParsePrefix("172.16.0.0/12"), "a private address", "RFC 1918"},
	{netip.MustParsePrefix("192.0.0.0/24"), "an address kept for protocols", "RFC 6890"},
	{netip.MustParsePrefix("192.0.2.0/24"), "an address kept for documentation", "RFC 5737"},
	{netip.MustParsePrefix("192.88.99.0/24"), "an address of a retired tunnel", "RFC 7526"},
	{netip.MustParsePrefix("192.168.0.0/16"), "a private address", "RFC 1918"},
	{netip.MustParsePrefix("198.18.0.0/15"), "an address kept for benchmarks", "RFC 2544"},
	{netip.MustParsePrefix("198.51.100.0/24"), "an address kept for documentation", "RFC 5737"},
	{netip.MustParsePrefix("203.0.113.0/24"), "an address kept for documentation", "RFC 5737"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address", "RFC 5771"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address", "RFC 919"},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved address", "RFC 1112"},

	{netip.MustParsePrefix("::/128"), "an address of this machine", "RFC 4291"},
	{netip.MustParsePrefix("::1/128"), "an address of this machine", "RFC 4291"},
	{netip.MustParsePrefix("::/96"), "an IPv4 address in a retired form", "RFC 4291"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "a translated address of the own network", "RFC 8215"},
	{netip.MustParsePrefix("100::/64"), "an address that leads nowhere", "RFC 6666"},
	{netip.MustParsePrefix("2001::/32"), "an address of a retired tunnel", "RFC 4380"}, // Teredo: holds an IPv4 address and a port
	{netip.MustParsePrefix("2001::/23"), "an address kept for protocols", "RFC 2928"},
	{netip.MustParsePrefix("2001:db8::/32"), "an address kept for documentation", "RFC 3849"},
	{netip.MustParsePrefix("2002::/16"), "an address of a retired tunnel", "RFC 7526"}, // 6to4: holds an IPv4 address
	{netip.MustParsePrefix("3fff::/20"), "an address kept for documentation", "RFC 9637"},
	{netip.MustParsePrefix("5f00::/16"), "a segment of a provider's inner network", "RFC 9602"},
	{netip.MustParsePrefix("fc00::/7"), "a private address", "RFC 4193"}, // clouds serve credentials at fd00:ec2::254
	{netip.MustParsePrefix("fe80::/10"), "a link-local address", "RFC 4291"},
	{netip.MustParsePrefix("fec0::/10"), "a private address", "RFC 3879"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address", "RFC 4291"},
}

var (
	globalUnicast6 = netip.MustParsePrefix("2000::/3")     // RFC 4291, 2.4 and the IANA registry
	translated     = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052: NAT64 to the IPv4 address in the last 32 bits
)

// findSpecial returns the range that makes addr one not to connect to. addr is no IPv4-mapped one, and what it embeds
// is not looked at.
func findSpecial(addr netip.Addr) (special, bool) {
	for _, s := range specials {
		if s.prefix.Contains(addr) {
			return s, true
		}
	}
	if addr.Is6() && !globalUnicast6.Contains(addr) && !translated.Contains(addr) {
		return special{kind: "not a global address", source: "RFC 4291"}, true
	}
	return special{}, false
}

// embedded returns the IPv4 address that a connection to addr ends at although addr is an IPv6 one: behind the
// well-known prefix of NAT64 (RFC 6052) or an ISATAP interface (RFC 5214). Prefixes that a network has chosen for its
// own NAT64 look like any other address and cannot be known here; mapped addresses are unmapped before; tunnels that
// carry IPv4 addresses in other places are refused as a whole.
func embedded(addr netip.Addr) (netip.Addr, bool) {
	if !addr.Is6() {
		return netip.Addr{}, false
	}
	bytes := addr.As16()
	last := netip.AddrFrom4([4]byte(bytes[12:]))
	if translated.Contains(addr) {
		return last, true
	}
	if id := binary.BigEndian.Uint32(bytes[8:12]); id == 0x00005efe || id == 0x02005efe {
		return last, true
	}
	return netip.Addr{}, false
}
