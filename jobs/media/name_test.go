package media

import (
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/unicode/norm"
)

func TestFileName(t *testing.T) {
	t.Parallel()

	t.Run("IsSafeAndReadsWell", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct{ title, id, ext, want string }{
			{"A film", "abc123", "mp4", "A film [abc123].mp4"},
			{"A film", "abc123", ".MP4", "A film [abc123].mp4"},
			{"A film", "", "webm", "A film.webm"},
			{"", "x", "mp4", "untitled [x].mp4"},
			{"...", "", "mp4", "untitled.mp4"},
			{"../../etc/passwd", "../x", "mp4", "etc-passwd [..-x].mp4"},
			{"--exec rm", "-rf", "mp4", "exec rm [-rf].mp4"},
			{".hidden", "1", "mkv", "hidden [1].mkv"},
			{`What? "Yes": 1/2 <b> a|b *`, "1", "mp4", `What 'Yes'- 1-2 (b) a-b [1].mp4`},
			{"tab\there\nand\x00there\x7f", "1", "mp4", "tab here and there [1].mp4"},
			{"  wide\u00a0\u3000blanks  ", "1", "mp4", "wide blanks [1].mp4"},
			{"dots and spaces . . ", "", "mp4", "dots and spaces.mp4"},
			{"bad \xff\xfe utf-8 \ufffd", "\xff1", "mp4", "bad utf-8 [1].mp4"},
			{"u\u0308ber", "1", "mp4", "\u00fcber [1].mp4"},
			{"evil \u202e4pm.exe", "1", "mp4", "evil 4pm.exe [1].mp4"},
			{"family \U0001F468\u200d\U0001F469\u200d\U0001F467", "1", "mp4", "family \U0001F468\u200d\U0001F469\u200d\U0001F467 [1].mp4"},
			{"e\u00ad\u0301", "1", "mp4", "\u00e9 [1].mp4"},
			{"CON", "", "mp4", "_CON.mp4"},
			{"con.film", "1", "mp4", "_con.film [1].mp4"},
			{"Lpt1", "", "mp4", "_Lpt1.mp4"},
			{"COM¹", "", "mp4", "_COM¹.mp4"},
			{"Conan", "", "mp4", "Conan.mp4"},
			{"CON", "1", "mp4", "CON [1].mp4"}, // the brackets make it another name
			{"film", "a[b]c/d", "mp4", "film [a(b)c-d].mp4"},
			{"film", "1", "exe", "film [1].bin"},
			{"film", "1", "", "film [1].bin"},
			{"film", "1", "mp4/../../x", "film [1].bin"},
			{"film", "1", "part", "film [1].bin"},
		} {
			require.Equal(t, c.want, FileName(c.title, c.id, c.ext), "%q", c.title)
		}
	})

	t.Run("FitsWithItsIDAndExtension", func(t *testing.T) {
		t.Parallel()
		for _, letter := range []string{"a", "ü", "語", "\U0001F600", "e\u0323\u0301", "\U0001F468\u200d\U0001F469"} {
			for extra := range 5 {
				name := FileName(strings.Repeat("x", extra)+strings.Repeat(letter, 400), "dQw4w9WgXcQ", "mp4")
				require.LessOrEqual(t, len(name), 255)
				require.Greater(t, len(name), 235)
				require.True(t, utf8.ValidString(name))
				title, ok := strings.CutSuffix(name, " [dQw4w9WgXcQ].mp4")
				require.True(t, ok, name)
				require.Empty(t, strings.ReplaceAll(strings.TrimLeft(title, "x"), norm.NFC.String(letter), ""), "no character is cut in two")
			}
		}
	})

	t.Run("KeepsLongIDsApart", func(t *testing.T) {
		t.Parallel()
		long := strings.Repeat("i", 300)
		a, b := FileName("film", long+"a", "mp4"), FileName("film", long+"b", "mp4")
		require.NotEqual(t, a, b)
		require.Len(t, a, len("film [].mp4")+maxIDBytes)
	})

	t.Run("NumbersNamesakes", func(t *testing.T) {
		t.Parallel()
		require.Equal(t, "film [1].mp4", numbered("film [1].mp4", 1))
		require.Equal(t, "film [1] (2).mp4", numbered("film [1].mp4", 2))
		require.Equal(t, "film (12).mp4", numbered("film.mp4", 12))
		full := FileName(strings.Repeat("ü", 400), "dQw4w9WgXcQ", "mp4")
		for _, n := range []int{2, 10, 99} {
			name := numbered(full, n)
			require.LessOrEqual(t, len(name), 255)
			require.True(t, utf8.ValidString(name))
			require.Contains(t, name, "ü [dQw4w9WgXcQ] (")
		}
		require.LessOrEqual(t, len(numbered(strings.Repeat("x", 251)+".mp4", 99)), 255)
	})
}

func FuzzFileName(f *testing.F) {
	f.Add("A film: the sequel?", "dQw4w9WgXcQ", "mp4")
	f.Add("..\\../\u202e\x00", "[", ".MKV")
	f.Add(strings.Repeat("語\u0301", 100), strings.Repeat("/", 100), "bin")
	f.Add("NUL", "", "ts")
	f.Fuzz(func(t *testing.T, title, id, ext string) {
		name := FileName(title, id, ext)
		require.LessOrEqual(t, len(name), maxNameBytes)
		require.True(t, utf8.ValidString(name))
		require.True(t, norm.NFC.IsNormalString(name))
		require.True(t, filepath.IsLocal(name))
		require.False(t, strings.ContainsAny(name, `/\:*?"<>|`+"\x00"), name)
		require.False(t, strings.ContainsFunc(name, unicode.IsControl))
		require.NotContains(t, ".- ", name[:1])
		require.NotContains(t, ". ", name[len(name)-1:])
		require.False(t, isDevice(name), name)
		dot := strings.LastIndexByte(name, '.')
		require.Contains(t, append(extensions, "bin"), name[dot+1:])
		_, err := destination("user", name)
		require.NoError(t, err)
		for _, n := range []int{2, 99} {
			next := numbered(name, n)
			require.LessOrEqual(t, len(next), maxNameBytes)
			require.True(t, utf8.ValidString(next))
			require.NotEqual(t, name, next)
			_, err := destination("user", next)
			require.NoError(t, err)
		}
	})
}
