//go:build !linux

package pgserver

import (
	"context"
	"os"
	"syscall"
)

// chooseIdentity decides who the server runs as; namespaces are Linux's.
func chooseIdentity(context.Context, string, bool) (identity, error) {
	if os.Geteuid() != 0 {
		return identity{}, nil
	}
	uid, gid, err := unprivilegedUser()
	if err != nil {
		return identity{}, err
	}
	return identity{setuid: true, uid: uid, gid: gid}, nil
}

func mapToUnprivileged(*syscall.SysProcAttr, int, int) {}
