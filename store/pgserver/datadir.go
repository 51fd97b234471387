package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// openDataDir creates the parents of the data directory, takes the lock beside it and resolves its path.
func (s *Server) openDataDir() error {
	dir, err := filepath.Abs(s.opts.DataDir)
	if err != nil {
		return fmt.Errorf("open data directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("open data directory: %w", err)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("open data directory: %w", err)
	}
	s.dataDir = filepath.Join(parent, filepath.Base(dir))
	if resolved, err := filepath.EvalSymlinks(s.dataDir); err == nil {
		s.dataDir = resolved
	}
	return s.takeLock()
}

// takeLock makes this process the only one that runs a server on the data directory. The kernel drops the lock with the
// process, and children do not inherit it, so whoever gets it may end a server that still runs there: it is nobody's.
func (s *Server) takeLock() error {
	f, err := os.OpenFile(s.dataDir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock data directory: %s is in use by process %s", s.dataDir, bytes.TrimSpace(holder))
		}
		return fmt.Errorf("lock data directory %s: %w", s.dataDir, err)
	}
	s.lock = f
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	return nil
}

// findBinDir finds programs that fit the data directory: a cluster is readable by its own major version only.
func (s *Server) findBinDir() (string, error) {
	clusterMajor, err := s.clusterVersion()
	if err != nil {
		return "", err
	}
	if clusterMajor != 0 && clusterMajor < minMajor {
		return "", fmt.Errorf("data directory %s was made by PostgreSQL %d, which is too old: move its data to version %d or newer with pg_dumpall or pg_upgrade",
			s.dataDir, clusterMajor, minMajor)
	}
	if s.opts.BinDir == "" {
		dir, err := findBinDir("", clusterMajor)
		if err != nil && clusterMajor != 0 {
			return "", fmt.Errorf("data directory %s was made by PostgreSQL %d: %w, or move its data to another version with pg_dumpall or pg_upgrade", s.dataDir, clusterMajor, err)
		}
		return dir, err
	}
	dir, err := findBinDir(s.opts.BinDir, 0)
	if err != nil {
		return "", err
	}
	major, err := serverMajor(dir)
	if err != nil {
		return "", err
	}
	if major < minMajor {
		return "", fmt.Errorf("%s is PostgreSQL %d: %d or newer is needed", dir, major, minMajor)
	}
	if clusterMajor != 0 && clusterMajor != major {
		return "", fmt.Errorf("data directory %s was made by PostgreSQL %d, but %s is PostgreSQL %d: install version %d, or move the data with pg_dumpall or pg_upgrade",
			s.dataDir, clusterMajor, dir, major, clusterMajor)
	}
	return dir, nil
}

// clusterVersion returns the major version that made the cluster in the data directory, 0 if there is none yet.
func (s *Server) clusterVersion() (int, error) {
	b, err := os.ReadFile(filepath.Join(s.dataDir, "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(s.dataDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("read data directory: %w", err)
		}
		if len(entries) > 0 {
			return 0, fmt.Errorf("data directory %s is neither empty nor a Postgres cluster", s.dataDir)
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read version of data directory: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read version of data directory %s: %w", s.dataDir, err)
	}
	return major, nil
}

// initCluster makes a cluster if there is none. It is made beside the data directory and renamed into place, so that
// one whose making was cut off is never taken for a whole one.
func (s *Server) initCluster(ctx context.Context) error {
	if err := s.ident.makeReachable(filepath.Dir(s.dataDir), s.log); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(s.dataDir, "PG_VERSION")); err == nil {
		return s.ident.own(s.dataDir)
	}
	unfinished := s.dataDir + ".init"
	if err := os.RemoveAll(unfinished); err != nil {
		return fmt.Errorf("remove unfinished cluster: %w", err)
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return fmt.Errorf("make cluster: %w", err)
	}
	if err := s.ident.own(unfinished); err != nil {
		return err
	}
	if err := s.runInitdb(ctx, unfinished); err != nil {
		_ = os.RemoveAll(unfinished)
		return err
	}
	if err := s.moveIntoPlace(unfinished); err != nil {
		_ = os.RemoveAll(unfinished)
		return err
	}
	s.log.InfoContext(ctx, "postgres cluster made", "data_dir", s.dataDir)
	return nil
}

// moveIntoPlace replaces the data directory, which is missing or empty.
func (s *Server) moveIntoPlace(cluster string) error {
	err := os.Remove(s.dataDir)
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("make cluster: %s is a mount point: use a directory below it", s.dataDir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make cluster: %w", err)
	}
	if err := os.Rename(cluster, s.dataDir); err != nil {
		return fmt.Errorf("move cluster into place: %w", err)
	}
	return nil
}

func (s *Server) runInitdb(ctx context.Context, dir string) error {
	args := []string{
		"--pgdata=" + dir, "--username=" + superuser, "--encoding=UTF8", "--locale=C", "--auth=trust",
		"--data-checksums", "--no-instructions",
	}
	if s.opts.NoSync {
		args = append(args, "--no-sync", "--wal-segsize=4")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.binDir, "initdb"), args...)
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.SysProcAttr = s.ident.attr()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it removes what it made
	cmd.WaitDelay = quitTimeout
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb in %s: %w: %s", dir, err, lastLines(out, 3))
	}
	return nil
}

// environment is all that the server's programs get: PG* variables of ours must not steer them.
func environment() []string {
	return []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
}

// lastLines returns the last n lines that are not empty, on one line.
func lastLines(b []byte, n int) string {
	var lines []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
