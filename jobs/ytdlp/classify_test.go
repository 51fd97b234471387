package ytdlp

import (
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

func TestClassifyMessages(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]reason.Reason{
		`[youtube] dQw4w9WgXcQ: Video unavailable. This video has been removed by the uploader`:                                                           reason.Gone,
		`[youtube] x: Video unavailable. This video is no longer available because the YouTube account associated with this video has been terminated.`:   reason.Gone,
		`[youtube] x: Video unavailable. The uploader has not made this video available in your country`:                                                  reason.GeoBlocked,
		`[youtube] x: Private video. Sign in if you've been granted access to this video`:                                                                 reason.AuthRequired,
		`[youtube] x: Join this channel to get access to members-only content like this video, and other exclusive perks.`:                                reason.AuthRequired,
		`[youtube] x: Sign in to confirm your age. This video may be inappropriate for some users.`:                                                       reason.AuthRequired,
		`[youtube] x: Sign in to confirm you’re not a bot. Use --cookies-from-browser or --cookies for the authentication.`:                               reason.BotCheck,
		`[youtube] x: Sign in to confirm you're not a bot.`:                                                                                               reason.BotCheck,
		`[site] x: The site is requiring a captcha challenge`:                                                                                             reason.BotCheck,
		`[youtube] x: Video unavailable. This content isn't available, try again later. Your account has been rate-limited by YouTube for up to an hour.`: reason.RateLimited,
		`[youtube] x: Premieres in 3 hours`:                      reason.Upcoming,
		`[youtube] x: This live event will begin in 16 minutes.`: reason.Upcoming,
		`[vimeo] 1: The web client only works when logged-in. Use --cookies, --cookies-from-browser, --username and --password`: reason.AuthRequired,
		`[generic] drm: This video is DRM protected`:                                                                                              reason.DRM,
		`[DRM] The requested site is known to use DRM protection. It will NOT be supported.`:                                                      reason.DRM,
		`[site] x: This video is not available from your location due to geo restriction. You might want to use a VPN`:                            reason.GeoBlocked,
		`[generic] x: Unable to download webpage: HTTP Error 451: Unavailable For Legal Reasons (caused by <HTTPError 451: Unavailable>)`:         reason.GeoBlocked,
		`[generic] x: Requested format is not available. Use --list-formats for a list of available formats`:                                      reason.FormatUnavailable,
		`unable to write data: [Errno 28] No space left on device`:                                                                                reason.DiskFull,
		`unable to open for writing: [Errno 122] Disk quota exceeded: '/x/y'`:                                                                     reason.DiskFull,
		`Postprocessing: Error opening output files: No space left on device`:                                                                     reason.DiskFull,
		`Postprocessing: Conversion failed!`:                                                                                                      reason.Postprocess,
		`Preprocessing: ffprobe not found. Please install or provide the path using --ffmpeg-location`:                                            reason.Postprocess,
		`[site] x: Unable to extract login token; please report this issue on  https://github.com/yt-dlp/yt-dlp/issues?q= , filling out the form`: reason.ExtractorBug,
		`[site] x: x: Failed to parse JSON (caused by JSONDecodeError("Expecting value"));`:                                                       reason.ExtractorBug,
		`[generic] x: Unable to download webpage: The read operation timed out (caused by TransportError('The read operation timed out'))`:        reason.Timeout,
		`[generic] x: Unable to download webpage: HTTP Error 504: Gateway Timeout`:                                                                reason.Timeout,
		`[generic] x: Unable to download webpage: [Errno -2] Name or service not known (caused by TransportError())`:                              reason.Network,
		`[generic] x: Unable to download webpage: [Errno 111] Connection refused (caused by TransportError())`:                                    reason.Network,
		`[generic] x: Unable to download webpage: HTTP Error 503: Service Unavailable (caused by <HTTPError 503>)`:                                reason.Network,
		`[download] Got error: 238098 bytes read, 238098 more expected. Giving up after 1 retries`:                                                reason.Network,
		`fragment 1 not found, unable to continue`:                                                                                                reason.Network,
		`[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)`:                                       reason.Network,
		`[generic] x: Unable to download webpage: HTTP Error 401: Unauthorized`:                                                                   reason.AuthRequired,
		`[generic] x: Unable to download webpage: HTTP Error 403: Forbidden`:                                                                      reason.AuthRequired,
		`unable to download video data: HTTP Error 403: Forbidden`:                                                                                reason.RateLimited,
		`[generic] x: Unable to download webpage: HTTP Error 404: Nichts da`:                                                                      reason.NotFound,
		`[generic] x: Unable to download webpage: HTTP Error 410: Gone`:                                                                           reason.NotFound,
		`[generic] x: Unable to download webpage: HTTP Error 429: Too Many Requests`:                                                              reason.RateLimited,
		`Unsupported URL: http://site.example/novideo`:                                                                                            reason.NoMedia,
		`[twitter] 1: No video could be found in this tweet`:                                                                                      reason.NoMedia,
		`[site] x: No video formats found!; please report this issue on  https://github.com/yt-dlp/yt-dlp/issues?q=`:                              reason.NoMedia,
		`[generic] 'foo' is not a valid URL. Set --default-search "ytsearch" (or run  yt-dlp "ytsearch:foo" ) to search YouTube`:                  reason.Unsupported,
		`[Piracy] This website is no longer supported since it has been determined to be primarily used for piracy.`:                              reason.Unsupported,
		`[generic] x: Unable to download webpage: Tunnel connection failed: 403 Forbidden`:                                                        reason.EgressDenied,
		`[generic] x: Unable to download webpage: Tunnel connection failed: 502 Bad Gateway`:                                                      reason.Network,
		`something that nobody has seen before`:                                                                                                   reason.Unknown,
		// What a site chooses says nothing: its addresses and ids are not part of the message.
		`Unsupported URL: http://site.example/private%20video/HTTP-Error-429?q=captcha`:  reason.NoMedia,
		`[generic] drm-protected: Unable to download webpage: HTTP Error 404: Not Found`: reason.NotFound,
	} {
		got := classify(ending{code: 1, stderr: "WARNING: [generic] rate-limit\nERROR: " + message}, "/staging")
		require.Equal(t, want, got.Reason, message)
	}
}

func TestClassifyEndings(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		ended ending
		want  reason.Reason
	}{
		"BadOptions":        {ending{code: 2, stderr: "Usage: yt-dlp [OPTIONS] URL\n\nyt-dlp: error: no such option: --progress-delta"}, reason.Internal},
		"UpdateNeeded":      {ending{code: 100}, reason.Internal},
		"LimitMet":          {ending{code: 101}, reason.Internal},
		"KilledFromOutside": {ending{code: -1, signal: syscall.SIGKILL}, reason.Internal},
		"Silence":           {ending{code: 1}, reason.Unknown},
		"Crash":             {ending{code: 1, stderr: "Traceback (most recent call last):\n  File \"/x/y.py\", line 1, in z\nKeyError: 'a'"}, reason.ExtractorBug},
		"SecondErrorKnown":  {ending{code: 1, stderr: "ERROR: \x1b[0m\nERROR: nobody knows\nERROR: [generic] x: HTTP Error 404"}, reason.NotFound},
		"AfterReturn":       {ending{code: 1, stderr: "ERROR: \n[download] Got error: timed out. Giving up after 1 retries\nnoise"}, reason.Timeout},
		"Coloured":          {ending{code: 1, stderr: "\x1b[0;31mERROR:\x1b[0m [generic] x: Video unavailable"}, reason.Gone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, classify(test.ended, "/staging").Reason)
		})
	}
}

func TestUpcomingSaysWhen(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]time.Duration{
		"Premieres in 3 hours":                          3 * time.Hour,
		"This live event will begin in 16 minutes.":     16 * time.Minute,
		"This live event will begin in a few moments.":  0,
		"This live event will begin in an hour.":        time.Hour,
		"Premieres in 2 days":                           48 * time.Hour,
		"Premieres in 99999999999999999999999999 hours": 0,
	} {
		require.Equal(t, want, announced(message), message)
	}
	failure := classify(ending{code: 1, stderr: "ERROR: [youtube] x: Premieres in 3 hours"}, "")
	require.WithinDuration(t, time.Now().Add(3*time.Hour), failure.RetryAt, time.Minute)
	require.Zero(t, classify(ending{code: 1, stderr: "ERROR: [x] y: Private video in 3 hours"}, "").RetryAt)
}

func TestDetailIsFitForPeople(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		`[generic] 404: Unable to download webpage: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)`:                                      `[generic] 404: Unable to download webpage: HTTP Error 404: Not Found`,
		`Unsupported URL: https://user:pw@site.example/a/b?token=secret#frag`:                                                                              `Unsupported URL: https://site.example/a/b`,
		`unable to open for writing: [Errno 28] No space left on device: '/media/.medianest/staging/0190/1/media.mp4.part'`:                                `unable to open for writing: [Errno 28] No space left on device: 'media.mp4.part'`,
		`[x] y: Unable to extract z; please report this issue on  https://github.com/yt-dlp/yt-dlp/issues?q= , filling out the appropriate issue template`: `[x] y: Unable to extract z`,
		"a\tb\x07\u202ec\nd": `a bc d`,
		`proxy http://user:hunter2@127.0.0.1:80 refused /etc/ssl/certs/x.pem`: `proxy http://127.0.0.1:80 refused x.pem`,
	} {
		require.Equal(t, want, clean(message, "/media/.medianest/staging/0190/1", maxDetail))
	}
	require.LessOrEqual(t, utf8.RuneCountInString(clean(strings.Repeat("ü", 1000), "", maxDetail)), maxDetail)
}

func FuzzClassify(f *testing.F) {
	f.Add("ERROR: [generic] x: HTTP Error 404: https://u:p@h/p?secret=1", 1)
	f.Add("ERROR: \x1b[31m/staging/0190/media.mp4 \xff\xfe", 1)
	f.Add("Traceback (most recent call last):", -1)
	f.Add("ERROR: http://\nERROR: //a/b/c://?#", 2)
	query := regexp.MustCompile(`[a-z]://[^\s'"<>]*\?`)
	f.Fuzz(func(t *testing.T, stderr string, code int) {
		failure := classify(ending{code: code, stderr: stderr}, "/staging/0190")
		require.True(t, failure.Reason.Valid())
		require.True(t, utf8.ValidString(failure.Detail))
		require.LessOrEqual(t, utf8.RuneCountInString(failure.Detail), maxDetail)
		require.NotContains(t, failure.Detail, "/staging/0190")
		require.False(t, query.MatchString(failure.Error()), failure.Error())
		require.NotContains(t, strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return '\x00'
			}
			return r
		}, failure.Detail), "\x00")
	})
}
