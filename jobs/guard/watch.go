package guard

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// beatSize is the size of a beat on the pipe: small enough to be written as a whole or not at all.
const beatSize = 8

// requests are the signals that ask processes to end. Nobody here sends one of them but Run, when its context ends.
var requests = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

// signalPatience is how long a guard whose program did not end well waits for the signal that may have ended the
// program and be on its way to the guard: who signals all processes of a service does so one by one.
const signalPatience = 100 * time.Millisecond

// send writes a beat without waiting: a pipe that is full of beats belongs to a guard that is stopped itself.
func send(pipe *os.File, at time.Duration) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return // closed: its program has ended
	}
	var beat [beatSize]byte
	binary.LittleEndian.PutUint64(beat[:], uint64(at)) //nolint:gosec // a time since boot
	_ = raw.Write(func(fd uintptr) bool {
		_, _ = syscall.Write(int(fd), beat[:])
		return true
	})
}

// watch is the guard. It ends with its group, by the group's SIGKILL.
func watch(args []string) {
	if len(args) < 3 || syscall.Getpgrp() != os.Getpid() {
		_, _ = fmt.Fprintln(os.Stderr, name+" is started by medianest only")
		os.Exit(2)
	}
	// Interrupts are for the program, which gets them as a member of the group; a service manager's end for all of a
	// service's processes is the worker's business. They are caught, not ignored: the program would inherit that, and the
	// worker is told.
	signalled := make(chan os.Signal, 1)
	signal.Notify(signalled, requests...)
	// The program's parent-death signal is tied to the thread that starts it.
	runtime.LockOSThread()
	syscall.CloseOnExec(beatsFD)
	syscall.CloseOnExec(statusFD)
	beats, says := os.NewFile(beatsFD, "beats"), os.NewFile(statusFD, "status")

	var once sync.Once
	// end says how it ended, if anybody listens, and kills the group. The first reason counts.
	end := func(s status) {
		once.Do(func() {
			text, _ := json.Marshal(s) // a struct of plain fields
			_, _ = says.Write(text)
			_ = syscall.Kill(0, syscall.SIGKILL)
		})
		select {} // killed, too
	}
	lifetime, err := time.ParseDuration(args[0])
	if err != nil {
		end(status{Fault: fmt.Sprintf("the guard's lifetime: %v", err)})
	}
	first, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		end(status{Fault: fmt.Sprintf("the guard's first beat: %v", err)})
	}
	var last atomic.Int64
	last.Store(first)
	go func() {
		var beat [beatSize]byte
		for {
			if _, err := io.ReadFull(beats, beat[:]); err != nil {
				end(status{Fault: "the worker has gone"})
			}
			last.Store(int64(binary.LittleEndian.Uint64(beat[:]))) //nolint:gosec // as it was sent
		}
	}()
	if lifetime > 0 {
		go func() {
			// In short steps by the clock that also counts while the machine sleeps: a timer does not.
			ticker := time.NewTicker(min(max(lifetime/40, time.Millisecond), 500*time.Millisecond))
			for {
				if now()-time.Duration(last.Load()) >= lifetime {
					end(status{Missed: true})
				}
				<-ticker.C
			}
		}()
	}
	program, err := os.StartProcess(args[2], args[2:], &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: programAttributes(),
	})
	if err != nil {
		end(status{Fault: err.Error()})
	}
	state, err := program.Wait()
	if err != nil {
		end(status{Fault: err.Error()})
	}
	ended := status{Code: state.ExitCode()}
	if wait, ok := state.Sys().(syscall.WaitStatus); ok && wait.Signaled() {
		ended.Signal = int(wait.Signal())
	}
	if !state.Success() {
		select {
		case <-signalled:
			ended.Signalled = true
		case <-time.After(signalPatience):
		}
	}
	end(ended)
}
