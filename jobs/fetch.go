package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"medianest/jobs/egress"
	"medianest/jobs/media"
	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// Phases of a download, as progress tells them, besides yt-dlp's own.
const (
	phaseProbing      = "probing"
	phaseStartingOver = "starting_over" // in place of others, until there is a byte again, when some had to be left behind
	phaseVerifying    = "verifying"
	phasePublishing   = "publishing"
)

// profileOf is what the name of a profile stands for.
func profileOf(name string) (ytdlp.Profile, error) {
	switch name {
	case "", "best":
		return ytdlp.Profile{}, nil
	}
	return ytdlp.Profile{}, &reason.Error{Reason: reason.Unsupported, Detail: fmt.Sprintf("There is no profile %q.", name)}
}

// begins tells of a phase before the first byte.
func (a *attempt) begins(phase string) {
	if a.fetch.LeftOn != "" {
		phase = phaseStartingOver
	}
	a.report.phase(phase)
}

// probe finds out what is behind the content's address, or remembers what was found out a moment ago.
func (a *attempt) probe(ctx context.Context, session *egress.Session) (ytdlp.Probe, error) {
	a.begins(phaseProbing)
	content := a.fetch.Content
	if known, ok := knownProbe(content); ok {
		queue.Say(ctx, queue.Info, "Found “%s” a while ago, and fetches it.", known.Title)
		return known, nil
	}
	var probe ytdlp.Probe
	err := traced(ctx, "yt-dlp probe", func(ctx context.Context) (err error) {
		probe, err = a.extractor.Probe(ctx, ytdlp.ProbeRequest{
			URL: content.URL, Dir: a.dir, Network: ytdlp.Network{ProxyURL: session.URL()}, OnWarning: warned(ctx),
		})
		return err
	})
	if err != nil {
		return ytdlp.Probe{}, err
	}
	if probe.IsCollection {
		queue.Say(ctx, queue.Info, "Found the collection “%s” of %d.", probe.Title, len(probe.Entries))
	} else {
		queue.Say(ctx, queue.Info, "Found “%s” (%s), and fetches it.", probe.Title, probe.Extractor)
	}
	result := store.ProbeResult{
		Extractor: probe.Extractor, ExtractorID: probe.ID, Title: probe.Title, IsCollection: probe.IsCollection, Info: probe.Info,
	}
	if result.Info == nil {
		result.Info = json.RawMessage(`{}`)
	}
	return probe, patiently(ctx, func() error { return a.store.SaveProbe(ctx, content.ID, a.fetch.Generation, result) })
}

// knownProbe is the content's stored probe if it is of a film and fresh.
func knownProbe(content store.Content) (ytdlp.Probe, bool) {
	if content.ProbedAt == nil || time.Since(*content.ProbedAt) > probeFresh || content.IsCollection {
		return ytdlp.Probe{}, false
	}
	var info struct {
		Ext       string  `json:"ext"`
		DurationS float64 `json:"duration"`
	}
	if err := json.Unmarshal(content.Probe, &info); err != nil {
		return ytdlp.Probe{}, false
	}
	return ytdlp.Probe{
		Extractor: content.Extractor, ID: content.ExtractorID, Title: content.Title,
		Ext: info.Ext, DurationS: max(0, info.DurationS), Info: content.Probe,
	}, true
}

// warned takes yt-dlp's warnings into the job's log.
func warned(ctx context.Context) func(string) {
	return func(warning string) { queue.Say(ctx, queue.Warning, "yt-dlp: %s", warning) }
}

// fetchMedia brings the film into the staging folder.
func (a *attempt) fetchMedia(ctx context.Context, session *egress.Session, probe ytdlp.Probe, profile ytdlp.Profile) (ytdlp.Media, error) {
	a.begins(ytdlp.PhaseDownloading)
	a.fetched = true
	var fetched ytdlp.Media
	err := traced(ctx, "yt-dlp fetch", func(ctx context.Context) (err error) {
		fetched, err = a.extractor.Fetch(ctx, ytdlp.FetchRequest{
			URL: a.fetch.Content.URL, Info: probe.Info, Dir: a.dir, Profile: profile,
			Network: ytdlp.Network{ProxyURL: session.URL()}, OnProgress: a.report.fetched, OnWarning: warned(ctx),
		})
		return err
	})
	return fetched, err
}

// expand makes the downloads that follow the job collections of what was found, in the transaction that completes it.
func (a *attempt) expand(ctx context.Context, probe ytdlp.Probe) error {
	a.report.phase(phasePublishing)
	entries := make([]store.NewEntry, 0, len(probe.Entries))
	var (
		refused  error
		nRefused int
	)
	for _, e := range probe.Entries {
		key, url, err := entryKey(a.fetch.Content.Profile, e.URL)
		if err != nil {
			refused = err
			nRefused++
			continue
		}
		entries = append(entries, store.NewEntry{ContentKey: key, URL: url, Title: e.Title})
	}
	if len(entries) == 0 && refused != nil {
		return refused
	}
	content, leftOut := a.fetch.Content.ID, leftOut(probe.Truncated, nRefused)
	err := patiently(ctx, func() error { return a.store.Expand(ctx, content, a.row, entries, leftOut, a.complete) })
	var invalid *store.InvalidError
	if errors.As(err, &invalid) {
		return &reason.Error{Reason: reason.NoMedia, Detail: "What was found there cannot be added: its " + invalid.Error() + ".", Err: err}
	}
	return a.unlessDone(ctx, err)
}

// leftOut says, for people, what of a collection is not among its items.
func leftOut(truncated bool, refused int) string {
	var said []string
	if truncated {
		said = append(said, fmt.Sprintf("Only the first %d,%03d of its items were taken.", ytdlp.MaxEntries/1000, ytdlp.MaxEntries%1000))
	}
	switch {
	case refused == 1:
		said = append(said, "One of its items cannot be downloaded from.")
	case refused > 1:
		said = append(said, fmt.Sprintf("%d of its items cannot be downloaded from.", refused))
	}
	return strings.Join(said, " ")
}

// entryKey is the content key and the canonical address of a collection's entry. An entry that has no address of its own
// is named by its place in the page, in the fragment, which other addresses lose.
func entryKey(profile, address string) (key, url string, err error) {
	page, place := address, ""
	if ytdlp.IsItemURL(address) {
		page, place, _ = strings.Cut(address, "#")
		place = "#" + place
	}
	if key, url, err = media.ContentKey(profile, page); err != nil {
		return "", "", err
	}
	return key + place, url + place, nil
}
