// Package deathwatch runs a shell script when this process dies, however it dies.
//
// The script waits in a process of its own for the end of a pipe that only this process holds open. The kernel closes
// the pipe with the process, so kill -9, a panic and an orderly exit that forgot to clean up are all seen, at once.
// PR_SET_PDEATHSIG is no substitute: it fires when the thread that started the child ends, which the Go runtime may do
// at any time, it reaches one process and not its children, and it cannot do more than send a signal.
package deathwatch

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// Watch is a script waiting for this process to die.
type Watch struct {
	cmd  *exec.Cmd
	pipe *os.File
}

// Start makes script run when this process dies, as sh -c with args as $1, $2 and so on. The script runs in a session
// of its own, so that signals to this process's group do not reach it. It inherits no environment but a PATH.
func Start(script string, args ...string) (*Watch, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start death watch: %w", err)
	}
	defer r.Close()

	// A line on the pipe is Cancel; its end without one is our death. Whoever signals all processes of a service at once
	// must not disarm the watch.
	const wait = "trap '' HUP INT TERM\nread -r cancelled && exit 0\n"
	cmd := exec.Command("/bin/sh", append([]string{"-c", wait + script, "deathwatch"}, args...)...)
	cmd.Stdin = r
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start death watch: %w", err)
	}
	return &Watch{cmd: cmd, pipe: w}, nil
}

// Cancel ends the watch without running the script, and waits for that. It must be called once.
func (w *Watch) Cancel() error {
	_, writeErr := w.pipe.WriteString("cancelled\n")
	if writeErr != nil {
		// The watch has been killed; the pipe's end must not wake a script that lives on.
		_ = w.cmd.Process.Kill()
	}
	closeErr := w.pipe.Close()
	if err := w.cmd.Wait(); err != nil && writeErr == nil {
		return fmt.Errorf("cancel death watch: %w", err)
	}
	if closeErr != nil {
		return fmt.Errorf("cancel death watch: %w", closeErr)
	}
	return nil
}
