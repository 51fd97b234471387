package media

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

var halfFilm = map[string]string{"film.part": "half", "journal": "1 4\n"}

// work starts a worker's program in a folder, and returns it when it says that it is ready.
func work(t *testing.T, dir, script string) (program *exec.Cmd, input io.WriteCloser) {
	t.Helper()
	program = exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
	program.Dir = dir
	input, err := program.StdinPipe()
	require.NoError(t, err)
	output, err := program.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, program.Start())
	t.Cleanup(func() {
		_ = program.Process.Kill()
		_ = program.Wait()
	})
	line, err := bufio.NewReader(output).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return program, input
}

// succeed stages a generation that goes on with half a film of the one before, and reports whether that was moved.
func (b *bundle) succeed(t *testing.T, from string, generation int) (dir string, moved bool) {
	t.Helper()
	was := inode(t, filepath.Join(from, "film.part"))
	dir, resumed, err := b.Stage(t.Context(), b.content, generation)
	require.NoError(t, err)
	require.True(t, resumed)
	b.requireStaged(t, dir, halfFilm, filepath.Base(dir))
	return dir, inode(t, filepath.Join(dir, "film.part")) == was
}

func TestMovesWhatNobodyHasOpen(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"Writer": "exec 3>>film.part; echo ready; read line",
		"Reader": "exec 3<film.part; echo ready; read line",
		"Other":  "exec 3>>journal; echo ready; read line",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, Options{})
			first := b.begin(t, 1, halfFilm)
			work(t, first, script)
			second, moved := b.succeed(t, first, 2)
			require.False(t, moved, "its worker is alive")

			require.NoError(t, os.Mkdir(filepath.Join(second, "_unpacked"), 0o700))
			program, _ := work(t, second, script)
			require.NoError(t, program.Process.Kill())
			require.Error(t, program.Wait())
			third, moved := b.succeed(t, second, 3)
			require.True(t, moved)
			_, moved = b.succeed(t, third, 4)
			require.True(t, moved, "it is marked as ours")
		})
	}
}

// A worker that has no file open, but works in the folder, does not find its successor's.
func TestMoveLeavesTheFolderBehind(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	first := b.begin(t, 1, halfFilm)
	program, input := work(t, first, "echo ready; read line; echo more >>film.part; echo page >page.dump")
	second, moved := b.succeed(t, first, 2)
	require.True(t, moved)
	require.NoError(t, input.Close())
	require.Error(t, program.Wait())
	b.requireStaged(t, second, halfFilm, "2")
}

func TestCopiesWhatOthersMayHaveOpen(t *testing.T) {
	t.Parallel()
	film := func(dir string) string { return filepath.Join(dir, "film.part") }
	for name, prepare := range map[string]func(t *testing.T, b *bundle, dir string){
		"AnotherBoot": func(t *testing.T, _ *bundle, dir string) {
			t.Helper()
			require.NoError(t, os.WriteFile(filepath.Join(dir, bootFile), []byte("b3c1c1a4-8d0e-4a53-9a0b-6f3b8f3e2a11"), 0o600))
		},
		"UnknownBoot": func(t *testing.T, _ *bundle, dir string) {
			t.Helper()
			require.NoError(t, os.WriteFile(filepath.Join(dir, bootFile), nil, 0o600))
		},
		"NoMark": func(t *testing.T, _ *bundle, dir string) {
			t.Helper()
			require.NoError(t, os.Remove(filepath.Join(dir, bootFile)))
		},
		"NoLeases": func(_ *testing.T, b *bundle, _ string) {
			b.leaseFunc = func(*os.File) error { return syscall.EINVAL }
		},
		"NoLinks": func(_ *testing.T, b *bundle, _ string) {
			b.linkFunc = func(string, string) error { return syscall.EPERM }
		},
		"Published": func(t *testing.T, b *bundle, dir string) {
			t.Helper()
			require.NoError(t, os.Link(film(dir), filepath.Join(b.Root(), "film.mp4")))
		},
		// Somebody opens a file after it was found that nobody has it open. He would wait; this one does not.
		"OpenedMeanwhile": func(t *testing.T, b *bundle, dir string) {
			t.Helper()
			b.linkFunc = func(from, to string) error {
				_, err := os.OpenFile(film(dir), os.O_WRONLY|syscall.O_NONBLOCK, 0)
				require.ErrorIs(t, err, syscall.EWOULDBLOCK)
				return b.root.Link(from, to)
			}
		},
		// Somebody gives a file another name, by which it could be opened later.
		"NamedMeanwhile": func(t *testing.T, b *bundle, dir string) {
			t.Helper()
			b.linkFunc = func(from, to string) error {
				if filepath.Base(from) == "film.part" {
					require.NoError(t, os.Link(film(dir), film(dir)+".old"))
				}
				return b.root.Link(from, to)
			}
		},
		// Somebody puts another file in the place of one.
		"ReplacedMeanwhile": func(t *testing.T, b *bundle, dir string) {
			t.Helper()
			journal := filepath.Join(dir, "journal")
			b.linkFunc = func(from, to string) error {
				if filepath.Base(from) == "journal" {
					require.NoError(t, os.Rename(journal, journal+".old"))
					require.NoError(t, os.WriteFile(journal, []byte("1 4\n"), 0o600))
				}
				return b.root.Link(from, to)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, Options{})
			first := b.begin(t, 1, halfFilm)
			prepare(t, b, first)
			second, moved := b.succeed(t, first, 2)
			require.False(t, moved)
			b.linkFunc, b.leaseFunc = b.root.Link, lease
			_, moved = b.succeed(t, second, 3)
			require.True(t, moved, "the copy is ours alone")
		})
	}
}

// Where other machines may have files open, leases of this one say nothing. The test is a process of its own, which
// mounts such a file system.
func TestCopiesWhereLeasesSayNothing(t *testing.T) {
	t.Parallel()
	inNamespace(t, 0, func(t *testing.T) {
		t.Helper()
		base := filepath.Join(t.TempDir(), "base")
		mountSmall(t, base, "size=4m")
		for _, name := range []string{"lower", "upper", "work", "root"} {
			require.NoError(t, os.Mkdir(filepath.Join(base, name), 0o700))
		}
		root := filepath.Join(base, "root")
		require.NoError(t, syscall.Mount("overlay", root, "overlay", 0,
			"userxattr,lowerdir="+base+"/lower,upperdir="+base+"/upper,workdir="+base+"/work"))
		t.Cleanup(func() { require.NoError(t, syscall.Unmount(root, syscall.MNT_DETACH)) })
		b := setup(t, Options{Root: root})
		first := b.begin(t, 1, halfFilm)
		_, moved := b.succeed(t, first, 2)
		require.False(t, moved)
	})
}

// Whenever a worker dies that moves, one of the two folders is whole.
func TestMoveThatWasBrokenOff(t *testing.T) {
	t.Parallel()
	b := setup(t, Options{})
	first := b.begin(t, 1, halfFilm)
	second := filepath.Join(filepath.Dir(first), "2")
	links := func(to string) {
		t.Helper()
		require.NoError(t, os.Mkdir(to, 0o700))
		for name := range halfFilm {
			require.NoError(t, os.Link(filepath.Join(first, name), filepath.Join(to, name)))
		}
	}
	links(second + takingSuffix)
	third, moved := b.succeed(t, first, 3)
	require.True(t, moved)

	first, second = third, filepath.Join(filepath.Dir(first), "4")
	links(second)
	require.NoError(t, os.WriteFile(filepath.Join(second, bootFile), []byte(bootID()), 0o600))
	require.NoError(t, os.Remove(filepath.Join(first, "journal")))
	_, moved = b.succeed(t, second, 5)
	require.True(t, moved)
}
