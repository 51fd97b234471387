package media

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
)

// checkRel refuses paths that no file of a user can have.
func checkRel(rel string) error {
	if !fs.ValidPath(rel) || rel == "." || rel[0] == '.' || path.Dir(rel) == "." {
		return fmt.Errorf("%q is not the path of a user's file", rel)
	}
	return nil
}

// Remove removes a file of a user, by its path relative to the root, and the folders that this leaves empty, but never
// the root. A file that is gone is no error.
func (l *Library) Remove(rel string) error {
	if err := checkRel(rel); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	info, err := l.root.Lstat(rel)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove: %w", l.explain("look at", rel, err))
	case info.IsDir():
		return fmt.Errorf("remove: %s is a folder", rel)
	}
	if err := l.removeQuietly(rel); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	for dir := path.Dir(rel); dir != "."; dir = path.Dir(dir) {
		if err := l.syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove: %w", l.explain("write", dir, err))
		}
		if err := l.removeEmpty(dir); err != nil {
			break // not empty, or somebody put a file there at this moment
		}
	}
	return nil
}

// removeEmpty removes a folder, which the system does only where it is empty, and nothing else.
func (l *Library) removeEmpty(dir string) error {
	info, err := l.root.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	return l.root.Remove(dir)
}
