package ytdlp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode"
)

// errChanged says that what is at the address is not what was begun to be fetched from there, or that nobody knows
// whether it is.
var errChanged = errors.New("what is fetched has changed since it was begun")

// maxSource is how much is read of a list of fragments. A stream with a longer list is never gone on with.
const maxSource = 16 << 20

// fragments are what a stream is made of, in their order.
type fragments struct {
	list []fragment
	// lost says that yt-dlp loses its place when it passes over fragments that it has.
	lost bool
}

// fragment is one of them, and what is said of it and before it.
type fragment struct {
	path, query string // of its address
	said        string
}

// digest names a list of fragments, or is empty for a stream that cannot be gone on with. Addresses are sometimes given
// out anew for each look: hosts are no part of it, and queries only where paths and ranges do not tell the fragments
// apart. Fragments that have become others under the same paths, with the same durations, are not noticed.
func (f fragments) digest() string {
	if f.lost || len(f.list) == 0 {
		return ""
	}
	seen := map[fragment]bool{}
	for _, one := range f.list {
		one.query = ""
		seen[one] = true
	}
	sum := sha256.New()
	for _, one := range f.list {
		if len(seen) == len(f.list) {
			one.query = ""
		}
		fmt.Fprintf(sum, "%q %q %q\n", one.path, one.query, one.said)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// newFragment makes a fragment of its address. What is no address stands for itself.
func newFragment(text, said string) fragment {
	if u, err := url.Parse(text); err == nil && u.Opaque == "" {
		return fragment{u.EscapedPath(), u.RawQuery, said}
	}
	return fragment{text, "", said}
}

// attributes are found as in parse_m3u8_attributes (yt_dlp/utils/_utils.py).
var attributes = regexp.MustCompile(`([A-Z0-9-]+)=("[^"]+"|[^",]+)(?:,|$)`)

func parseAttributes(text string) map[string]string {
	out := map[string]string{}
	for _, found := range attributes.FindAllStringSubmatch(text, -1) {
		value := found[2]
		if strings.HasPrefix(value, `"`) {
			value = value[1 : len(value)-1]
		}
		out[found[1]] = value
	}
	return out
}

// playlistLines are the lines that yt-dlp sees: those of Python's str.splitlines, each without the white space of
// str.strip around it.
func playlistLines(content []byte) []string {
	text := strings.ToValidUTF8(string(content), "")
	var out []string
	for _, line := range strings.FieldsFunc(text, func(r rune) bool {
		return r >= '\n' && r <= '\r' || r >= 0x1c && r <= 0x1e || r == 0x85 || r == 0x2028 || r == 0x2029
	}) {
		if line = strings.TrimFunc(line, func(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// parsePlaylist reads an HLS playlist as HlsFD.real_download does (yt_dlp/downloader/hls.py), and ok is false for what
// is no list of fragments. When yt-dlp passes over the fragments that it has, it counts neither their sequence numbers,
// which decrypt where no initialization vector is given, nor their bytes, where a range begins at the end of the one
// before; and the range of the last of them stays for the next where that has none.
func parsePlaylist(content []byte) (f fragments, ok bool) {
	var said strings.Builder
	say := func(text string) { fmt.Fprintf(&said, "%q ", text) }
	add := func(text string) {
		f.list = append(f.list, newFragment(text, said.String()))
		said.Reset()
	}
	ranged, ranges, method := false, false, "NONE"
	for _, line := range playlistLines(content) {
		switch {
		case !strings.HasPrefix(line, "#"):
			say(method)
			add(line)
			f.lost = f.lost || ranges && !ranged
			ranged = false
		case strings.HasPrefix(line, "#EXTINF"):
			ok = true
			duration, _, _ := strings.Cut(line, ",")
			say(duration)
		case strings.HasPrefix(line, "#EXT-X-MAP"):
			start := parseAttributes(line[len("#EXT-X-MAP"):])
			say("map " + method + " " + start["BYTERANGE"])
			add(start["URI"])
		case strings.HasPrefix(line, "#EXT-X-KEY"):
			key := parseAttributes(line[len("#EXT-X-KEY"):])
			method = key["METHOD"]
			_, vector := key["IV"]
			f.lost = f.lost || method == "AES-128" && !vector
		case strings.HasPrefix(line, "#EXT-X-BYTERANGE"):
			ranged, ranges = true, true
			f.lost = f.lost || strings.Count(line, "@") != 1
			say(line)
		case strings.HasPrefix(line, "#EXT-X-MEDIA-SEQUENCE"), strings.HasPrefix(line, "#EXT-X-DISCONTINUITY"):
			say(line)
		case strings.HasPrefix(line, "#ANVATO-SEGMENT-INFO"), strings.HasPrefix(line, "#UPLYNK-SEGMENT"):
			// Advertisements, which yt-dlp leaves out.
			say(fmt.Sprint(strings.Contains(line, "type=ad"), strings.Contains(line, "type=master"),
				strings.HasSuffix(line, ",ad"), strings.HasSuffix(line, ",segment")))
		}
	}
	return f, ok
}

// sources are the lists of fragments that the running yt-dlp goes by, as far as they are known.
type sources struct{ dir string }

// forget removes what earlier runs have left. What a run finds in the directory is then its own.
func (s sources) forget() error {
	found, err := filepath.Glob(filepath.Join(escapeGlob(s.dir), "*.dump"))
	if err != nil {
		return err
	}
	for _, path := range append(found, filepath.Join(s.dir, sourceFile)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// escapeGlob has a directory's name stand for itself in a pattern.
func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// sourceLine is what yt-dlp writes before it fetches.
type sourceLine struct {
	formatSource

	Formats []formatSource `json:"formats"`
}

type formatSource struct {
	Format    string          `json:"format_id"`
	Fragments json.RawMessage `json:"fragments"`
}

// manifest is the digest of a DASH stream's list of fragments, empty where that is not known.
func (s sources) manifest(format string) (string, error) {
	content, err := readBounded(filepath.Join(s.dir, sourceFile))
	if err != nil || content == nil {
		return "", err
	}
	// After a second extraction there is a second line.
	lines := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	var line sourceLine
	if json.Unmarshal(lines[len(lines)-1], &line) != nil {
		return "", nil
	}
	for _, candidate := range append(line.Formats, line.formatSource) {
		if candidate.Format != format {
			continue
		}
		var list []struct {
			URL      string      `json:"url"`
			Path     string      `json:"path"`
			Duration json.Number `json:"duration"`
		}
		if json.Unmarshal(candidate.Fragments, &list) != nil {
			return "", nil
		}
		var f fragments
		for _, one := range list {
			text := one.URL
			if text == "" {
				text = one.Path
			}
			f.list = append(f.list, newFragment(text, one.Duration.String()))
		}
		return f.digest(), nil
	}
	return "", nil
}

// playlists are the digests of the playlists that this run has fetched to go by, the newest first. HlsFD keeps each
// (--write-pages) before it begins with the first fragment. What extraction has kept is older than its result.
func (s sources) playlists() ([]string, error) {
	extracted, err := os.Stat(filepath.Join(s.dir, sourceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(escapeGlob(s.dir), "*.dump"))
	if err != nil {
		return nil, err
	}
	var out []string
	var times []time.Time
	for _, path := range found {
		info, err := os.Stat(path)
		if err != nil || info.ModTime().Before(extracted.ModTime()) {
			continue
		}
		content, err := readBounded(path)
		if err != nil {
			return nil, err
		}
		list, ok := parsePlaylist(content)
		if content != nil && !ok {
			continue
		}
		at := 0
		for at < len(times) && times[at].After(info.ModTime()) {
			at++
		}
		times = append(times[:at], append([]time.Time{info.ModTime()}, times[at:]...)...)
		out = append(out[:at], append([]string{list.digest()}, out[at:]...)...)
	}
	return out, nil
}

// readBounded reads a file. It returns nothing for one that is not there, or too large.
func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxSource+1))
	if err != nil || len(content) > maxSource {
		return nil, err
	}
	return content, nil
}
