package ytdlp

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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

// groupDead reports whether a group has members and all of them are dead and not waited for.
func groupDead(id int) bool {
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
