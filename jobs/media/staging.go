package media

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"medianest/jobs/reason"
)

const (
	// abandonedCopy is the age, since the last byte, at which a copy in the making is taken for left behind.
	abandonedCopy = time.Hour
	// uncopiedLimit is the age, since the last byte, at which what there is no space to copy is given up. Until then its
	// last user may end, or somebody make space.
	uncopiedLimit = 24 * time.Hour
)

// Names in a content's staging folder: the generation, with a suffix that says what the folder is.
const (
	releasedSuffix = ".released" // nobody writes to it any more: who comes next may have it as it is
	takingSuffix   = ".taking"   // a copy in the making, of what an earlier generation has left
)

// grownSuffix is of files that grow while they are fetched. What is known of them is kept in files beside.
const grownSuffix = ".part"

// copyChunk is how much is copied between two looks at the context. Where file systems share blocks, or copy by
// themselves, this is how much they are asked for at a time.
const copyChunk = 64 << 20

// Stage gives one fetch of a content a folder of its own, on the library's file system, and returns its absolute
// path. Only this user may look into it. Files that an earlier generation has left are in it: resumed tells whether
// there was one, also with an error; it is there for the next try then. Earlier generations' folders are gone
// afterwards; those of later ones, who have superseded this one, are left alone.
//
// A folder that was released is taken as it is. Of any other the worker may only seem to be dead. Where it was one of
// this machine, and nobody has the files open, they are moved. Else they are copied: what that worker still writes
// goes into files that nobody will look at. Files that grow are copied after all others, so that none is older than
// what is written about it elsewhere.
//
// Errors are *reason.Error with DiskFull where there is no space for the copy either. A later try may find the space,
// or nobody who has the files open. So that the download does not wait for ever, what has not grown for a day is
// given up instead, and it begins anew.
func (l *Library) Stage(ctx context.Context, contentID uuid.UUID, generation int) (dir string, resumed bool, err error) {
	base := path.Join(stagingDir, contentID.String())
	if err := l.root.MkdirAll(base, 0o700); err != nil {
		return "", false, l.explain("make the folder", base, err)
	}
	left, err := l.leftovers(base, generation)
	if err != nil {
		return "", false, err
	}
	own := path.Join(base, strconv.Itoa(generation))
	left = slices.DeleteFunc(left, func(o leftover) bool {
		if useless := o.suffix == takingSuffix || o.generation == generation; !useless {
			return false
		}
		if removeErr := l.root.RemoveAll(o.rel); removeErr != nil {
			err = errors.Join(err, l.explain("remove", o.rel, removeErr))
		}
		return true
	})
	if err != nil {
		return "", len(left) > 0, err
	}
	if len(left) > 0 {
		l.removeAll(ctx, left[1:]) // the latest is whole
		if resumed, err = l.resume(ctx, left[0], own); err != nil {
			return "", resumed, fmt.Errorf("take over %s: %w", left[0].rel, err)
		}
		l.removeAll(ctx, left[:1])
	}
	if !resumed {
		// With the content's, which somebody slow may just have found empty and removed.
		if err := l.root.MkdirAll(own, 0o700); err != nil {
			return "", false, l.explain("make the folder", own, err)
		}
		if err := l.mark(own); err != nil {
			return "", false, err
		}
	}
	return filepath.Join(l.path, own), resumed, nil
}

// resume takes over what an earlier generation has left, unless that is gone or is to be given up.
func (l *Library) resume(ctx context.Context, o leftover, own string) (resumed bool, err error) {
	err = l.takeOver(ctx, o, own)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // its worker was not dead, and has done away with it
	}
	if failure := reason.Find(err); failure != nil && failure.Reason == reason.DiskFull {
		rested, restErr := l.rested(o.rel)
		if restErr == nil && rested > uncopiedLimit {
			l.options.Logger.WarnContext(ctx, "gave up what was fetched: no space to copy it", slog.String("path", o.rel))
			return false, nil
		}
	}
	return true, err
}

// rested is how long nothing has happened in a folder.
func (l *Library) rested(dir string) (time.Duration, error) {
	info, err := l.root.Stat(dir)
	if err != nil {
		return 0, err
	}
	last := info.ModTime()
	entries, err := l.readDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return time.Since(last), nil
}

// Release says that nobody writes to the generation's folder any more, and keeps it for the next one. A folder that is
// gone is no error.
func (l *Library) Release(contentID uuid.UUID, generation int) error {
	own := path.Join(stagingDir, contentID.String(), strconv.Itoa(generation))
	if err := l.root.Rename(own, own+releasedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return l.explain("release", own, err)
	}
	return nil
}

// Discard removes what this generation and earlier ones of the content have left. Nothing there is no error. Later
// ones' folders are left alone: when a job that was cancelled is slow to end, the next one may be at work already.
func (l *Library) Discard(contentID uuid.UUID, generation int) error {
	base := path.Join(stagingDir, contentID.String())
	left, err := l.leftovers(base, generation)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var faults []error
	for _, o := range left {
		faults = append(faults, l.explain("remove", o.rel, l.root.RemoveAll(o.rel)))
	}
	_ = l.root.Remove(base) // if it is empty
	return errors.Join(faults...)
}

// leftover is a folder of a generation.
type leftover struct {
	rel        string
	generation int
	suffix     string
}

// leftovers lists the folders of the content up to a generation, the latest first.
func (l *Library) leftovers(base string, generation int) ([]leftover, error) {
	entries, err := l.readDir(base)
	if err != nil {
		return nil, l.explain("list", base, err)
	}
	var found []leftover
	for _, e := range entries {
		number, suffix := e.Name(), ""
		if dot := strings.IndexByte(number, '.'); dot >= 0 {
			number, suffix = number[:dot], number[dot:]
		}
		if n, err := strconv.Atoi(number); err == nil && n <= generation {
			found = append(found, leftover{path.Join(base, e.Name()), n, suffix})
		}
	}
	slices.SortFunc(found, func(one, other leftover) int {
		return cmp.Or(cmp.Compare(other.generation, one.generation), cmp.Compare(one.suffix, other.suffix))
	})
	return found, nil
}

// removeAll removes what is of no more use. What cannot be removed waits for the sweep: a worker that is not as dead as
// it seemed may be making files there.
func (l *Library) removeAll(ctx context.Context, left []leftover) {
	for _, o := range left {
		if err := l.root.RemoveAll(o.rel); err != nil {
			l.options.Logger.WarnContext(ctx, "staging folder not removed", slog.Any("err", l.explain("remove", o.rel, err)))
		}
	}
}

// takeOver makes an earlier generation's folder this one's. errors.Is(err, fs.ErrNotExist) says that it is gone.
func (l *Library) takeOver(ctx context.Context, o leftover, own string) error {
	if o.suffix == releasedSuffix {
		if err := l.mark(o.rel); err != nil {
			return err
		}
		return l.explain("rename", o.rel, l.root.Rename(o.rel, own))
	}
	taking := own + takingSuffix
	moved, err := l.move(o.rel, taking, own)
	if moved || err != nil {
		return err
	}
	if err := l.checkRoom(o.rel); err != nil {
		return err
	}
	err = l.copyDir(ctx, o.rel, taking)
	if err == nil {
		err = l.mark(taking)
	}
	if err == nil {
		err = l.explain("rename", taking, l.root.Rename(taking, own))
	}
	if err != nil {
		return errors.Join(err, l.root.RemoveAll(taking))
	}
	return nil
}

// checkRoom fails where there is no space for a copy of a folder, before a copy that is tried again and again takes
// the space from others each time.
func (l *Library) checkRoom(rel string) error {
	dir, err := l.root.Open(rel)
	if err != nil {
		return l.explain("open", rel, err)
	}
	defer func() { _ = dir.Close() }()
	if sharesBlocks(dir) {
		return nil
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return l.explain("list", rel, err)
	}
	var size int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
	}
	available, err := l.Available()
	if err == nil && size > available {
		err = l.explain("copy", rel, fmt.Errorf("%d bytes, with space for %d: %w", size, available, syscall.ENOSPC))
	}
	return err
}

// copyDir copies the files of a folder into a new one, and brings them to the disk: whoever goes on with them trusts
// what an earlier run of this machine has left. Folders in it are not copied; programs keep there what is temporary.
func (l *Library) copyDir(ctx context.Context, from, to string) (err error) {
	source, err := l.root.OpenRoot(from)
	if err != nil {
		return l.explain("open", from, err)
	}
	defer func() { _ = source.Close() }()
	if err := l.root.Mkdir(to, 0o700); err != nil {
		return l.explain("make the folder", to, err)
	}
	target, err := l.root.OpenRoot(to)
	if err != nil {
		return l.explain("open", to, err)
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	entries, err := fs.ReadDir(source.FS(), ".")
	if err != nil {
		return l.explain("list", from, err)
	}
	slices.SortStableFunc(entries, func(one, other fs.DirEntry) int {
		return cmp.Compare(grown(one), grown(other))
	})
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == bootFile {
			continue
		}
		if err := copyFile(ctx, source, target, e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return l.explain("copy", path.Join(from, e.Name()), err)
		}
	}
	return l.explain("write", to, l.syncDir(to))
}

// grown is 1 for files that grow, and 0 for others.
func grown(e fs.DirEntry) int {
	if strings.HasSuffix(e.Name(), grownSuffix) {
		return 1
	}
	return 0
}

// copyFile copies a file as it is now, and not what somebody adds meanwhile, which may never end. The kernel does it
// where it can, and shares the blocks where the file system can.
func copyFile(ctx context.Context, source, target *os.Root, name string) (err error) {
	from, err := source.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := target.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	for left := info.Size(); left > 0; left -= copyChunk {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := io.CopyN(to, from, min(left, copyChunk)); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return to.Sync()
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
