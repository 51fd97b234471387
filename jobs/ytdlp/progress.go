package ytdlp

import (
	"encoding/json"
	"math"
	"strings"
)

// Phases of a Fetch.
const (
	PhaseDownloading    = "downloading"
	PhasePostprocessing = "postprocessing"
)

// Progress is how far a Fetch has come. What is not known is 0. Several streams that are fetched one after the other
// and merged count as one film.
type Progress struct {
	Phase           string
	DownloadedBytes int64
	TotalBytes      int64 // an estimate for streams in fragments
	SpeedBytesPerS  float64
	ETAS            float64
	Percent         float64 // 0 to 100, never falling
	Fragment        int     // of the stream being fetched
	Fragments       int
}

// Lines that yt-dlp prints for us. They are marked, so that nothing else it says is taken for one; the fields are
// JSON, so that no value can end one or begin another.
const (
	planMark        = "medianest:plan "
	downloadMark    = "medianest:download "
	postprocessMark = "medianest:postprocess "
	fileMark        = "medianest:file "

	planTemplate = planMark + `{"format":%(format_id|null)j,"protocol":%(protocol|null)j,"file":%(filename|null)j,` +
		`"formats":%(requested_formats.:.format_id|null)j,"protocols":%(requested_formats.:.protocol|null)j,` +
		`"exts":%(requested_formats.:.ext|null)j,"rates":%(requested_formats.:.tbr|null)j}`
	sourceTemplate   = `{"format_id":%(format_id|null)j,"fragments":%(fragments|null)j,"formats":%(requested_formats.:.{format_id,fragments}|null)j}`
	downloadTemplate = downloadMark + `{"status":%(progress.status|null)j,"format":%(info.format_id|null)j,"file":%(progress.filename|null)j,` +
		`"bytes":%(progress.downloaded_bytes|null)j,"total":%(progress.total_bytes|null)j,"estimate":%(progress.total_bytes_estimate|null)j,` +
		`"speed":%(progress.speed|null)j,"eta":%(progress.eta|null)j,` +
		`"fragment":%(progress.fragment_index|null)j,"fragments":%(progress.fragment_count|null)j}`
	postprocessTemplate = postprocessMark + `{"step":%(progress.postprocessor|null)j,"status":%(progress.status|null)j}`
	fileTemplate        = fileMark + `%(filepath)j`
)

type planLine struct {
	Format    string    `json:"format"`
	Protocol  string    `json:"protocol"`
	File      string    `json:"file"`
	Formats   []string  `json:"formats"` // those to be merged; none for one alone
	Protocols []string  `json:"protocols"`
	Exts      []string  `json:"exts"`
	Rates     []float64 `json:"rates"`
}

type downloadLine struct {
	Status    string  `json:"status"`
	Format    string  `json:"format"`
	File      string  `json:"file"`
	Bytes     float64 `json:"bytes"`
	Total     float64 `json:"total"`
	Estimate  float64 `json:"estimate"`
	Speed     float64 `json:"speed"`
	ETA       float64 `json:"eta"`
	Fragment  float64 `json:"fragment"`
	Fragments float64 `json:"fragments"`
}

type postprocessLine struct {
	Step   string `json:"step"`
	Status string `json:"status"`
}

// tracker makes one film's progress of the lines of one run.
type tracker struct {
	plan    planLine
	format  string             // being fetched
	current downloadLine       // its last line
	fetched map[string]float64 // bytes of the formats before it
	last    Progress
}

// line takes a line of output. known says that it was one of ours, report that the progress has changed.
func (t *tracker) line(line string) (known, report bool) {
	switch {
	case strings.HasPrefix(line, planMark):
		// A list with a null in it, for a stream of unknown rate, says nothing about the others.
		var plan planLine
		if json.Unmarshal([]byte(line[len(planMark):]), &plan) == nil {
			t.plan = plan
		}
		return true, false
	case strings.HasPrefix(line, downloadMark):
		var d downloadLine
		if json.Unmarshal([]byte(line[len(downloadMark):]), &d) != nil {
			return true, false
		}
		t.download(d)
		return true, true
	case strings.HasPrefix(line, postprocessMark):
		var p postprocessLine
		if json.Unmarshal([]byte(line[len(postprocessMark):]), &p) != nil {
			return true, false
		}
		// Moving the file within its directory is no step worth a word.
		if p.Status != "started" || p.Step == "MoveFiles" || t.last.Phase == PhasePostprocessing {
			return true, false
		}
		t.last = Progress{
			Phase: PhasePostprocessing, Percent: t.last.Percent,
			DownloadedBytes: t.last.DownloadedBytes, TotalBytes: t.last.DownloadedBytes,
		}
		return true, true
	}
	return false, false
}

func (t *tracker) download(d downloadLine) {
	for _, value := range []*float64{&d.Bytes, &d.Total, &d.Estimate, &d.Speed, &d.ETA, &d.Fragment, &d.Fragments} {
		*value = bounded(*value)
	}
	if d.Format != t.format {
		if t.format != "" {
			if t.fetched == nil {
				t.fetched = map[string]float64{}
			}
			t.fetched[t.format] = t.current.Bytes
		}
		t.format = d.Format
		delete(t.fetched, d.Format)
	}
	t.current = d

	before := 0.0
	for _, bytes := range t.fetched {
		before += bytes
	}
	done := before + d.Bytes
	total := 0.0
	if size := max(d.Total, d.Estimate); size > 0 {
		total = (before + max(size, d.Bytes)) / t.share()
	}
	p := Progress{
		Phase: PhaseDownloading, Percent: t.last.Percent,
		DownloadedBytes: int64(done), TotalBytes: int64(max(total, 0)),
		SpeedBytesPerS: d.Speed, ETAS: d.ETA, Fragment: int(d.Fragment), Fragments: int(d.Fragments),
	}
	if total > 0 {
		p.Percent = max(p.Percent, min(100, 100*done/total))
		if d.Speed > 0 && len(t.plan.Formats) > 1 {
			p.ETAS = math.Round(max(0, total-done) / d.Speed)
		}
	}
	t.last = p
}

// share is which part of the film's bytes the streams so far and the current one are, as far as their rates tell.
func (t *tracker) share() float64 {
	n := len(t.plan.Formats)
	if n < 2 {
		return 1
	}
	rate := func(i int) float64 { return 1 }
	if len(t.plan.Rates) == n {
		rate = func(i int) float64 { return max(bounded(t.plan.Rates[i]), 1) }
	}
	var seen, all float64
	for i, format := range t.plan.Formats {
		all += rate(i)
		if _, fetched := t.fetched[format]; fetched || format == t.format {
			seen += rate(i)
		}
	}
	if seen == 0 {
		return 1
	}
	return seen / all
}

// bounded keeps a number from outside within what can be added up and shown.
func bounded(v float64) float64 {
	if math.IsNaN(v) || v < 0 {
		return 0
	}
	return min(v, 1<<50)
}
