package ytdlp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// observeEvery is how often the journal looks at what yt-dlp has, and thereby about what a kill costs.
const observeEvery = 100 * time.Millisecond

// entry is a line of the journal.
type entry struct {
	File string `json:"file"` // without .part
	Size int64  `json:"size"`
	// Fragments is how many fragments the first Size bytes of the file are, exactly. 0 is for a file that is finished:
	// that size has reached the disk.
	Fragments int `json:"fragments,omitempty"`
	// Source is the digest of the list that the fragments are of.
	Source string `json:"source,omitempty"`
	// Total is the size of the whole, as the server tells it, of a file that is fetched by range. Such an entry has
	// nothing else.
	Total int64 `json:"total,omitempty"`
}

// journal notes what can be gone on with. yt-dlp's own count of fragments, the .ytdl file, cannot be trusted: in
// FragmentFD._append_fragment (yt_dlp/downloader/fragment.py) yt-dlp
//
//  1. appends the fragment to the .part file,
//  2. writes the fragment's number to the .ytdl file: truncates it, then writes,
//  3. removes the fragment's own file, .part-Frag<n>,
//
// and is killed between two of them, or in one. 2 and 3 are in a `finally`: they also happen when an interrupt or a
// full disk has left 1 undone or half done. An observation therefore reads, in this order,
//
//	a. the number n from the .ytdl file,
//	b. the size of the .part file,
//	c. that there is no file .part-Frag<n+1>: the next fragment is not complete, or is appended and removed again,
//	d. the number once more, which must be n: it is not appended.
//
// Since n+1 is not complete until after b, nothing of it was in the file; since n was written before a, n was appended
// by then, or its appending had failed. A failure ends the stream. So the observation becomes an entry only when yt-dlp
// has gone on: when it has begun n+1, or counts more than n. Fragments are fetched one after the other
// (--concurrent-fragments is 1). The first fragment of an HLS stream, its EXT-X-MAP, yt-dlp fetches and appends again
// when it goes on, with its number; smaller numbers than that of the last entry are therefore none.
//
// An entry is made only after the list of fragments of this run was compared with that of the entries before. Whatever
// else a run appends, the next cuts off.
type journal struct {
	dir     string
	file    *os.File
	sources sources

	mu   sync.Mutex
	plan *plan // nil until it is known
	// begun are the entries that the run goes on from, seen observations that are no entries yet, noted the last entries,
	// all by file.
	begun, seen, noted map[string]entry
	compared           map[string]string  // digests of the lists of this run, by file, those that fit what was begun
	overlaps           map[string]overlap // still to be compared
}

// openJournal opens the journal of a directory that has been repaired for more entries.
func openJournal(dir string) (*journal, error) {
	entries, err := readJournal(dir)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	j := &journal{
		dir: dir, sources: sources{dir}, begun: map[string]entry{}, seen: map[string]entry{}, noted: map[string]entry{},
		compared: map[string]string{},
	}
	for _, e := range entries {
		j.begun[e.File], j.noted[e.File] = e, e
	}
	if j.overlaps, err = readOverlaps(dir); err != nil {
		return nil, fmt.Errorf("read what was cut off: %w", err)
	}
	if j.file, err = os.OpenFile(filepath.Join(dir, journalFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	return j, nil
}

// chosen tells the journal what yt-dlp is about to fetch.
func (j *journal) chosen(p *plan) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.plan = p
}

// total takes the size of a whole file as a run learns it. Two sizes are two files.
func (j *journal) total(name string, size int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if size <= 0 || j.plan == nil || j.plan.Parts[name].How != byRange {
		return nil
	}
	switch j.noted[name].Total {
	case size:
		return nil
	case 0:
		return j.note(entry{File: name, Total: size})
	}
	return errChanged
}

// keep observes until the context ends, and calls changed when what is fetched is not what was begun. What else it
// cannot do costs bytes when the fetch is broken off, and nothing else.
func (j *journal) keep(ctx context.Context, log *slog.Logger, changed func()) {
	ticker := time.NewTicker(observeEvery)
	defer ticker.Stop()
	for {
		switch err := j.observe(); {
		case errors.Is(err, errChanged):
			changed()
			return
		case err != nil:
			log.DebugContext(ctx, "the journal of a fetch cannot be kept", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (j *journal) observe() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return err
	}
	var faults []error
	for base, o := range j.overlaps {
		done, err := o.compare(j.dir, base)
		if done {
			delete(j.overlaps, base)
		}
		faults = append(faults, err)
	}
	for _, e := range entries {
		name := e.Name()
		if base, ok := strings.CutSuffix(name, ".ytdl"); ok {
			faults = append(faults, j.fragments(base))
		} else if e.Type().IsRegular() && isMedia(name) {
			faults = append(faults, j.finished(e))
		}
	}
	return errors.Join(faults...)
}

// fragments observes a file that is fetched in fragments.
func (j *journal) fragments(base string) error {
	part := filepath.Join(j.dir, base+".part")
	n, ok := readCount(filepath.Join(j.dir, base+".ytdl"))
	if !ok || n == 0 {
		return nil
	}
	next := part + "-Frag" + strconv.Itoa(n+1)
	// yt-dlp has its list, and goes by it, when a fragment comes of it. A repaired directory has none.
	if n <= j.begun[base].Fragments && !exists(next) && !exists(next+".part") {
		return nil
	}
	if fits, err := j.compare(base); err != nil || !fits {
		return err
	}
	seen, waits := j.seen[base]
	if waits && n > seen.Fragments {
		if err := j.note(seen); err != nil {
			return err
		}
		waits = false
	}
	if !waits && n > j.noted[base].Fragments {
		info, err := os.Lstat(part)
		if err != nil || exists(next) {
			return nil
		}
		if again, ok := readCount(filepath.Join(j.dir, base+".ytdl")); !ok || again != n {
			return nil
		}
		seen, waits = entry{File: base, Size: info.Size(), Fragments: n}, true
		j.seen[base] = seen
	}
	if waits && exists(next+".part") {
		return j.note(seen)
	}
	return nil
}

// compare finds out the list of fragments that a file is being made of now, and fails where the file was begun with
// another. It is false where the list is not known, or nobody could go on with it.
func (j *journal) compare(base string) (bool, error) {
	if _, done := j.compared[base]; done {
		return true, nil
	}
	if j.plan == nil {
		return false, nil
	}
	var digest string
	switch part := j.plan.Parts[base]; part.How {
	case byManifest:
		var err error
		if digest, err = j.sources.manifest(part.Format); err != nil {
			return false, err
		}
	case byPlaylist:
		// Streams are fetched one after the other: the newest list is this one's if it is still being fetched.
		lists, err := j.sources.playlists()
		if err != nil || !exists(filepath.Join(j.dir, base+".ytdl")) {
			return false, err
		}
		if len(lists) > 0 {
			digest = lists[0]
		}
	}
	if begun := j.begun[base]; begun.Fragments > 0 && begun.Source != digest {
		return false, errChanged
	}
	if digest == "" {
		return false, nil
	}
	j.compared[base] = digest
	return true, nil
}

// end fails unless what a run has gone on with was seen to be what was begun, when yt-dlp has made its film.
func (j *journal) end() error {
	if err := j.observe(); errors.Is(err, errChanged) {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.overlaps) > 0 {
		return errChanged
	}
	for base, begun := range j.begun {
		if _, done := j.compared[base]; done || begun.Fragments == 0 {
			continue
		}
		// It went too fast to be seen.
		var lists []string
		var err error
		if j.plan != nil && j.plan.Parts[base].How == byManifest {
			lists = make([]string, 1)
			lists[0], err = j.sources.manifest(j.plan.Parts[base].Format)
		} else {
			lists, err = j.sources.playlists()
		}
		if err != nil {
			return err
		}
		if !slices.Contains(lists, begun.Source) {
			return errChanged
		}
	}
	return nil
}

// finished has a file that is whole reach the disk. A file that still grows is looked at again.
func (j *journal) finished(e os.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return nil // it has gone, or become another
	}
	now := entry{File: e.Name(), Size: info.Size()}
	if j.noted[now.File] == now {
		return nil
	}
	if j.seen[now.File] != now {
		j.seen[now.File] = now
		return nil
	}
	file, err := os.Open(filepath.Join(j.dir, now.File))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return err
	}
	return j.note(now)
}

// note makes an observation an entry, by one write.
func (j *journal) note(e entry) error {
	delete(j.seen, e.File)
	if e.Fragments > 0 {
		e.Source = j.compared[e.File]
	}
	j.noted[e.File] = e
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = j.file.Write(append(line, '\n'))
	return err
}

func (j *journal) close() error { return j.file.Close() }

// readJournal returns the entries of a directory's journal, the oldest first. A line that was torn, or never reached
// the disk, is left out.
func readJournal(dir string) ([]entry, error) {
	content, err := os.ReadFile(filepath.Join(dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []entry
	for line := range bytes.Lines(content) {
		var e entry
		if !bytes.HasSuffix(line, []byte("\n")) || json.Unmarshal(line, &e) != nil {
			continue
		}
		if e.File != "" && e.Fragments >= 0 && (e.Size > 0) != (e.Total > 0) && (e.Fragments > 0) == (e.Source != "") {
			out = append(out, e)
		}
	}
	return out, nil
}

// writeJournal replaces the journal by these entries.
func writeJournal(dir string, entries []entry) error {
	var content []byte
	for _, e := range entries {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		content = append(append(content, line...), '\n')
	}
	return replaceFile(filepath.Join(dir, journalFile), content)
}

// counts is yt-dlp's file of its count of fragments, as far as it is of use here.
type counts struct {
	Downloader struct {
		Current struct {
			Index *int `json:"index"`
		} `json:"current_fragment"`
	} `json:"downloader"`
}

// readCount is how many fragments yt-dlp says that it has.
func readCount(path string) (n int, ok bool) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	var c counts
	if json.Unmarshal(content, &c) != nil || c.Downloader.Current.Index == nil {
		return 0, false
	}
	return *c.Downloader.Current.Index, true
}

// writeCount makes yt-dlp go on behind the n-th fragment. There is more in a file of its own, none of which it reads
// again for picture or sound.
func writeCount(path string, n int) error {
	var c counts
	c.Downloader.Current.Index = &n
	content, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return replaceFile(path, content)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
