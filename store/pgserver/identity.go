package pgserver

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// identity is who the server runs as. Postgres refuses to run as root, for good reasons; a platform that is started by
// root (a container, a home server) has one all the same:
//
//   - not root: ourselves.
//   - root, where user namespaces are allowed: a namespace in which root is mapped to an unprivileged id. The server has
//     no privilege, not even to become root, but its files are ours, and a data directory below a 0700 home is reachable.
//   - root, else: the user postgres or nobody, by setuid, who then owns the files.
type identity struct {
	userNamespace bool
	uid, gid      int // in the namespace, or outside of it by setuid
	setuid        bool
}

// attr returns the attributes of a process with this identity. It gets a session of its own: Ctrl-C at a terminal goes
// to the whole foreground group, and the server must outlive what drains into it.
func (id identity) attr() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	switch {
	case id.userNamespace:
		mapToUnprivileged(a, id.uid, id.gid)
	case id.setuid:
		a.Credential = &syscall.Credential{Uid: uint32(id.uid), Gid: uint32(id.gid)}
	}
	return a
}

// fileOwner returns the ids, as we see them, that the server's files must have.
func (id identity) fileOwner() (uid, gid int) {
	if id.setuid {
		return id.uid, id.gid
	}
	return os.Geteuid(), os.Getegid()
}

// own gives a file, or a directory with all that is in it, to the server. What it owns already is not walked.
func (id identity) own(path string) error {
	if os.Geteuid() != 0 {
		return nil // a wrong owner cannot be helped, and Postgres says so
	}
	uid, gid := id.fileOwner()
	fi, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("own %s: %w", path, err)
	}
	if ownerOf(fi) == uid {
		return nil
	}
	// The top comes last: a walk that is cut off is done again.
	err = filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == path {
			return err
		}
		return os.Lchown(p, uid, gid)
	})
	if err == nil {
		err = os.Lchown(path, uid, gid)
	}
	if err != nil {
		return fmt.Errorf("own %s: %w", path, err)
	}
	return nil
}

// trusts reports whether a file belongs to us or to the server.
func (id identity) trusts(fi fs.FileInfo) bool {
	uid, _ := id.fileOwner()
	owner := ownerOf(fi)
	return owner == uid || owner == os.Geteuid()
}

// makeReachable lets a server under another user's id pass through dir, the directory around the cluster's. Further up
// nothing is changed: those directories are not the platform's.
func (id identity) makeReachable(dir string, log *slog.Logger) error {
	if !id.setuid {
		return nil
	}
	for d, first := dir, true; ; d, first = filepath.Dir(d), false {
		fi, err := os.Stat(d)
		if err != nil {
			return fmt.Errorf("reach data directory: %w", err)
		}
		if fi.Mode()&0o001 == 0 && ownerOf(fi) != id.uid {
			if !first {
				return fmt.Errorf("postgres runs as user %d here, who may not pass through %s: chmod o+x it, or put the data directory elsewhere", id.uid, d)
			}
			log.Info("letting postgres pass through its parent directory", "dir", d)
			if err := os.Chmod(d, fi.Mode().Perm()|0o001); err != nil {
				return fmt.Errorf("reach data directory: %w", err)
			}
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}

func ownerOf(fi fs.FileInfo) int {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// unprivilegedUser returns the ids of an account that is not root's. It must have an entry in the user database, also
// where only the number counts: initdb looks up its own name.
func unprivilegedUser() (uid, gid int, err error) {
	for _, name := range []string{"postgres", "nobody", "daemon"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		if uidErr == nil && gidErr == nil && uid > 0 && gid > 0 {
			return uid, gid, nil
		}
	}
	return 0, 0, errors.New("postgres cannot run as root, and this machine has no user postgres, nobody or daemon to run it as")
}
