package media

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// abandonedCopy is the age, since the last byte, at which a copy in the making is taken for left behind.
const abandonedCopy = time.Hour

// Stage makes a new, empty folder for one fetch of a content, on the library's file system, and returns its absolute
// path. Only this user may look into it. What earlier generations have left is removed: who still writes there, cut off
// as it may be, does so into files that nobody will look at.
func (l *Library) Stage(contentID uuid.UUID, generation int) (dir string, err error) {
	base := path.Join(stagingDir, contentID.String())
	if err := l.root.MkdirAll(base, 0o700); err != nil {
		return "", l.explain("make the folder", base, err)
	}
	entries, err := l.readDir(base)
	if err != nil {
		return "", l.explain("list", base, err)
	}
	for _, e := range entries {
		// A later generation is somebody else's, who has superseded this one.
		if n, err := strconv.Atoi(e.Name()); err == nil && n > generation {
			continue
		}
		stale := path.Join(base, e.Name())
		if err := l.root.RemoveAll(stale); err != nil {
			return "", l.explain("remove", stale, err)
		}
	}
	rel := path.Join(base, strconv.Itoa(generation))
	if err := l.root.Mkdir(rel, 0o700); err != nil {
		return "", l.explain("make the folder", rel, err)
	}
	return filepath.Join(l.path, rel), nil
}

// Unstage removes all that fetches of the content have left. Nothing there is no error.
func (l *Library) Unstage(contentID uuid.UUID) error {
	rel := path.Join(stagingDir, contentID.String())
	return l.explain("remove", rel, l.root.RemoveAll(rel))
}

// SweepStaging removes what fetches have left of contents that are not to be kept, and copies that were never finished.
// keep is asked for each content when its turn comes. What has a name that Stage does not give is left alone.
func (l *Library) SweepStaging(keep func(contentID uuid.UUID) bool) error {
	entries, err := l.readDir(stagingDir)
	if err != nil {
		return l.explain("list", stagingDir, err)
	}
	var faults []error
	for _, e := range entries {
		rel := path.Join(stagingDir, e.Name())
		switch contentID, err := uuid.Parse(e.Name()); {
		case err == nil && contentID.String() == e.Name():
			if !keep(contentID) {
				faults = append(faults, l.explain("remove", rel, l.root.RemoveAll(rel)))
			}
		case strings.HasPrefix(e.Name(), copyPrefix), strings.HasPrefix(e.Name(), probeName):
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > abandonedCopy {
				faults = append(faults, l.removeQuietly(rel))
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("sweep the staging folder: %w", err)
	}
	return nil
}

func (l *Library) readDir(rel string) ([]os.DirEntry, error) {
	return fs.ReadDir(l.root.FS(), rel)
}

// stagedFile opens a file below the staging folder, by its absolute path.
func (l *Library) stagedFile(name string) (rel string, file *os.File, err error) {
	if rel, err = l.relOf(name); err != nil {
		// The folder may have been named by another way, over a symbolic link.
		dir, linkErr := filepath.EvalSymlinks(filepath.Dir(name))
		if linkErr != nil {
			return "", nil, errors.Join(err, linkErr)
		}
		if rel, err = l.relOf(filepath.Join(dir, filepath.Base(name))); err != nil {
			return "", nil, err
		}
	}
	if !strings.HasPrefix(rel, stagingDir+"/") {
		return "", nil, fmt.Errorf("%s is not in the staging folder", name)
	}
	file, err = l.openFile(rel)
	return rel, file, err
}

// openFile opens a regular file for reading, and nothing else: no link to one, no device.
func (l *Library) openFile(rel string) (*os.File, error) {
	named, err := l.root.Lstat(rel)
	if err != nil {
		return nil, err
	}
	if !named.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", rel)
	}
	file, err := l.root.Open(rel)
	if err != nil {
		return nil, err
	}
	opened, err := file.Stat()
	if err == nil && !os.SameFile(named, opened) {
		err = fmt.Errorf("%s was replaced while it was opened", rel)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
