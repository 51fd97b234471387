package ytdlp

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"medianest/jobs/reason"
)

// maxDetail is the length, in runes, of what people are told at most; maxCause that of what operators are.
const (
	maxDetail = 300
	maxCause  = 2000
)

// messages are what yt-dlp's errors say, in lower case, and what they mean. The first line with a match decides, so
// what is particular stands above what is general. The numbers of HTTP errors are matched, never their words, which
// differ between versions.
var messages = []struct {
	reason reason.Reason
	any    []string
}{
	{reason.DiskFull, []string{"no space left on device", "[errno 28]", "disk quota exceeded", "[errno 122]"}},
	{reason.EgressDenied, []string{"tunnel connection failed: 403"}},
	// A playlist or page that names a file of this machine, or a protocol that no proxy sees.
	{reason.EgressDenied, []string{"urls are disabled", "unsupported url scheme"}},
	{reason.Internal, []string{"tunnel connection failed: 407", "http error 407", "info.json"}},
	{reason.DRM, []string{"drm protect", "known to use drm", "uses drm"}},
	{reason.Upcoming, []string{"premieres in", "premiere will begin", "event will begin", "will begin in", "begin in a few moments", "has not started", "is not currently live"}},
	{reason.BotCheck, []string{"not a bot", "captcha", "anti-bot challenge", "confirm you are human"}},
	{reason.RateLimited, []string{"http error 429", "rate-limit", "rate limit", "try again later", "too many requests"}},
	{reason.GeoBlocked, []string{
		"available in your country", "available in your region", "from your location", "your country", "geo restrict", "geo-restrict", "georestrict",
		"http error 451",
	}},
	{reason.FormatUnavailable, []string{"requested format is not available"}},
	{reason.ExtractorBug, []string{"unable to extract", "traceback (most recent call last)"}},
	{reason.AuthRequired, []string{
		"private video", "video is private", "is private", "members-only", "members only", "join this channel", "confirm your age", "age-restricted", "age restricted",
		"log in", "login", "logged in", "logged-in", "sign in", "account credentials", "use --cookies", "--cookies-from-browser", "requires a subscription",
		"registered users", "http error 401", "http error 402",
	}},
	{reason.Gone, []string{
		"video unavailable", "video is unavailable", "has been removed", "has been terminated", "no longer available", "been deleted", "been taken down",
		"does not exist", "content isn't available", "video is not available",
	}},
	{reason.NotFound, []string{"http error 404", "http error 410"}},
	// A redirect that cannot be followed: to another scheme, or in a circle.
	{reason.Unsupported, []string{"http error 3", "no connection adapters", "is not a valid url", "no longer supported"}},
	// "Unsupported URL" is what yt-dlp says of any web page in which it has found no media.
	{reason.NoMedia, []string{
		"unsupported url", "no video formats found", "no video in this", "no video could be found", "no media found", "there's no video",
		"there is no video", "no videos found", "does not contain any video",
	}},
	// A film whose address is fresh and refused all the same: sites do so to those who fetch too much.
	{reason.RateLimited, []string{"unable to download video data: http error 403"}},
	{reason.AuthRequired, []string{"http error 403"}},
	{reason.Timeout, []string{"timed out", "timeout"}},
	{reason.Network, []string{
		"http error 5", "http error 408", "connection refused", "connection reset", "connection aborted", "connection broken", "broken pipe",
		"name or service not known", "name resolution", "no address associated", "getaddrinfo", "nodename nor servname", "failed to resolve",
		"no route to host", "network is unreachable", "remote end closed", "closed connection", "incompleteread", "incomplete read",
		"more expected", "did not get any data blocks", "content too short", "downloaded file is empty", "giving up after", "not found, unable to continue",
		"certificate", "ssl:", "eof occurred", "tunnel connection failed", "connect to proxy", "transporterror", "unable to continue",
		"bad status line", "badstatusline",
	}},
	{reason.Postprocess, []string{"postprocessing", "ffmpeg", "ffprobe", "conversion failed", "error opening output"}},
	{reason.ExtractorBug, []string{"please report this issue", "failed to parse json", "unable to parse", "unsupported protocol"}},
	{reason.Network, []string{"unable to download", "unable to connect", "http error"}},
}

// classify makes the failure of a run that ended with an error. dir is the directory it ran in.
func classify(ended ending, dir string) *reason.Error {
	cause := func(text string) error { return errors.New(clean(text, dir, maxCause)) }
	switch {
	case ended.signal != 0:
		return &reason.Error{Reason: reason.Internal, Err: fmt.Errorf("yt-dlp was ended by signal %d: %w", int(ended.signal), cause(lastLines(ended.stderr, 3)))}
	case ended.code == 2:
		return &reason.Error{Reason: reason.Internal, Err: fmt.Errorf("yt-dlp refused its options (is it older than %s?): %w", MinVersion, cause(lastLines(ended.stderr, 3)))}
	case ended.code == 100 || ended.code == 101:
		// 100 asks for a start after a self-update and 101 says that a limit was met; neither is ever asked for.
		return &reason.Error{Reason: reason.Internal, Err: fmt.Errorf("yt-dlp ended with status %d: %w", ended.code, cause(lastLines(ended.stderr, 3)))}
	}
	said := errorLines(ended.stderr)
	for _, line := range said {
		if found := match(line); found != "" {
			failure := &reason.Error{Reason: found, Detail: clean(line, dir, maxDetail), Err: fmt.Errorf("yt-dlp ended with status %d: %w", ended.code, cause(strings.Join(said, "; ")))}
			if wait := announced(line); found == reason.Upcoming && wait > 0 {
				failure.RetryAt = time.Now().Add(wait)
			}
			return failure
		}
	}
	detail := ""
	if len(said) > 0 {
		detail = clean(said[0], dir, maxDetail)
	}
	text := strings.Join(said, "; ")
	if text == "" {
		text = lastLines(ended.stderr, 5)
		if strings.Contains(ended.stderr, "Traceback (most recent call last)") {
			broke := reason.ExtractorBug
			if match(lastLines(ended.stderr, 1)) == reason.EgressDenied { // which yt-dlp has no sentence for
				broke = reason.EgressDenied
			}
			return &reason.Error{Reason: broke, Err: fmt.Errorf("yt-dlp broke with status %d: %w", ended.code, cause(text))}
		}
	}
	return &reason.Error{Reason: reason.Unknown, Detail: detail, Err: fmt.Errorf("yt-dlp ended with status %d: %w", ended.code, cause(text))}
}

// match finds the reason of one error message, or none.
func match(message string) reason.Reason {
	text := strings.ToLower(withoutSubject(message))
	for _, m := range messages {
		for _, part := range m.any {
			if strings.Contains(text, part) {
				return m.reason
			}
		}
	}
	return ""
}

var announcement = regexp.MustCompile(`(?i)\bin (?:an? |(\d{1,4}) )(minute|hour|day|week)`)

// announced is how long it is until what a message announces, such as "Premieres in 3 hours", or 0.
func announced(message string) time.Duration {
	found := announcement.FindStringSubmatch(message)
	if found == nil {
		return 0
	}
	n, err := strconv.Atoi(found[1])
	if err != nil { // "in an hour"
		n = 1
	}
	units := map[string]time.Duration{"minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour, "week": 7 * 24 * time.Hour}
	return time.Duration(n) * units[strings.ToLower(found[2])]
}

var (
	address  = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'"<>]*`)
	location = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'"<>]*|(?:/[^\s'"<>:/]+){2,}/?`)
	subject  = regexp.MustCompile(`^\[[^\]\s]*\]\s*(?:[^\s:]*:\s+)?`)
	redColor = regexp.MustCompile("\x1b\\[[0-9;]*m")
)

// withoutSubject leaves of a message what yt-dlp says itself: not the addresses and the id that it says it about,
// which a site chooses.
func withoutSubject(message string) string {
	return subject.ReplaceAllString(address.ReplaceAllString(message, ""), "")
}

// errorLines are the messages of the lines that begin with ERROR, without that mark. A message that begins with a
// carriage return is on the line after its mark.
func errorLines(stderr string) []string {
	var out []string
	marked := false
	for line := range strings.SplitSeq(redColor.ReplaceAllString(stderr, ""), "\n") {
		message, ok := strings.CutPrefix(strings.TrimSpace(line), "ERROR:")
		if message = strings.TrimSpace(message); message != "" && (ok || marked) {
			out = append(out, message)
		}
		marked = ok && message == ""
	}
	return out
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// advice is what yt-dlp adds for people who run it themselves.
var advice = []string{"; please report this issue", ". please report this issue", " please report this issue", " (caused by ", "; see ", ". see ", " use --", ". you might want to use"}

// clean makes a message of yt-dlp's fit for people: no query or credentials of an address, no path of this machine, no
// control characters, no advice on options, at most limit runes.
func clean(message, dir string, limit int) string {
	message = strings.ToValidUTF8(redColor.ReplaceAllString(message, ""), "�")
	if limit <= maxDetail {
		for _, text := range advice {
			if at := indexFold(message, text); at > 0 {
				message = message[:at]
			}
		}
	}
	if dir != "" && dir != "/" {
		message = strings.ReplaceAll(strings.ReplaceAll(message, dir+"/", ""), dir, "")
	}
	message = address.ReplaceAllStringFunc(message, publicURL)
	message = location.ReplaceAllStringFunc(message, func(found string) string {
		if strings.Contains(found, "://") {
			return found
		}
		return filepath.Base(found)
	})
	message = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsControl(r), unicode.In(r, unicode.Cf):
			return -1
		}
		return r
	}, message)
	message = strings.Join(strings.Fields(message), " ")
	if runes := []rune(message); len(runes) > limit {
		message = string(runes[:limit-1]) + "…"
	}
	return message
}

// indexFold is strings.Index without regard to ASCII case; part is in lower case.
func indexFold(s, part string) int {
	for i := 0; i+len(part) <= len(s); i++ {
		if strings.EqualFold(s[i:i+len(part)], part) {
			return i
		}
	}
	return -1
}

// publicURL is an address without what may be secret in it.
func publicURL(raw string) string {
	parsed, err := url.Parse(raw)
	if err != nil || parsed.Host == "" {
		return "(an address)"
	}
	return (&url.URL{Scheme: parsed.Scheme, Host: parsed.Host, Path: parsed.Path}).String()
}
