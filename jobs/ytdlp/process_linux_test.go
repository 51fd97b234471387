package ytdlp

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Where nobody waits for orphans, a group that was killed once looked alive for ever.
func TestGroupOfTheDeadIsGone(t *testing.T) {
	t.Parallel()
	// The leader ends at once, the child when its input does.
	leader := exec.CommandContext(t.Context(), "/bin/sh", "-c", "cat >/dev/null <&3 & exit")
	leader.SysProcAttr = processAttributes()
	leader.SysProcAttr.Pdeathsig = 0 // the thread that starts it is not held here
	in, out, err := os.Pipe()
	require.NoError(t, err)
	leader.ExtraFiles = []*os.File{in}
	require.NoError(t, leader.Start())
	pid := leader.Process.Pid
	t.Cleanup(func() {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		_ = leader.Wait()
	})
	require.NoError(t, in.Close())
	require.NoError(t, unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
	require.False(t, groupGone(pid, 100*time.Millisecond), "a child is alive")
	require.NoError(t, out.Close())
	require.True(t, groupGone(pid, 10*time.Second), "the leader is dead, and nobody else is there")
	require.NoError(t, syscall.Kill(-pid, 0), "the group was to be there still")
}
