package media

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// samplesDir holds what samples makes, once for all tests.
var samplesDir string

func TestMain(m *testing.M) {
	var err error
	if samplesDir, err = os.MkdirTemp("", "medianest-media-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(samplesDir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// samples makes four seconds of picture and tone in many containers, and returns their folder.
var samples = sync.OnceValues(func() (string, error) {
	command := exec.Command("ffmpeg", strings.Fields(`-v error -y
		-f lavfi -i testsrc2=size=96x64:rate=10:duration=4 -f lavfi -i sine=duration=4
		-map 0 -map 1 -c:v mpeg4 -c:a aac plain.mp4
		-map 0 -map 1 -c:v mpeg4 -c:a aac -movflags +faststart faststart.mp4
		-map 0 -map 1 -c:v mpeg4 -c:a aac -movflags +frag_keyframe+empty_moov fragmented.mp4
		-map 0 -map 1 -c:v mpeg4 -c:a aac plain.mkv
		-map 0 -map 1 -c:v mpeg4 -c:a aac -live 1 -f matroska live.mkv
		-map 0 -map 1 -c:v mpeg2video -c:a mp2 plain.ts
		-map 0 -map 1 -c:v mpeg4 -c:a aac plain.avi
		-map 0 -map 1 -c:v flv -c:a aac plain.flv
		-map 0:v -c:v mpeg4 silent.mp4
		-map 1 -c:a aac plain.m4a
		-map 1 -c:a aac plain.aac
		-map 1 -c:a mp2 plain.mp2
		-map 1 -c:a flac plain.flac
		-map 1 -c:a flac plain.ogg
		-map 1 plain.wav
		-map 0 -frames:v 1 picture.png`)...)
	command.Dir = samplesDir
	out, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make samples by ffmpeg, which must be installed: %w: %s", err, out)
	}
	return samplesDir, nil
})

func readSample(t testing.TB, name string) []byte {
	t.Helper()
	dir, err := samples()
	require.NoError(t, err)
	data, err := os.ReadFile(filepath.Join(dir, name))
	require.NoError(t, err)
	return data
}

// bundle is a library with what tests need to know of it.
type bundle struct {
	*Library
	content uuid.UUID
}

// setup opens a library in a folder of its own, or in options.Root.
func setup(t testing.TB, options Options) *bundle {
	t.Helper()
	if options.Root == "" {
		options.Root = t.TempDir()
	}
	library, err := Open(options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, library.Close()) })
	return &bundle{Library: library, content: uuid.Must(uuid.NewV7())}
}

// stage writes a file into a staging folder of its own, and returns its path and sum.
func (b *bundle) stage(t testing.TB, data string) (string, []byte) {
	t.Helper()
	dir, _, err := b.Stage(t.Context(), uuid.Must(uuid.NewV7()), 1)
	require.NoError(t, err)
	name := filepath.Join(dir, "film.mp4")
	require.NoError(t, os.WriteFile(name, []byte(data), 0o600))
	return name, sumOf(data)
}

func sumOf(data string) []byte {
	sum := sha256.Sum256([]byte(data))
	return sum[:]
}

// visible lists the files and folders of the library that people see, sorted.
func (b *bundle) visible(t testing.TB) []string {
	t.Helper()
	var found []string
	require.NoError(t, filepath.WalkDir(b.Root(), func(name string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(b.Root(), name)
		if err != nil || rel == "." {
			return err
		}
		if rel == ownDir {
			return filepath.SkipDir
		}
		found = append(found, filepath.ToSlash(rel))
		return nil
	}))
	return found
}

func (b *bundle) read(t testing.TB, rel string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.Root(), rel))
	require.NoError(t, err)
	return string(data)
}

// inNamespace runs the test that calls it once more, as a process in namespaces of its own, where it is uid and may
// mount file systems if that is 0; the body runs there. The user of this process is who it is outside.
func inNamespace(t *testing.T, uid int, body func(t *testing.T)) {
	t.Helper()
	const variable = "MEDIANEST_MEDIA_TEST"
	if os.Getenv(variable) == t.Name() {
		body(t)
		return
	}
	command := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v")
	command.Env = append(os.Environ(), variable+"="+t.Name())
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}},
	}
	out, err := command.CombinedOutput()
	require.NoError(t, err, "user namespaces must be allowed here: %s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name(), "it must have run there")
}

// mountSmall mounts a file system in memory on a folder that is made.
func mountSmall(t testing.TB, dir, options string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
}
