package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"medianest/store/internal/deathwatch"
)

const (
	// leftoverStop is how long a server that was left running may take for its fast shutdown.
	leftoverStop = 20 * time.Second

	leftoverPoll = 10 * time.Millisecond
)

// watchScript shuts the server down when this process has died, and removes a scratch directory. It asks the pid file
// who the postmaster is, since that changes with restarts, and /proc whether that is still it.
const watchScript = `
data=$1 scratch=$2 signal=$3
running() {
	{ read -r pid < "$data/postmaster.pid"; } 2>/dev/null || return 1
	if [ -d /proc/self ]; then
		[ "$(readlink "/proc/$pid/cwd")" = "$data" ]
	else
		kill -0 "$pid" 2>/dev/null
	fi
}
i=0
while running && [ $i -lt 600 ]; do
	case $i in
	0) kill -s "$signal" "$pid" ;;
	400) kill -s QUIT "$pid" ;;
	500) kill -s KILL "$pid" ;;
	esac
	sleep 0.05
	i=$((i+1))
done
if [ -n "$scratch" ]; then
	rm -rf -- "$scratch" || { sleep 1; rm -rf -- "$scratch"; }
fi
`

func (s *Server) watchDeath() (*deathwatch.Watch, error) {
	signal, scratch := "INT", ""
	if s.opts.ScratchDir != "" {
		dir, err := filepath.Abs(s.opts.ScratchDir)
		if err != nil {
			return nil, fmt.Errorf("watch over postgres: %w", err)
		}
		signal, scratch = "QUIT", dir
	}
	w, err := deathwatch.Start(watchScript, s.dataDir, scratch, signal)
	if err != nil {
		return nil, fmt.Errorf("watch over postgres: %w", err)
	}
	return w, nil
}

// endLeftovers ends whatever still runs on the data directory and clears the traces that would keep a new server from
// starting. The caller holds the directory's lock, so what runs there has lost its owner.
//
// A server that lost its owner is stopped and not adopted: its log would go nowhere, its end would be noticed by
// polling only, and its settings may be another version's.
func (s *Server) endLeftovers(ctx context.Context) error {
	left, err := serverProcesses(s.dataDir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		if err := s.endProcesses(ctx, left); err != nil {
			return err
		}
	}
	// Postgres checks the pid files itself, and by shared memory as well, but a number that names another process by
	// now keeps it from starting for ever. Nothing runs on the directory: such a number is stale.
	for _, file := range []string{
		filepath.Join(s.dataDir, "postmaster.pid"),
		filepath.Join(s.socketDir, socketName()+".lock"),
	} {
		if err := s.removeStalePIDFile(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// endProcesses ends the server that pids belong to: in an orderly way if its postmaster lives, else hard.
func (s *Server) endProcesses(ctx context.Context, pids []int) error {
	postmaster, _, _ := readPIDFile(filepath.Join(s.dataDir, "postmaster.pid"))
	if slices.Contains(pids, postmaster) {
		s.log.WarnContext(ctx, "stopping the postgres that a killed process left", "pid", postmaster)
		_ = syscall.Kill(postmaster, syscall.SIGINT)
		if gone, err := s.awaitNone(ctx, leftoverStop); gone || err != nil {
			return err
		}
	} else {
		s.log.WarnContext(ctx, "ending postgres backends without a postmaster", "count", len(pids))
	}
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		left, err := serverProcesses(s.dataDir)
		if err != nil {
			return err
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, sig)
		}
		if gone, err := s.awaitNone(ctx, quitTimeout); gone || err != nil {
			return err
		}
	}
	return fmt.Errorf("end what runs on %s: it survives SIGKILL", s.dataDir)
}

// awaitNone waits until no server process works on the data directory, or for d.
func (s *Server) awaitNone(ctx context.Context, d time.Duration) (gone bool, err error) {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(leftoverPoll)
	defer tick.Stop()
	for {
		left, err := serverProcesses(s.dataDir)
		if err != nil || len(left) == 0 {
			return err == nil, err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return false, nil
		case <-ctx.Done():
			return false, fmt.Errorf("end what runs on %s: %w", s.dataDir, ctx.Err())
		}
	}
}

// removeStalePIDFile removes a pid file of this data directory whose process lives but is not this server.
func (s *Server) removeStalePIDFile(ctx context.Context, file string) error {
	pid, dir, err := readPIDFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pid file: %w", err)
	}
	if dir != s.dataDir || !canScanProcesses || syscall.Kill(pid, 0) != nil {
		return nil
	}
	s.log.WarnContext(ctx, "removing a pid file that names another process", "file", file, "pid", pid)
	if err := os.Remove(file); err != nil {
		return fmt.Errorf("remove stale pid file: %w", err)
	}
	return nil
}

// readPIDFile reads a lock file of Postgres: the process id, then the data directory.
func readPIDFile(file string) (pid int, dataDir string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	var lines []string
	for sc := bufio.NewScanner(f); len(lines) < 2 && sc.Scan(); {
		lines = append(lines, strings.TrimSpace(sc.Text()))
	}
	if len(lines) < 2 {
		return 0, "", nil // cut off while it was written
	}
	// A server in single-user mode writes its id negated.
	pid, err = strconv.Atoi(strings.TrimPrefix(lines[0], "-"))
	if err != nil {
		return 0, "", fmt.Errorf("pid file %s: %w", file, err)
	}
	return pid, lines[1], nil
}
