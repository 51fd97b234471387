package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Policy is what jobs may connect to although it is not globally routable. The zero Policy allows nothing.
type Policy struct {
	names    []allowedName
	prefixes []allowedPrefix
}

type allowedName struct {
	name string // canonical, see canonicalHost
	port uint16 // 0: any
}

type allowedPrefix struct {
	prefix netip.Prefix // masked, never IPv4-mapped
	port   uint16       // 0: any
}

// ParseAllow reads a comma-separated list of host names, addresses and CIDRs, each with an optional port:
// "nas.lan, 192.168.1.20:8096, 10.0.0.0/8, [fd00::/8]:80, fd00::1". A name allows whatever it resolves to, for
// connections that were asked for by that name. Empty entries are passed over. The error names all faulty entries.
func ParseAllow(list string) (Policy, error) {
	var p Policy
	var faults []error
	for entry := range strings.SplitSeq(list, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		if err := p.add(entry); err != nil {
			faults = append(faults, fmt.Errorf("%q: %w", entry, err))
		}
	}
	if len(faults) > 0 {
		return Policy{}, errors.Join(faults...)
	}
	return p, nil
}

// String is the policy in the form that ParseAllow reads.
func (p Policy) String() string {
	entries := make([]string, 0, len(p.names)+len(p.prefixes))
	for _, n := range p.names {
		entries = append(entries, n.name+portSuffix(n.port))
	}
	for _, a := range p.prefixes {
		text := a.prefix.String()
		if a.prefix.IsSingleIP() {
			text = a.prefix.Addr().String()
		}
		if a.port != 0 && a.prefix.Addr().Is6() {
			text = "[" + text + "]"
		}
		entries = append(entries, text+portSuffix(a.port))
	}
	return strings.Join(entries, ",")
}

func portSuffix(port uint16) string {
	if port == 0 {
		return ""
	}
	return ":" + strconv.Itoa(int(port))
}

func (p *Policy) add(entry string) error {
	host, port, err := splitAllowed(entry)
	if err != nil {
		return err
	}
	if strings.Contains(host, "/") {
		prefix, err := netip.ParsePrefix(host)
		if err != nil {
			return errors.New("not a CIDR such as 10.0.0.0/8 or fd00::/8")
		}
		if prefix, err = unmapPrefix(prefix); err != nil {
			return err
		}
		if prefix != prefix.Masked() {
			return fmt.Errorf("has bits set beyond its length: write %s, or the address alone", prefix.Masked())
		}
		p.allow(allowedPrefix{prefix, port})
		return nil
	}
	canonical, addr, err := canonicalHost(host)
	switch {
	case err != nil:
		return err
	case !addr.IsValid():
		if named := (allowedName{canonical, port}); !slices.Contains(p.names, named) {
			p.names = append(p.names, named)
		}
	case addr.String() != strings.ToLower(host) && addr.Is4():
		return fmt.Errorf("write it as %s", addr) // 0177.0.0.1 may not mean what its writer thinks
	default:
		addr = addr.Unmap()
		p.allow(allowedPrefix{netip.PrefixFrom(addr, addr.BitLen()), port})
	}
	return nil
}

func (p *Policy) allow(a allowedPrefix) {
	if !slices.Contains(p.prefixes, a) {
		p.prefixes = append(p.prefixes, a)
	}
}

// splitAllowed cuts the optional port off an entry. Two colons or more without brackets are an IPv6 address.
func splitAllowed(entry string) (host string, port uint16, err error) {
	rest := ""
	switch {
	case strings.HasPrefix(entry, "["):
		end := strings.IndexByte(entry, ']')
		if end < 0 {
			return "", 0, errors.New("has no closing bracket")
		}
		host, rest = entry[1:end], entry[end+1:]
		if !strings.Contains(host, ":") {
			return "", 0, errors.New("only IPv6 goes in brackets")
		}
		if rest != "" && rest[0] != ':' {
			return "", 0, errors.New("has something other than a port after the bracket")
		}
	case strings.Count(entry, ":") == 1:
		cut := strings.IndexByte(entry, ':')
		host, rest = entry[:cut], entry[cut:]
	default:
		host = entry
	}
	if rest == "" {
		return host, 0, nil
	}
	if port, err = parsePort(rest[1:]); err != nil {
		return "", 0, fmt.Errorf("the port %w", err)
	}
	return host, port, nil
}

// parsePort reads a port from 1 to 65535, in digits alone. The error is the end of a sentence.
func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New("is not a number from 1 to 65535")
	}
	return uint16(port), nil
}

// unmapPrefix turns a CIDR of IPv4-mapped addresses into the IPv4 one that it means.
func unmapPrefix(prefix netip.Prefix) (netip.Prefix, error) {
	if !prefix.Addr().Is4In6() {
		return prefix, nil
	}
	if prefix.Bits() < 96 {
		return prefix, errors.New("reaches beyond the IPv4-mapped addresses: write the IPv4 CIDR")
	}
	return netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96), nil
}

// allowsName reports whether connections asked for by this canonical name and port are allowed wherever it leads.
func (p Policy) allowsName(name string, port uint16) bool {
	for _, n := range p.names {
		if n.name == name && (n.port == 0 || n.port == port) {
			return true
		}
	}
	return false
}

// allowsAddr reports whether the unmapped address and port are allowed by whatever name.
func (p Policy) allowsAddr(addr netip.Addr, port uint16) bool {
	for _, a := range p.prefixes {
		if a.prefix.Contains(addr) && (a.port == 0 || a.port == port) {
			return true
		}
	}
	return false
}
