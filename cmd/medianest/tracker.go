package main

import (
	"slices"
	"time"
)

// States of a download, as the API spells them.
const (
	stateQueued    = "queued"
	stateWaiting   = "waiting"
	stateRunning   = "running"
	statePaused    = "paused"
	stateCompleted = "completed"
	stateFailed    = "failed"
	stateCancelled = "cancelled"
	stateDeleted   = "deleted" // on the stream only
)

// remoteDownload is a download as the API tells it, as far as the command shows it. It is also what --json prints.
type remoteDownload struct {
	ID           string          `json:"id"`
	ParentID     string          `json:"parent_id,omitempty"`
	URL          string          `json:"url"`
	Title        string          `json:"title,omitempty"`
	State        string          `json:"state"`
	WaitingOn    string          `json:"waiting_on,omitempty"`
	NextTryAt    *time.Time      `json:"next_try_at,omitempty"`
	Waiting      *remoteWaiting  `json:"waiting,omitempty"`
	JobID        string          `json:"job_id,omitempty"`
	IsCollection bool            `json:"is_collection,omitempty"`
	Progress     *remoteProgress `json:"progress,omitempty"`
	Files        []remoteFile    `json:"files,omitempty"`
	Failure      *remoteFailure  `json:"failure,omitempty"`
}

type remoteWaiting struct {
	Reason    string     `json:"reason"`
	Key       string     `json:"key,omitempty"`
	Position  int        `json:"position,omitempty"`
	NotBefore *time.Time `json:"not_before,omitempty"`
}

type remoteProgress struct {
	Phase           string  `json:"phase"`
	Percent         float64 `json:"percent"`
	DownloadedBytes int64   `json:"downloaded_bytes"`
	TotalBytes      int64   `json:"total_bytes"`
	SpeedBytesPerS  int64   `json:"speed_bytes_per_s"`
	ETAS            int64   `json:"eta_s"`
}

type remoteFile struct {
	Path      string `json:"path"` // relative to the media directory
	SizeBytes int64  `json:"size_bytes"`
}

type remoteFailure struct {
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

// streamEvent is what the event stream says, as far as the command listens.
type streamEvent struct {
	Type       string // download.state, job.progress, or reset
	DownloadID string
	ParentID   string
	JobID      string
	State      string
	Progress   remoteProgress
}

const (
	eventDownloadState = "download.state"
	eventProgress      = "job.progress"
	eventReset         = "reset"
)

// item is one download as far as it is known.
type item struct {
	remoteDownload
	children []*item
	parent   *item
}

func (i *item) final() bool {
	return i.State == stateCompleted || i.State == stateFailed || i.State == stateCancelled || i.State == stateDeleted
}

// tracker follows the downloads that were asked for, and the items of those that turn out to be collections. What the
// API answers is the truth; the stream says when to ask.
type tracker struct {
	roots []*item
	byID  map[string]*item
}

func newTracker() *tracker { return &tracker{byID: map[string]*item{}} }

// want adds a download that was asked for. Asking twice for the same thing gives one download, followed once.
func (t *tracker) want(d remoteDownload) *item {
	if known, ok := t.byID[d.ID]; ok {
		return known
	}
	i := &item{remoteDownload: d}
	t.byID[d.ID] = i
	t.roots = append(t.roots, i)
	return i
}

// update takes in what the API says of a download and returns its item, and whether its state is another one than
// before. Downloads that nobody asked for are nil.
func (t *tracker) update(d remoteDownload) (i *item, changed bool) {
	i, ok := t.byID[d.ID]
	if !ok {
		parent, ok := t.byID[d.ParentID]
		if !ok {
			return nil, false
		}
		i = &item{parent: parent}
		t.byID[d.ID] = i
		parent.children = append(parent.children, i)
	}
	changed = i.State != d.State
	if d.Progress == nil && !changed {
		d.Progress = i.Progress // the API's comes from a cache that may be away; the stream's was newer
	}
	i.remoteDownload = d
	return i, changed
}

// gone takes in that a download does not exist any more.
func (t *tracker) gone(id string) (i *item, changed bool) {
	i, ok := t.byID[id]
	if !ok || i.final() {
		return nil, false
	}
	i.State = stateDeleted
	return i, true
}

// hear takes in an event. refetch names the downloads that the API should be asked about now; progressed is the items
// whose progress moved.
func (t *tracker) hear(e streamEvent) (refetch []string, progressed []*item) {
	switch e.Type {
	case eventReset:
		return t.unfinished(), nil
	case eventDownloadState:
		i, known := t.byID[e.DownloadID]
		if _, ours := t.byID[e.ParentID]; !known && !ours {
			return nil, nil
		}
		if known && i.State == e.State {
			return nil, nil
		}
		return []string{e.DownloadID}, nil
	case eventProgress:
		for _, i := range t.byJob(e) {
			if i.final() {
				continue
			}
			i.Progress = &e.Progress
			progressed = append(progressed, i)
			if i.Title == "" || i.State != stateRunning {
				refetch = append(refetch, i.ID)
			}
		}
	}
	return refetch, progressed
}

// byJob finds whom progress is about: the download that the event names, else those that follow its job.
func (t *tracker) byJob(e streamEvent) []*item {
	if i, ok := t.byID[e.DownloadID]; ok {
		return []*item{i}
	}
	var items []*item
	for _, i := range t.byID {
		if e.JobID != "" && i.JobID == e.JobID && !i.IsCollection {
			items = append(items, i)
		}
	}
	return items
}

// unfinished returns the ids of all downloads that are not final, in the order they are shown.
func (t *tracker) unfinished() []string {
	var ids []string
	t.each(func(i *item) {
		if !i.final() {
			ids = append(ids, i.ID)
		}
	})
	return ids
}

// each visits all items, parents before their children.
func (t *tracker) each(visit func(*item)) {
	for _, root := range t.roots {
		visit(root)
		for _, child := range root.children {
			visit(child)
		}
	}
}

// done says whether everything that was asked for has ended. A collection ends after its items.
func (t *tracker) done() bool {
	return !slices.ContainsFunc(t.roots, func(i *item) bool { return !i.final() })
}

// tally counts the things themselves: a collection counts by its items.
type tally struct {
	Completed int `json:"completed"`
	Failed    int `json:"failed"`
	Cancelled int `json:"cancelled"`
	Running   int `json:"running"`
}

func (t *tracker) count() tally {
	var c tally
	t.each(func(i *item) {
		if len(i.children) > 0 {
			return
		}
		switch i.State {
		case stateCompleted:
			c.Completed++
		case stateFailed:
			c.Failed++
		case stateCancelled, stateDeleted:
			c.Cancelled++
		default:
			c.Running++
		}
	})
	return c
}

// allCompleted is whether everything, items included, ended well.
func (t *tracker) allCompleted() bool {
	ok := true
	t.each(func(i *item) { ok = ok && i.State == stateCompleted })
	return ok
}
