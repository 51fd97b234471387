package ytdlp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// How a file is fetched, and what can be done with half of it.
const (
	// byRange is HTTP in one piece: what there is is the beginning of the file, and the rest can be asked for.
	byRange = "range"
	// byPlaylist and byManifest are HLS and DASH: fragments appended one by one. Half of it is worth what the journal
	// says.
	byPlaylist = "playlist"
	byManifest = "manifest"
	// byOther is everything else, such as Smooth Streaming, whose fragments are changed on the way: half of it is worth
	// nothing.
	byOther = "other"
)

func transport(protocol string) string {
	switch protocol {
	case "http", "https":
		return byRange
	case "m3u8", "m3u8_native":
		return byPlaylist
	case "http_dash_segments":
		return byManifest
	}
	return byOther
}

// plan is what yt-dlp has chosen to fetch, as it says before it begins. It is kept in the directory: the files there
// are of these formats, whatever a later extraction would choose.
type plan struct {
	// Formats are the ids of one format, or of two to be merged.
	Formats []string `json:"formats"`
	// File is what comes of it before it is converted, Parts are what is fetched, by name. For one format both are the
	// same.
	File  string          `json:"file"`
	Parts map[string]part `json:"parts"`
}

// part is a file that is fetched.
type part struct {
	How    string `json:"how"`
	Format string `json:"format"`
}

// makePlan makes a plan of what yt-dlp prints, or none of what is incomplete.
func makePlan(line planLine) *plan {
	p := &plan{File: filepath.Base(line.File), Parts: map[string]part{}}
	if line.File == "" || line.Format == "" {
		return nil
	}
	if len(line.Formats) == 0 {
		p.Formats = []string{line.Format}
		p.Parts[p.File] = part{transport(line.Protocol), line.Format}
		return p
	}
	if len(line.Exts) != len(line.Formats) || len(line.Protocols) != len(line.Formats) {
		return nil
	}
	p.Formats = line.Formats
	stem := strings.TrimSuffix(p.File, filepath.Ext(p.File))
	for i, format := range line.Formats { // as YoutubeDL.process_info names them
		p.Parts[stem+".f"+format+"."+line.Exts[i]] = part{transport(line.Protocols[i]), format}
	}
	return p
}

// selector chooses the same formats again. An id by itself could mean something else: an extension, or "best".
func (p *plan) selector() string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	var formats []string
	for _, id := range p.Formats {
		formats = append(formats, `b*[format_id="`+quote.Replace(id)+`"]`)
	}
	return strings.Join(formats, "+")
}

// readPlan returns the plan of what is in a directory, or nil if there is none that can be read.
func readPlan(dir string) (*plan, error) {
	content, err := os.ReadFile(filepath.Join(dir, planFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing has been chosen
	}
	if err != nil {
		return nil, err
	}
	var p plan
	if json.Unmarshal(content, &p) != nil || len(p.Formats) == 0 || p.File == "" {
		return nil, nil //nolint:nilnil // torn
	}
	return &p, nil
}

func (p *plan) write(dir string) error {
	content, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode the plan: %w", err)
	}
	return replaceFile(filepath.Join(dir, planFile), content)
}

// replaceFile writes a file so that whoever reads it finds the old content or the new.
func replaceFile(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
