package ytdlp

import (
	"net/url"
	"strconv"
	"strings"

	"medianest/jobs/reason"
)

// itemFragment marks an address as one entry of the collection behind it: the fifth film of a page that has films but
// no page for each. A fragment never reaches a server, and yt-dlp can extract the address anew when what it gave out
// has expired.
const itemFragment = "medianest-item="

// smuggled starts the fragment in which yt-dlp hands data from one of its extractors to another. It tells the
// extractor things that an address from outside must not.
const smuggled = "__youtubedl_smuggle="

// ItemURL is the address of the n-th entry, counted from 1, of the collection at page.
func ItemURL(page string, n int) string {
	page, _, _ = strings.Cut(page, "#")
	return page + "#" + itemFragment + strconv.Itoa(n)
}

// IsItemURL reports whether an address was made by ItemURL. Its fragment says what it is: it must not be cut off where
// addresses are brought to a common form.
func IsItemURL(address string) bool {
	_, fragment, _ := strings.Cut(address, "#")
	number, ok := strings.CutPrefix(fragment, itemFragment)
	n, err := strconv.Atoi(number)
	return ok && err == nil && n > 0
}

// target is an address as yt-dlp is given it.
type target struct {
	url  string
	host string
	item int // which entry of a collection; 0 means no certain one
}

// newTarget checks the address and takes it apart. Only http and https are fetched from: yt-dlp also takes file names,
// search words and its own pseudo-schemes.
func newTarget(address string) (target, error) {
	parsed, err := url.Parse(address)
	if err != nil || parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https") {
		return target{}, &reason.Error{Reason: reason.Unsupported, Detail: "Only http and https addresses can be downloaded from."}
	}
	at := target{url: address, host: parsed.Hostname()}
	base, fragment, _ := strings.Cut(address, "#")
	switch {
	case IsItemURL(address):
		at.item, _ = strconv.Atoi(strings.TrimPrefix(fragment, itemFragment))
		at.url = base
	case strings.Contains(fragment, smuggled):
		at.url = base
	}
	return at, nil
}

// unsmuggle is an entry's address without what yt-dlp has hidden in it.
func unsmuggle(address string) string {
	base, fragment, found := strings.Cut(address, "#")
	if found && strings.Contains(fragment, smuggled) {
		return base
	}
	return address
}
