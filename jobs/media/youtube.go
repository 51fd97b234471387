package media

import (
	"net/url"
	"regexp"
	"strings"
)

// youTubeHosts are the hosts that show YouTube's videos under YouTube's ids.
var youTubeHosts = map[string]bool{
	"youtube.com": true, "www.youtube.com": true, "m.youtube.com": true, "music.youtube.com": true,
	"youtube-nocookie.com": true, "www.youtube-nocookie.com": true, "youtu.be": true, "www.youtu.be": true,
}

var youTubeID = regexp.MustCompile(`^[0-9A-Za-z_-]{11}$`)

// youTubeVideo returns the id of the video that an address on one of the youTubeHosts shows, or "".
func youTubeVideo(u *url.URL) string {
	first, rest, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	id := ""
	switch {
	case u.Host == "youtu.be", u.Host == "www.youtu.be":
		id = first
	case first == "watch" && strings.Trim(rest, "/") == "":
		id = u.Query().Get("v")
	case first == "shorts", first == "embed", first == "live", first == "v", first == "e", first == "watch":
		id, _, _ = strings.Cut(rest, "/")
	}
	id, _, _ = strings.Cut(id, "?") // links put together by hand: watch?v=<id>?feature=share
	id, _, _ = strings.Cut(id, "&")
	// Two words that stand where an id would, and look like one.
	if id == "videoseries" || id == "live_stream" || !youTubeID.MatchString(id) {
		return ""
	}
	return id
}

// canonicalizeYouTube brings addresses of playlists, channels and searches to one form.
func canonicalizeYouTube(u *url.URL) {
	switch u.Host {
	case "youtube.com", "m.youtube.com":
		u.Host = "www.youtube.com"
	case "www.youtu.be":
		u.Host = "youtu.be"
	}
	u.Scheme = "https"
	u.RawQuery = dropParameters(u.RawQuery, func(name string) bool {
		return name == "si" || name == "pp" || name == "feature" // where a link was clicked or shared
	})
}
