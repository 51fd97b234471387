package ytdlp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"medianest/jobs/reason"
)

// FetchRequest asks for one film.
type FetchRequest struct {
	// URL is the address that was probed.
	URL string
	// Info is the Probe's, so that nothing is extracted twice. Without it, or when what it says has expired, yt-dlp
	// extracts from URL.
	Info json.RawMessage
	// Dir is where the film is put together, and must exist. It holds nothing else. A Fetch goes on with what an
	// earlier one of the same film has left in it, however that ended and wherever it ran; the directory may be a copy.
	Dir     string
	Profile Profile
	Network Network
	// OnProgress, if not nil, is called about once a second and when something begins or ends, by one goroutine at a
	// time and until Fetch returns. It must not block.
	OnProgress func(Progress)
	// OnWarning, if not nil, is called likewise with what yt-dlp warns of, fit for people: no path, no query of an address.
	OnWarning func(string)
}

// Media is a fetched film.
type Media struct {
	Path string // in the request's Dir
	Ext  string // of Path, without the dot
}

// Fetch fetches a film into the request's directory. Failures that yt-dlp reports are *reason.Error; a cancelled
// context's cause comes back wrapped, and nobody writes to the directory any more when Fetch returns. What it leaves
// there after a failure is good for going on.
func (r *Runner) Fetch(ctx context.Context, req FetchRequest) (Media, error) {
	at, err := newTarget(req.URL)
	if err != nil {
		return Media{}, err
	}
	if err := req.Profile.Validate(); err != nil {
		return Media{}, &reason.Error{Reason: reason.Internal, Err: fmt.Errorf("fetch with profile: %w", err)}
	}
	// yt-dlp prints absolute paths as it was given them; they are compared below.
	if req.Dir, err = filepath.Abs(req.Dir); err != nil {
		return Media{}, fmt.Errorf("fetch into %s: %w", req.Dir, err)
	}
	if len(req.Info) > 0 {
		media, err := r.fetch(ctx, req, at, true)
		if !expired(err) {
			return media, err
		}
		r.log.DebugContext(ctx, "what was extracted has expired; extracting again", slog.String("url_host", at.host), slog.Any("err", err))
	}
	return r.fetch(ctx, req, at, false)
}

const changedDetail = "What is at this address changed while it was fetched."

// fetch runs yt-dlp in a directory that may hold anything of an earlier run. It goes on with the formats of that; where
// they are gone, or are not what they were, it begins anew, once.
func (r *Runner) fetch(ctx context.Context, req FetchRequest, at target, fromInfo bool) (Media, error) {
	chosen, err := repair(req.Dir)
	if err != nil {
		return Media{}, onDisk(fmt.Errorf("repair what an earlier fetch left: %w", err))
	}
	media, err := r.fetchOnce(ctx, req, at, fromInfo, chosen)
	failure := reason.Find(err)
	// A server that has less by now than is there already refuses the range.
	refused := chosen != nil && failure != nil && strings.Contains(strings.ToLower(failure.Error()), "http error 416")
	changed := refused || errors.Is(err, errChanged)
	if changed || chosen != nil && failure != nil && failure.Reason == reason.FormatUnavailable {
		r.log.DebugContext(ctx, "what was begun is no longer offered; beginning anew", slog.String("url_host", at.host),
			slog.Bool("changed", changed))
		if err := empty(req.Dir); err != nil {
			return Media{}, onDisk(fmt.Errorf("remove what an earlier fetch left: %w", err))
		}
		media, err = r.fetchOnce(ctx, req, at, fromInfo, nil)
		if errors.Is(err, errChanged) {
			return Media{}, &reason.Error{Reason: reason.Damaged, Detail: changedDetail, Err: err}
		}
	}
	return media, err
}

// fetchOnce runs yt-dlp once. chosen is what to go on with, nil for nothing.
func (r *Runner) fetchOnce(ctx context.Context, req FetchRequest, at target, fromInfo bool, chosen *plan) (Media, error) {
	if fromInfo {
		if err := writeInfo(req.Dir, req.Info); err != nil {
			return Media{}, onDisk(err)
		}
	}
	if err := replaceFile(filepath.Join(req.Dir, bootFile), []byte(bootID())); err != nil {
		return Media{}, onDisk(fmt.Errorf("begin fetch: %w", err))
	}
	if err := (sources{req.Dir}).forget(); err != nil {
		return Media{}, onDisk(fmt.Errorf("begin fetch: %w", err))
	}
	notes, err := openJournal(req.Dir)
	if err != nil {
		return Media{}, onDisk(err)
	}
	defer notes.close()
	running, stop := context.WithCancelCause(ctx)
	var observer sync.WaitGroup
	observer.Go(func() { notes.keep(running, r.log, func() { stop(errChanged) }) })
	defer observer.Wait()
	defer stop(nil)

	progress := &tracker{}
	var file string
	warned := r.warnings(ctx, at, req.Dir, req.OnWarning)
	ended, err := r.run(running, invocation{
		args: fetchArgs(r.opts, req.Profile, at, req.Dir, fromInfo, chosen), dir: req.Dir, env: environment(r.opts, req.Dir, req.Network),
		// yt-dlp prints downloads' progress on its output and post-processors' on its error output.
		stderr: func(line string) bool {
			if path, ok := strings.CutPrefix(line, fileMark); ok {
				_ = json.Unmarshal([]byte(path), &file) // what is no path fails below
				return true
			}
			known, changed := progress.line(line)
			if strings.HasPrefix(line, planMark) {
				notes.chosen(r.keepPlan(ctx, req.Dir, progress.plan))
			}
			if now := progress.current; errors.Is(notes.total(filepath.Base(now.File), int64(now.Total)), errChanged) {
				stop(errChanged)
			}
			if changed && req.OnProgress != nil {
				req.OnProgress(progress.last)
			}
			return known || warned(line)
		},
	})
	if err != nil {
		return Media{}, stopped(err, at)
	}
	if ended.code != 0 {
		failure := classify(ended, req.Dir)
		if failure.Reason == reason.Postprocess {
			// What ffmpeg cannot read may be no media at all. Left behind, a later try would take it for fetched.
			found, err := removeTexts(req.Dir)
			if err != nil {
				return Media{}, onDisk(fmt.Errorf("look at what was fetched: %w", err))
			}
			if found {
				return Media{}, &reason.Error{Reason: reason.Damaged, Detail: textDetail, Err: failure}
			}
		}
		return Media{}, failure
	}
	if err := notes.end(); errors.Is(err, errChanged) {
		return Media{}, err
	} else if err != nil {
		return Media{}, onDisk(fmt.Errorf("compare what was fetched with what was begun: %w", err))
	}
	return fetched(req.Dir, file)
}

// keepPlan writes down what yt-dlp has chosen. Without it, what is fetched now cannot be gone on with.
func (r *Runner) keepPlan(ctx context.Context, dir string, line planLine) *plan {
	chosen := makePlan(line)
	if chosen == nil {
		return nil
	}
	if err := chosen.write(dir); err != nil {
		r.log.DebugContext(ctx, "the plan of a fetch cannot be kept", slog.Any("err", err))
	}
	return chosen
}

const textDetail = "The site sent a text in place of media."

// removeTexts removes what was fetched as media and is text, and reports whether there was any.
func removeTexts(dir string) (bool, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "media.*"))
	if err != nil {
		return false, err
	}
	found := false
	for _, path := range paths {
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
			continue
		}
		head, err := headOf(path)
		if err != nil {
			return false, err
		}
		if !isText(head) {
			continue
		}
		if err := os.Remove(path); err != nil {
			return false, err
		}
		found = true
	}
	return found, nil
}

// fetched checks what yt-dlp says that it has made.
func fetched(dir, file string) (Media, error) {
	if file == "" {
		return Media{}, &reason.Error{Reason: reason.NoMedia, Err: errors.New("yt-dlp ended well and named no file")}
	}
	if filepath.Dir(filepath.Clean(file)) != dir {
		return Media{}, &reason.Error{Reason: reason.Internal, Err: errors.New("yt-dlp named a file outside its directory")}
	}
	info, err := os.Lstat(file)
	if err != nil || !info.Mode().IsRegular() {
		return Media{}, &reason.Error{Reason: reason.Internal, Err: errors.New("yt-dlp named a file that is not there")}
	}
	if info.Size() == 0 {
		return Media{}, &reason.Error{Reason: reason.Damaged, Detail: "The file is empty."}
	}
	head, err := headOf(file)
	if err != nil {
		return Media{}, onDisk(fmt.Errorf("look at what was fetched: %w", err))
	}
	ext := strings.TrimPrefix(filepath.Ext(file), ".")
	if ext != "unknown_video" {
		if isText(head) {
			_ = os.Remove(file) // a later try would take it for fetched
			return Media{}, &reason.Error{Reason: reason.Damaged, Detail: textDetail}
		}
		return Media{Path: file, Ext: ext}, nil
	}
	// The server did not say what it is; it may be a film, or anything at all.
	ext = sniff(head)
	if ext == "" {
		_ = os.Remove(file) // a later try would take it for fetched
		return Media{}, &reason.Error{Reason: reason.NoMedia, Detail: "What is at this address is neither video nor audio."}
	}
	known := strings.TrimSuffix(file, "unknown_video") + ext
	if err := os.Rename(file, known); err != nil {
		return Media{}, onDisk(fmt.Errorf("name what was fetched: %w", err))
	}
	return Media{Path: known, Ext: ext}, nil
}

var extensions = map[string]string{
	"video/mp4": "mp4", "video/webm": "webm", "video/avi": "avi", "application/ogg": "ogg",
	"audio/mpeg": "mp3", "audio/wave": "wav", "audio/aiff": "aiff",
}

// headOf is what a file begins with, as much as is needed to tell what it is.
func headOf(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	head := make([]byte, 512)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return head[:n], nil
}

// isText reports whether a file that begins so is a page, a playlist, a manifest or another text. Playlists are known
// by their first word also when something binary follows, as ffmpeg takes them for what they are all the same.
func isText(head []byte) bool {
	start := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \t\r\n")
	for _, word := range []string{"#EXTM3U", "ffconcat", "<?xml", "<MPD", "v=0"} {
		if bytes.HasPrefix(start, []byte(word)) {
			return true
		}
	}
	return len(start) > 0 && strings.HasPrefix(http.DetectContentType(head), "text/")
}

// sniff returns the extension of a media file that begins so, or "" for what is none.
func sniff(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte("fLaC")):
		return "flac"
	case bytes.HasPrefix(head, []byte("FLV\x01")):
		return "flv"
	case len(head) > 376 && head[0] == 0x47 && head[188] == 0x47 && head[376] == 0x47:
		return "ts"
	}
	return extensions[http.DetectContentType(head)]
}

// writeInfo puts a description where --load-info-json reads it. It is without the page's address: given that, yt-dlp
// goes there by itself after any failure, and fetches all that a page of several films has.
func writeInfo(dir string, info json.RawMessage) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(info, &fields); err != nil {
		return &reason.Error{Reason: reason.Internal, Err: fmt.Errorf("decode the stored description: %w", err)}
	}
	delete(fields, "webpage_url")
	content, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("encode the stored description: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, infoFile), content, 0o600); err != nil {
		return fmt.Errorf("write the stored description: %w", err)
	}
	return nil
}

// expired reports whether a failure may be one of an old description alone: the site refuses the addresses in it.
func expired(err error) bool {
	failure := reason.Find(err)
	if failure == nil {
		return false
	}
	text := strings.ToLower(failure.Error())
	for _, status := range []string{"http error 401", "http error 403", "http error 404", "http error 410"} {
		if strings.Contains(text, status) {
			return true
		}
	}
	return false
}

// onDisk gives a full disk its reason, and leaves other errors as they are.
func onDisk(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &reason.Error{Reason: reason.DiskFull, Err: err}
	}
	return err
}
