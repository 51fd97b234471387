package media

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVolume(t *testing.T) {
	t.Parallel()

	b := setup(t, Options{})
	require.Regexp(t, volumeIDs, b.Volume())
	require.Equal(t, b.Volume(), setup(t, Options{Root: b.Root()}).Volume(), "opened again")
	require.NotEqual(t, b.Volume(), setup(t, Options{}).Volume(), "another one")
	require.Empty(t, namesIn(t, filepath.Join(b.Root(), stagingDir)))

	name := filepath.Join(b.Root(), volumeFile)
	require.NoError(t, os.WriteFile(name, []byte("nas-1\n"), 0o600))
	require.Equal(t, "nas-1", setup(t, Options{Root: b.Root()}).Volume(), "an operator's own")
	for _, bad := range []string{"", "two words", "../elsewhere"} {
		require.NoError(t, os.WriteFile(name, []byte(bad), 0o600))
		_, err := Open(Options{Root: b.Root()})
		require.ErrorContains(t, err, name)
	}
}

// Workers that start at the same time on a new volume.
func TestVolumeIsMadeOnce(t *testing.T) {
	t.Parallel()

	root := t.TempDir()
	ids := make([]string, 8)
	var opening sync.WaitGroup
	for i := range ids {
		opening.Go(func() {
			library, err := Open(Options{Root: root})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = library.Volume()
			if err := library.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	opening.Wait()
	for _, id := range ids {
		require.Equal(t, ids[0], id)
	}
	require.NotEmpty(t, ids[0])
}
