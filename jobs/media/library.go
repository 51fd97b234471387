package media

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"medianest/jobs/reason"
)

const (
	ownDir     = ".medianest"        // hidden from media servers
	stagingDir = ownDir + "/staging" // <content>/<generation>/, see Stage
	copyPrefix = ".copy-"            // of copies in the making, in stagingDir
	probeName  = ownDir + "-probe-"  // of what Open tries out, in the root
)

// Options is where a library is and what it needs. Root is required.
type Options struct {
	// Root is the folder of the library; it is made where it is missing.
	Root string
	// FFprobe is the program that looks into files. Default: ffprobe, found in PATH.
	FFprobe string
	// FileMode is given to files as they are published. Default: 0644, so that media servers can read them.
	FileMode os.FileMode
	// DirMode is given to users' folders when they are made. Default: 0755.
	DirMode os.FileMode
	// Claimed tells whether a path, relative to the root, is on record as somebody's file already. It is asked before a
	// file that is there, with the very bytes to be published, is taken for what an interrupted publication has left.
	// Default: it never is.
	Claimed func(ctx context.Context, rel string) (bool, error)
	// Logger gets what is put right on the way (warn). Default: none.
	Logger *slog.Logger
}

// Library is an open library. It is safe for concurrent use, also by several processes.
type Library struct {
	root    *os.Root
	path    string // absolute, without symbolic links
	volume  string
	ffprobe string
	options Options

	linkFunc  func(from, to string) error // root.Link
	leaseFunc func(file *os.File) error   // lease
}

// Open makes the library's folders where they are missing, and tries out whether files can be published in it. Where
// they cannot, the error names the path, the user id of this process and what to do.
func Open(options Options) (*Library, error) {
	if options.Root == "" {
		return nil, errors.New("open library: no root is set")
	}
	options.FileMode = cmp.Or(options.FileMode, 0o644)
	options.DirMode = cmp.Or(options.DirMode, 0o755)
	if options.Claimed == nil {
		options.Claimed = func(context.Context, string) (bool, error) { return false, nil }
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	ffprobe, err := exec.LookPath(cmp.Or(options.FFprobe, "ffprobe"))
	if err != nil {
		return nil, fmt.Errorf("open library: find ffprobe, which comes with ffmpeg: %w", err)
	}
	if ffprobe, err = filepath.Abs(ffprobe); err != nil {
		return nil, fmt.Errorf("open library: %w", err)
	}
	l := &Library{ffprobe: ffprobe, options: options, path: options.Root}
	if err := os.MkdirAll(options.Root, options.DirMode); err != nil {
		return nil, fmt.Errorf("open library: %w", l.explain("make the folder", "", err))
	}
	if l.path, err = filepath.Abs(options.Root); err != nil {
		return nil, fmt.Errorf("open library: %w", err)
	}
	if l.path, err = filepath.EvalSymlinks(l.path); err != nil {
		return nil, fmt.Errorf("open library: %w", err)
	}
	if l.root, err = os.OpenRoot(l.path); err != nil {
		return nil, fmt.Errorf("open library: %w", l.explain("open", "", err))
	}
	l.linkFunc, l.leaseFunc = l.root.Link, lease
	if err := l.tryOut(); err != nil {
		return nil, errors.Join(fmt.Errorf("open library: %w", err), l.root.Close())
	}
	if l.volume, err = l.findVolume(); err != nil {
		return nil, errors.Join(fmt.Errorf("open library: %w", err), l.root.Close())
	}
	return l, nil
}

// Close gives the library's folder back. Nothing may be called afterwards.
func (l *Library) Close() error { return l.root.Close() }

// Root is the library's folder: absolute, without symbolic links.
func (l *Library) Root() string { return l.path }

// tryOut publishes an empty file, under a hidden name, and removes it.
func (l *Library) tryOut() error {
	for _, dir := range []string{ownDir, stagingDir} {
		if err := l.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return l.explain("make the folder", dir, err)
		}
	}
	name := probeName + rand.Text()
	staged := path.Join(stagingDir, name)
	if err := l.root.WriteFile(staged, nil, 0o600); err != nil {
		return l.explain("write in", stagingDir, err)
	}
	err := l.renameNoReplace(staged, name)
	return errors.Join(l.explain("move a file from "+stagingDir+" to", "", err), l.removeQuietly(staged), l.removeQuietly(name))
}

// removeQuietly removes a file of ours that may be there.
func (l *Library) removeQuietly(rel string) error {
	if err := l.root.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return l.explain("remove", rel, err)
	}
	return nil
}

// Available is how many bytes this process may still write in the library.
func (l *Library) Available() (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(l.path, &stat); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", l.path, err)
	}
	return int64(stat.Bavail) * int64(stat.Bsize), nil //nolint:gosec,unconvert // far below 2^63; the types differ between systems
}

// relOf turns a path as Stage returns it, or below, into one relative to the root.
func (l *Library) relOf(name string) (string, error) {
	rel, err := filepath.Rel(l.path, name)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("%s is not in the library %s", name, l.path)
	}
	return filepath.ToSlash(rel), nil
}

// userNames is how users are named, see the table users. No such name is hidden, or leads elsewhere.
var userNames = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// destination is the path of a file in a user's folder.
func destination(userName, fileName string) (string, error) {
	if !userNames.MatchString(userName) {
		return "", fmt.Errorf("%q cannot be the folder of a user", userName)
	}
	if fileName == "" || strings.ContainsAny(fileName, "/\\\x00") || fileName[0] == '.' || len(fileName) > maxNameBytes {
		return "", fmt.Errorf("%q cannot be the name of a file", fileName)
	}
	return path.Join(userName, fileName), nil
}

// explain says what an error of the file system means for people and for the queue. nil stays nil.
func (l *Library) explain(doing, rel string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s %s: %w", doing, filepath.Join(l.path, rel), err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &reason.Error{Reason: reason.DiskFull, Err: err}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return &reason.Error{
			Reason: reason.Internal, Detail: "The media folder cannot be written; an administrator must look at its permissions.",
			Err: fmt.Errorf("uid %d, gid %d must be able to write there: %w", os.Geteuid(), os.Getegid(), err),
		}
	case errors.Is(err, syscall.EXDEV):
		return &reason.Error{
			Reason: reason.Internal, Detail: "The media folder is spread over several file systems; an administrator must correct that.",
			Err: fmt.Errorf("%s, the users' folders and %s must be on one file system, so that whole files can be moved there in one step: %w",
				filepath.Join(l.path, ownDir), l.path, err),
		}
	}
	return err
}
