package pgserver

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxSocketPath is what fits sockaddr_un.sun_path on Linux with its terminating zero; macOS has 103.
const maxSocketPath = 103

func socketName() string {
	return ".s.PGSQL." + strconv.Itoa(port)
}

// chooseSocketDir decides where the socket goes.
func (s *Server) chooseSocketDir() error {
	if s.opts.SocketDir != "" {
		dir, err := filepath.Abs(s.opts.SocketDir)
		if err != nil {
			return fmt.Errorf("open socket directory: %w", err)
		}
		if !fitsSocket(dir) {
			return fmt.Errorf("open socket directory: %s is too long, or holds a comma, for a socket's path", dir)
		}
		s.socketDir = dir
		return nil
	}
	if fitsSocket(s.dataDir) {
		s.socketDir = s.dataDir
		return nil
	}
	// Named after the data directory, so that what a killed process leaves is used again and not multiplied.
	sum := sha256.Sum256([]byte(s.dataDir))
	dir := filepath.Join(os.TempDir(), "medianest-"+strconv.Itoa(os.Getuid())+"-"+hex.EncodeToString(sum[:6]))
	if !fitsSocket(dir) {
		dir = filepath.Join("/tmp", filepath.Base(dir))
	}
	s.socketDir = dir
	return nil
}

// fitsSocket reports whether a socket in dir can be both opened and named: a client's list of hosts is split at commas.
func fitsSocket(dir string) bool {
	return len(filepath.Join(dir, socketName())) <= maxSocketPath && !strings.Contains(dir, ",")
}

// makeSocketDir makes the directory, or takes an existing one that is nobody else's: in a world-writable directory
// another user may have come first, to listen for our clients.
func (s *Server) makeSocketDir() error {
	dir := s.socketDir
	if dir == s.dataDir {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(dir), 0o700)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make socket directory: %w", err)
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("make socket directory: %w", err)
	}
	if !fi.IsDir() || !s.ident.trusts(fi) {
		return fmt.Errorf("make socket directory: %s belongs to another user", dir)
	}
	err = os.Chmod(dir, 0o700) // #nosec G302 -- a folder is entered by its owner
	if err != nil {
		return fmt.Errorf("make socket directory: %w", err)
	}
	return s.ident.own(dir)
}

// removeSocketDir removes a socket directory under the temporary one, which nothing else is kept in.
func (s *Server) removeSocketDir() {
	if s.socketDir != "" && s.socketDir != s.dataDir && s.opts.SocketDir == "" {
		_ = os.Remove(s.socketDir) // not empty: a server that could not be ended still listens there
	}
}
