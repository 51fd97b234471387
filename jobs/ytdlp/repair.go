package ytdlp

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// tornBytes is how much is cut off a file that another boot of the machine has written, or another machine: what a host
// that lost its power may not have written, although the file is long enough for it.
const tornBytes = 1 << 20

// mediaPrefix begins the names of everything that mediaTemplate names.
const mediaPrefix = "media."

// isMedia reports whether a file is fetched or made, and finished as far as its name says.
func isMedia(name string) bool {
	return strings.HasPrefix(name, mediaPrefix) &&
		!strings.HasSuffix(name, ".part") && !strings.HasSuffix(name, ".ytdl") &&
		!strings.Contains(name, ".part-Frag") && !strings.Contains(name, ".temp.")
}

// repair prepares a directory in which a fetch was broken off at any moment, or never begun, for going on. It returns
// the plan of what is there, nil if nothing has been chosen. It may itself be broken off, and done again.
func repair(dir string) (*plan, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	chosen, err := readPlan(dir)
	if err != nil {
		return nil, err
	}
	f := &folder{dir: dir, plan: chosen, files: map[string]int64{}}
	for _, e := range entries {
		name := e.Name()
		switch {
		case !e.Type().IsRegular():
		case strings.HasPrefix(name, mediaPrefix):
			info, err := e.Info()
			if err != nil {
				return nil, err
			}
			f.files[name] = info.Size()
		}
	}
	if f.torn, err = writtenElsewhere(dir); err != nil {
		return nil, err
	}
	ok, err := f.cutOverlaps()
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, empty(dir)
	}
	noted, err := readJournal(dir)
	if err != nil {
		return nil, err
	}
	keep := f.keep(noted)
	// Entries that are no longer true must go before what they speak of: a stream that begins anew may have others.
	if err := writeJournal(dir, keep); err != nil {
		return nil, err
	}
	if err := f.apply(keep); err != nil {
		return nil, err
	}
	return chosen, nil
}

// folder is what a repair has found.
type folder struct {
	dir   string
	plan  *plan            // nil: nobody knows what the files are
	files map[string]int64 // those of the media, with their sizes
	// torn says that the end of a file may not be what was written there.
	torn bool
}

// margin is what is not believed of the end of a file.
func (f *folder) margin() int64 {
	if f.torn {
		return tornBytes
	}
	return 0
}

// cutOverlaps prepares what is fetched by range. It is false where something was gone on with that nobody has compared,
// and that is not there to be compared: nobody knows what has become of it.
func (f *folder) cutOverlaps() (bool, error) {
	overlaps, err := readOverlaps(f.dir)
	if err != nil {
		return false, err
	}
	for name, size := range f.files {
		base, unfinished := strings.CutSuffix(name, ".part")
		if !unfinished || f.plan == nil || f.plan.Parts[base].How != byRange {
			continue
		}
		delete(overlaps, base)
		if ok, err := cutOverlap(f.dir, base, max(0, size-f.margin())); err != nil || !ok {
			return false, err
		}
	}
	return len(overlaps) == 0, nil
}

// keep returns what of the journal is to stand: of each stream the last entry that fits its file, of each file that is
// fetched by range its size, and of each finished file that it is whole.
func (f *folder) keep(noted []entry) []entry {
	last := map[string]entry{}
	for _, e := range noted {
		size, finished := f.files[e.File]
		part, unfinished := f.files[e.File+".part"]
		switch {
		case e.Fragments == 0 && finished && e.Size == size,
			e.Total > 0 && unfinished && f.transport(e.File) == byRange,
			e.Fragments > 0 && unfinished && f.fragmented(e.File) && e.Size <= part-f.margin():
			last[e.File] = e
		}
	}
	var out []entry
	for _, e := range last {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.File, b.File) })
	return out
}

func (f *folder) transport(name string) string {
	if f.plan == nil {
		return byOther
	}
	return f.plan.Parts[name].How
}

func (f *folder) fragmented(name string) bool {
	how := f.transport(name)
	return how == byPlaylist || how == byManifest
}

// apply brings the files to what was decided.
func (f *folder) apply(keep []entry) error {
	good := map[string]entry{}
	for _, e := range keep {
		good[e.File] = e
	}
	for name := range f.files {
		path := filepath.Join(f.dir, name)
		base, unfinished := strings.CutSuffix(name, ".part")
		switch {
		case unfinished && f.transport(base) == byRange:
		case unfinished && good[base].Fragments > 0:
			if err := os.Truncate(path, good[base].Size); err != nil {
				return err
			}
			if err := writeCount(filepath.Join(f.dir, base+".ytdl"), good[base].Fragments); err != nil {
				return err
			}
		case strings.HasSuffix(name, ".ytdl") && good[strings.TrimSuffix(name, ".ytdl")].Fragments > 0:
		case isMedia(name) && f.whole(name, good):
		default:
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// whole reports whether a file with a finished name is one. What is fetched gets its name when it is complete, and so
// does what ffmpeg merges and mends; but what it converts has its name from the first byte. yt-dlp removes what it has
// converted from when it is done: while that is there, the other is not to be believed.
func (f *folder) whole(name string, good map[string]entry) bool {
	if f.plan == nil {
		return false
	}
	if _, known := f.plan.Parts[name]; !known && name != f.plan.File {
		if _, there := f.files[f.plan.File]; there {
			return false
		}
		for part := range f.plan.Parts {
			if _, there := f.files[part]; there {
				return false
			}
		}
	}
	_, noted := good[name]
	return noted || !f.torn
}

// writtenElsewhere reports whether the files may have been written by another boot than this. Only a machine that has
// not been started anew since has in its memory what it has not written to the disk yet.
func writtenElsewhere(dir string) (bool, error) {
	content, err := os.ReadFile(filepath.Join(dir, bootFile))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return len(content) == 0 || string(content) != bootID(), nil
}

// bootID names this boot of this machine; it is empty where that is not known.
func bootID() string {
	content, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

// empty removes everything in a directory.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
