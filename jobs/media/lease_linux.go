package media

import (
	"os"

	"golang.org/x/sys/unix"
)

// zfsMagic is what ZFS calls itself.
const zfsMagic = 0x2fc12fc1

// lease takes a lease on a file. The kernel grants it only while nobody else has the file open in any way, and lets
// those who open it from then on wait until the lease ends.
func lease(file *os.File) error {
	_, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	return os.NewSyscallError("fcntl", err)
}

// leased reports whether a lease stands and nobody waits for its end.
func leased(file *os.File) bool {
	kind, err := unix.FcntlInt(file.Fd(), unix.F_GETLEASE, 0)
	return err == nil && kind == unix.F_WRLCK
}

// endLease ends a lease at once, even if a program that is just being started has got the descriptor too.
func endLease(file *os.File) { _, _ = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_UNLCK) }

// onlyHere reports whether a folder is on a file system that no other kernel can have open files on, besides by way of
// this one: its leases speak for everybody.
func onlyHere(dir *os.File) bool {
	switch fileSystem(dir) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC,
		zfsMagic:
		return true
	}
	return false
}

// sharesBlocks reports whether copies in a folder may take no space.
func sharesBlocks(dir *os.File) bool {
	switch fileSystem(dir) {
	case unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, zfsMagic:
		return true
	}
	return false
}

// fileSystem is the kind of file system that a folder is on, 0 if that is not known.
func fileSystem(dir *os.File) uint32 {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &stat); err != nil {
		return 0
	}
	return uint32(stat.Type) //nolint:gosec // such numbers have 32 bits; the types differ between machines
}
