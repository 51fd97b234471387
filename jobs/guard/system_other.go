//go:build unix && !linux

package guard

import (
	"os"
	"os/exec"
	"syscall"
	"time"
)

// self is this binary.
func self() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// now is a time that is the same for all processes.
func now() time.Duration { return time.Duration(time.Now().UnixNano()) }

// programAttributes leave the program's end with the guard to the worker.
func programAttributes() *syscall.SysProcAttr { return nil }

// await waits for the guard and kills what it left behind. In theory the group's number can be another's by then;
// systems other than Linux are for development here.
func await(guard *exec.Cmd, group *group) error {
	err := guard.Wait()
	group.end()
	return err
}

// dead reports whether all members of a group are dead and not waited for; here it cannot tell.
func dead(int) bool { return false }
