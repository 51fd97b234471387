package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// wantFiles is what the demo's three addresses have behind them: a film, a stream, and a page with five films.
const wantFiles = 1 + 1 + 5

// film is a file in the library that can be played.
type film struct {
	path      string // relative to the media folder
	sizeBytes int64
	seconds   float64
}

// verify plays every file of the library to its end. A file too few, or one that cannot be played, is an error.
func (d *demo) verify(ctx context.Context) ([]film, error) {
	ffprobe, err := tool("ffprobe")
	if err != nil {
		return nil, err
	}
	ffmpeg, err := tool("ffmpeg")
	if err != nil {
		return nil, err
	}
	var films []film
	err = filepath.WalkDir(d.media(), func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir // what is being downloaded
		case entry.IsDir():
			return nil
		}
		f, err := probe(ctx, ffprobe, path)
		if err != nil {
			return err
		}
		if err := play(ctx, ffmpeg, path); err != nil {
			return err
		}
		if f.path, err = filepath.Rel(d.media(), path); err != nil {
			return err
		}
		films = append(films, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("check the library: %w", err)
	}
	if len(films) != wantFiles {
		return nil, fmt.Errorf("check the library: there are %d files in %s, not %d", len(films), d.media(), wantFiles)
	}
	return films, nil
}

// probe asks ffprobe for a file's duration; a file without a video stream of some length is none to play.
func probe(ctx context.Context, ffprobe, path string) (film, error) {
	out, err := exec.CommandContext(ctx, ffprobe, "-v", "error", "-select_streams", "v:0",
		"-show_entries", "stream=codec_name:format=duration,size", "-of", "json", path).Output()
	if err != nil {
		return film{}, fmt.Errorf("ffprobe %s: %w", path, err)
	}
	var found struct {
		Streams []struct {
			CodecName string `json:"codec_name"`
		} `json:"streams"`
		Format struct {
			Duration string `json:"duration"`
			Size     string `json:"size"`
		} `json:"format"`
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return film{}, fmt.Errorf("ffprobe %s: %w", path, err)
	}
	seconds, err := strconv.ParseFloat(found.Format.Duration, 64)
	if err != nil || len(found.Streams) == 0 || seconds < 1 {
		return film{}, fmt.Errorf("%s cannot be played: ffprobe says %s", path, out)
	}
	size, err := strconv.ParseInt(found.Format.Size, 10, 64)
	if err != nil {
		return film{}, fmt.Errorf("ffprobe %s: %w", path, err)
	}
	return film{sizeBytes: size, seconds: seconds}, nil
}

// play decodes a file. What ffmpeg has to complain about, such as an end that is missing, is an error.
func play(ctx context.Context, ffmpeg, path string) error {
	said, err := exec.CommandContext(ctx, ffmpeg, "-nostdin", "-v", "error", "-i", path, "-f", "null", "-").CombinedOutput()
	if err != nil || len(said) > 0 {
		return fmt.Errorf("%s cannot be played to its end: %s", path, bytes.TrimSpace(said))
	}
	return nil
}

// printTree prints films folder by folder. They are sorted by path.
func printTree(w io.Writer, films []film) {
	folder := ""
	for _, f := range films {
		if dir := filepath.Dir(f.path); dir != folder {
			fmt.Fprintf(w, "  %s/\n", dir)
			folder = dir
		}
		fmt.Fprintf(w, "    %-44s %6.1f MiB  %3.0f s, plays\n", filepath.Base(f.path), float64(f.sizeBytes)/(1<<20), f.seconds)
	}
}
