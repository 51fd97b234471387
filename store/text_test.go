package store_test

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/storetest"
)

func TestCleanJSON(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"a": 1}`:                 `{"a": 1}`,
		`"\u0000"`:                 `""`,
		`"a\u0000b\u00e9"`:         `"ab\u00e9"`,
		`"\\u0000"`:                `"\\u0000"`,
		`"\\\u0000"`:               `"\\"`,
		`"\ud83d\ude00"`:           `"\ud83d\ude00"`,
		`"\ud83d"`:                 `"\ufffd"`,
		`"\ude00\ud83d"`:           `"\ufffd\ufffd"`,
		`"\ud83d\ud83d\ude00"`:     `"\ufffd\ud83d\ude00"`,
		`"\ud83d\u0000\ude00"`:     `"\ufffd\ufffd"`,
		`"\uD83D\uDE00 \u00E9"`:    `"\uD83D\uDE00 \u00E9"`,
		"\"a\xffb\"":               "\"a\uFFFDb\"",
		`{"\u0000k\ud800": "\n"}`:  `{"k\ufffd": "\n"}`,
		`["\"\u0000", "\/\u0000"]`: `["\"", "\/"]`,
	} {
		got, err := store.CleanJSON(json.RawMessage(in))
		require.NoError(t, err)
		require.Equal(t, want, string(got), in)
	}
	for _, in := range []string{``, `{`, `"\u00"`, `nope`, `"a"b`} {
		_, err := store.CleanJSON(json.RawMessage(in))
		require.Error(t, err, in)
	}
}

// What passes is what Postgres takes as jsonb.
func FuzzCleanJSON(f *testing.F) {
	for _, seed := range []string{`{"a": ["\u0000", "\ud83d\ude00", 1e3]}`, `"\\u0000\ud800"`, "\"\xff\"", `"\udc00\ud800\udc00"`} {
		f.Add([]byte(seed))
	}
	pool := storetest.Pool(f, "")
	f.Fuzz(func(t *testing.T, raw []byte) {
		clean, err := store.CleanJSON(raw)
		if err != nil {
			require.False(t, json.Valid(raw))
			return
		}
		require.True(t, json.Valid(clean))
		require.True(t, utf8.Valid(clean))
		if hasHugeNumber(clean) {
			return
		}
		_, err = pool.Exec(t.Context(), `SELECT $1::text::jsonb`, string(clean))
		require.NoError(t, err, "%q from %q", clean, raw)
	})
}

// hasHugeNumber reports whether there may be a number beyond Postgres's numeric: that is an error of its own.
func hasHugeNumber(raw []byte) bool {
	digits := 0
	for _, c := range raw {
		if c >= '0' && c <= '9' {
			digits++
		}
	}
	return digits > 4
}
