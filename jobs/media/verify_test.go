package media

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

func TestVerify(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})

	// put writes a file into a staging folder of its own.
	put := func(t *testing.T, name string, data []byte) string {
		t.Helper()
		staged, _ := b.stage(t, "")
		staged = filepath.Join(filepath.Dir(staged), name)
		require.NoError(t, os.WriteFile(staged, data, 0o600))
		return staged
	}

	t.Run("WholeFilesOfEveryKind", func(t *testing.T) {
		t.Parallel()
		for _, name := range []string{
			"plain.mp4", "faststart.mp4", "fragmented.mp4", "silent.mp4", "plain.mkv", "live.mkv", "plain.ts", "plain.avi", "plain.flv",
			"plain.m4a", "plain.aac", "plain.mp2", "plain.flac", "plain.ogg", "plain.wav",
		} {
			data := readSample(t, name)
			for _, want := range []float64{0, 4, 5.9} {
				info, err := b.Verify(t.Context(), put(t, name, data), want)
				require.NoError(t, err, name)
				require.Equal(t, int64(len(data)), info.SizeBytes, name)
				sum := sha256.Sum256(data)
				require.Equal(t, sum[:], info.SHA256, name)
				require.InDelta(t, 4, info.DurationS, 0.2, name)
				if name != "plain.mp4" {
					break
				}
			}
		}
	})

	t.Run("DamagedOnesAreToldFromThem", func(t *testing.T) {
		t.Parallel()
		secret := filepath.Join(t.TempDir(), "film.ts")
		require.NoError(t, os.WriteFile(secret, readSample(t, "plain.ts"), 0o600))
		cut := func(name string, share float64) []byte {
			data := readSample(t, name)
			return data[:int(float64(len(data))*share)]
		}
		holed := append([]byte{}, readSample(t, "faststart.mp4")...)
		for name, data := range map[string][]byte{
			"empty.mp4":       {},
			"zeros.mp4":       make([]byte, 100_000),
			"text.mp4":        []byte(strings.Repeat("not a film\n", 1000)),
			"text.txt":        []byte(strings.Repeat("not a film\n", 1000)), // which ffprobe likes to see as one
			"page.html":       []byte("<!DOCTYPE html><html><body>Please sign in</body></html>"),
			"captions.mp4":    []byte("WEBVTT\n\n00:00.000 --> 00:04.000\nhello\n"),
			"picture.mp4":     readSample(t, "picture.png"),
			"playlist.m3u8":   []byte("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile:" + secret + "\n#EXT-X-ENDLIST\n"),
			"playlist.mp4":    []byte("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n" + secret + "\n#EXT-X-ENDLIST\n"),
			"list.mp4":        []byte("ffconcat version 1.0\nfile " + secret + "\n"),
			"cut.mp4":         cut("plain.mp4", 0.5), // its index was at the end
			"cut-early.mp4":   cut("faststart.mp4", 0.3),
			"cut-half.mp4":    cut("faststart.mp4", 0.5),
			"cut-end.mp4":     holed[:len(holed)-300],
			"cut.mkv":         cut("plain.mkv", 0.3),
			"cut-header.webm": cut("plain.mkv", 0.01),
			"cut.flac":        cut("plain.flac", 0.3),
		} {
			_, err := b.Verify(t.Context(), put(t, name, data), 0)
			require.Error(t, err, name)
			failure := reason.Find(err)
			require.NotNil(t, failure, "%s: %v", name, err)
			require.Equal(t, reason.Damaged, failure.Reason, "%s: %v", name, err)
			require.NotContains(t, failure.Detail, b.Root(), "paths are not for people")
		}
	})

	t.Run("TooShortOrTooLong", func(t *testing.T) {
		t.Parallel()
		staged := put(t, "film.mp4", readSample(t, "plain.mp4"))
		for _, want := range []float64{1.5, 6.5, 3600} {
			_, err := b.Verify(t.Context(), staged, want)
			require.ErrorContains(t, err, "It should last")
			require.Equal(t, reason.Damaged, reason.Find(err).Reason)
		}
		// A cut transport stream is whole as far as it knows: only the wanted duration tells.
		data := readSample(t, "plain.ts")
		staged = put(t, "cut.ts", data[:len(data)/4])
		_, err := b.Verify(t.Context(), staged, 0)
		require.NoError(t, err)
		_, err = b.Verify(t.Context(), staged, 4)
		require.Equal(t, reason.Damaged, reason.Find(err).Reason)
	})

	t.Run("EndsWithItsContext", func(t *testing.T) {
		t.Parallel()
		staged := put(t, "film.mp4", readSample(t, "plain.mp4"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := b.Verify(ctx, staged, 0)
		require.ErrorIs(t, err, context.Canceled)
		require.Nil(t, reason.Find(err))
		file, err := os.Open(staged)
		require.NoError(t, err)
		defer func() { require.NoError(t, file.Close()) }()
		_, err = hashFile(ctx, file)
		require.ErrorIs(t, err, context.Canceled)
	})

	t.Run("NothingElsewhere", func(t *testing.T) {
		t.Parallel()
		outside := filepath.Join(t.TempDir(), "film.mp4")
		require.NoError(t, os.WriteFile(outside, readSample(t, "plain.mp4"), 0o600))
		_, err := b.Verify(t.Context(), outside, 0)
		require.ErrorContains(t, err, "is not in the library")
		staged, _ := b.stage(t, "")
		link := filepath.Join(filepath.Dir(staged), "link.mp4")
		require.NoError(t, os.Symlink(outside, link))
		_, err = b.Verify(t.Context(), link, 0)
		require.ErrorContains(t, err, "is not a regular file")
		_, err = b.Verify(t.Context(), staged+".none", 0)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
}
