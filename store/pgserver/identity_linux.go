package pgserver

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// chooseIdentity decides who the server runs as, by trying.
func chooseIdentity(ctx context.Context, binDir string, forceSetuid bool) (identity, error) {
	if os.Geteuid() != 0 {
		return identity{}, nil
	}
	uid, gid, err := unprivilegedUser()
	if err != nil {
		return identity{}, err
	}
	bySetuid := identity{setuid: true, uid: uid, gid: gid}
	if forceSetuid {
		return bySetuid, nil
	}
	id := identity{userNamespace: true, uid: uid, gid: gid}
	// Namespaces may be compiled out, limited to none, or denied by a container's seccomp filter; the errors differ.
	probe := exec.CommandContext(ctx, filepath.Join(binDir, "postgres"), "--version")
	probe.Dir = "/"
	probe.Env = environment()
	probe.SysProcAttr = id.attr()
	if err := probe.Run(); err == nil {
		return id, nil
	}
	if err := ctx.Err(); err != nil {
		return identity{}, err
	}
	return bySetuid, nil
}

func mapToUnprivileged(a *syscall.SysProcAttr, uid, gid int) {
	a.Cloneflags = syscall.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Geteuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: os.Getegid(), Size: 1}}
}
