//go:build !linux

package media

import (
	"errors"
	"os"
)

// There are no leases here: folders are copied.

func lease(*os.File) error { return errors.ErrUnsupported }

func leased(*os.File) bool { return false }

func endLease(*os.File) {}

func onlyHere(*os.File) bool { return false }

func sharesBlocks(*os.File) bool { return false }
