package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Topics of events.
const (
	TopicJobState      = "job.state"
	TopicDownloadState = "download.state"
	TopicWorkerJoined  = "worker.joined"
	TopicWorkerLeft    = "worker.left"
	TopicWorkerLost    = "worker.lost"
)

var (
	// ErrCursorExpired says that the events after a cursor are not all there any more: retention has removed some, or
	// their history has ended.
	ErrCursorExpired = errors.New("cursor expired")

	// ErrNoHistory says that the ticks belong to another epoch: the database was restored or promoted, and nobody has
	// begun a new history yet. The next AdvanceTick does.
	ErrNoHistory = errors.New("the history of this epoch has not begun")
)

// Cursor is a place in the stream of one epoch: behind event ID of tick Tick, or before all events of Tick if ID is 0.
// Events are in order of tick, then id.
type Cursor struct {
	Tick int64
	ID   int64
}

// Compare orders cursors by their place in the stream.
func (c Cursor) Compare(o Cursor) int {
	return cmp.Or(cmp.Compare(c.Tick, o.Tick), cmp.Compare(c.ID, o.ID))
}

// Event is one change of a state. Its Cursor is the place right behind it.
type Event struct {
	Cursor

	At            time.Time
	Topic         string
	State         string // empty: of worker topics
	PreviousState string // empty for what began
	JobID         int64  // 0: a download that follows no job
	Kind          string // of job.state
	Queue         string // of job.state
	Attempt       int    // of job.state
	Reason        string
	UserID        *uuid.UUID   // of download.state: the owner
	DownloadID    *uuid.UUID   // of download.state
	ParentID      *uuid.UUID   // of download.state: the collection it belongs to
	Worker        *EventWorker // of worker topics

	// Viewers are the downloads that follow or followed the job, by id; of job.state. Their owners may see the event.
	Viewers []EventViewer
}

// EventWorker is the process that came or went.
type EventWorker struct {
	ID   string `json:"id"`
	Mode string `json:"mode"`
	Host string `json:"host"`
}

// EventViewer is a user who may see a job, by one of its downloads.
type EventViewer struct {
	UserID     uuid.UUID
	DownloadID uuid.UUID
	ParentID   *uuid.UUID // the collection that the download belongs to
}

// Head says which part of the stream there is.
type Head struct {
	Epoch  string        // names the history: cursors of another mean nothing here
	Oldest int64         // the tick whose later events are all there
	Newest int64         // the last tick
	Age    time.Duration // how long ago the last tick was taken
}

// End is the cursor behind all that there is.
func (h Head) End() Cursor { return Cursor{Tick: h.Newest + 1} }

// Check returns nil if everything after c can be read, ErrCursorExpired if part of it is gone, and ErrInvalid if the
// stream has not come to c, so that it cannot be one of this epoch.
func (h Head) Check(c Cursor) error {
	switch {
	case c.Tick-1 < h.Oldest:
		return ErrCursorExpired
	case c.Compare(h.End()) > 0:
		return ErrInvalid
	}
	return nil
}

// Head reads where the stream stands. ErrNoHistory if it is to begin anew.
func (s *Store) Head(ctx context.Context) (Head, error) {
	h, err := queryHead(ctx, s.pool)
	if err != nil {
		return Head{}, fmt.Errorf("read head of the stream: %w", interpret(err))
	}
	return h, nil
}

func queryHead(ctx context.Context, db rowQuerier) (Head, error) {
	rows, err := db.Query(ctx, `
		SELECT h.epoch, h.oldest, h.newest, clock_timestamp() - h.newest_at AS age
		FROM medianest.stream_head() AS h`)
	if err != nil {
		return Head{}, err
	}
	h, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Head])
	if errors.Is(err, pgx.ErrNoRows) {
		return Head{}, ErrNoHistory
	}
	return h, err
}

// EventQuery says which events to read.
type EventQuery struct {
	Epoch  string // the cursor's
	After  Cursor
	ToTick int64 // the last tick to read
	Limit  int   // how many events at most; at least 1

	// UserID keeps to the events that concern one user: of own downloads, and of jobs that these follow or followed.
	UserID *uuid.UUID
}

// EventsAfter reads events in stream order, with their viewers. Fewer than the limit are all up to the end of ToTick;
// otherwise the cursor of the last one is where to go on. ErrCursorExpired if part of what was asked for is gone, or the
// epoch has ended.
func (s *Store) EventsAfter(ctx context.Context, q EventQuery) ([]Event, error) {
	s = s.Everyone()
	events, err := queryEvents(ctx, s.pool, q)
	if err != nil {
		return nil, fmt.Errorf("read events after %d.%d: %w", q.After.Tick, q.After.ID, interpret(err))
	}
	var jobs []int64
	for _, e := range events {
		if e.Topic == TopicJobState {
			jobs = append(jobs, e.JobID)
		}
	}
	if len(jobs) == 0 {
		return events, nil
	}
	// After the events: who ties a download to a job writes its viewer in the same transaction, so that none of the
	// viewers that an event is for can be missing.
	viewers, err := s.JobViewers(ctx, jobs)
	if err != nil {
		return nil, err
	}
	for i := range events {
		if events[i].Topic == TopicJobState {
			events[i].Viewers = viewers[events[i].JobID]
		}
	}
	return events, nil
}

func queryEvents(ctx context.Context, db rowQuerier, q EventQuery) ([]Event, error) {
	rows, err := db.Query(ctx, `
		SELECT e.tick, e.id, e.at, e.topic, e.state, e.previous_state, coalesce(e.job_id, 0), coalesce(e.kind, ''),
			coalesce(e.queue, ''), coalesce(e.attempt, 0), coalesce(e.reason, ''), e.user_id, e.download_id, e.parent_id, e.worker
		FROM medianest.events_after(@epoch, @tick, @id, @to_tick, @max_rows, @for_user) AS e`,
		pgx.StrictNamedArgs{
			"epoch": q.Epoch, "tick": q.After.Tick, "id": q.After.ID, "to_tick": q.ToTick, "max_rows": q.Limit, "for_user": q.UserID,
		})
	if err != nil {
		return nil, expired(err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Event, err error) {
		err = row.Scan(&e.Tick, &e.ID, &e.At, &e.Topic, &e.State, &e.PreviousState, &e.JobID, &e.Kind,
			&e.Queue, &e.Attempt, &e.Reason, &e.UserID, &e.DownloadID, &e.ParentID, &e.Worker)
		return e, err
	})
	return events, expired(err)
}

// expired turns the error that medianest.events_after raises into the sentinel.
func expired(err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "MN001" {
		return fmt.Errorf("%w: %w", ErrCursorExpired, err)
	}
	return err
}

// JobViewers returns the viewers of those of the jobs that have any, by the id of their download.
func (s *Store) JobViewers(ctx context.Context, jobIDs []int64) (map[int64][]EventViewer, error) {
	s = s.Everyone()
	rows, err := s.pool.Query(ctx, `
		SELECT v.job_id, v.user_id, v.download_id, d.parent_id
		FROM (SELECT DISTINCT n.id FROM unnest(@ids::bigint[]) AS n (id)) AS n
		JOIN medianest.job_viewer AS v ON v.job_id = n.id
		LEFT JOIN medianest.downloads AS d ON d.id = v.download_id
		ORDER BY v.job_id, v.download_id`,
		pgx.StrictNamedArgs{"ids": jobIDs})
	if err != nil {
		return nil, fmt.Errorf("read viewers of %d jobs: %w", len(jobIDs), interpret(err))
	}
	viewers := make(map[int64][]EventViewer)
	var (
		jobID int64
		v     EventViewer
	)
	_, err = pgx.ForEachRow(rows, []any{&jobID, &v.UserID, &v.DownloadID, &v.ParentID}, func() error {
		viewers[jobID] = append(viewers[jobID], v)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read viewers of %d jobs: %w", len(jobIDs), interpret(err))
	}
	return viewers, nil
}

// WatchedJob is what the stream needs to know of a job that reports progress.
type WatchedJob struct {
	Kind    string
	Queue   string
	Viewers []EventViewer
}

// WatchedJobs looks up those of the jobs that are there.
func (s *Store) WatchedJobs(ctx context.Context, jobIDs []int64) (map[int64]WatchedJob, error) {
	s = s.Everyone()
	rows, err := s.pool.Query(ctx, `
		SELECT n.id, j.kind, j.queue
		FROM unnest(@ids::bigint[]) AS n (id)
		LEFT JOIN medianest.job_map AS m ON m.public_id = n.id
		JOIN river.river_job AS j ON j.id = coalesce(m.row_id, n.id)`,
		pgx.StrictNamedArgs{"ids": jobIDs})
	if err != nil {
		return nil, fmt.Errorf("look up %d jobs: %w", len(jobIDs), interpret(err))
	}
	jobs := make(map[int64]WatchedJob, len(jobIDs))
	var (
		id int64
		j  WatchedJob
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &j.Kind, &j.Queue}, func() error {
		jobs[id] = j
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up %d jobs: %w", len(jobIDs), interpret(err))
	}
	viewers, err := s.JobViewers(ctx, jobIDs)
	if err != nil {
		return nil, err
	}
	for id, j := range jobs {
		j.Viewers = viewers[id]
		jobs[id] = j
	}
	return jobs, nil
}
