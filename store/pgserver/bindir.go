package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// minMajor is the oldest Postgres that the migrations are tested on.
const minMajor = 15

// usualPlaces are where distributions put the server's programs, which they keep out of PATH.
var usualPlaces = []string{
	"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
	"/usr/pgsql-*/bin",                  // RHEL, Fedora by the project's own packages
	"/usr/libexec/postgresql*",          // Alpine
	"/usr/local/pgsql/bin",              // built from source
	"/opt/homebrew/opt/postgresql*/bin", // macOS
	"/usr/local/opt/postgresql*/bin",
}

// FindBinDir returns the directory of the Postgres server's programs: preferred if it is not empty, else that of the
// postgres in PATH, else the newest version in the usual places. An error says what to install.
func FindBinDir(preferred string) (string, error) {
	return findBinDir(preferred, 0)
}

// findBinDir is FindBinDir for a major version; 0 is any from minMajor on.
func findBinDir(preferred string, major int) (string, error) {
	if preferred != "" {
		dir, err := filepath.Abs(preferred)
		if err != nil {
			return "", fmt.Errorf("find postgres: %w", err)
		}
		if !hasPrograms(dir) {
			return "", fmt.Errorf("find postgres: %s does not hold postgres and initdb", dir)
		}
		return dir, nil
	}
	type found struct {
		dir   string
		major int
	}
	var all []found
	for _, dir := range candidateDirs() {
		v, err := serverMajor(dir)
		if err == nil && v >= minMajor && (major == 0 || v == major) {
			all = append(all, found{dir, v})
		}
	}
	if len(all) == 0 {
		if major != 0 {
			return "", fmt.Errorf("find postgres: no PostgreSQL %d on this machine: install it (Debian, Ubuntu: apt-get install postgresql-%d)", major, major)
		}
		return "", fmt.Errorf("find postgres: no PostgreSQL %d or newer on this machine: install it (Debian, Ubuntu: apt-get install postgresql), name its directory, or use a server of your own by its URL", minMajor)
	}
	// Stable: of the same version, the one in PATH comes first.
	slices.SortStableFunc(all, func(a, b found) int { return b.major - a.major })
	if inPath := pathDir(); inPath != "" && slices.ContainsFunc(all, func(f found) bool { return f.dir == inPath }) {
		return inPath, nil
	}
	return all[0].dir, nil
}

func candidateDirs() []string {
	var dirs []string
	if dir := pathDir(); dir != "" {
		dirs = append(dirs, dir)
	}
	for _, pattern := range usualPlaces {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			continue // only a malformed pattern is an error, and these are constant
		}
		for _, dir := range matches {
			if hasPrograms(dir) && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// pathDir returns the directory of the postgres in PATH, empty without one that has initdb beside it.
func pathDir() string {
	file, err := exec.LookPath("postgres")
	if err != nil {
		return ""
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		return ""
	}
	if dir := filepath.Dir(file); hasPrograms(dir) {
		return dir
	}
	return ""
}

func hasPrograms(dir string) bool {
	for _, name := range []string{"postgres", "initdb"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.IsDir() {
			return false
		}
	}
	return true
}

// serverMajor asks the server program in dir for its major version.
func serverMajor(dir string) (int, error) {
	command := exec.Command(filepath.Join(dir, "postgres"), "--version")
	command.Env = []string{} // it needs none of ours, which may hold secrets
	out, err := command.Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s/postgres for its version: %w", dir, err)
	}
	return parseVersion(string(out))
}

// parseVersion reads the major version from "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)" and its like
// ("17beta1", "18devel").
func parseVersion(s string) (int, error) {
	_, v, ok := strings.Cut(s, "(PostgreSQL) ")
	if !ok {
		return 0, errors.New("not a version of PostgreSQL: " + strconv.Quote(strings.TrimSpace(s)))
	}
	end := strings.IndexFunc(v, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(v)
	}
	major, err := strconv.Atoi(v[:end])
	if err != nil {
		return 0, errors.New("not a version of PostgreSQL: " + strconv.Quote(strings.TrimSpace(s)))
	}
	return major, nil
}
