package jobs

import (
	"github.com/google/uuid"
	"github.com/riverqueue/river"
)

// RemoveFilesArgs are the arguments of a job that removes one user's files of a content from the library.
type RemoveFilesArgs struct {
	UserID    uuid.UUID `json:"user_id"`
	ContentID uuid.UUID `json:"content_id"`
}

// Kind implements river.JobArgs.
func (RemoveFilesArgs) Kind() string { return "remove_files" }

// InsertOpts implements river.JobArgsWithInsertOpts.
func (RemoveFilesArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueLibrary, MaxAttempts: 10}
}
