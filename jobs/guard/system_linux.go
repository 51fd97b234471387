package guard

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// self is this very binary, also when another has taken its place in the file system.
func self() string { return "/proc/self/exe" }

// now is the time since boot, the same for all processes, that goes on while the machine sleeps.
func now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // a clock that Linux has had since 2.6.39
	}
	return time.Duration(t.Nano())
}

// programAttributes have the kernel kill the program when the guard dies.
func programAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// await waits for the guard and kills what it left behind, in the moment between: a leader that has exited but is not
// waited for keeps the group's number from being given to others.
func await(guard *exec.Cmd, group *group) error {
	for {
		err := unix.Waitid(unix.P_PID, guard.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	group.end()
	return guard.Wait()
}

// dead reports whether a group has members and all of them are dead and not waited for.
func dead(id int) bool {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return false
	}
	const state, group, threads = 0, 2, 17 // fields after the name, which may hold anything
	dead := 0
	for _, path := range stats {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // it has gone
		}
		fields := bytes.Fields(content[bytes.LastIndexByte(content, ')')+1:])
		if len(fields) <= threads || string(fields[group]) != strconv.Itoa(id) {
			continue
		}
		// The first thread of a process can be dead while others still run.
		if left, err := strconv.Atoi(string(fields[threads])); string(fields[state]) != "Z" || err != nil || left > 1 {
			return false
		}
		dead++
	}
	return dead > 0
}
