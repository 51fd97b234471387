package jobs_test

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

// insideVariable tells the test that it runs in namespaces of its own, where it may mount.
const insideVariable = "MEDIANEST_TEST_INSIDE"

// A volume that fills up while yt-dlp writes to it: the download waits, spends no attempt and leaves nothing, and goes
// on when there is space.
func TestFullDisk(t *testing.T) {
	t.Parallel()

	if os.Getenv(insideVariable) == "" {
		runInside(t)
		return
	}
	root := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", root, "tmpfs", 0, "size=8m"))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(root, syscall.MNT_DETACH)) })
	b := setupAt(t, root)
	d := b.wish(t, b.user(t, "anna"), "/big.mp4?mb=20")
	require.Eventually(t, func() bool { return b.job(t, d.JobID).State == "scheduled" }, patience, 20*time.Millisecond)
	job := b.job(t, d.JobID)
	require.Zero(t, job.Attempt)
	require.Equal(t, []string{"disk_full"}, b.reasons(t, d.JobID))
	// It once showed as queued, as if it were only a matter of workers.
	d = b.waitState(t, d.ID, store.StateWaiting)
	require.Equal(t, store.WaitingOnDisk, d.WaitingOn)
	require.NotNil(t, d.NextTryAt)
	b.requireLibrary(t)
	require.Empty(t, b.processes(t))

	require.NoError(t, syscall.Mount("tmpfs", root, "tmpfs", syscall.MS_REMOUNT, "size=64m"))
	_, err := b.api.RetryJob(t.Context(), *d.JobID, store.Viewer{Admin: true})
	require.NoError(t, err)
	d = b.wait(t, d.ID)
	require.Equal(t, store.StateCompleted, d.State, d.FailureDetail)
	require.EqualValues(t, 20<<20, d.Files[0].SizeBytes)
	b.requireLibrary(t, d.Files[0].Path)
}

// runInside runs the calling test in a process with a mount namespace of its own, for which no rights are needed.
func runInside(t *testing.T) {
	t.Helper()
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	command.Env = append(os.Environ(), insideVariable+"=1")
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := command.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
}
