package stream

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// frame is an event as it goes over the wire, encoded once for all streams that see the same of it.
type frame struct {
	at    store.Cursor
	topic string
	jobID int64
	bytes []byte
}

// Names of events on the wire that are no topics.
const (
	eventOpen  = "open"
	eventReset = "reset"
)

// Why a stream can not go on from a cursor.
const (
	resetCursorExpired = "cursor_expired" // what came after it is not all there any more
	resetUnknownEpoch  = "unknown_epoch"  // it is of a history that has ended: the database was restored, or another took over
	resetInvalidCursor = "invalid_cursor" // no id of this stream's
)

type subject struct {
	Type string    `json:"type"`
	ID   uuid.UUID `json:"id"`
}

func downloadSubject(id *uuid.UUID) *subject {
	if id == nil {
		return nil
	}
	return &subject{Type: "download", ID: *id}
}

type jobState struct {
	JobID         int64     `json:"job_id,string"`
	Kind          string    `json:"kind"`
	Queue         string    `json:"queue"`
	State         string    `json:"state"`
	PreviousState string    `json:"previous_state"`
	Attempt       int       `json:"attempt"`
	Reason        string    `json:"reason,omitempty"`
	Subject       *subject  `json:"subject,omitempty"`
	At            time.Time `json:"at"`
}

type downloadState struct {
	DownloadID    *uuid.UUID `json:"download_id"`
	JobID         int64      `json:"job_id,string,omitempty"`
	State         string     `json:"state"`
	PreviousState string     `json:"previous_state"`
	Reason        string     `json:"reason,omitempty"`
	ParentID      *uuid.UUID `json:"parent_id,omitempty"`
	At            time.Time  `json:"at"`
}

type workerChange struct {
	WorkerID string    `json:"worker_id"`
	Mode     string    `json:"mode"`
	Host     string    `json:"host"`
	At       time.Time `json:"at"`
}

type jobProgress struct {
	store.Progress

	Subject *subject `json:"subject,omitempty"`
}

// encodeEvent makes an event's frame for those to whom it is about the download.
func encodeEvent(epoch string, e *store.Event, download *uuid.UUID) *frame {
	var data any
	switch {
	case e.Topic == store.TopicJobState:
		data = jobState{
			JobID: e.JobID, Kind: e.Kind, Queue: e.Queue, State: e.State, PreviousState: e.PreviousState, Attempt: e.Attempt,
			Reason: e.Reason, Subject: downloadSubject(download), At: e.At.UTC(),
		}
	case e.Worker != nil:
		data = workerChange{WorkerID: e.Worker.ID, Mode: e.Worker.Mode, Host: e.Worker.Host, At: e.At.UTC()}
	default:
		data = downloadState{
			DownloadID: e.DownloadID, JobID: e.JobID, State: e.State, PreviousState: e.PreviousState,
			Reason: e.Reason, ParentID: e.ParentID, At: e.At.UTC(),
		}
	}
	return &frame{at: e.Cursor, topic: e.Topic, jobID: e.JobID, bytes: encode(&Position{Epoch: epoch, Cursor: e.Cursor}, e.Topic, data)}
}

func encodeProgress(p store.Progress, download *uuid.UUID) []byte {
	return encode(nil, TopicJobProgress, jobProgress{Progress: p, Subject: downloadSubject(download)})
}

func encodeOpen(p Position) []byte {
	return encode(&p, eventOpen, map[string]string{"position": p.String()})
}

func encodeReset(p Position, reason string) []byte {
	return encode(&p, eventReset, map[string]string{"reason": reason})
}

func encodeRetry(after time.Duration) []byte {
	return append(strconv.AppendInt([]byte("retry: "), after.Milliseconds(), 10), "\n\n"...)
}

// encodePing makes a comment, with an id where there is a new place to go on from.
func encodePing(p *Position) []byte {
	b := make([]byte, 0, 64)
	if p != nil {
		b = p.append(append(b, "id: "...))
		b = append(b, '\n')
	}
	return append(b, ": ping\n\n"...)
}

// encode writes one event. JSON has no raw line breaks, so that the data is one line whatever is in it.
func encode(id *Position, event string, data any) []byte {
	text, err := json.Marshal(data)
	if err != nil {
		text = []byte("{}") // no value that came from the database or from JSON gets here
	}
	b := make([]byte, 0, len(text)+96)
	if id != nil {
		b = id.append(append(b, "id: "...))
		b = append(b, '\n')
	}
	b = append(append(b, "event: "...), event...)
	b = append(append(b, "\ndata: "...), text...)
	return append(b, "\n\n"...)
}
