package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

func keyring(t *testing.T, keys ...string) *store.Keyring {
	t.Helper()
	k, err := store.ParseKeyring(strings.Join(keys, ","))
	require.NoError(t, err)
	return k
}

func TestKeyring(t *testing.T) {
	t.Parallel()
	one, two := store.NewKey(), store.NewKey()
	old, both, fresh := keyring(t, one), keyring(t, two, one), keyring(t, two)
	sealed := old.Seal([]byte("secret of the house"), "plex:token")
	require.NotContains(t, string(sealed), "secret")
	require.NotEqual(t, sealed, old.Seal([]byte("secret of the house"), "plex:token"), "each has its nonce")
	for _, k := range []*store.Keyring{old, both} {
		value, err := k.Open(sealed, "plex:token")
		require.NoError(t, err)
		require.Equal(t, "secret of the house", string(value))
	}
	_, err := fresh.Open(sealed, "plex:token")
	require.ErrorIs(t, err, store.ErrSealed)
	_, err = old.Open(sealed, "kuma:token")
	require.ErrorIs(t, err, store.ErrSealed, "in another place it is worth nothing")
	for i := range sealed {
		broken := append([]byte(nil), sealed...)
		broken[i] ^= 1
		_, err := old.Open(broken, "plex:token")
		require.ErrorIs(t, err, store.ErrSealed, "byte %d", i)
		_, err = old.Open(sealed[:i], "plex:token")
		require.ErrorIs(t, err, store.ErrSealed, "%d bytes", i)
	}
	by, err := store.SealedBy(both.Seal(nil, ""))
	require.NoError(t, err)
	require.Equal(t, fresh.Active(), by)

	session, ok := both.Derive(old.Active(), "session")
	require.True(t, ok)
	csrf, _ := both.Derive(old.Active(), "csrf")
	require.NotEqual(t, session, csrf)
	_, ok = fresh.Derive(old.Active(), "session")
	require.False(t, ok)

	for _, shown := range []string{fmt.Sprint(both), fmt.Sprintf("%v %+v %#v %s", both, both, both, both)} {
		require.NotContains(t, shown, strings.SplitN(one, ":", 2)[1])
	}
	for _, bad := range []string{
		"", " , ", "x", "id:", ":" + strings.SplitN(one, ":", 2)[1], "id:AAAA", "i d:" + strings.SplitN(one, ":", 2)[1], one + "," + one, "id:!" + strings.Repeat("A", 43),
	} {
		_, err := store.ParseKeyring(bad)
		require.Error(t, err, bad)
	}
}

func FuzzOpenSealed(f *testing.F) {
	k, err := store.ParseKeyring("a:" + strings.Repeat("A", 43) + "=")
	require.NoError(f, err)
	f.Add(k.Seal([]byte("x"), "c"))
	f.Add([]byte{})
	f.Add([]byte{1, 255})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		if _, err := k.Open(sealed, "another place"); err == nil {
			t.Error("opened what was not sealed")
		}
	})
}

func FuzzParseKeyring(f *testing.F) {
	f.Add(store.NewKey())
	f.Add("a:b,c:d")
	f.Fuzz(func(_ *testing.T, text string) {
		if k, err := store.ParseKeyring(text); err == nil {
			_ = k.Seal([]byte("x"), "c")
		}
	})
}
