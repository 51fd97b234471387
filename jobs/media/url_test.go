package media

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

func TestContentKey(t *testing.T) {
	t.Parallel()

	t.Run("BringsAddressesToOneForm", func(t *testing.T) {
		t.Parallel()
		for want, given := range map[string][]string{
			"https://site.example/": {
				"https://site.example", "HTTPS://SITE.Example:443", "https://site.example./?", "https://site.example/#top",
				"https://site.example/?utm_source=a&UTM_medium=b", "https://site.example/a/..", "https://site.example/./", "https://site.example/?fbclid=x#",
			},
			"http://site.example/a/b?x=1&y=2": {
				"http://site.example:80/a/b?x=1&y=2", "http://site.example:0080/a/b?x=1&y=2", "http://site.example/a/./c/../b?x=1&y=2",
				"http://site.example/a/%2e/%62?x=1&utm_campaign=z&y=2", "http://site.example/../a/b?x=1&y=2&%75tm_id=4",
			},
			"http://site.example/a%20b%2Fc":              {"http://site.example/a b%2fc"},
			"http://site.example/%C3%BC?q=%C3%BC":        {"http://site.example/ü?q=ü", "http://site.example/%c3%bc?q=%C3%BC"},
			"http://site.example/?q=%41%7e&r=%zz":        {"http://site.example/?q=%41%7e&r=%zz"}, // may be signed
			"http://site.example/save/http://a.example/": {"http://site.example/save/http://a.example/", "http://site.example/x/../save/http://a.example/"},
			"http://site.example//a//":                   {"http://site.example//a//", "http://site.example//a//b/.."},
			"http://site.example/a/":                     {"http://site.example/a/", "http://site.example/a/."},
			"http://site.example:8080/":                  {"http://site.example:8080"},
			"http://xn--bcher-kva.example/":              {"http://bücher.example", "http://BÜCHER.example/", "http://bücher。example/"},
			"http://127.0.0.1/":                          {"http://2130706433", "http://0x7f.1/", "http://127.0.0.1./"},
			"http://[::1]:8080/":                         {"http://[0:0::1]:8080/"},
			"http://user:pass@site.example/":             {"http://user:pass@SITE.example:80/#x"},
			"http://site.example/#!/video/1":             {"http://site.example/#!/video/1"},
			"http://site.example/#/video/1":              {"http://site.example#/video/1"},
			"http://site.example/?a=1&&b":                {"http://site.example/?a=1&&b"},
			"http://site.example/v":                      {`http://site.example/v#__youtubedl_smuggle=%7B%22x%22%3A1%7D`, `http://site.example/v#/__youtubedl_smuggle=1`},
		} {
			for _, rawURL := range given {
				key, canonicalURL, err := ContentKey("best", rawURL)
				require.NoError(t, err, rawURL)
				require.Equal(t, want, canonicalURL, rawURL)
				require.Equal(t, "best "+want, key, rawURL)
			}
		}
	})

	t.Run("KnowsOneVideoOfYouTubeInEveryForm", func(t *testing.T) {
		t.Parallel()
		for _, rawURL := range []string{
			"https://www.youtube.com/watch?v=dQw4w9WgXcQ",
			"http://youtube.com/watch?v=dQw4w9WgXcQ&t=42s",
			"https://m.youtube.com/watch?app=desktop&v=dQw4w9WgXcQ",
			"https://music.youtube.com/watch?v=dQw4w9WgXcQ&list=RDAMVM",
			"https://www.youtube.com/watch?v=dQw4w9WgXcQ&list=PLrAXtmErZgOeiKm4sgNOknGvNjby9efdf&index=3",
			"https://www.youtube.com/watch/?v=dQw4w9WgXcQ",
			"https://www.youtube.com/watch/dQw4w9WgXcQ",
			"https://www.youtube.com/watch?v=dQw4w9WgXcQ?feature=share",
			"https://youtu.be/dQw4w9WgXcQ?si=tracking",
			"https://YOUTU.BE/dQw4w9WgXcQ&feature=x",
			"https://www.youtube.com/shorts/dQw4w9WgXcQ",
			"https://www.youtube.com/live/dQw4w9WgXcQ?feature=share",
			"https://www.youtube.com/v/dQw4w9WgXcQ",
			"https://www.youtube.com/embed/dQw4w9WgXcQ?autoplay=1",
			"https://www.youtube-nocookie.com/embed/dQw4w9WgXcQ/",
			"https://www.youtube.com:443/watch?v=dQw4w9WgXcQ#t=30",
		} {
			key, canonicalURL, err := ContentKey("best", rawURL)
			require.NoError(t, err, rawURL)
			require.Equal(t, "best youtube:dQw4w9WgXcQ", key, rawURL)
			require.Equal(t, "https://www.youtube.com/watch?v=dQw4w9WgXcQ", canonicalURL, rawURL)
		}
	})

	t.Run("LeavesWhatIsNoVideoOfYouTube", func(t *testing.T) {
		t.Parallel()
		for rawURL, want := range map[string]string{
			"http://youtube.com/playlist?list=PL1&si=x":                      "https://www.youtube.com/playlist?list=PL1",
			"https://m.youtube.com/@someone/videos":                          "https://www.youtube.com/@someone/videos",
			"https://music.youtube.com/playlist?list=OLAK5uy":                "https://music.youtube.com/playlist?list=OLAK5uy",
			"https://www.youtube.com/embed/videoseries?list=PL1":             "https://www.youtube.com/embed/videoseries?list=PL1",
			"https://www.youtube.com/embed/live_stream?channel=UC1":          "https://www.youtube.com/embed/live_stream?channel=UC1",
			"https://www.youtube.com/watch?v=short":                          "https://www.youtube.com/watch?v=short",
			"https://www.youtube.com/watch?list=PL1":                         "https://www.youtube.com/watch?list=PL1",
			"https://www.youtube.com/":                                       "https://www.youtube.com/",
			"https://youtu.be/":                                              "https://youtu.be/",
			"https://youtube.com.evil.example/watch?v=dQw4w9WgXcQ":           "https://youtube.com.evil.example/watch?v=dQw4w9WgXcQ",
			"https://www.youtube.com:8443/watch?v=dQw4w9WgXcQ":               "https://www.youtube.com:8443/watch?v=dQw4w9WgXcQ",
			"https://site.example/watch?v=dQw4w9WgXcQ&list=x&feature=share":  "https://site.example/watch?v=dQw4w9WgXcQ&list=x&feature=share",
			"https://www.youtube.com/redirect?q=https://site.example/&si=1x": "https://www.youtube.com/redirect?q=https://site.example/",
		} {
			key, canonicalURL, err := ContentKey("best", rawURL)
			require.NoError(t, err, rawURL)
			require.Equal(t, want, canonicalURL, rawURL)
			require.Equal(t, "best "+want, key, rawURL)
		}
	})

	t.Run("HoldsProfilesApart", func(t *testing.T) {
		t.Parallel()
		a, _, err := ContentKey("best", "https://youtu.be/dQw4w9WgXcQ")
		require.NoError(t, err)
		b, _, err := ContentKey("audio", "https://youtu.be/dQw4w9WgXcQ")
		require.NoError(t, err)
		require.NotEqual(t, a, b)
	})

	t.Run("KeepsKeysShort", func(t *testing.T) {
		t.Parallel()
		long := "https://site.example/?" + strings.Repeat("x", 3000)
		key, canonicalURL, err := ContentKey("best", long)
		require.NoError(t, err)
		require.Equal(t, long[:21]+long[21:], canonicalURL)
		require.LessOrEqual(t, len(key), maxKeyBytes)
		other, _, err := ContentKey("best", long+"y")
		require.NoError(t, err)
		require.NotEqual(t, key, other)
	})

	t.Run("RefusesWhatIsNoAddress", func(t *testing.T) {
		t.Parallel()
		for _, rawURL := range []string{
			"", "-rf", "--exec", "watch?v=1", "file:///etc/passwd", "ytsearch:cats", "http://", "https:///x", "http://a\x00b/", "http://a/\n",
			"http://site.example/%zz", "http://[::1", "http://site.example:99999/", "http://site.example/" + strings.Repeat("a", 4096),
			"http://site.example/" + strings.Repeat("ü", 2000), // within the limit as given, beyond it when escaped
		} {
			_, _, err := ContentKey("best", rawURL)
			require.Error(t, err, rawURL)
			require.Equal(t, reason.Unsupported, reason.Find(err).Reason, rawURL)
			require.NotEmpty(t, reason.Find(err).Detail)
		}
	})
}

func FuzzContentKey(f *testing.F) {
	for _, seed := range []string{
		"https://www.youtube.com/watch?v=dQw4w9WgXcQ&list=1", "http://a/../b/./c//d?x=%zz&utm_a=1#!/r", "http://ü.example:80/ü?ü#/ü", "http://u:p@h/;a=b",
		"http://a/%2e%2E/%2f?&&=&a#!%23", "https://youtu.be/../dQw4w9WgXcQ", "http://h/*", "http://h/a%3Ab:@", "http://h?a?b", "http://h/[x]",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, rawURL string) {
		key, canonicalURL, err := ContentKey("best", rawURL)
		if err != nil {
			require.Equal(t, reason.Unsupported, reason.Find(err).Reason)
			return
		}
		require.LessOrEqual(t, len(key), maxKeyBytes)
		again, canonicalAgain, err := ContentKey("best", canonicalURL)
		require.NoError(t, err, canonicalURL)
		require.Equal(t, canonicalURL, canonicalAgain)
		require.Equal(t, key, again)
		require.True(t, strings.HasPrefix(canonicalURL, "http://") || strings.HasPrefix(canonicalURL, "https://"))
		require.NotContains(t, canonicalURL, " ")
	})
}
