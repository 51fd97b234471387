package deathwatch_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"medianest/store/internal/deathwatch"
)

// dieCommand makes the test binary a process that starts a watch, which makes the file named next, and dies.
const dieCommand = "deathwatch-die"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == dieCommand {
		if _, err := deathwatch.Start(`: > "$1"`, os.Args[2]); err != nil {
			os.Exit(1)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	goleak.VerifyTestMain(m)
}

func TestScriptRunsWhenItsStarterIsKilled(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "a file")
	exe, err := os.Executable()
	require.NoError(t, err)
	require.ErrorContains(t, exec.Command(exe, dieCommand, file).Run(), "killed")
	require.Eventually(t, func() bool {
		_, err := os.Stat(file)
		return err == nil
	}, 10*time.Second, 5*time.Millisecond)
}

func TestCanceledScriptDoesNotRun(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	w, err := deathwatch.Start(`: > "$1"`, file)
	require.NoError(t, err)
	require.NoError(t, w.Cancel())
	require.NoFileExists(t, file)
}
