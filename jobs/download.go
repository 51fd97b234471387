package jobs

import (
	"github.com/google/uuid"
	"github.com/riverqueue/river"
)

// DownloadArgs are the arguments of a job that brings a content into the library, for all users who wish for it.
type DownloadArgs struct {
	ContentID uuid.UUID `json:"content_id"`
}

// Kind implements river.JobArgs.
func (DownloadArgs) Kind() string { return "download" }

// InsertOpts implements river.JobArgsWithInsertOpts. That a content has one job at a time is kept by the lock on its
// row, not by River's uniqueness: a second wish must be tied to the job that runs, not refused.
func (DownloadArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueDownload, MaxAttempts: 8}
}
