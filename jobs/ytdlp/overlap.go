package ytdlp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A file that is fetched by range may have become another at the same address: yt-dlp would append the end of the one to
// the beginning of the other. It neither remembers a file's ETag or Last-Modified nor shows them. So what it has is cut
// by an overlap, and the bytes that come in its place are compared with those that were cut off. The size of the whole,
// where the server tells it, is compared as well.
//
// A file that changed is not noticed where it is of the same size and has the same bytes in the overlap: where it has
// changed in other places only, or both are padding there. Nor is it when it changes between two requests of one run,
// in which yt-dlp goes on by itself after a broken connection, and keeps its size.

// overlapBytes is how much is fetched again of a file that is gone on with: half of what there is, if that is less.
const overlapBytes = 16 << 10

// overlapPrefix begins the name of a file that keeps an overlap until it is compared.
const overlapPrefix = "overlap-"

// overlap is what a file is to have from a place on.
type overlap struct {
	At    int64  `json:"at"`
	Bytes []byte `json:"bytes"`
}

// end is where it ends in the file.
func (o overlap) end() int64 { return o.At + int64(len(o.Bytes)) }

// cutOverlap prepares a file of which the first size bytes are good for being gone on with. ok is false where it cannot
// be: it was gone on with before, and nobody has found out whether rightly. What is done twice is done once.
func cutOverlap(dir, base string, size int64) (ok bool, err error) {
	part, kept := filepath.Join(dir, base+".part"), filepath.Join(dir, overlapPrefix+base)
	o, err := readOverlap(kept)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		n := min(size-size/2, overlapBytes)
		o.At = size - n
		if o.At > 0 {
			o.Bytes = make([]byte, n)
			file, err := os.Open(part)
			if err != nil {
				return false, err
			}
			defer file.Close()
			if _, err := file.ReadAt(o.Bytes, o.At); err != nil {
				return false, err
			}
			content, err := json.Marshal(o)
			if err != nil {
				return false, err
			}
			if err := replaceFile(kept, content); err != nil {
				return false, err
			}
		}
	case err != nil:
		return false, err
	case o.Bytes == nil || size < o.At:
		return false, nil
	}
	return true, os.Truncate(part, o.At)
}

// readOverlap returns an overlap, one without bytes if it is torn.
func readOverlap(path string) (overlap, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return overlap{}, err
	}
	var o overlap
	if json.Unmarshal(content, &o) != nil || o.At < 0 {
		return overlap{}, nil
	}
	return o, nil
}

// readOverlaps returns those that are to be compared, by the names of their files.
func readOverlaps(dir string) (map[string]overlap, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := map[string]overlap{}
	for _, e := range entries {
		base, ok := strings.CutPrefix(e.Name(), overlapPrefix)
		if !ok || strings.HasSuffix(base, ".new") {
			continue
		}
		if out[base], err = readOverlap(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// compare compares an overlap with what has been fetched. done is false as long as that is too little.
func (o overlap) compare(dir, base string) (done bool, err error) {
	for _, name := range []string{base + ".part", base} {
		file, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		defer file.Close()
		got := make([]byte, len(o.Bytes))
		n, err := file.ReadAt(got, o.At)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		switch {
		case !bytes.Equal(got[:n], o.Bytes[:n]):
			return false, errChanged
		case n < len(got):
			return false, nil
		}
		return true, os.Remove(filepath.Join(dir, overlapPrefix+base))
	}
	return false, nil
}
