package media

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

// withoutHardLinks makes the library one on a file system that has none.
func withoutHardLinks(b *bundle) *bundle {
	b.linkFunc = func(from, to string) error { return &os.LinkError{Op: "link", Old: from, New: to, Err: syscall.EPERM} }
	return b
}

func TestPublish(t *testing.T) {
	t.Parallel()

	t.Run("GivesAStagedFileItsName", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		staged, sum := b.stage(t, "film")
		for range 2 { // again, as where the transaction around it is repeated
			rel, err := b.Publish(t.Context(), staged, "alice", "A film [1].mp4", sum)
			require.NoError(t, err)
			require.Equal(t, "alice/A film [1].mp4", rel)
			require.Equal(t, "film", b.read(t, rel))
			require.Equal(t, []string{"alice", "alice/A film [1].mp4"}, b.visible(t))
			require.FileExists(t, staged)
		}
	})

	t.Run("NeverReplacesAnything", func(t *testing.T) {
		t.Parallel()
		for _, links := range []bool{true, false} {
			b := setup(t, Options{})
			if !links {
				withoutHardLinks(b)
			}
			require.NoError(t, os.MkdirAll(filepath.Join(b.Root(), "alice", "film (3).mp4"), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(b.Root(), "alice", "film.mp4"), []byte("mine"), 0o600))
			require.NoError(t, os.Symlink("nowhere", filepath.Join(b.Root(), "alice", "film (2).mp4")))
			for i, data := range []string{"new1", "new2", "longer"} {
				staged, sum := b.stage(t, data)
				rel, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
				require.NoError(t, err)
				require.Equal(t, fmt.Sprintf("alice/film (%d).mp4", i+4), rel)
				require.Equal(t, data, b.read(t, rel))
			}
			require.Equal(t, "mine", b.read(t, "alice/film.mp4"))
		}
	})

	t.Run("TakesOverWhatWasLeftBeforeTheCommit", func(t *testing.T) {
		t.Parallel()
		for _, links := range []bool{true, false} {
			b := setup(t, Options{})
			if !links {
				withoutHardLinks(b)
			}
			first, sum := b.stage(t, "film")
			rel, err := b.Publish(t.Context(), first, "alice", "film.mp4", sum)
			require.NoError(t, err)
			if !links {
				require.NoFileExists(t, first, "it was moved")
			}
			again, err := b.Publish(t.Context(), first, "alice", "film.mp4", sum)
			require.NoError(t, err)
			require.Equal(t, rel, again)

			later, sum := b.stage(t, "film") // fetched anew after a crash
			again, err = b.Publish(t.Context(), later, "alice", "film.mp4", sum)
			require.NoError(t, err)
			require.Equal(t, rel, again)
			require.Equal(t, []string{"alice", "alice/film.mp4"}, b.visible(t))
		}
	})

	t.Run("LeavesWhatIsOnRecordAsAnothers", func(t *testing.T) {
		t.Parallel()
		away := errors.New("database is away")
		var claimed func(rel string) (bool, error)
		b := setup(t, Options{Claimed: func(_ context.Context, rel string) (bool, error) { return claimed(rel) }})
		claimed = func(rel string) (bool, error) { return rel == "alice/film.mp4", nil }
		first, sum := b.stage(t, "film")
		_, err := b.Publish(t.Context(), first, "alice", "film.mp4", sum)
		require.NoError(t, err)
		second, sum := b.stage(t, "film") // the same bytes from another address
		rel, err := b.Publish(t.Context(), second, "alice", "film.mp4", sum)
		require.NoError(t, err)
		require.Equal(t, "alice/film (2).mp4", rel)
		// What it has placed itself, another address may have taken over since and have on record.
		claimed = func(rel string) (bool, error) { return rel != "alice/film (3).mp4", nil }
		rel, err = b.Publish(t.Context(), second, "alice", "film.mp4", sum)
		require.NoError(t, err)
		require.Equal(t, "alice/film (3).mp4", rel)
		claimed = func(string) (bool, error) { return false, away }
		third, sum := b.stage(t, "film")
		_, err = b.Publish(t.Context(), third, "alice", "film.mp4", sum)
		require.ErrorIs(t, err, away)
	})

	t.Run("OfManyAtOnceLosesNone", func(t *testing.T) {
		t.Parallel()
		for _, links := range []bool{true, false} {
			root := t.TempDir()
			libraries := []*bundle{setup(t, Options{Root: root}), setup(t, Options{Root: root})} // as two workers have it
			var all sync.WaitGroup
			var mu sync.Mutex
			got := map[string]string{}
			for i := range 30 {
				b := libraries[i%2]
				if !links {
					b = withoutHardLinks(&bundle{Library: &Library{root: b.root, path: b.path, ffprobe: b.ffprobe, options: b.options}})
				}
				data := fmt.Sprintf("film %02d", i)
				staged, sum := b.stage(t, data)
				all.Go(func() {
					rel, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
					mu.Lock()
					defer mu.Unlock()
					got[rel] = data
					if err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			require.Len(t, got, 30)
			for rel, data := range got {
				require.Equal(t, data, libraries[0].read(t, rel))
			}
		}
	})

	t.Run("GivesUpOnTooManyNamesakes", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		require.NoError(t, os.Mkdir(filepath.Join(b.Root(), "alice"), 0o755))
		for n := range maxSameName {
			require.NoError(t, os.WriteFile(filepath.Join(b.Root(), "alice", numbered("film.mp4", n+1)), nil, 0o600))
		}
		staged, sum := b.stage(t, "film")
		_, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
		require.ErrorContains(t, err, "has 99 files named")
	})

	t.Run("StaysInTheLibrary", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		outside := t.TempDir()
		staged, sum := b.stage(t, "film")
		for _, user := range []string{"", ".", "..", "../x", "a/b", ".medianest", "Alice", "-x", "a\x00", strings.Repeat("a", 64)} {
			_, err := b.Publish(t.Context(), staged, user, "film.mp4", sum)
			require.ErrorContains(t, err, "cannot be the folder of a user", user)
		}
		for _, name := range []string{"", ".", "..", "../film.mp4", "a/film.mp4", `a\film.mp4`, ".film.mp4", "a\x00", strings.Repeat("a", 256)} {
			_, err := b.Publish(t.Context(), staged, "alice", name, sum)
			require.ErrorContains(t, err, "cannot be the name of a file", name)
		}
		for _, sum := range [][]byte{nil, sum[:31]} {
			_, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
			require.ErrorContains(t, err, "32 bytes")
		}

		secret := filepath.Join(outside, "secret")
		require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
		link := filepath.Join(filepath.Dir(staged), "link.mp4")
		require.NoError(t, os.Symlink(secret, link))
		fifo := filepath.Join(filepath.Dir(staged), "fifo.mp4")
		require.NoError(t, syscall.Mkfifo(fifo, 0o600))
		for _, staged := range []string{link, fifo, filepath.Dir(staged), secret, filepath.Join(staged, "..", "..", "..", "..", "..", "alice"), "film.mp4"} {
			_, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sumOf("secret"))
			require.Error(t, err, staged)
		}
		require.Empty(t, b.visible(t))

		require.NoError(t, os.Symlink(outside, filepath.Join(b.Root(), "alice")))
		_, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
		require.ErrorContains(t, err, "escapes")
		entries, err := os.ReadDir(outside)
		require.NoError(t, err)
		require.Len(t, entries, 1)
	})

	t.Run("OfNothingIsAnError", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		staged, sum := b.stage(t, "film")
		_, err := b.Publish(t.Context(), staged+".none", "alice", "film.mp4", sum)
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.Empty(t, b.visible(t))
	})
}

func TestLink(t *testing.T) {
	t.Parallel()

	// published is a library with one film of alice's.
	published := func(t *testing.T) (*bundle, string, []byte) {
		t.Helper()
		b := setup(t, Options{})
		data := strings.Repeat("film", 100_000)
		staged, sum := b.stage(t, data)
		rel, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
		require.NoError(t, err)
		require.NoError(t, b.Discard(uuid.MustParse(filepath.Base(filepath.Dir(filepath.Dir(staged)))), 1))
		return b, rel, sum
	}
	sameFile := func(t *testing.T, b *bundle, one, two string) bool {
		t.Helper()
		a, err := os.Stat(filepath.Join(b.Root(), one))
		require.NoError(t, err)
		c, err := os.Stat(filepath.Join(b.Root(), two))
		require.NoError(t, err)
		return os.SameFile(a, c)
	}

	t.Run("SharesTheBytes", func(t *testing.T) {
		t.Parallel()
		b, rel, sum := published(t)
		for range 2 {
			linked, err := b.Link(t.Context(), rel, "bob", "film.mp4", sum)
			require.NoError(t, err)
			require.Equal(t, "bob/film.mp4", linked)
			require.True(t, sameFile(t, b, rel, linked))
		}
		require.NoError(t, b.Remove(rel))
		require.Equal(t, strings.Repeat("film", 100_000), b.read(t, "bob/film.mp4"), "one user's delete is not another's")
	})

	t.Run("CopiesWhereItMust", func(t *testing.T) {
		t.Parallel()
		b, rel, sum := published(t)
		withoutHardLinks(b)
		for range 2 {
			linked, err := b.Link(t.Context(), rel, "bob", "film.mp4", sum)
			require.NoError(t, err)
			require.Equal(t, "bob/film.mp4", linked)
			require.False(t, sameFile(t, b, rel, linked))
			require.Equal(t, b.read(t, rel), b.read(t, linked))
		}
		entries, err := os.ReadDir(filepath.Join(b.Root(), stagingDir))
		require.NoError(t, err)
		require.Empty(t, entries)
	})

	t.Run("CopiesNothingDamaged", func(t *testing.T) {
		t.Parallel()
		b, rel, sum := published(t)
		withoutHardLinks(b)
		require.NoError(t, os.WriteFile(filepath.Join(b.Root(), rel), []byte("touched"), 0o600))
		_, err := b.Link(t.Context(), rel, "bob", "film.mp4", sum)
		require.Equal(t, reason.Damaged, reason.Find(err).Reason)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = b.Link(ctx, rel, "bob", "film.mp4", sum)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, []string{"alice", "alice/film.mp4"}, b.visible(t))
		entries, err := os.ReadDir(filepath.Join(b.Root(), stagingDir))
		require.NoError(t, err)
		require.Empty(t, entries)
	})

	t.Run("SaysWhenItIsGone", func(t *testing.T) {
		t.Parallel()
		b, rel, sum := published(t)
		require.NoError(t, b.Remove(rel))
		_, err := b.Link(t.Context(), rel, "bob", "film.mp4", sum)
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.Empty(t, b.visible(t))
	})

	t.Run("StaysInTheLibrary", func(t *testing.T) {
		t.Parallel()
		b, _, sum := published(t)
		for _, existing := range []string{"", ".", "..", "/etc/passwd", "../x/y", "alice", "alice/", "alice/../../x", ".medianest/x", "alice/./film.mp4"} {
			_, err := b.Link(t.Context(), existing, "bob", "film.mp4", sum)
			require.ErrorContains(t, err, "is not the path of a user's file", existing)
		}
		require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(b.Root(), "alice", "link.mp4")))
		_, err := b.Link(t.Context(), "alice/link.mp4", "bob", "film.mp4", sum)
		require.ErrorContains(t, err, "is not a regular file")
	})
}

func TestRemove(t *testing.T) {
	t.Parallel()

	t.Run("PrunesWhatItEmpties", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		for _, rel := range []string{"alice/a.mp4", "alice/b.mp4", "bob/deep/er/c.mp4"} {
			require.NoError(t, os.MkdirAll(filepath.Join(b.Root(), filepath.Dir(rel)), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(b.Root(), rel), nil, 0o600))
		}
		require.NoError(t, b.Remove("bob/deep/er/c.mp4"))
		require.NoError(t, b.Remove("alice/a.mp4"))
		require.Equal(t, []string{"alice", "alice/b.mp4"}, b.visible(t))
		require.NoError(t, b.Remove("alice/a.mp4"))
		require.NoError(t, b.Remove("alice/b.mp4"))
		require.NoError(t, b.Remove("alice/b.mp4"))
		require.Empty(t, b.visible(t))
		require.DirExists(t, b.Root())
	})

	t.Run("NothingElse", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		outside := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(outside, "x"), nil, 0o600))
		require.NoError(t, os.MkdirAll(filepath.Join(b.Root(), "alice", "folder"), 0o755))
		require.NoError(t, os.Symlink(outside, filepath.Join(b.Root(), "bob")))
		for _, rel := range []string{"", ".", "..", "/", "alice", "alice/folder", "alice/../..", ".medianest/staging", "bob/x", "../x/y"} {
			require.Error(t, b.Remove(rel), rel)
		}
		require.FileExists(t, filepath.Join(outside, "x"))
		require.DirExists(t, filepath.Join(b.Root(), stagingDir))
		require.Equal(t, []string{"alice", "alice/folder", "bob"}, b.visible(t))
	})

	t.Run("WhilePublishing", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		var both sync.WaitGroup
		for _, name := range []string{"a.mp4", "b.mp4"} {
			staged, sum := b.stage(t, name)
			both.Go(func() {
				for range 200 { // each takes the folder away from under the other
					rel, err := b.Publish(t.Context(), staged, "alice", name, sum)
					if err == nil {
						err = b.Remove(rel)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		both.Wait()
		require.Empty(t, b.visible(t))
	})
}

// TestNothingHalfWrittenIsEverVisible looks at the library all the while that files come into it in every way.
func TestNothingHalfWrittenIsEverVisible(t *testing.T) {
	t.Parallel()
	data := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	for _, links := range []bool{true, false} {
		b := setup(t, Options{})
		if !links {
			withoutHardLinks(b)
		}
		stop := make(chan struct{})
		var looking sync.WaitGroup
		looks := 0
		looking.Go(func() {
			for {
				for _, name := range globFiles(b.Root()) {
					if info, err := os.Stat(name); err == nil && info.Size() != int64(len(data)) {
						t.Errorf("%s has %d bytes", name, info.Size())
					}
				}
				looks++
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		for i := range 10 {
			staged, sum := b.stage(t, data)
			rel, err := b.Publish(t.Context(), staged, "alice", fmt.Sprintf("film %d.mp4", i), sum)
			require.NoError(t, err)
			_, err = b.Link(t.Context(), rel, "bob", "film.mp4", sum)
			require.NoError(t, err)
		}
		close(stop)
		looking.Wait()
		require.Positive(t, looks)
	}
}

// globFiles lists the files in users' folders, and any in the root.
func globFiles(root string) []string {
	deep, _ := filepath.Glob(filepath.Join(root, "[^.]*", "*"))
	shallow, _ := filepath.Glob(filepath.Join(root, "*.mp4"))
	return slices.Concat(deep, shallow)
}

// TestRenameUnlessThere is what file systems get that cannot rename without replacing in one step.
func TestRenameUnlessThere(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	for i, data := range []string{"one", "two"} {
		staged, _ := b.stage(t, data)
		from, err := b.relOf(staged)
		require.NoError(t, err)
		err = b.renameUnlessThere(from, "film.mp4")
		if i == 0 {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, fs.ErrExist)
		require.ErrorIs(t, b.renameNoReplace(from, "film.mp4"), fs.ErrExist)
		require.FileExists(t, staged)
	}
	require.Equal(t, "one", b.read(t, "film.mp4"))
}
