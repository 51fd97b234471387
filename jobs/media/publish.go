package media

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"syscall"

	"medianest/jobs/reason"
)

const (
	// maxSameName bounds how many files of one name, " (2)" and so on, a user's folder may hold.
	maxSameName = 99
	// maxRaces bounds how often a folder may vanish, or a name be taken, under our hands.
	maxRaces = 10
)

// Publish gives a staged file, which Verify has found whole, its name in a user's folder, and returns that path,
// relative to the root. The file and its name are on the disk when it returns. The staged file stays where it is as
// long as the file system has hard links, so that it can be published again if what comes after fails.
//
// Nothing is ever replaced. Where the name is taken by the very same bytes, they are what an earlier call has published
// before it was cut off, and are taken over (see Options.Claimed); where it is taken by others, " (2)" and so on is
// added. Errors are *reason.Error with DiskFull where there is no space.
func (l *Library) Publish(ctx context.Context, staged, userName, fileName string, sum []byte) (rel string, err error) {
	from, file, err := l.stagedFile(staged)
	if errors.Is(err, fs.ErrNotExist) {
		// Moved by an earlier call, on a file system without hard links.
		gone := err
		rel, err = l.settle(ctx, placement{userName, fileName, sum, nil, func(string) error { return gone }})
		if err != nil {
			return "", fmt.Errorf("publish %q: %w", fileName, err)
		}
		return rel, nil
	}
	if err != nil {
		return "", fmt.Errorf("publish %q: %w", fileName, l.explain("open", stagingDir, err))
	}
	defer func() { _ = file.Close() }()
	if err := errors.Join(file.Chmod(l.options.FileMode), file.Sync()); err != nil {
		return "", fmt.Errorf("publish %q: %w", fileName, l.explain("write", from, err))
	}
	info, err := file.Stat()
	if err != nil {
		return "", fmt.Errorf("publish %q: %w", fileName, err)
	}
	rel, err = l.settle(ctx, placement{userName, fileName, sum, info, func(to string) error {
		err := l.linkFunc(from, to)
		if withoutLinks(err) {
			err = l.renameNoReplace(from, to)
		}
		return err
	}})
	if err != nil {
		return "", fmt.Errorf("publish %q: %w", fileName, err)
	}
	return rel, nil
}

// Link gives a user a path to a file of the library: another name for the same bytes where the file system has hard
// links, or else a copy, which is compared with the sum. Names are found as by Publish. errors.Is(err,
// fs.ErrNotExist) says that the file is not there; errors are *reason.Error with DiskFull where there is no space, and
// with Damaged where a copy had not the right bytes.
func (l *Library) Link(ctx context.Context, existing, userName, fileName string, sum []byte) (rel string, err error) {
	if err := checkRel(existing); err != nil {
		return "", fmt.Errorf("link %q: %w", existing, err)
	}
	file, err := l.openFile(existing)
	if err != nil {
		return "", fmt.Errorf("link %q: %w", existing, l.explain("open", existing, err))
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return "", fmt.Errorf("link %q: %w", existing, err)
	}
	rel, err = l.settle(ctx, placement{userName, fileName, sum, info, func(to string) error {
		err := l.linkFunc(existing, to)
		if withoutLinks(err) || errors.Is(err, syscall.EXDEV) {
			err = l.copyTo(ctx, file, to, sum)
		}
		return err
	}})
	if err != nil {
		return "", fmt.Errorf("link %q: %w", existing, err)
	}
	return rel, nil
}

// placement is a file that is to come into a user's folder.
type placement struct {
	userName, fileName string
	sum                []byte
	info               fs.FileInfo            // nil if the file is not where it was any more
	place              func(rel string) error // fails with fs.ErrExist where the path is taken
}

// settle finds the path for a file and has it placed there.
func (l *Library) settle(ctx context.Context, p placement) (rel string, err error) {
	if len(p.sum) != sha256.Size {
		return "", fmt.Errorf("a SHA-256 sum has %d bytes, not %d", sha256.Size, len(p.sum))
	}
	if _, err := destination(p.userName, p.fileName); err != nil {
		return "", err
	}
	races, made := 0, false
	defer func() {
		if err != nil && made { // for nothing; with somebody's file in it it stays
			_ = l.removeEmpty(p.userName)
		}
	}()
	for n := 1; n <= maxSameName; {
		rel, err := destination(p.userName, numbered(p.fileName, n))
		if err != nil {
			return "", err
		}
		switch there, err := l.compare(ctx, rel, p); {
		case err != nil:
			return "", err
		case there == takenBySame:
			return rel, l.persist(rel)
		case there == takenByOther:
			n++
			continue
		}
		madeNow, err := l.makeUserDir(p.userName)
		made = made || madeNow
		if err != nil {
			return "", err
		}
		err = p.place(rel)
		if err == nil {
			if err := l.persist(rel); err != nil {
				return "", errors.Join(err, l.Remove(rel))
			}
			return rel, nil
		}
		// Somebody has taken the name since, or removed the folder, which was empty.
		raced := errors.Is(err, fs.ErrExist) || (errors.Is(err, fs.ErrNotExist) && p.info != nil)
		if races++; !raced || races > maxRaces {
			return "", l.explain("place", rel, err)
		}
	}
	return "", fmt.Errorf("%s has %d files named %q", p.userName, maxSameName, p.fileName)
}

// occupant is what is at a path.
type occupant int

const (
	free occupant = iota
	takenBySame
	takenByOther
)

// compare looks at what is at a path, and whether it is what is to be there.
func (l *Library) compare(ctx context.Context, rel string, p placement) (occupant, error) {
	there, err := l.root.Lstat(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return free, nil
	}
	if err != nil {
		return free, l.explain("look at", rel, err)
	}
	if !there.Mode().IsRegular() || (p.info != nil && there.Size() != p.info.Size()) {
		return takenByOther, nil
	}
	// Also of what this very call has placed before it was cut off: another may have taken it over since.
	claimed, err := l.options.Claimed(ctx, rel)
	if err != nil {
		return free, fmt.Errorf("ask whose file %s is: %w", rel, err)
	}
	if claimed {
		return takenByOther, nil
	}
	if p.info != nil && os.SameFile(there, p.info) {
		return takenBySame, nil
	}
	file, err := l.openFile(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return free, nil
	}
	if err != nil {
		return free, l.explain("open", rel, err)
	}
	defer func() { _ = file.Close() }()
	got, err := hashFile(ctx, file)
	switch {
	case err != nil:
		return free, l.explain("read", rel, err)
	case !bytes.Equal(got, p.sum):
		return takenByOther, nil
	}
	l.options.Logger.WarnContext(ctx, "took over a file that was there already", slog.String("path", rel))
	return takenBySame, nil
}

// withoutLinks reports whether the file system refused a hard link as such: it has none, or no more for this file.
func withoutLinks(err error) bool {
	for _, refusal := range []error{syscall.EPERM, syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

// renameUnlessThere is renameNoReplace for file systems that cannot do that in one step. Between the look and the move
// another process could publish the same name, and lose its file; rows of the database keep that from going unseen.
func (l *Library) renameUnlessThere(from, to string) error {
	_, err := l.root.Lstat(to)
	if err == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrExist}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return l.root.Rename(from, to)
}

// copyTo copies an open file, out of sight, and places the copy when it is whole, compared and on the disk.
func (l *Library) copyTo(ctx context.Context, from *os.File, to string, sum []byte) (err error) {
	temporary := path.Join(stagingDir, copyPrefix+rand.Text())
	file, err := l.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.removeQuietly(temporary)) }()
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(file, hash), newContextReader(ctx, io.NewSectionReader(from, 0, 1<<62)))
	if err == nil {
		err = errors.Join(file.Chmod(l.options.FileMode), file.Sync())
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if !bytes.Equal(hash.Sum(nil), sum) {
		return &reason.Error{Reason: reason.Damaged, Detail: "The file in the library is not what was put there.", Err: fmt.Errorf("copy to %s: wrong sum", to)}
	}
	return l.renameNoReplace(temporary, to)
}

// makeUserDir makes a user's folder where it is missing, and reports whether it was.
func (l *Library) makeUserDir(userName string) (made bool, err error) {
	err = l.root.Mkdir(userName, l.options.DirMode)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, l.explain("make the folder", userName, err)
	}
	// The umask has taken its part of the mode. Remove may have taken the folder, which settle sees.
	if err := l.root.Chmod(userName, l.options.DirMode); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return true, l.explain("make the folder", userName, err)
	}
	return true, l.explain("write", "", l.syncDir("."))
}

// persist has a file's name survive a power cut. The file's bytes are on the disk already, or are brought there.
func (l *Library) persist(rel string) error {
	file, err := l.root.Open(rel)
	if err != nil {
		return l.explain("open", rel, err)
	}
	err = errors.Join(file.Sync(), file.Close())
	if err == nil {
		err = l.syncDir(path.Dir(rel))
	}
	return l.explain("write", rel, err)
}

// syncDir brings a folder's entries to the disk, on file systems that can be asked to.
func (l *Library) syncDir(rel string) error {
	dir, err := l.root.Open(rel)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, dir.Close())
}
