package ytdlp

import (
	"errors"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// processAttributes make a child the leader of a new group, and have the kernel kill it when we die. That reaches the
// leader alone; an ffmpeg under it ends by itself when its input or output does.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// await waits for the leader and kills what it left behind, in the moment between: a leader that has exited but is not
// waited for keeps the group's number from being given to others.
func await(leader *exec.Cmd, group *processGroup) error {
	for {
		err := unix.Waitid(unix.P_PID, leader.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	group.end()
	return leader.Wait()
}
