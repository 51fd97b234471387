package media

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strings"

	"medianest/jobs/egress"
	"medianest/jobs/reason"
)

// maxKeyBytes bounds a content's key, which is in a unique index: Postgres refuses rows there from some 2,700 bytes on.
const maxKeyBytes = 1024

// ContentKey returns the key of what is behind an address, and the address in its canonical form: scheme, host and
// path in one spelling, and without what does not say what is meant (a fragment that no script looks at, the marks by
// which visitors are tracked). Addresses with the same key are the same content, whoever asks for it; the profile is
// what is to be made of it. The canonical address has the same key, and is canonical.
//
// All forms of YouTube's addresses for a video are one. With a playlist named beside the video it stays the video.
//
// Errors are *reason.Error with reason Unsupported and never repeat the address, which may hold secrets.
func ContentKey(profile, rawURL string) (key, canonicalURL string, err error) {
	u, err := egress.ParseURL(rawURL)
	if err != nil {
		return "", "", err
	}
	canonicalize(u)
	if youTubeHosts[u.Host] {
		if id := youTubeVideo(u); id != "" {
			return profile + " youtube:" + id, "https://www.youtube.com/watch?v=" + id, nil
		}
		canonicalizeYouTube(u)
	}
	canonicalURL = u.String()
	if len(canonicalURL) > egress.MaxURLBytes { // escapes have made it longer
		return "", "", &reason.Error{Reason: reason.Unsupported, Detail: "The address is too long."}
	}
	key = profile + " " + canonicalURL
	if len(key) > maxKeyBytes {
		hash := sha256.Sum256([]byte(canonicalURL))
		key = profile + " sha256:" + hex.EncodeToString(hash[:])
	}
	return key, canonicalURL, nil
}

// canonicalize brings the parts of an address that egress.ParseURL leaves alone to one form.
func canonicalize(u *url.URL) {
	path := u.RawPath // as it was written, which EscapedPath would not give where a blank was not escaped
	if path == "" {
		path = u.EscapedPath()
	}
	path = removeDotSegments(normalizeEscapes(path))
	if path == "" {
		path = "/"
	}
	setPath(u, path)
	u.RawQuery = dropParameters(escapeOthers(u.RawQuery), isTracker)
	u.ForceQuery = false
	if !isRoute(u.Fragment) {
		u.Fragment, u.RawFragment = "", ""
	}
}

// setPath sets an escaped path.
func setPath(u *url.URL, escaped string) {
	if plain, err := url.PathUnescape(escaped); err == nil {
		u.Path, u.RawPath = plain, escaped
	}
}

// isRoute reports whether a page's script is likely to look at a fragment for what to show. yt-dlp hands data between
// its own parts in fragments, which nobody else may do.
func isRoute(fragment string) bool {
	return (strings.HasPrefix(fragment, "!") || strings.HasPrefix(fragment, "/")) && !strings.Contains(fragment, "__youtubedl_smuggle")
}

// normalizeEscapes gives each byte of an escaped path one spelling (RFC 3986, 6.2.2): those that need no escape have
// none, all others have one in upper case.
func normalizeEscapes(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c, escaped := path[i], false
		if c == '%' && i+2 < len(path) && isHex(path[i+1]) && isHex(path[i+2]) {
			c, escaped = unhex(path[i+1])<<4|unhex(path[i+2]), true
			i += 2
		}
		if isUnreserved(c) || (!escaped && strings.IndexByte("/!$&'()*+,;=:@", c) >= 0) {
			b.WriteByte(c)
		} else {
			writeEscape(&b, c)
		}
	}
	return b.String()
}

// escapeOthers escapes the bytes of a query that must not stand in an address, and leaves all else as it was written:
// a server may have signed it so.
func escapeOthers(query string) string {
	var b strings.Builder
	for i := range len(query) {
		if c := query[i]; c > ' ' && c < 0x7f && c != '"' && c != '<' && c != '>' {
			b.WriteByte(c)
		} else {
			writeEscape(&b, c)
		}
	}
	return b.String()
}

func writeEscape(b *strings.Builder, c byte) {
	const digits = "0123456789ABCDEF"
	b.WriteByte('%')
	b.WriteByte(digits[c>>4])
	b.WriteByte(digits[c&15])
}

func isHex(c byte) bool {
	return ('0' <= c && c <= '9') || ('a' <= c && c <= 'f') || ('A' <= c && c <= 'F')
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

func isUnreserved(c byte) bool {
	return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || strings.IndexByte("-._~", c) >= 0
}

// removeDotSegments resolves "." and ".." in an absolute path (RFC 3986, 5.2.4). Empty segments stay: they can mean
// something, such as in addresses within addresses.
func removeDotSegments(path string) string {
	segments := strings.Split(path, "/")
	kept := segments[:0]
	for i, segment := range segments {
		last := i == len(segments)-1
		switch segment {
		case ".":
		case "..":
			if len(kept) > 1 { // the first one is what is before the first slash
				kept = kept[:len(kept)-1]
			}
		default:
			kept = append(kept, segment)
			continue
		}
		if last {
			kept = append(kept, "")
		}
	}
	return strings.Join(kept, "/")
}

// trackers are parameters that say how somebody came to an address, not what is there.
var trackers = func() map[string]bool {
	names := map[string]bool{}
	for name := range strings.FieldsSeq(`
		dclid fbclid gad_source gbraid gclid gclsrc igshid li_fat_id mc_cid mc_eid mkt_tok msclkid oly_anon_id oly_enc_id
		srsltid ttclid twclid vero_id wbraid wickedid yclid`) {
		names[name] = true
	}
	return names
}()

func isTracker(name string) bool {
	name = strings.ToLower(name)
	return trackers[name] || strings.HasPrefix(name, "utm_")
}

// dropParameters drops the parameters of a query whose unescaped name is one to drop, and leaves the others as they are.
func dropParameters(query string, drop func(name string) bool) string {
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		if !drop(name) {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}
