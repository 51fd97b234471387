package store_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

func TestSecrets(t *testing.T) {
	t.Parallel()
	b := setup(t)
	keys := keyring(t, store.NewKey())
	s := b.api.WithKeys(keys)
	told, err := s.SetSecret(t.Context(), "plex:token", []byte("canary-of-the-house"), nil, nil)
	require.NoError(t, err)
	require.Equal(t, keys.Active(), told.KeyID)
	value, err := b.worker.WithKeys(keys).OpenSecret(t.Context(), "plex:token")
	require.NoError(t, err)
	require.Equal(t, "canary-of-the-house", string(value))
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.secret AS s WHERE s::text LIKE '%canary%' OR position('canary'::bytea IN s.sealed) > 0`))

	// One that is put under another name opens nothing there.
	b.exec(`INSERT INTO medianest.secret (name, sealed, key_id) SELECT 'kuma:token', sealed, key_id FROM medianest.secret`)
	_, err = s.OpenSecret(t.Context(), "kuma:token")
	require.ErrorIs(t, err, store.ErrSealed)
	_, err = s.OpenSecret(t.Context(), "nothing")
	require.ErrorIs(t, err, store.ErrNotFound)
	_, err = b.api.OpenSecret(t.Context(), "plex:token")
	require.ErrorContains(t, err, "no secret keys")
	for _, name := range []string{"", "A", "../x", "a\x00", "ä"} {
		_, err := s.SetSecret(t.Context(), name, []byte("x"), nil, nil)
		require.ErrorIs(t, err, store.ErrInvalid, "%q", name)
	}
	for _, value := range [][]byte{nil, make([]byte, 300<<10)} {
		_, err := s.SetSecret(t.Context(), "x", value, nil, nil)
		require.ErrorIs(t, err, store.ErrInvalid)
	}
	require.NoError(t, s.DeleteSecret(t.Context(), "plex:token"))
	require.ErrorIs(t, s.DeleteSecret(t.Context(), "plex:token"), store.ErrNotFound)
}

// A new key takes the old one's place while secrets are read and written: none is lost, none fails to open.
func TestSecretsAreRotatedWhileTheyAreUsed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := store.NewKey(), store.NewKey()
	old, both, fresh := keyring(t, one), keyring(t, two, one), keyring(t, two)
	const secrets = 250
	for i := range secrets {
		_, err := b.api.WithKeys(old).SetSecret(t.Context(), fmt.Sprint("s", i), fmt.Append(nil, "value ", i), nil, nil)
		require.NoError(t, err)
	}
	b.exec(`INSERT INTO medianest.secret (name, sealed, key_id) VALUES ('damaged', '\x01', 'gone')`)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		wg.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprint("s", n%secrets)
				if n%3 == 0 {
					if _, err := b.api.WithKeys(both).SetSecret(t.Context(), name, fmt.Append(nil, "value ", n%secrets), nil, nil); err != nil {
						t.Error(err)
					}
				}
				value, err := b.worker.WithKeys(both).OpenSecret(t.Context(), name)
				if err != nil || string(value) != fmt.Sprint("value ", n%secrets) {
					t.Errorf("%s is %q: %v", name, value, err)
				}
			}
		})
	}
	for range 3 {
		r, err := b.worker.WithKeys(both).RotateSecrets(t.Context())
		require.NoError(t, err)
		require.Equal(t, fresh.Active(), r.Active)
		require.Equal(t, []string{"damaged"}, r.Lost)
	}
	close(stop)
	wg.Wait()
	for i := range secrets {
		value, err := b.api.WithKeys(fresh).OpenSecret(t.Context(), fmt.Sprint("s", i))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint("value ", i), string(value))
	}
}
