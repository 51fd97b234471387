package egress

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"medianest/jobs/reason"
)

// MaxURLBytes bounds the addresses that people may give.
const MaxURLBytes = 4096

// ParseURL reads an address that a person gave, which must be an absolute http or https one. The host of the result is
// canonical: lower case, ASCII, without a trailing dot, an IPv4 address in four decimal parts whatever its spelling;
// a default port is dropped. A user and password are let through: some sites want them there.
//
// Errors are *reason.Error with reason Unsupported and never repeat the address, which may hold secrets.
func ParseURL(rawURL string) (*url.URL, error) {
	switch {
	case rawURL == "":
		return nil, unsupported("The address is empty.")
	case len(rawURL) > MaxURLBytes:
		return nil, unsupported("The address is longer than " + strconv.Itoa(MaxURLBytes) + " bytes.")
	case !utf8.ValidString(rawURL):
		return nil, unsupported("The address is not UTF-8.")
	case strings.ContainsFunc(rawURL, unicode.IsControl):
		return nil, unsupported("The address contains control characters.")
	case rawURL[0] == '-':
		return nil, unsupported("The address begins with a dash.")
	case strings.TrimSpace(rawURL) != rawURL:
		return nil, unsupported("The address begins or ends with a space.")
	}
	u, err := url.Parse(rawURL)
	if err != nil { // not wrapped: it repeats the address
		return nil, unsupported("The address cannot be read as one: check its spelling.")
	}
	u.Scheme = strings.ToLower(u.Scheme)
	switch u.Scheme {
	case "http", "https":
	case "":
		return nil, unsupported("The address does not begin with http:// or https://.")
	default:
		return nil, unsupported("Addresses that begin with " + shorten(u.Scheme) + ": are not supported, only http and https.")
	}
	host, _, err := canonicalHost(u.Hostname())
	if err != nil {
		return nil, unsupported("The host in the address " + err.Error() + ".")
	}
	port := uint16(0)
	if text := u.Port(); text != "" {
		if port, err = parsePort(text); err != nil {
			return nil, unsupported("The port in the address " + err.Error() + ".")
		}
	}
	if port == defaultPort(u.Scheme) {
		port = 0
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	u.Host = host + portSuffix(port)
	return u, nil
}

func unsupported(detail string) error {
	return &reason.Error{Reason: reason.Unsupported, Detail: detail}
}

// shorten bounds text that comes from outside where it is repeated to people.
func shorten(text string) string {
	const most = 64
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}

func defaultPort(scheme string) uint16 {
	if scheme == "https" {
		return 443
	}
	return 80
}

// hostMapping maps international names as browsers do (UTS 46). It allows what real names have although the rules for
// new ones forbid it: underscores, and hyphens in the third and fourth place.
var hostMapping = idna.New(
	idna.MapForLookup(),
	idna.Transitional(false),
	idna.StrictDomainName(false),
	idna.CheckHyphens(false),
	idna.CheckJoiners(true),
	idna.BidiRule(),
)

// canonicalHost returns the one spelling of a host, and its address where it is one. Spellings of IPv4 addresses that
// the C library understands (2130706433, 0x7f.1, 0177.0.0.1), and so Python and what is built on it, are understood
// likewise. The errors are ends of a sentence that begins with the host.
func canonicalHost(host string) (string, netip.Addr, error) {
	if strings.Contains(host, ":") {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return "", netip.Addr{}, errors.New("is not a valid IPv6 address")
		}
		if addr.Zone() != "" {
			return "", netip.Addr{}, errors.New("has a zone, which only this machine could understand")
		}
		return addr.String(), addr, nil
	}
	ascii := strings.ToLower(host)
	if strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) {
		var err error
		if ascii, err = hostMapping.ToASCII(host); err != nil { // not wrapped: it repeats the host, quoted or not
			return "", netip.Addr{}, errors.New("is not a valid international name")
		}
	}
	ascii = strings.TrimSuffix(ascii, ".")
	if ascii == "" {
		return "", netip.Addr{}, errors.New("is missing")
	}
	if len(ascii) > 253 {
		return "", netip.Addr{}, errors.New("is longer than any name can be")
	}
	for label := range strings.SplitSeq(ascii, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notInName) {
			return "", netip.Addr{}, errors.New("is not a valid name")
		}
	}
	if !endsInNumber(ascii) {
		return ascii, netip.Addr{}, nil
	}
	addr, ok := parseIPv4(ascii)
	if !ok {
		return "", netip.Addr{}, errors.New("ends in a number but is not a valid IPv4 address")
	}
	return addr.String(), addr, nil
}

func notInName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// endsInNumber reports whether the host's last label is a number in a form that the C library reads. No top-level
// domain is one, so such a host is an address or nothing.
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// parseIPv4 reads an IPv4 address as inet_aton(3) does: one to four parts, each decimal, octal after 0 or hexadecimal
// after 0x, the last one filling what is left of the 32 bits.
func parseIPv4(host string) (netip.Addr, bool) {
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var bits uint64
	for i, part := range parts {
		width := 8 // bits of this part
		if i == len(parts)-1 {
			width = 32 - 8*i
		}
		base := 10
		if hex, ok := strings.CutPrefix(part, "0x"); ok {
			base, part = 16, hex
			if part == "" {
				part = "0" // as browsers read 0x; the C library of today refuses it
			}
		} else if len(part) > 1 && part[0] == '0' {
			base = 8
		}
		value, err := strconv.ParseUint(part, base, width)
		if err != nil {
			return netip.Addr{}, false
		}
		bits = bits<<width | value
	}
	return netip.AddrFrom4([4]byte{byte(bits >> 24), byte(bits >> 16), byte(bits >> 8), byte(bits)}), true
}
