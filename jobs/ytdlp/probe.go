package ytdlp

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"medianest/jobs/reason"
)

// ProbeRequest asks what is behind an address.
type ProbeRequest struct {
	URL     string
	Dir     string // where yt-dlp may leave temporary files; must exist
	Network Network
	// OnWarning, if not nil, is called with what yt-dlp warns of, as Fetch does.
	OnWarning func(string)
}

// Probe is what is behind an address: one film, or a collection of at least two.
type Probe struct {
	IsCollection bool
	// Extractor is the part of yt-dlp that knows the site, in lower case: "youtube", "vimeo". "generic" and names such
	// as "html5mediaembed" say that no part knows it; an ID is then no more than part of an address.
	Extractor string
	ID        string
	Title     string
	Ext       string  // what the best format comes in
	DurationS float64 // 0 when not known
	// Entries are those of a collection, at most MaxEntries, in its order.
	Entries []Entry
	// Truncated says that the collection has more entries.
	Truncated bool
	// Info is yt-dlp's description of one film, for Fetch; nil for a collection. It holds addresses that expire and
	// may hold secrets of the site. It is valid for a jsonb column.
	Info json.RawMessage
}

// Entry is one of a collection. Its address may be that of a film, of a page, or an ItemURL.
type Entry struct {
	URL       string
	ID        string
	Extractor string // as in Probe; empty when not known yet
	Title     string // empty when not known yet
}

// Probe asks yt-dlp what is behind an address. A collection of one is that one film. Failures that yt-dlp reports, and
// its taking too long, are *reason.Error; a cancelled context's cause comes back wrapped.
func (r *Runner) Probe(ctx context.Context, req ProbeRequest) (Probe, error) {
	at, err := newTarget(req.URL)
	if err != nil {
		return Probe{}, err
	}
	if req.Dir, err = filepath.Abs(req.Dir); err != nil {
		return Probe{}, fmt.Errorf("probe in %s: %w", req.Dir, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.opts.ProbeTimeout, errProbeTimeout)
	defer cancel()
	described, err := r.describe(ctx, req, at)
	if err != nil {
		return Probe{}, err
	}
	if described.Type == "playlist" && len(described.Entries) == 1 && at.item == 0 {
		at.item = 1
		if described, err = r.describe(ctx, req, at); err != nil {
			return Probe{}, err
		}
	}
	if at.item > 0 {
		// What was asked for is one entry, in the clothes of its collection. It may be a collection itself.
		for described.Type == "playlist" && len(described.Entries) == 1 {
			entry := described.Entries[0]
			if described, err = decodeDescription(entry); err != nil {
				return Probe{}, err
			}
		}
	}
	if described.Type == "playlist" {
		return described.collection(cmp.Or(described.WebpageURL, at.url))
	}
	return described.film()
}

var (
	errProbeTimeout = errors.New("the site took too long to say what it has")
	errTooLarge     = errors.New("the description is too large")
)

// describe runs yt-dlp once.
func (r *Runner) describe(ctx context.Context, req ProbeRequest, at target) (description, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &limited{max: MaxInfoBytes, over: func() { cancel(errTooLarge) }}
	ended, err := r.run(ctx, invocation{
		args: probeArgs(r.opts, at), dir: req.Dir, env: environment(r.opts, req.Dir, req.Network), stdout: out, stderr: r.warnings(ctx, at, req.Dir, req.OnWarning),
	})
	if err != nil {
		return description{}, stopped(err, at)
	}
	if ended.code != 0 {
		return description{}, classify(ended, req.Dir)
	}
	return decodeDescription(out.buffer.Bytes())
}

// stopped is the error of a run that was stopped before its end: the caller's own wish stays as it is, a time that ran
// out is a failure with a reason.
func stopped(err error, at target) error {
	switch {
	case errors.Is(err, errTooLarge):
		return &reason.Error{Reason: reason.Unsupported, Detail: fmt.Sprintf("The description of what is there is larger than %d MiB.", MaxInfoBytes>>20), Err: err}
	case errors.Is(err, errProbeTimeout), errors.Is(err, context.DeadlineExceeded):
		return &reason.Error{Reason: reason.Timeout, Detail: at.host + " took too long.", Err: err}
	}
	return err
}

// warnings hands on what yt-dlp warns of, made fit for people, to told if there is one. They explain errors; they are not
// kept with yt-dlp's error output.
func (r *Runner) warnings(ctx context.Context, at target, dir string, told func(string)) func(string) bool {
	return func(line string) bool {
		warning, ok := strings.CutPrefix(line, "WARNING: ")
		if !ok {
			return false
		}
		warning = clean(warning, dir, maxDetail)
		r.log.DebugContext(ctx, "yt-dlp warns", slog.String("url_host", at.host), slog.String("warning", warning))
		if told != nil {
			told(warning)
		}
		return true
	}
}

// description is what is used of yt-dlp's JSON.
type description struct {
	Type             string            `json:"_type"`
	ID               string            `json:"id"`
	Title            string            `json:"title"`
	Ext              string            `json:"ext"`
	URL              string            `json:"url"`
	WebpageURL       string            `json:"webpage_url"`
	ExtractorKey     string            `json:"extractor_key"`
	IEKey            string            `json:"ie_key"`
	Duration         float64           `json:"duration"`
	LiveStatus       string            `json:"live_status"`
	ReleaseTimestamp float64           `json:"release_timestamp"`
	Entries          []json.RawMessage `json:"entries"`

	raw []byte
}

func decodeDescription(raw []byte) (description, error) {
	var d *description
	if err := json.Unmarshal(raw, &d); err != nil {
		return description{}, &reason.Error{Reason: reason.ExtractorBug, Err: fmt.Errorf("decode yt-dlp's description: %w", err)}
	}
	if d == nil { // null: yt-dlp has nothing to say and no error either
		return description{}, &reason.Error{Reason: reason.NoMedia}
	}
	d.raw = raw
	return *d, nil
}

func (d description) extractor() string { return strings.ToLower(cmp.Or(d.ExtractorKey, d.IEKey)) }

// collection makes a Probe of a playlist found at page.
func (d description) collection(page string) (Probe, error) {
	seen := map[string]string{}
	probe := Probe{IsCollection: true, Extractor: d.extractor(), ID: d.ID, Title: plain(cmp.Or(d.Title, d.ID))}
	for i, raw := range d.Entries {
		if len(probe.Entries) == MaxEntries {
			probe.Truncated = true
			break
		}
		if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) { // one that yt-dlp could not describe
			continue
		}
		entry, err := decodeDescription(raw)
		if err != nil {
			return Probe{}, err
		}
		address := entry.entryURL(page, i+1)
		if id, ok := seen[address]; ok && id != entry.ID { // two films at one address are told apart by their place only
			address = ItemURL(page, i+1)
		}
		seen[address] = entry.ID
		probe.Entries = append(probe.Entries, Entry{URL: address, ID: entry.ID, Extractor: entry.extractor(), Title: plain(entry.Title)})
	}
	if len(probe.Entries) == 0 {
		return Probe{}, &reason.Error{Reason: reason.NoMedia, Detail: "There is nothing in this collection."}
	}
	return probe, nil
}

// entryURL is where an entry of the collection at page can be fetched by itself.
func (d description) entryURL(page string, n int) string {
	if strings.HasPrefix(d.Type, "url") && d.URL != "" {
		return unsmuggle(d.URL)
	}
	// It was described together with its collection. Its page, if it has one of its own, is good for as long as the
	// film is there; the address of its media file may not be.
	if d.WebpageURL != "" && !samePage(d.WebpageURL, page) {
		return unsmuggle(d.WebpageURL)
	}
	return ItemURL(page, n)
}

func samePage(a, b string) bool {
	a, _, _ = strings.Cut(a, "#")
	b, _, _ = strings.Cut(b, "#")
	return strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/")
}

func (d description) film() (Probe, error) {
	switch d.LiveStatus {
	case "is_upcoming":
		failure := &reason.Error{Reason: reason.Upcoming}
		if d.ReleaseTimestamp > 0 {
			failure.RetryAt = time.Unix(int64(d.ReleaseTimestamp), 0).UTC()
		}
		return Probe{}, failure
	case "is_live":
		// yt-dlp would record for as long as it lasts.
		return Probe{}, &reason.Error{Reason: reason.Upcoming, Detail: "It is live now, and can be downloaded when it has ended."}
	}
	info, err := reusable(d.raw)
	if err != nil {
		return Probe{}, err
	}
	title := plain(cmp.Or(d.Title, d.ID))
	if d.extractor() == "html5mediaembed" && strings.HasSuffix(d.ID, "-1") {
		// yt-dlp numbers the films of a page even if there is only one.
		title = strings.TrimSuffix(title, " (1)")
	}
	return Probe{
		Extractor: d.extractor(), ID: d.ID, Title: title, Ext: d.Ext, DurationS: max(0, d.Duration), Info: info,
	}, nil
}

// notReusable is left out of Info: choices that Fetch makes itself, what yt-dlp computes again, and the many automatic
// captions, which can be most of a description.
var notReusable = []string{
	"requested_downloads", "requested_formats", "requested_subtitles", "automatic_captions", "heatmap", "_filename", "filename", "filepath",
	"__files_to_move", "__postprocessors", "__real_download", "__finaldir",
}

// reusable is a description that --load-info-json takes and that a jsonb column does, which knows no U+0000 and no
// lone surrogates; decoding and encoding replaces the latter.
func reusable(raw []byte) (json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var info map[string]any
	if err := decoder.Decode(&info); err != nil {
		return nil, &reason.Error{Reason: reason.ExtractorBug, Err: fmt.Errorf("decode yt-dlp's description: %w", err)}
	}
	for _, key := range notReusable {
		delete(info, key)
	}
	out, err := json.Marshal(withoutNUL(info))
	if err != nil {
		return nil, fmt.Errorf("encode yt-dlp's description: %w", err)
	}
	return out, nil
}

func withoutNUL(value any) any {
	switch v := value.(type) {
	case string:
		return strings.ReplaceAll(v, "\x00", "")
	case []any:
		for i := range v {
			v[i] = withoutNUL(v[i])
		}
	case map[string]any:
		for key, inner := range v {
			if clean := strings.ReplaceAll(key, "\x00", ""); clean != key {
				delete(v, key)
				key = clean
			}
			v[key] = withoutNUL(inner)
		}
	}
	return value
}

// plain is a title without U+0000, which a text column refuses. It may hold any other character.
func plain(title string) string { return strings.ReplaceAll(title, "\x00", "") }
