//go:build !linux

package media

// renameNoReplace moves a file within the library, and fails with fs.ErrExist where something has the new name already.
func (l *Library) renameNoReplace(from, to string) error { return l.renameUnlessThere(from, to) }
