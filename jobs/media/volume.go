package media

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

const volumeFile = ownDir + "/volume"

// volumeIDs are what the file of that name may hold.
var volumeIDs = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Volume is the id of the volume that the library is on. Processes with the same one see the same files, the staging
// folders included. It is made when a library is opened for the first time, and stays.
func (l *Library) Volume() string { return l.volume }

// findVolume reads the volume's id, or makes one. Of several processes that do so at once all get the same.
func (l *Library) findVolume() (string, error) {
	for range maxRaces {
		content, err := l.root.ReadFile(volumeFile)
		if err == nil {
			id := strings.TrimSpace(string(content))
			if !volumeIDs.MatchString(id) {
				return "", fmt.Errorf("%s does not hold the id of a volume; where it is removed, a new one is made",
					filepath.Join(l.path, volumeFile))
			}
			return id, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", l.explain("read", volumeFile, err)
		}
		if err := l.makeVolume(); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s is removed again and again", filepath.Join(l.path, volumeFile))
}

// makeVolume gives the volume an id, unless it has one: fs.ErrExist. The file has its name only when it is whole.
func (l *Library) makeVolume() error {
	temporary := path.Join(stagingDir, copyPrefix+rand.Text())
	file, err := l.root.Create(temporary)
	if err != nil {
		return l.explain("write in", stagingDir, err)
	}
	_, err = file.WriteString(rand.Text() + "\n")
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		if err = l.linkFunc(temporary, volumeFile); withoutLinks(err) {
			err = l.renameNoReplace(temporary, volumeFile)
		}
	}
	if err == nil {
		err = l.syncDir(ownDir)
	}
	return errors.Join(l.explain("write", volumeFile, err), l.removeQuietly(temporary))
}
