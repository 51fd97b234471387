package media

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// bootFile, in a generation's folder, says under which boot of which machine it is written.
const bootFile = ".boot"

// mark notes that this machine writes to a generation's folder from here on. Without the note, as where there is no
// space for it, whoever comes next copies.
func (l *Library) mark(dir string) error {
	name := path.Join(dir, bootFile)
	if l.markedHere(dir) {
		return nil
	}
	if err := l.root.WriteFile(name, []byte(bootID()), 0o600); err != nil {
		return l.removeQuietly(name)
	}
	return nil
}

// markedHere reports whether only this boot of this machine has written to a generation's folder, since it was made or
// taken over.
func (l *Library) markedHere(dir string) bool {
	noted, err := l.root.ReadFile(path.Join(dir, bootFile))
	return err == nil && len(noted) > 0 && string(noted) == bootID()
}

// bootID names this boot of this machine; it is empty where that is not known.
func bootID() string {
	content, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

// move gives the files of a folder a new one, to, provided that it can be shown that nobody else has any of them open,
// or can open one afterwards. moved is false where that cannot be shown; the folder is then as it was.
//
// Everybody who might have a file open must be under this kernel, which the folder's mark and its file system tell. Of
// each file a lease is taken, and held until the files have no name any more by which an earlier worker knows them:
// neither a path nor one in the folder that a program of it works in, wherefore the files are moved and not the folder.
// Who has opened one meanwhile waits for the lease to end, which shows.
//
// The new folder is made whole aside, in taking, so that whenever this process dies, one of the two is whole.
func (l *Library) move(from, taking, to string) (moved bool, err error) {
	if !l.markedHere(from) {
		return false, nil
	}
	files, err := l.hold(from)
	defer func() { release(files) }()
	if err != nil {
		return false, nil //nolint:nilerr // whatever speaks against it
	}
	err = l.root.Mkdir(taking, 0o700)
	if err == nil {
		err = l.mark(taking)
	}
	for i := 0; i < len(files) && err == nil; i++ {
		err = l.linkFunc(path.Join(from, path.Base(files[i].Name())), path.Join(taking, path.Base(files[i].Name())))
	}
	if err != nil {
		return false, l.explain("remove", taking, l.root.RemoveAll(taking))
	}
	if err := l.root.Rename(taking, to); err != nil {
		return false, errors.Join(l.explain("rename", taking, err), l.root.RemoveAll(taking))
	}
	for _, file := range files {
		err = errors.Join(err, l.removeQuietly(path.Join(from, path.Base(file.Name()))))
	}
	if err == nil && l.alone(files, to) {
		return true, nil
	}
	// Back under the old name, whose files are copied.
	if err := l.root.RemoveAll(from); err != nil {
		return false, l.explain("remove", from, err)
	}
	return false, l.explain("rename", to, l.root.Rename(to, from))
}

var errHeld = errors.New("may be in use by others")

// hold takes a lease on each file of a folder. The files are to be released, also after an error.
func (l *Library) hold(dir string) (files []*os.File, err error) {
	source, err := l.root.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = source.Close() }()
	folder, err := source.Open(".")
	if err != nil {
		return nil, err
	}
	defer func() { _ = folder.Close() }()
	if !onlyHere(folder) {
		return nil, errHeld
	}
	entries, err := folder.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == bootFile {
			continue
		}
		// Another's lease is not waited for, nor is whatever else has got the name.
		file, err := source.OpenFile(e.Name(), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return files, err
		}
		files = append(files, file)
		if err := l.leaseFunc(file); err != nil {
			return files, err
		}
	}
	return files, nil
}

// alone reports whether the files have only the names that they have in a folder, and nobody has tried to open one.
func (l *Library) alone(files []*os.File, dir string) bool {
	for _, file := range files {
		named, err := l.root.Lstat(path.Join(dir, path.Base(file.Name())))
		if err != nil {
			return false
		}
		held, err := file.Stat()
		if err != nil || !os.SameFile(named, held) || !oneName(held) || !leased(file) {
			return false
		}
	}
	return true
}

// oneName reports whether a file has no name but one: with another it may be opened by that.
func oneName(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 1
}

// release ends the leases on files, and closes them.
func release(files []*os.File) {
	for _, file := range files {
		endLease(file)
		_ = file.Close()
	}
}
