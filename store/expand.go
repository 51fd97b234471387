package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// maxEntries bounds one expansion, which is one transaction.
	maxEntries = 10_000

	// maxDepth is how many collections may lie above an item: a channel's page of playlists needs two. It ends pages
	// that list ever new pages.
	maxDepth = 3
)

// NewEntry is what a collection was found to hold.
type NewEntry struct {
	ContentKey string
	URL        string
	Title      string // may be empty
}

// Expand ends a job that found a collection: every download that follows the job becomes one, with a child for each
// entry, in order, each with a content and a job of its own, and the job is completed; all in one transaction. Children
// that are there already begin anew if they failed or were cancelled and are left alone otherwise. Entries that occur
// twice, and those that are the collection itself or one above it, are left out. leftOut says what else is, in words fit
// to be shown, or is empty: the collection completes with it as some_children_failed.
//
// ErrSuperseded if the row does not run, or the job goes on as another; ErrNotFound if the content is gone; ErrInvalid if
// there is nothing to add, too much, or too deep.
func (s *Store) Expand(
	ctx context.Context, contentID uuid.UUID, row JobRow, entries []NewEntry, leftOut string, complete CompleteFunc,
) error {
	entries, err := checkEntries(entries)
	if err != nil {
		return fmt.Errorf("expand content %s by row %d: %w", contentID, row, err)
	}
	// Retention may delete an old content between the look whether it is there and the lock on it.
	const rounds = 3
	for range rounds {
		err = s.inTx(ctx, func(tx pgx.Tx) error {
			x := expansion{store: s, tx: tx, row: row, entries: entries}
			if err := x.lockContents(ctx, contentID); err != nil {
				return err
			}
			if err := x.lockDownloads(ctx); err != nil {
				return err
			}
			if err := x.addChildren(ctx); err != nil {
				return err
			}
			if err := x.markCollections(ctx, leftOut); err != nil {
				return err
			}
			return complete(ctx, tx)
		})
		if !errors.Is(err, errContentVanished) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("expand content %s by row %d: %w", contentID, row, err)
	}
	return nil
}

var errContentVanished = fmt.Errorf("an old content was deleted meanwhile: %w", ErrUnavailable)

func checkEntries(entries []NewEntry) ([]NewEntry, error) {
	if len(entries) > maxEntries {
		return nil, &InvalidError{Field: "entries", Reason: fmt.Sprintf("are more than %d", maxEntries)}
	}
	seen := make(map[string]bool, len(entries))
	unique := make([]NewEntry, 0, len(entries))
	for i, e := range entries {
		if err := errors.Join(checkText("url", e.URL, maxURLBytes), checkText("content_key", e.ContentKey, 2*maxURLBytes)); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		e.ContentKey, e.Title = storedKey(e.ContentKey), cleanText(e.Title, maxTitleBytes)
		if !seen[e.ContentKey] {
			seen[e.ContentKey] = true
			unique = append(unique, e)
		}
	}
	return unique, nil
}

// expansion is one attempt at Expand.
type expansion struct {
	store   *Store
	tx      pgx.Tx
	row     JobRow
	entries []NewEntry

	jobID    int64
	self     lockedContent
	contents map[string]lockedContent // of the entries, by key

	// wishes are the downloads that follow the job, all locked, as are the collections above them.
	wishes   []treeRow
	children map[uuid.UUID]map[uuid.UUID]treeRow // by wish and content
	above    map[uuid.UUID][]uuid.UUID           // of each wish: the contents of the collections above it
	jobs     map[int64]lockedJob
}

// lockContents makes the contents that are missing and locks all.
func (x *expansion) lockContents(ctx context.Context, contentID uuid.UUID) error {
	n := len(x.entries)
	ids, keys, urls, titles := make([]uuid.UUID, n), make([]string, n), make([]string, n), make([]string, n)
	for i, e := range x.entries {
		ids[i], keys[i], urls[i], titles[i] = uuid.Must(uuid.NewV7()), e.ContentKey, e.URL, e.Title
	}
	// By key, as everybody inserts, and before any row is locked.
	_, err := x.tx.Exec(ctx, `
		INSERT INTO medianest.content (id, key, url, profile, title)
		SELECT n.id, n.key, n.url, c.profile, n.title
		FROM unnest(@ids::uuid[], @keys::text[], @urls::text[], @titles::text[]) AS n (id, key, url, title)
		JOIN medianest.content AS c ON c.id = @content_id
		WHERE NOT EXISTS (SELECT FROM medianest.content AS e WHERE e.key = n.key)
		ORDER BY n.key
		ON CONFLICT (key) DO NOTHING`,
		pgx.StrictNamedArgs{"ids": ids, "keys": keys, "urls": urls, "titles": titles, "content_id": contentID})
	if err != nil {
		return fmt.Errorf("make contents: %w", err)
	}
	rows, err := x.tx.Query(ctx, `
		SELECT c.id
		FROM medianest.content AS c
		WHERE c.id = @content_id OR c.key = ANY(@keys)`,
		pgx.StrictNamedArgs{"content_id": contentID, "keys": keys})
	if err != nil {
		return fmt.Errorf("list contents: %w", err)
	}
	ids, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return fmt.Errorf("list contents: %w", err)
	}
	list, err := lockContents(ctx, x.tx, ids)
	if err != nil {
		return err
	}
	x.contents = make(map[string]lockedContent, len(list))
	for _, c := range list {
		x.contents[c.Key] = c
		if c.ID == contentID {
			x.self = c
		}
	}
	if x.self.ID != contentID {
		return ErrNotFound
	}
	for _, e := range x.entries {
		if _, ok := x.contents[e.ContentKey]; !ok {
			return errContentVanished
		}
	}
	return nil
}

// lockDownloads locks the wishes with their children and what is above them, and the jobs of all contents.
func (x *expansion) lockDownloads(ctx context.Context) error {
	var err error
	if x.jobID, err = publicIDOf(ctx, x.tx, x.row); err != nil {
		return err
	}
	wishes, err := queryWishes(ctx, x.tx, x.self.ID, x.jobID)
	if err != nil {
		return fmt.Errorf("list wishes: %w", err)
	}
	ids := make([]uuid.UUID, len(wishes))
	for i, w := range wishes {
		ids[i] = w.DownloadID
	}
	rows, err := lockAncestry(ctx, x.tx, ids, true)
	if err != nil {
		return err
	}
	byID := make(map[uuid.UUID]treeRow, len(rows))
	for _, r := range rows {
		byID[r.ID] = r
	}
	x.children, x.above = make(map[uuid.UUID]map[uuid.UUID]treeRow), make(map[uuid.UUID][]uuid.UUID)
	for _, id := range ids {
		wish := byID[id]
		x.wishes = append(x.wishes, wish)
		x.children[id] = make(map[uuid.UUID]treeRow)
		for up := wish.ParentID; up != nil; up = byID[*up].ParentID {
			x.above[id] = append(x.above[id], byID[*up].ContentID)
		}
		if len(x.above[id]) >= maxDepth {
			return &InvalidError{Field: "entries", Reason: fmt.Sprintf("lie below more than %d collections", maxDepth)}
		}
	}
	for _, r := range rows {
		if r.ParentID != nil && x.children[*r.ParentID] != nil {
			x.children[*r.ParentID][r.ContentID] = r
		}
	}
	jobIDs := []int64{x.jobID}
	for _, c := range x.contents {
		if c.JobID != nil {
			jobIDs = append(jobIDs, *c.JobID)
		}
	}
	if x.jobs, err = lockJobs(ctx, x.tx, jobIDs); err != nil {
		return err
	}
	return checkRunning(x.jobs, x.jobID, x.row)
}

// newChild is a child to insert.
type newChild struct {
	parent   treeRow
	position int
	content  lockedContent
	entry    NewEntry
}

func (x *expansion) addChildren(ctx context.Context) error {
	var (
		fresh  []newChild
		again  []treeRow
		needed []need
		isIn   = make(map[uuid.UUID]bool)
	)
	// Wishes are in the order in which they were asked for: the first user's it is.
	want := func(c lockedContent, userID uuid.UUID) {
		if !isIn[c.ID] {
			isIn[c.ID] = true
			needed = append(needed, need{c, userID})
		}
	}
	for _, w := range x.wishes {
		kept := 0
		for i, e := range x.entries {
			content := x.contents[e.ContentKey]
			if content.ID == x.self.ID || slices.Contains(x.above[w.ID], content.ID) {
				continue
			}
			kept++
			child, exists := x.children[w.ID][content.ID]
			switch {
			case !exists:
				fresh = append(fresh, newChild{parent: w, position: i, content: content, entry: e})
				want(content, w.UserID)
			case child.State == StateFailed || child.State == StateCancelled:
				again = append(again, child)
				want(content, w.UserID)
			}
		}
		if kept == 0 {
			return &InvalidError{Field: "entries", Reason: "hold nothing besides the collection itself"}
		}
	}
	attachments, err := x.store.attachOrEnqueue(ctx, x.tx, needed, x.jobs)
	if err != nil {
		return err
	}
	if err := follow(ctx, x.tx, again, attachments); err != nil {
		return err
	}
	return insertChildren(ctx, x.tx, fresh, attachments)
}

func insertChildren(ctx context.Context, tx pgx.Tx, children []newChild, attachments map[uuid.UUID]attachment) error {
	if len(children) == 0 {
		return nil
	}
	n := len(children)
	ids, parents, contents := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	positions, jobIDs := make([]int, n), make([]int64, n)
	urls, titles, states, waits, tries := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]*time.Time, n)
	for i, c := range children {
		a := attachments[c.content.ID]
		ids[i], parents[i], contents[i], positions[i] = uuid.Must(uuid.NewV7()), c.parent.ID, c.content.ID, c.position
		urls[i], titles[i] = c.entry.URL, c.content.Title
		if titles[i] == "" {
			titles[i] = c.entry.Title
		}
		jobIDs[i], states[i], waits[i], tries[i] = a.JobID, a.State, a.WaitingOn, a.NextTryAt
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO medianest.downloads
			(id, user_id, content_id, parent_id, position, url, profile, title, state, waiting_on, next_try_at, job_id, started_at)
		SELECT n.id, p.user_id, n.content_id, p.id, n.position, n.url, p.profile, n.title, n.state, n.waiting_on, n.next_try_at, n.job_id,
			CASE WHEN n.state = 'running' THEN now() END
		FROM unnest(@ids::uuid[], @parents::uuid[], @contents::uuid[], @positions::int[], @urls::text[], @titles::text[],
			@states::text[], @waits::text[], @tries::timestamptz[], @job_ids::bigint[])
			AS n (id, parent_id, content_id, position, url, title, state, waiting_on, next_try_at, job_id)
		JOIN medianest.downloads AS p ON p.id = n.parent_id
		ORDER BY n.id`,
		pgx.StrictNamedArgs{
			"ids": ids, "parents": parents, "contents": contents, "positions": positions, "urls": urls, "titles": titles,
			"states": states, "waits": waits, "tries": tries, "job_ids": jobIDs,
		})
	if err != nil {
		return fmt.Errorf("insert %d children: %w", n, err)
	}
	return addViewers(ctx, tx, ids)
}

func (x *expansion) markCollections(ctx context.Context, leftOut string) error {
	if _, err := x.tx.Exec(ctx, `
		UPDATE medianest.content
		SET is_collection = true, failure_detail = '', staged_on = '', staged_wait_from = NULL
		WHERE id = @id`,
		pgx.StrictNamedArgs{"id": x.self.ID}); err != nil {
		return fmt.Errorf("mark content as collection: %w", err)
	}
	ids := make([]uuid.UUID, len(x.wishes))
	for i, w := range x.wishes {
		ids[i] = w.ID
	}
	if _, err := x.tx.Exec(ctx, `
		UPDATE medianest.downloads
		SET is_collection = true, left_out = @left_out, title = CASE WHEN title = '' THEN @title ELSE title END
		WHERE id = ANY(@ids)`,
		pgx.StrictNamedArgs{"ids": ids, "title": x.self.Title, "left_out": cleanText(leftOut, maxDetailBytes)}); err != nil {
		return fmt.Errorf("mark downloads as collections: %w", err)
	}
	return nil
}
