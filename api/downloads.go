package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"medianest/jobs/media"
	"medianest/jobs/reason"
	"medianest/store"
)

// Downloads is what users wish for. Each method acts on behalf of a viewer: what that viewer may not see is
// ErrNotFound.
type Downloads interface {
	// CreateDownload keeps a wish and enqueues its job. It returns the existing download and false where the same user
	// wishes for the same and that has not ended, or where the idempotency key was used for the same request.
	CreateDownload(ctx context.Context, n store.NewDownload) (store.Download, bool, error)
	FindDownload(ctx context.Context, id uuid.UUID, v store.Viewer) (store.Download, error)
	// ListDownloads returns a page, newest first, and the cursor of the next one, or "".
	ListDownloads(ctx context.Context, f store.DownloadFilter) ([]store.Download, string, error)
	CancelDownload(ctx context.Context, id uuid.UUID, v store.Viewer) (store.Download, error)
	RetryDownload(ctx context.Context, id uuid.UUID, v store.Viewer) (store.Download, error)
	// RetryFailedChildren begins the failed items of a collection anew, and returns how many.
	RetryFailedChildren(ctx context.Context, id uuid.UUID, v store.Viewer) (int, error)
	DownloadNow(ctx context.Context, id uuid.UUID, v store.Viewer) (store.Download, error)
	DeleteDownload(ctx context.Context, id uuid.UUID, v store.Viewer) error
}

// Download is one user's wish for what is at an address.
type Download struct {
	ID           uuid.UUID  `json:"id" format:"uuid" doc:"Identifies the download."`
	UserID       uuid.UUID  `json:"user_id" format:"uuid" doc:"Whose wish it is."`
	ParentID     *uuid.UUID `json:"parent_id,omitempty" format:"uuid" doc:"The collection that it is an item of."`
	URL          string     `json:"url" doc:"The address." example:"https://example.org/watch/42"`
	Profile      string     `json:"profile" doc:"In which form." example:"best"`
	Title        string     `json:"title" doc:"Empty until it is known." example:"A walk in the woods"`
	IsCollection bool       `json:"is_collection" doc:"A page, playlist or feed: it has items (list them by parent_id) and no files of its own."`
	State        string     `json:"state" enum:"queued,waiting,running,paused,completed,failed,cancelled" doc:"queued: waits for a worker. waiting: for something else, see waiting_on. running: a worker is at it. completed, failed and cancelled are ends, until it is tried again." example:"running"`
	WaitingOn    string     `json:"waiting_on,omitempty" doc:"What a waiting download waits for. retry: the pause before the next try. pause: it was paused. window: the time of the day at which it is allowed. limit: how many run at a time, or begin; waiting tells more. breaker: the site asked for less, or fails. disk: space. live: the start of what is announced."`
	StartBy      *time.Time `json:"start_by,omitempty" doc:"When it is dropped unless it has begun."`
	NextTryAt    *time.Time `json:"next_try_at,omitempty" doc:"When a waiting download is tried again, at the earliest."`
	Waiting      *Waiting   `json:"waiting,omitempty" doc:"Why its job waits in the queue, and where in line. It is looked up when the download is: the event stream tells of such a download as queued, and the answer to a new one does not tell it yet."`
	JobID        string     `json:"job_id,omitempty" doc:"The job that fetches it: the same for all users who wish for the same." example:"42"`
	Progress     *Progress  `json:"progress,omitempty" doc:"How far it is while it runs."`
	Children     *Children  `json:"children,omitempty" doc:"How many of a collection's items are in which state."`
	Files        []File     `json:"files" nullable:"false" doc:"What it has become in the library."`
	Failure      *Failure   `json:"failure,omitempty" doc:"Why it failed, or why a collection lacks items. Where a single download is shown that waits for its next try: why the last one failed."`
	CreatedAt    time.Time  `json:"created_at" doc:"When it was asked for."`
	StartedAt    *time.Time `json:"started_at,omitempty" doc:"When a worker took it."`
	FinishedAt   *time.Time `json:"finished_at,omitempty" doc:"When it ended."`
}

// Progress is how far a job is. It is kept in Redis alone: without it there is none.
type Progress struct {
	Phase           string    `json:"phase,omitempty" doc:"What is being done." example:"downloading"`
	Percent         float64   `json:"percent" minimum:"0" maximum:"100" doc:"How much is done. Of a collection: of its items." example:"41.2"`
	DownloadedBytes int64     `json:"downloaded_bytes,omitempty" doc:"What has been fetched." example:"4321000"`
	TotalBytes      int64     `json:"total_bytes,omitempty" doc:"What there is to fetch, perhaps estimated; missing where nobody knows." example:"10485760"`
	SpeedBytesPerS  int64     `json:"speed_bytes_per_s,omitempty" doc:"How fast it is fetched." example:"1200000"`
	ETAS            int64     `json:"eta_s,omitempty" doc:"How many seconds it may take." example:"5"`
	At              time.Time `json:"at,omitzero" doc:"When this was so."`
}

// Children counts a collection's items by state.
type Children struct {
	Total     int `json:"total" doc:"All items." example:"5"`
	Queued    int `json:"queued" doc:"Items that wait for a worker."`
	Waiting   int `json:"waiting" doc:"Items that wait for something else."`
	Running   int `json:"running" doc:"Items that a worker is at." example:"1"`
	Paused    int `json:"paused" doc:"Items that were paused."`
	Completed int `json:"completed" doc:"Items that are in the library." example:"4"`
	Failed    int `json:"failed" doc:"Items that failed."`
	Cancelled int `json:"cancelled" doc:"Items that were cancelled."`
}

// File is a file in the library.
type File struct {
	Path      string `json:"path" doc:"Where it is, relative to the media directory." example:"anna/A walk in the woods [42].mp4"`
	SizeBytes int64  `json:"size_bytes" doc:"How large it is." example:"10485760"`
	SHA256    string `json:"sha256" doc:"The SHA-256 of what is in it, in hexadecimal." example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
}

// Failure says why something failed.
type Failure struct {
	Reason    string `json:"reason" doc:"From a closed list; see the documentation of the reasons below." example:"no_media"`
	Detail    string `json:"detail" doc:"The reason in words, for people." example:"There is no video or audio at this address."`
	Retryable bool   `json:"retryable" doc:"Whether asking again, unchanged, may have another result."`
}

// DownloadRequest asks for a download.
type DownloadRequest struct {
	URL     string     `json:"url" minLength:"1" maxLength:"8192" doc:"What to download: an absolute http or https address of a video, a page with videos, a playlist or a feed." example:"https://example.org/watch/42"`
	Profile string     `json:"profile,omitempty" enum:"best" default:"best" doc:"In which form." example:"best"`
	StartBy *time.Time `json:"start_by,omitempty" doc:"If it has not begun by then, it is dropped: cancelled, with the reason expired. Missing: it begins whenever it can."`
}

// maxLimit is the longest page of a list.
const maxLimit = 200

type downloadOutput struct{ Body Download }

var createDownload = described{
	id: "create-download", scope: ScopeDownloadsWrite, tag: tagDownloads, summary: "Download something", status: http.StatusAccepted,
	text: "Keeps the wish and puts it into the queue; both or, if anything goes wrong, neither. What becomes of it is on the event stream, and in the download itself.\n\n" +
		"Who wishes for the same again while that is under way gets the same download, with status 200. With an `Idempotency-Key` the very same request can be sent any number of times and makes one download; a key is remembered for at least a day.\n\n" +
		"An address that cannot be downloaded from is refused here only if that shows from the address itself. Whether a host may be reached, and whether there is media, is found out by the worker and told as the download's failure.",
	also:     map[int]string{http.StatusOK: "There was such a download already, or the request was sent before."},
	problems: []Code{CodeInvalidURL, CodeIdempotencyMismatch, CodeConflict, CodeBodyTimeout},
}

type createDownloadInput struct {
	IdempotencyKey string `header:"Idempotency-Key" minLength:"1" maxLength:"255" pattern:"^[ -~]+$" patternDescription:"printable ASCII" doc:"Any text that is new for each new wish, such as a UUID."`
	Body           DownloadRequest
}

type createDownloadOutput struct {
	Status   int
	Location string `header:"Location" doc:"Where the download is."`
	Body     Download
}

func (a *API) handleCreateDownload(ctx context.Context, input *createDownloadInput) (*createDownloadOutput, error) {
	key, url, err := media.ContentKey(input.Body.Profile, input.Body.URL)
	if err != nil {
		return nil, invalidURL(err)
	}
	download, created, err := a.store.CreateDownload(ctx, store.NewDownload{
		UserID: viewerOf(ctx).UserID, URL: url, ContentKey: key, Profile: input.Body.Profile, StartBy: input.Body.StartBy,
		IdempotencyKey: input.IdempotencyKey, Fingerprint: fingerprint(input.Body),
	})
	if err != nil {
		return nil, conflict(err, "The download that this Idempotency-Key made has been deleted.")
	}
	output := &createDownloadOutput{
		Status:   http.StatusOK,
		Location: a.basePath + apiPath + "/downloads/" + download.ID.String(),
		Body:     a.presentDownload(ctx, download),
	}
	if created {
		output.Status = http.StatusAccepted
	}
	return output, nil
}

// fingerprint is what a request that is sent again must be equal in. It is of the values, not the bytes: white space
// and the order of fields mean nothing.
func fingerprint(body DownloadRequest) [32]byte {
	canonical, err := json.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("marshal a struct of strings: %v", err)) // cannot be
	}
	return sha256.Sum256(append([]byte("POST "+apiPath+"/downloads\n"), canonical...))
}

var listDownloads = described{
	id: "list-downloads", scope: ScopeDownloadsRead, tag: tagDownloads, summary: "List downloads",
	text:     "Newest first, your own; an admin sees everybody's. Without `parent_id` the list holds what was asked for and leaves out the items of collections; with it, a collection's items in their order.",
	problems: []Code{CodeValidationFailed},
}

type listDownloadsInput struct {
	State    []string  `query:"state" nullable:"false" enum:"queued,waiting,running,paused,completed,failed,cancelled" doc:"Only those in one of these states, separated by commas."`
	ParentID uuid.UUID `query:"parent_id" format:"uuid" doc:"Only the items of this collection."`
	Paging
}

// Paging is what all lists have in common.
type Paging struct {
	Cursor string `query:"cursor" maxLength:"512" doc:"The next_cursor of the page before."`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many at most."`
}

// DownloadList is a page of downloads.
type DownloadList struct {
	Items      []Download `json:"items" nullable:"false" doc:"The page."`
	NextCursor string     `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

type listDownloadsOutput struct{ Body DownloadList }

func (a *API) handleListDownloads(ctx context.Context, input *listDownloadsInput) (*listDownloadsOutput, error) {
	filter := store.DownloadFilter{Viewer: viewerOf(ctx), States: input.State, Cursor: input.Cursor, Limit: input.Limit}
	if input.ParentID != uuid.Nil {
		filter.ParentID = &input.ParentID
	}
	downloads, next, err := a.store.ListDownloads(ctx, filter)
	if err != nil {
		return nil, notFound(err, "collection")
	}
	return &listDownloadsOutput{DownloadList{Items: a.presentDownloads(ctx, downloads), NextCursor: next}}, nil
}

var findDownload = described{
	id: "find-download", scope: ScopeDownloadsRead, tag: tagDownloads, summary: "Show a download",
	text:     "With its progress while it runs, its files once it is completed, and why it failed if it did. A collection tells how many of its items are in which state.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

type downloadInput struct {
	ID uuid.UUID `path:"id" format:"uuid" doc:"The download's id."`
}

func (a *API) handleFindDownload(ctx context.Context, input *downloadInput) (*downloadOutput, error) {
	download, err := a.store.FindDownload(ctx, input.ID, viewerOf(ctx))
	if err != nil {
		return nil, notFound(err, "download")
	}
	return &downloadOutput{a.presentDownload(ctx, download)}, nil
}

var cancelDownload = described{
	id: "cancel-download", scope: ScopeDownloadsWrite, tag: tagDownloads, summary: "Cancel a download",
	text:     "Ends it, and with a collection its items. It is yours alone: if others wish for the same, it goes on for them; otherwise the worker is stopped within two seconds.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

func (a *API) handleCancelDownload(ctx context.Context, input *downloadInput) (*downloadOutput, error) {
	download, err := a.store.CancelDownload(ctx, input.ID, viewerOf(ctx))
	if err != nil {
		return nil, conflict(notFound(err, "download"), "It has ended already.")
	}
	return &downloadOutput{a.presentDownload(ctx, download)}, nil
}

var retryDownload = described{
	id: "retry-download", scope: ScopeDownloadsWrite, tag: tagDownloads, summary: "Try a download again", status: http.StatusAccepted,
	text:     "Puts a download that has ended into the queue again. Of a collection, the page is read again and the items that failed or were cancelled are tried again; those in the library are left alone.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

func (a *API) handleRetryDownload(ctx context.Context, input *downloadInput) (*downloadOutput, error) {
	download, err := a.store.RetryDownload(ctx, input.ID, viewerOf(ctx))
	if err != nil {
		return nil, conflict(notFound(err, "download"), "It has not ended yet, or you have another one of the same that has not.")
	}
	return &downloadOutput{a.presentDownload(ctx, download)}, nil
}

var retryFailed = described{
	id: "retry-failed-items", scope: ScopeDownloadsWrite, tag: tagDownloads, summary: "Try a collection's failed items again", status: http.StatusAccepted,
	text:     "Puts the items that failed into the queue again, also while others run. The page is not read again.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

func (a *API) handleRetryFailed(ctx context.Context, input *downloadInput) (*downloadOutput, error) {
	if _, err := a.store.RetryFailedChildren(ctx, input.ID, viewerOf(ctx)); err != nil {
		return nil, conflict(notFound(err, "download"), "None of its items has failed.")
	}
	return a.handleFindDownload(ctx, input)
}

var downloadNow = described{
	id: "download-now", scope: ScopeDownloadsWrite, tag: tagDownloads, summary: "Download it next",
	text:     "Moves a download that waits, or what waits of a collection's items, to the front of the line: before all else of the same user; for an admin before everybody's. A pause before the next try ends. It still waits for limits, breakers and pauses.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

func (a *API) handleDownloadNow(ctx context.Context, input *downloadInput) (*downloadOutput, error) {
	download, err := a.store.DownloadNow(ctx, input.ID, viewerOf(ctx))
	if err != nil {
		return nil, conflict(notFound(err, "download"), "It does not wait: it runs already, or has ended.")
	}
	a.onLimits()
	return &downloadOutput{a.presentDownload(ctx, download)}, nil
}

var deleteDownload = described{
	id: "delete-download", scope: ScopeDownloadsWrite, tag: tagDownloads, summary: "Delete a download and its files",
	text:     "Cancels it if it runs, and removes it, its items and its files from your part of the library. Other users' files of the same content stay. The files go a moment later.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

func (a *API) handleDeleteDownload(ctx context.Context, input *downloadInput) (*struct{}, error) {
	if err := a.store.DeleteDownload(ctx, input.ID, viewerOf(ctx)); err != nil {
		return nil, notFound(err, "download")
	}
	return nil, nil //nolint:nilnil // huma's answer without a body
}

// presentDownload is the download as clients see it. Its progress, and that of a collection's items, is looked up.
func (a *API) presentDownload(ctx context.Context, d store.Download) Download {
	if d.State == store.StateWaiting && d.Waiting == nil && d.FailureReason == "" && d.JobID != nil {
		if job, err := a.store.FindJob(ctx, *d.JobID, viewerOf(ctx)); err == nil { // it may be gone by now
			d.FailureReason = job.Reason
		}
	}
	if !d.IsCollection || d.Children == nil || d.Children.Running == 0 {
		return a.presentDownloads(ctx, []store.Download{d})[0]
	}
	running, _, err := a.store.ListDownloads(ctx, store.DownloadFilter{
		Viewer: viewerOf(ctx), ParentID: &d.ID, States: []string{store.StateRunning}, Limit: maxLimit,
	})
	if err != nil {
		running = nil // the counts alone tell nearly as much
	}
	var done float64
	for _, item := range a.presentDownloads(ctx, running) {
		if item.Progress != nil {
			done += item.Progress.Percent / 100
		}
	}
	return mapDownload(d, nil, done)
}

func (a *API) presentDownloads(ctx context.Context, downloads []store.Download) []Download {
	var jobs []int64
	for _, d := range downloads {
		if d.State == store.StateRunning && d.JobID != nil {
			jobs = append(jobs, *d.JobID)
		}
	}
	progress := a.lastProgress(ctx, jobs)
	presented := make([]Download, 0, len(downloads))
	for _, d := range downloads {
		var p *store.Progress
		if d.State == store.StateRunning && d.JobID != nil {
			if last, ok := progress[*d.JobID]; ok {
				p = &last
			}
		}
		presented = append(presented, mapDownload(d, p, 0))
	}
	return presented
}

// mapDownload is the download as clients see it: p is its progress, if there is any, and runningDone how much of a
// collection's running items is done, in items.
func mapDownload(d store.Download, p *store.Progress, runningDone float64) Download {
	mapped := Download{
		ID: d.ID, UserID: d.UserID, ParentID: d.ParentID, URL: d.URL, Profile: d.Profile, Title: d.Title,
		IsCollection: d.IsCollection, State: d.State, WaitingOn: d.WaitingOn, NextTryAt: d.NextTryAt, StartBy: d.StartBy, Waiting: mapWaiting(d.Waiting),
		Files: make([]File, 0, len(d.Files)), CreatedAt: d.CreatedAt, StartedAt: d.StartedAt, FinishedAt: d.FinishedAt,
	}
	if d.JobID != nil {
		mapped.JobID = strconv.FormatInt(*d.JobID, 10)
	}
	if p != nil {
		mapped.Progress = mapProgress(*p)
	}
	for _, f := range d.Files {
		mapped.Files = append(mapped.Files, File{Path: f.Path, SizeBytes: f.SizeBytes, SHA256: hex.EncodeToString(f.SHA256)})
	}
	if c := d.Children; d.IsCollection && c != nil && c.Total > 0 {
		mapped.Children = &Children{
			Total: c.Total, Queued: c.Queued, Waiting: c.Waiting, Running: c.Running, Paused: c.Paused,
			Completed: c.Completed, Failed: c.Failed, Cancelled: c.Cancelled,
		}
		ended := float64(c.Completed + c.Failed + c.Cancelled)
		if slices.Contains([]string{store.StateRunning, store.StateQueued, store.StateWaiting}, d.State) {
			mapped.Progress = &Progress{Percent: percent(100 * (ended + runningDone) / float64(c.Total))}
		}
	}
	if d.FailureReason != "" {
		why := reason.Reason(d.FailureReason)
		mapped.Failure = &Failure{Reason: d.FailureReason, Detail: d.FailureDetail, Retryable: why.Retryable()}
		if mapped.Failure.Detail == "" {
			mapped.Failure.Detail = why.Sentence()
		}
	}
	return mapped
}
