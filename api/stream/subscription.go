package stream

import (
	"slices"

	"github.com/google/uuid"

	"medianest/store"
)

// TopicJobProgress is the topic of progress, beside those of store's events.
const TopicJobProgress = "job.progress"

// Subscription says what a stream is about. Each filter lets pass what has that property with one of the listed values; an
// empty one lets everything pass. An event that does not have the property, such as a download's change, which has no
// queue, does not pass its filter.
type Subscription struct {
	Viewer store.Viewer

	Topics []string // job.state, job.progress, download.state, worker.joined, worker.left, worker.lost
	Kinds  []string // of jobs
	Queues []string // of jobs
	States []string // of jobs and of downloads. Progress is of running jobs.
	JobIDs []int64

	// DownloadIDs keeps to what happens to these downloads, to the items of those that are collections, and to the jobs of
	// both.
	DownloadIDs []uuid.UUID

	// LastEventID is where the client wants to go on, for those that can not set the header of this name, which is
	// preferred. Empty: from now.
	LastEventID string
}

// job is a job as the filters see it.
type job struct {
	id          int64
	kind, queue string
	viewers     []store.EventViewer
}

// wants says whether the stream is about an event, may tell its viewer, and as about which download of the viewer's
// (nil: none in particular). Topics that this version does not know are of a newer one's, and nobody's here.
func (s *Subscription) wants(e *store.Event) (subject *uuid.UUID, ok bool) {
	switch e.Topic {
	case store.TopicJobState:
		return s.wantsJob(e.Topic, e.State, job{id: e.JobID, kind: e.Kind, queue: e.Queue, viewers: e.Viewers})
	case store.TopicDownloadState:
		return nil, s.wantsChange(e)
	case store.TopicWorkerJoined, store.TopicWorkerLeft, store.TopicWorkerLost:
		return nil, s.wantsWorker(e)
	}
	return nil, false
}

// wantsJob says whether the stream is about what happens to a job, may tell its viewer, and as which download of the
// viewer's (nil: none, which only admins see).
func (s *Subscription) wantsJob(topic, state string, j job) (subject *uuid.UUID, ok bool) {
	if !passes(s.Topics, topic) || !passes(s.States, state) || !passes(s.Kinds, j.kind) || !passes(s.Queues, j.queue) || !passes(s.JobIDs, j.id) {
		return nil, false
	}
	for i := range j.viewers {
		v := &j.viewers[i]
		own := v.UserID == s.Viewer.UserID
		if !own && !s.Viewer.Admin || !s.wantsDownload(v.DownloadID, v.ParentID) {
			continue
		}
		if own {
			return &v.DownloadID, true
		}
		if subject == nil {
			subject = &v.DownloadID
		}
	}
	return subject, subject != nil || s.Viewer.Admin && len(s.DownloadIDs) == 0
}

// wantsChange is wantsJob for a download's change.
func (s *Subscription) wantsChange(e *store.Event) bool {
	if e.UserID == nil || e.DownloadID == nil || !s.Viewer.Admin && *e.UserID != s.Viewer.UserID {
		return false
	}
	return passes(s.Topics, e.Topic) && passes(s.States, e.State) && len(s.Kinds) == 0 && len(s.Queues) == 0 &&
		passes(s.JobIDs, e.JobID) && s.wantsDownload(*e.DownloadID, e.ParentID)
}

// wantsWorker is wantsJob for what happens to a worker, which only admins see.
func (s *Subscription) wantsWorker(e *store.Event) bool {
	return s.Viewer.Admin && e.Worker != nil && passes(s.Topics, e.Topic) && len(s.States) == 0 && len(s.Kinds) == 0 &&
		len(s.Queues) == 0 && len(s.JobIDs) == 0 && len(s.DownloadIDs) == 0
}

func (s *Subscription) wantsDownload(id uuid.UUID, parentID *uuid.UUID) bool {
	return passes(s.DownloadIDs, id) || parentID != nil && slices.Contains(s.DownloadIDs, *parentID)
}

func passes[T comparable](wanted []T, value T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, value)
}

// userID is whose events to read for the stream; nil for all.
func (s *Subscription) userID() *uuid.UUID {
	if s.Viewer.Admin {
		return nil
	}
	return &s.Viewer.UserID
}
