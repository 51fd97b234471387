package media

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

// begin stages the generation, with files in it besides those that were there.
func (b *bundle) begin(t *testing.T, generation int, files map[string]string) string {
	t.Helper()
	dir, _, err := b.Stage(t.Context(), b.content, generation)
	require.NoError(t, err)
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	return dir
}

// requireStaged asserts what the content's staging folder holds: folders, and in the generation's own these files.
func (b *bundle) requireStaged(t *testing.T, dir string, files map[string]string, folders ...string) {
	t.Helper()
	require.Equal(t, folders, namesIn(t, filepath.Dir(dir)))
	require.ElementsMatch(t, slices.Collect(maps.Keys(files)), namesIn(t, dir))
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got), name)
	}
}

// namesIn lists a folder, but for the note of who writes there.
func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if e.Name() != bootFile {
			names = append(names, e.Name())
		}
	}
	return names
}

func inode(t *testing.T, name string) uint64 {
	t.Helper()
	info, err := os.Stat(name)
	require.NoError(t, err)
	stat, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	return stat.Ino
}

func TestStage(t *testing.T) {
	t.Parallel()

	t.Run("IsNewEmptyAndPrivate", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		dir, resumed, err := b.Stage(t.Context(), b.content, 3)
		require.NoError(t, err)
		require.False(t, resumed)
		require.Equal(t, filepath.Join(b.Root(), stagingDir, b.content.String(), "3"), dir)
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, os.ModeDir|0o700, info.Mode())
		require.NoError(t, os.WriteFile(filepath.Join(dir, "film.part"), []byte("x"), 0o600))

		again, resumed, err := b.Stage(t.Context(), b.content, 3) // a generation counted twice, as after a restore
		require.NoError(t, err)
		require.False(t, resumed)
		require.Empty(t, namesIn(t, again))
	})

	t.Run("TakesOverWhatWasReleasedAsItIs", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		files := map[string]string{"film.part": "half", "running": "x"}
		first := b.begin(t, 1, files)
		was := inode(t, filepath.Join(first, "film.part"))
		require.NoError(t, b.Release(b.content, 1))
		require.NoError(t, b.Release(b.content, 1), "again, as by a worker that wakes late")
		second, resumed, err := b.Stage(t.Context(), b.content, 2)
		require.NoError(t, err)
		require.True(t, resumed)
		b.requireStaged(t, second, files, "2")
		require.Equal(t, was, inode(t, filepath.Join(second, "film.part")), "nothing was copied")
	})

	// The worker was stopped, or cut off, and goes on as if nothing had happened.
	t.Run("KeepsAZombieAway", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		first := b.begin(t, 9, map[string]string{"film.part": "half", "journal": "1 4\n"})
		require.NoError(t, os.Mkdir(filepath.Join(first, "_unpacked"), 0o700))
		require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(first, "link.part")))
		zombie, err := os.OpenFile(filepath.Join(first, "film.part"), os.O_WRONLY|os.O_APPEND, 0)
		require.NoError(t, err)
		second, resumed, err := b.Stage(t.Context(), b.content, 10)
		require.NoError(t, err)
		require.True(t, resumed)
		_, err = zombie.WriteString(" and into nothing")
		require.NoError(t, err)
		require.NoError(t, zombie.Close())
		require.Error(t, os.WriteFile(filepath.Join(first, "film.part-Frag2"), nil, 0o600))
		b.requireStaged(t, second, map[string]string{"film.part": "half", "journal": "1 4\n"}, "10")

		// When it comes to its end it finds nothing to release or to remove.
		require.NoError(t, b.Release(b.content, 9))
		require.NoError(t, b.Discard(b.content, 9))
		// And if it begins anew it has no business with its successor's.
		_, resumed, err = b.Stage(t.Context(), b.content, 9)
		require.NoError(t, err)
		require.False(t, resumed)
		b.requireStaged(t, second, map[string]string{"film.part": "half", "journal": "1 4\n"}, "10", "9")
	})

	// A worker that died while it took over has left half a copy. What it copied from is whole.
	t.Run("GoesOnFromTheLatestThatIsWhole", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		first := b.begin(t, 1, map[string]string{"film.part": "whole"})
		half := filepath.Join(filepath.Dir(first), "2"+takingSuffix)
		require.NoError(t, os.Mkdir(half, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(half, "film.part"), []byte("wh"), 0o600))
		third, resumed, err := b.Stage(t.Context(), b.content, 3)
		require.NoError(t, err)
		require.True(t, resumed)
		b.requireStaged(t, third, map[string]string{"film.part": "whole"}, "3")

		// Two that were left, as by one that died before it could remove the other.
		require.NoError(t, b.Release(b.content, 3))
		older := filepath.Join(filepath.Dir(first), "2")
		require.NoError(t, os.Mkdir(older, 0o700))
		fourth, resumed, err := b.Stage(t.Context(), b.content, 4)
		require.NoError(t, err)
		require.True(t, resumed)
		b.requireStaged(t, fourth, map[string]string{"film.part": "whole"}, "4")
	})

	t.Run("EndsWithItsContext", func(t *testing.T) {
		t.Parallel()
		b := setup(t, Options{})
		first := b.begin(t, 1, map[string]string{"film.part": "half"})
		b.leaseFunc = func(*os.File) error { return syscall.EINVAL } // it has to be copied
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, resumed, err := b.Stage(ctx, b.content, 2)
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, resumed, "it is there for the next")
		b.requireStaged(t, first, map[string]string{"film.part": "half"}, "1")
	})
}

// While a zombie writes on, a copy is never behind what its journal says.
func TestCopyIsNotOlderThanItsJournal(t *testing.T) {
	t.Parallel()

	b := setup(t, Options{})
	dir := b.begin(t, 1, nil)
	var writing sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(func() {
		stop()
		writing.Wait()
	})
	part, err := os.Create(filepath.Join(dir, "a.part")) // by name it comes before the journal
	require.NoError(t, err)
	journal, err := os.Create(filepath.Join(dir, "journal"))
	require.NoError(t, err)
	begun := make(chan struct{})
	writing.Go(func() {
		for n := 0; ctx.Err() == nil && n < 64<<20/4096; n++ {
			_, _ = part.Write(make([]byte, 4096))
			_, _ = journal.Write([]byte{'x'})
			if n == 100 {
				close(begun)
			}
		}
		_ = part.Close()
		_ = journal.Close()
	})
	<-begun
	rel, err := b.relOf(dir)
	require.NoError(t, err)
	for range 50 {
		to := path.Join(stagingDir, rand.Text())
		require.NoError(t, b.copyDir(t.Context(), rel, to))
		noted, err := os.Stat(filepath.Join(b.Root(), to, "journal"))
		require.NoError(t, err)
		there, err := os.Stat(filepath.Join(b.Root(), to, "a.part"))
		require.NoError(t, err)
		require.GreaterOrEqual(t, there.Size(), 4096*noted.Size())
		require.NoError(t, os.RemoveAll(filepath.Join(b.Root(), to)))
	}
}

func TestDiscard(t *testing.T) {
	t.Parallel()

	b := setup(t, Options{})
	first := b.begin(t, 1, nil)
	content := filepath.Dir(first)
	for _, name := range []string{"2" + releasedSuffix, "3" + takingSuffix, "5"} {
		require.NoError(t, os.Mkdir(filepath.Join(content, name), 0o700))
	}
	require.NoError(t, b.Discard(b.content, 4))
	require.Equal(t, []string{"5"}, namesIn(t, content))
	for range 2 {
		require.NoError(t, b.Discard(b.content, 5))
		require.NoDirExists(t, content)
	}
}

// TestNoSpaceToTakeOver is a process of its own, which mounts a small file system.
func TestNoSpaceToTakeOver(t *testing.T) {
	t.Parallel()
	inNamespace(t, 0, func(t *testing.T) {
		t.Helper()
		root := t.TempDir()
		mountSmall(t, root, "size=4m")
		b := setup(t, Options{Root: root})
		files := map[string]string{"film.part": strings.Repeat("film", 1<<18*5/2)} // 2.5 MiB
		first := b.begin(t, 1, files)
		zombie, err := os.Open(filepath.Join(first, "film.part"))
		require.NoError(t, err)
		diskFull := func(generation int) {
			t.Helper()
			_, resumed, err := b.Stage(t.Context(), b.content, generation)
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.Equal(t, reason.DiskFull, reason.Find(err).Reason)
			require.True(t, resumed)
			b.requireStaged(t, first, files, "1")
		}
		diskFull(2)
		// There is space for the bytes, and not for a file.
		var stat syscall.Statfs_t
		require.NoError(t, syscall.Statfs(root, &stat))
		full := fmt.Sprintf("size=9m,nr_inodes=%d", stat.Files-stat.Ffree)
		require.NoError(t, syscall.Mount("tmpfs", root, "tmpfs", syscall.MS_REMOUNT, full))
		diskFull(3)
		require.NoError(t, syscall.Mount("tmpfs", root, "tmpfs", syscall.MS_REMOUNT, "size=4m,nr_inodes=64"))

		long := time.Now().Add(-2 * uncopiedLimit)
		require.NoError(t, os.Chtimes(first, long, long))
		diskFull(4) // the file is not that old
		require.NoError(t, os.Chtimes(filepath.Join(first, "film.part"), long, long))
		require.NoError(t, os.Chtimes(filepath.Join(first, bootFile), long, long))
		dir, resumed, err := b.Stage(t.Context(), b.content, 5)
		require.NoError(t, err, "it would wait for ever")
		require.False(t, resumed)
		b.requireStaged(t, dir, nil, "5")
		require.NoError(t, zombie.Close())

		// What was released needs no space, nor does what nobody has open.
		files = map[string]string{"film.part": strings.Repeat("film", 3<<18)}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "film.part"), []byte(files["film.part"]), 0o600))
		require.NoError(t, b.Release(b.content, 5))
		for _, generation := range []int{6, 7} {
			dir, resumed, err = b.Stage(t.Context(), b.content, generation)
			require.NoError(t, err)
			require.True(t, resumed)
			b.requireStaged(t, dir, files, strconv.Itoa(generation))
		}
	})
}

func TestSweepRemovesWhatNobodyWants(t *testing.T) {
	t.Parallel()

	b := setup(t, Options{})
	kept := b.begin(t, 1, nil)
	orphan, _, err := b.Stage(t.Context(), uuid.Must(uuid.NewV7()), 7)
	require.NoError(t, err)
	staging := filepath.Join(b.Root(), stagingDir)
	foreign := filepath.Join(staging, "readme.txt")
	fresh, stale := filepath.Join(staging, copyPrefix+"fresh"), filepath.Join(staging, copyPrefix+"stale")
	for _, name := range []string{foreign, fresh, stale, filepath.Join(orphan, "film.part")} {
		require.NoError(t, os.WriteFile(name, nil, 0o600))
	}
	long := time.Now().Add(-2 * abandonedCopy)
	require.NoError(t, os.Chtimes(stale, long, long))
	require.NoError(t, b.SweepStaging(func(id uuid.UUID) bool { return id == b.content }))
	require.DirExists(t, kept)
	require.NoDirExists(t, filepath.Dir(orphan))
	require.FileExists(t, foreign)
	require.FileExists(t, fresh)
	require.NoFileExists(t, stale)
}
