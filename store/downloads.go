package store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// States of a download.
const (
	StateQueued    = "queued"
	StateWaiting   = "waiting"
	StateRunning   = "running"
	StatePaused    = "paused"
	StateCompleted = "completed"
	StateFailed    = "failed"
	StateCancelled = "cancelled"
)

// What a waiting download waits on.
const (
	WaitingOnRetry   = "retry"   // the pause after a failed attempt
	WaitingOnPause   = "pause"   // somebody to resume what is paused; see Waiting
	WaitingOnWindow  = "window"  // the time of the day at which it is allowed; see Waiting
	WaitingOnLimit   = "limit"   // a limit or a pace; see Waiting
	WaitingOnBreaker = "breaker" // the end of a site's trouble; see Waiting
	WaitingOnDisk    = "disk"    // space on the media volume
	WaitingOnLive    = "live"    // the start of a premiere or live event
)

// parked is the state of a download whose job is scheduled: put off by its worker for a reason, or for none.
func parked(reason string) (state, waitingOn string) {
	switch reason {
	case "":
		return StateQueued, ""
	case "disk_full":
		return StateWaiting, WaitingOnDisk
	case "upcoming":
		return StateWaiting, WaitingOnLive
	}
	return StateWaiting, WaitingOnRetry
}

var (
	activeStates = []string{StateQueued, StateWaiting, StateRunning, StatePaused}
	allStates    = append(slices.Clone(activeStates), StateCompleted, StateFailed, StateCancelled)
)

func isActive(state string) bool { return slices.Contains(activeStates, state) }

// Download is one user's wish for a content.
type Download struct {
	ID            uuid.UUID
	UserID        uuid.UUID
	ContentID     uuid.UUID
	ParentID      *uuid.UUID // the collection that it belongs to
	Position      int        // among the collection's children, from 0
	URL           string
	Profile       string
	Title         string
	IsCollection  bool
	State         string
	WaitingOn     string
	NextTryAt     *time.Time
	StartBy       *time.Time // dropped if it has not begun by then
	JobID         *int64
	FailureReason string
	FailureDetail string
	CreatedAt     time.Time
	StartedAt     *time.Time
	FinishedAt    *time.Time
	Waiting       *Waiting     `db:"-"` // what its job waits for in the queue, else nil
	Files         []File       `db:"-"` // by path
	Children      *ChildCounts `db:"-"` // of a collection, else nil
}

// wait has the download show what its job waits for: one that is kept as queued is waiting where it is for one of its
// keys.
func (d *Download) wait(w Waiting) {
	d.Waiting = &w
	if !w.held() {
		return
	}
	d.State, d.WaitingOn, d.NextTryAt = StateWaiting, WaitingOnLimit, w.NotBefore
	switch w.Reason {
	case WaitsForPause:
		d.WaitingOn = WaitingOnPause
	case WaitsForWindow:
		d.WaitingOn = WaitingOnWindow
	case WaitsForBreaker:
		d.WaitingOn = WaitingOnBreaker
	}
}

// ChildCounts says how many children of a collection are in which state.
type ChildCounts struct {
	Total, Queued, Waiting, Running, Paused, Completed, Failed, Cancelled int
}

// DownloadFilter says which downloads to list. Top-level ones come newest first, a collection's children in its order.
type DownloadFilter struct {
	Viewer   Viewer
	ParentID *uuid.UUID // nil: top level
	States   []string   // empty: all
	Cursor   string     // where the last page ended; empty: from the start
	Limit    int        // 1 to 200; 0: 50
}

const (
	defaultPage = 50
	maxPage     = 200
)

func pageSize(limit int) (int, error) {
	if limit < 0 || limit > maxPage {
		return 0, &InvalidError{Field: "limit", Reason: fmt.Sprintf("is not between 1 and %d", maxPage)}
	}
	if limit == 0 {
		return defaultPage, nil
	}
	return limit, nil
}

// FindDownload returns a download that the viewer may see.
func (s *Store) FindDownload(ctx context.Context, id uuid.UUID, v Viewer) (Download, error) {
	s = s.as(v)
	d, err := findDownload(ctx, s.pool, id, v)
	if err != nil {
		return Download{}, fmt.Errorf("load download %s: %w", id, interpret(err))
	}
	return d, nil
}

func findDownload(ctx context.Context, db rowQuerier, id uuid.UUID, v Viewer) (Download, error) {
	list, err := queryDownloads(ctx, db, downloadQuery{
		where: "p.id = @id AND (@admin OR p.user_id = @user_id)",
		order: "p.id",
		args:  pgx.StrictNamedArgs{"id": id, "admin": v.Admin, "user_id": v.UserID, "limit": 1},
		asked: v,
		ofOne: true,
	})
	if err != nil {
		return Download{}, err
	}
	if len(list) == 0 {
		return Download{}, ErrNotFound
	}
	return list[0], nil
}

// ListDownloads returns a page, and the cursor of the next one, or "" after the last. With a parent that the viewer
// may not see it is ErrNotFound.
func (s *Store) ListDownloads(ctx context.Context, f DownloadFilter) (page []Download, next string, err error) {
	s = s.as(f.Viewer)
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	var closed gates
	if slices.Contains(f.States, StateQueued) != slices.Contains(f.States, StateWaiting) {
		if closed, err = queryGates(ctx, s.pool); err != nil {
			return nil, "", fmt.Errorf("list downloads: %w", interpret(err))
		}
	}
	q, err := listQuery(f, limit, closed)
	if err != nil {
		return nil, "", err
	}
	page, err = queryDownloads(ctx, s.pool, q)
	if err != nil {
		return nil, "", fmt.Errorf("list downloads: %w", interpret(err))
	}
	if len(page) == 0 && f.ParentID != nil {
		if _, err := s.FindDownload(ctx, *f.ParentID, f.Viewer); err != nil {
			return nil, "", fmt.Errorf("list downloads: %w", err)
		}
	}
	if len(page) > limit {
		page = page[:limit]
		next = cursorAfter(page[limit-1], f.ParentID != nil)
	}
	return page, next, nil
}

// downloadQuery selects downloads p, at most @limit.
type downloadQuery struct {
	where, order string
	args         pgx.StrictNamedArgs
	asked        Viewer // who asks
	ofOne        bool   // tell more, which takes longer
}

// listQuery asks for one more than the page, which tells whether there is another. Conditions that do not apply are
// left out rather than made true by a parameter: the plan is the index's either way.
//
// With the closed gates, those that wait for a limit count as waiting; they are kept as queued.
func listQuery(f DownloadFilter, limit int, closed gates) (downloadQuery, error) {
	q := downloadQuery{args: pgx.StrictNamedArgs{"limit": limit + 1}, asked: f.Viewer}
	var where []string
	if !f.Viewer.Admin {
		where = append(where, "p.user_id = @user_id")
		q.args["user_id"] = f.Viewer.UserID
	}
	if len(f.States) > 0 {
		for _, state := range f.States {
			if !slices.Contains(allStates, state) {
				return downloadQuery{}, &InvalidError{Field: "state", Reason: "is none of " + strings.Join(allStates, " ")}
			}
		}
		states := f.States
		queued, waiting := slices.Contains(states, StateQueued), slices.Contains(states, StateWaiting)
		if queued != waiting {
			switch limited := closed.limited("p.job_id", q.args); {
			case limited == "false":
			case queued:
				where = append(where, "NOT (p.state = 'queued' AND "+limited+")")
			default:
				states = append(slices.Clone(states), StateQueued)
				where = append(where, "(p.state <> 'queued' OR "+limited+")")
			}
		}
		// Written out, since by a parameter no index of some states could be used. They are from the list above.
		where = append(where, "p.state IN ('"+strings.Join(states, "', '")+"')")
	}
	if f.ParentID == nil {
		where = append(where, "p.parent_id IS NULL")
		q.order = "p.id DESC"
		if f.Cursor != "" {
			id, err := parseIDCursor(f.Cursor)
			if err != nil {
				return downloadQuery{}, err
			}
			where = append(where, "p.id < @after_id")
			q.args["after_id"] = id
		}
	} else {
		where = append(where, "p.parent_id = @parent_id")
		q.args["parent_id"] = *f.ParentID
		q.order = "p.position, p.id"
		if f.Cursor != "" {
			position, id, err := parsePositionCursor(f.Cursor)
			if err != nil {
				return downloadQuery{}, err
			}
			where = append(where, "(p.position, p.id) > (@after_position, @after_id)")
			q.args["after_position"], q.args["after_id"] = position, id
		}
	}
	q.where = strings.Join(where, " AND ")
	return q, nil
}

// downloadColumns are those of Download, of the table that goes by the alias.
func downloadColumns(alias string) string {
	return strings.ReplaceAll(`$.id, $.user_id, $.content_id, $.parent_id, $.position, $.url, $.profile, $.title, $.is_collection,
				$.state, $.waiting_on, $.next_try_at, $.start_by, $.job_id, $.failure_reason, $.failure_detail, $.created_at,
				$.started_at, $.finished_at`, "$", alias)
}

func (q downloadQuery) sql() string {
	return `
		SELECT ` + downloadColumns("d") + `,
			n.total, n.queued, n.waiting, n.running, n.paused, n.completed, n.failed, n.cancelled
		FROM (
			SELECT ` + downloadColumns("p") + `
			FROM medianest.downloads AS p
			WHERE ` + q.where + `
			ORDER BY ` + q.order + `
			LIMIT @limit
		) AS d
		LEFT JOIN LATERAL (
			SELECT count(*) AS total,
				count(*) FILTER (WHERE c.state = 'queued') AS queued,
				count(*) FILTER (WHERE c.state = 'waiting') AS waiting,
				count(*) FILTER (WHERE c.state = 'running') AS running,
				count(*) FILTER (WHERE c.state = 'paused') AS paused,
				count(*) FILTER (WHERE c.state = 'completed') AS completed,
				count(*) FILTER (WHERE c.state = 'failed') AS failed,
				count(*) FILTER (WHERE c.state = 'cancelled') AS cancelled
			FROM medianest.downloads AS c
			WHERE c.parent_id = d.id AND d.is_collection -- nothing is read for what is none
		) AS n ON d.is_collection
		ORDER BY ` + strings.ReplaceAll(q.order, "p.", "d.")
}

// downloadRow is a Download with the counts as they come from the outer join.
type downloadRow struct {
	Download

	Total, Queued, Waiting, Running, Paused, Completed, Failed, Cancelled *int
}

func (r downloadRow) download() Download {
	d := r.Download
	if r.Total != nil {
		d.Children = &ChildCounts{
			Total: *r.Total, Queued: *r.Queued, Waiting: *r.Waiting, Running: *r.Running, Paused: *r.Paused,
			Completed: *r.Completed, Failed: *r.Failed, Cancelled: *r.Cancelled,
		}
	}
	return d
}

// queryDownloads reads the downloads first, then what they wait for, and then their files: those of a completed one are
// there.
func queryDownloads(ctx context.Context, db rowQuerier, q downloadQuery) ([]Download, error) {
	rows, err := db.Query(ctx, q.sql(), q.args)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Download, error) {
		r, err := pgx.RowToStructByName[downloadRow](row)
		return r.download(), err
	})
	if err != nil || len(list) == 0 {
		return list, err
	}
	if err := addWaiting(ctx, db, list, q); err != nil {
		return nil, err
	}
	views := make([]ContentView, len(list))
	for i, d := range list {
		views[i] = ContentView{UserID: d.UserID, ContentID: d.ContentID}
	}
	files, err := queryFilesOf(ctx, db, views)
	if err != nil {
		return nil, err
	}
	byView := make(map[ContentView][]File, len(list))
	for _, f := range files {
		v := ContentView{UserID: f.UserID, ContentID: f.ContentID}
		byView[v] = append(byView[v], f)
	}
	for i := range list {
		list[i].Files = byView[views[i]]
	}
	return list, nil
}

// addWaiting adds what the queued ones of the downloads wait for, and the items of collections.
func addWaiting(ctx context.Context, db rowQuerier, list []Download, q downloadQuery) error {
	var (
		jobs        []int64
		collections []uuid.UUID
	)
	for _, d := range list {
		if d.State == StateQueued && d.JobID != nil {
			jobs = append(jobs, *d.JobID)
		}
		if d.Children != nil && d.Children.Queued > 0 {
			collections = append(collections, d.ID)
		}
	}
	waiting, closed, err := queryWaiting(ctx, db, jobs, q.asked, q.ofOne)
	if err != nil {
		return err
	}
	if closed == nil && len(collections) > 0 {
		if closed, err = queryGates(ctx, db); err != nil {
			return err
		}
	}
	limited, err := queryLimited(ctx, db, closed, collections)
	if err != nil {
		return err
	}
	for i := range list {
		d := &list[i]
		if n := limited[d.ID]; n > 0 {
			n = min(n, d.Children.Queued)
			d.Children.Queued, d.Children.Waiting = d.Children.Queued-n, d.Children.Waiting+n
		}
		if d.State != StateQueued || d.JobID == nil {
			continue
		}
		if w, ok := waiting[*d.JobID]; ok {
			d.wait(w)
		}
	}
	return nil
}

// Cursors are opaque to clients: the last row's place in the order, and nothing that says more than the row did.

func cursorAfter(d Download, byPosition bool) string {
	var raw []byte
	if byPosition {
		raw = binary.BigEndian.AppendUint32(raw, uint32(int32(d.Position))) //nolint:gosec // an int4 column
	}
	return base64.RawURLEncoding.EncodeToString(append(raw, d.ID[:]...))
}

func parseIDCursor(cursor string) (uuid.UUID, error) {
	raw, err := decodeCursor(cursor, len(uuid.UUID{}))
	if err != nil {
		return uuid.UUID{}, err
	}
	return uuid.UUID(raw), nil
}

func parsePositionCursor(cursor string) (position int32, id uuid.UUID, err error) {
	raw, err := decodeCursor(cursor, 4+len(id))
	if err != nil {
		return 0, id, err
	}
	return int32(binary.BigEndian.Uint32(raw)), uuid.UUID(raw[4:]), nil //nolint:gosec // all 32 bits are the value
}

func decodeCursor(cursor string, size int) ([]byte, error) {
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(raw) != size {
		return nil, &InvalidError{Field: "cursor", Reason: "is not one that a list of this kind gave"}
	}
	return raw, nil
}
