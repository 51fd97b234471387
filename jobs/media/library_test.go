package media

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

func TestOpen(t *testing.T) {
	t.Parallel()

	t.Run("MakesItsFoldersAndLeavesNothingElse", func(t *testing.T) {
		t.Parallel()
		root := filepath.Join(t.TempDir(), "a", "media")
		for range 2 { // again, as after a restart
			b := setup(t, Options{Root: root})
			require.Equal(t, root, b.Root())
			require.Empty(t, b.visible(t))
			for _, dir := range []string{ownDir, stagingDir} {
				info, err := os.Stat(filepath.Join(root, dir))
				require.NoError(t, err)
				require.Equal(t, os.ModeDir|0o700, info.Mode(), "half-written files are nobody else's business")
			}
			entries, err := os.ReadDir(filepath.Join(root, stagingDir))
			require.NoError(t, err)
			require.Empty(t, entries)
			available, err := b.Available()
			require.NoError(t, err)
			require.Positive(t, available)
		}
	})

	t.Run("FollowsALinkToTheRoot", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(dir, "disk"), 0o755))
		require.NoError(t, os.Symlink("disk", filepath.Join(dir, "media")))
		b := setup(t, Options{Root: filepath.Join(dir, "media")})
		require.Equal(t, filepath.Join(dir, "disk"), b.Root())
		staged, sum := b.stage(t, "film")
		for _, name := range []string{strings.Replace(staged, "/disk/", "/media/", 1), staged} {
			rel, err := b.Publish(t.Context(), name, "alice", "film.mp4", sum)
			require.NoError(t, err)
			require.Equal(t, "alice/film.mp4", rel)
		}
	})

	t.Run("SaysWhatIsMissing", func(t *testing.T) {
		t.Parallel()
		_, err := Open(Options{})
		require.ErrorContains(t, err, "no root")
		_, err = Open(Options{Root: t.TempDir(), FFprobe: "/nowhere/ffprobe"})
		require.ErrorContains(t, err, "which comes with ffmpeg")
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		_, err = Open(Options{Root: file})
		require.ErrorContains(t, err, file)
	})
}

// TestPermissions is a process of its own, as an ordinary user: root may write anywhere.
func TestPermissions(t *testing.T) {
	t.Parallel()
	inNamespace(t, 4711, func(t *testing.T) {
		t.Helper()
		dir := t.TempDir()
		require.NoError(t, os.Chmod(dir, 0o555))
		_, err := Open(Options{Root: filepath.Join(dir, "media")})
		require.ErrorContains(t, err, filepath.Join(dir, "media"))
		require.ErrorContains(t, err, "uid 4711")
		_, err = Open(Options{Root: dir})
		require.ErrorContains(t, err, filepath.Join(dir, ".medianest"))
		require.ErrorContains(t, err, "uid 4711")
		require.Equal(t, reason.Internal, reason.Find(err).Reason)
		require.NotContains(t, reason.Find(err).Describe(), dir, "paths are not for people")

		require.NoError(t, os.Chmod(dir, 0o755))
		b := setup(t, Options{Root: dir})
		staged, sum := b.stage(t, "film")
		require.NoError(t, os.Mkdir(filepath.Join(dir, "alice"), 0o555))
		_, err = b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
		require.ErrorContains(t, err, filepath.Join(dir, "alice/film.mp4"))
		require.ErrorContains(t, err, "uid 4711")
		require.Equal(t, reason.Internal, reason.Find(err).Reason)
		require.Equal(t, []string{"alice"}, b.visible(t))
	})
}

// TestModes is a process of its own, because the umask is the whole process's.
func TestModes(t *testing.T) {
	t.Parallel()
	inNamespace(t, 0, func(t *testing.T) {
		t.Helper()
		syscall.Umask(0o077)
		b := setup(t, Options{})
		staged, sum := b.stage(t, "film")
		rel, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
		require.NoError(t, err)
		for rel, want := range map[string]os.FileMode{rel: 0o644, "alice": os.ModeDir | 0o755} {
			info, err := os.Stat(filepath.Join(b.Root(), rel))
			require.NoError(t, err)
			require.Equal(t, want, info.Mode(), "media servers must be able to read %s", rel)
		}
		strict := setup(t, Options{FileMode: 0o640, DirMode: 0o750})
		strict.linkFunc = func(string, string) error { return syscall.EPERM }
		staged, sum = strict.stage(t, "film")
		rel, err = strict.Publish(t.Context(), staged, "alice", "film.mp4", sum)
		require.NoError(t, err)
		copied, err := strict.Link(t.Context(), rel, "bob", "film.mp4", sum)
		require.NoError(t, err)
		for rel, want := range map[string]os.FileMode{rel: 0o640, copied: 0o640, "bob": os.ModeDir | 0o750} {
			info, err := os.Stat(filepath.Join(strict.Root(), rel))
			require.NoError(t, err)
			require.Equal(t, want, info.Mode(), rel)
		}
	})
}

// TestSeveralFileSystems is a process of its own, which may mount some.
func TestSeveralFileSystems(t *testing.T) {
	t.Parallel()
	inNamespace(t, 0, func(t *testing.T) {
		t.Helper()
		for _, dir := range []string{ownDir, stagingDir} {
			root := t.TempDir()
			mountSmall(t, filepath.Join(root, dir), "size=1m")
			_, err := Open(Options{Root: root})
			require.ErrorContains(t, err, "must be on one file system")
			require.ErrorContains(t, err, root)
		}

		// A bind mount of the same file system refuses to move files too, though its device number is the same.
		root, elsewhere := t.TempDir(), t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(root, ownDir), 0o700))
		require.NoError(t, syscall.Mount(elsewhere, filepath.Join(root, ownDir), "", syscall.MS_BIND, ""))
		t.Cleanup(func() { require.NoError(t, syscall.Unmount(filepath.Join(root, ownDir), syscall.MNT_DETACH)) })
		_, err := Open(Options{Root: root})
		require.ErrorContains(t, err, "must be on one file system")

		// So does a user's folder that is mounted later.
		b := setup(t, Options{})
		mountSmall(t, filepath.Join(b.Root(), "alice"), "size=1m")
		staged, sum := b.stage(t, "film")
		_, err = b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
		require.ErrorContains(t, err, "must be on one file system")
		require.Equal(t, []string{"alice"}, b.visible(t))
	})
}

// TestDiskFull is a process of its own, which mounts small file systems and fills them.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	inNamespace(t, 0, func(t *testing.T) {
		t.Helper()
		root := t.TempDir()
		mountSmall(t, root, "size=4m,nr_inodes=64")
		b := setup(t, Options{Root: root})
		staged, sum := b.stage(t, strings.Repeat("film", 1<<18)) // 1 MiB
		rel, err := b.Publish(t.Context(), staged, "alice", "film.mp4", sum)
		require.NoError(t, err)
		require.NoError(t, b.Discard(uuid.MustParse(filepath.Base(filepath.Dir(filepath.Dir(staged)))), 1))

		filler := filepath.Join(root, ownDir, "filler")
		file, err := os.Create(filler)
		require.NoError(t, err)
		for err == nil {
			_, err = file.Write(make([]byte, 64<<10))
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.NoError(t, file.Truncate(3<<20-512<<10)) // half of what a copy needs is left
		require.NoError(t, file.Close())
		available, err := b.Available()
		require.NoError(t, err)
		require.Less(t, available, int64(1<<20))

		diskFull := func(err error) {
			t.Helper()
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.Equal(t, reason.DiskFull, reason.Find(err).Reason)
			require.Equal(t, []string{"alice", "alice/film.mp4"}, b.visible(t), "nothing is left over")
			entries, err := os.ReadDir(filepath.Join(root, stagingDir))
			require.NoError(t, err)
			require.Empty(t, entries)
		}

		// A hard link needs no space, a copy does.
		_, err = b.Link(t.Context(), rel, "bob", "film.mp4", sum)
		require.NoError(t, err)
		require.NoError(t, b.Remove("bob/film.mp4"))
		b.linkFunc = func(string, string) error { return syscall.EPERM }
		_, err = b.Link(t.Context(), rel, "bob", "film.mp4", sum)
		diskFull(err)
		b.linkFunc = b.root.Link

		// Files and folders need inodes.
		for i := 0; err == nil || i == 0; i++ {
			err = os.WriteFile(filepath.Join(root, ownDir, fmt.Sprint("inode", i)), nil, 0o600)
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
		_, err = b.Link(t.Context(), rel, "bob", "film.mp4", sum)
		diskFull(err)
		_, _, err = b.Stage(t.Context(), b.content, 1)
		diskFull(err)
		_, err = Open(Options{Root: root})
		require.Equal(t, reason.DiskFull, reason.Find(err).Reason)
	})
}
