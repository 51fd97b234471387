package media

import (
	"errors"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// renameNoReplace moves a file within the library in one step, and fails with fs.ErrExist where something has the new
// name already.
func (l *Library) renameNoReplace(from, to string) error {
	fromDir, err := l.root.Open(path.Dir(from))
	if err != nil {
		return err
	}
	defer func() { _ = fromDir.Close() }()
	toDir, err := l.root.Open(path.Dir(to))
	if err != nil {
		return err
	}
	defer func() { _ = toDir.Close() }()
	// Both folders are held open as os.Root has found them, and the names are single: nothing can lead outside.
	err = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.Renameat2(int(fromDir.Fd()), path.Base(from), int(toDir.Fd()), path.Base(to), unix.RENAME_NOREPLACE)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return l.renameUnlessThere(from, to) // the file system does not know the flag
	}
	if err != nil {
		return &os.LinkError{Op: "renameat2", Old: from, New: to, Err: err}
	}
	return nil
}
