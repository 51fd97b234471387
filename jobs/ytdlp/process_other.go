//go:build unix && !linux

package ytdlp

import (
	"os/exec"
	"syscall"
)

// processAttributes make a child the leader of a new group.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// await waits for the leader and kills what it left behind. In theory the group's number can be another's by then;
// systems other than Linux are for development here.
func await(leader *exec.Cmd, group *processGroup) error {
	err := leader.Wait()
	group.end()
	return err
}

// groupDead reports whether all members of a group are dead and not waited for; here it cannot tell.
func groupDead(int) bool { return false }
