package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

func TestFindDownloadOnlyOfTheViewer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	d := b.create(ann, "https://site.test/a")

	found, err := b.api.FindDownload(t.Context(), d.ID, ann.Viewer())
	require.NoError(t, err)
	require.NotNil(t, found.Waiting)
	found.Waiting = nil // what is new does not tell
	require.Equal(t, d, found)
	for _, v := range []store.Viewer{ben.Viewer(), {}} {
		_, err = b.api.FindDownload(t.Context(), d.ID, v)
		require.ErrorIs(t, err, store.ErrNotFound)
		_, err = b.api.CancelDownload(t.Context(), d.ID, v)
		require.ErrorIs(t, err, store.ErrNotFound)
		_, err = b.api.RetryDownload(t.Context(), d.ID, v)
		require.ErrorIs(t, err, store.ErrNotFound)
		require.ErrorIs(t, b.api.DeleteDownload(t.Context(), d.ID, v), store.ErrNotFound)
	}
	_, err = b.api.FindDownload(t.Context(), d.ID, store.Viewer{Admin: true})
	require.NoError(t, err)
}

func TestListDownloads(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	var anns []uuid.UUID
	for i := range 7 {
		d := b.create(ann, fmt.Sprintf("https://site.test/%d", i))
		anns = append(anns, d.ID)
		if i%2 == 0 {
			b.fetch(d, fmt.Sprintf("%d.mp4", i))
			b.setState(d, store.StateCompleted)
		}
	}
	bens := b.create(ben, "https://site.test/0")
	slices.Reverse(anns)

	walk := func(f store.DownloadFilter) (ids []uuid.UUID, pages int) {
		for {
			page, next, err := b.api.ListDownloads(t.Context(), f)
			require.NoError(t, err)
			require.LessOrEqual(t, len(page), f.Limit)
			pages++
			for _, d := range page {
				ids = append(ids, d.ID)
				if d.State == store.StateCompleted {
					require.Len(t, d.Files, 1)
					require.Equal(t, d.UserID, d.Files[0].UserID)
				} else {
					require.Empty(t, d.Files)
				}
			}
			if next == "" {
				return ids, pages
			}
			f.Cursor = next
		}
	}
	ids, pages := walk(store.DownloadFilter{Viewer: ann.Viewer(), Limit: 3})
	require.Equal(t, anns, ids)
	require.Equal(t, 3, pages)
	ids, pages = walk(store.DownloadFilter{Viewer: ann.Viewer(), Limit: 7})
	require.Equal(t, anns, ids)
	require.Equal(t, 1, pages, "a full last page has no next")
	ids, _ = walk(store.DownloadFilter{Viewer: store.Viewer{Admin: true}, Limit: 2})
	require.Equal(t, append([]uuid.UUID{bens.ID}, anns...), ids)
	ids, _ = walk(store.DownloadFilter{Viewer: ann.Viewer(), Limit: 1, States: []string{store.StateCompleted}})
	require.Len(t, ids, 4)
	ids, _ = walk(store.DownloadFilter{Viewer: store.Viewer{}, Limit: 1})
	require.Empty(t, ids)
}

func TestListChildrenInTheirOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	d := b.create(ann, "https://site.test/list")
	var entries []store.NewEntry
	for i := range 5 {
		entries = append(entries, entry(fmt.Sprintf("https://site.test/%d", i)))
	}
	b.expand(d, entries...)
	kids := b.children(d)
	require.Len(t, kids, 5)
	b.setState(kids[0], store.StateCompleted)
	b.setState(kids[1], store.StateFailed)
	b.setState(kids[2], store.StateCancelled)
	b.setState(kids[3], store.StateWaiting)

	f := store.DownloadFilter{Viewer: ann.Viewer(), ParentID: &d.ID, Limit: 2}
	for i := 0; ; {
		page, next, err := b.api.ListDownloads(t.Context(), f)
		require.NoError(t, err)
		for _, c := range page {
			require.Equal(t, kids[i].ID, c.ID)
			require.Equal(t, i, c.Position)
			require.Equal(t, d.ID, *c.ParentID)
			i++
		}
		if next == "" {
			require.Equal(t, 5, i)
			break
		}
		f.Cursor = next
	}

	// Children are not at top level, where their parent counts them.
	page, _, err := b.api.ListDownloads(t.Context(), store.DownloadFilter{Viewer: ann.Viewer()})
	require.NoError(t, err)
	require.Len(t, page, 1)
	require.Equal(t, &store.ChildCounts{Total: 5, Queued: 1, Waiting: 1, Completed: 1, Failed: 1, Cancelled: 1}, page[0].Children)

	_, _, err = b.api.ListDownloads(t.Context(), store.DownloadFilter{Viewer: ben.Viewer(), ParentID: &d.ID})
	require.ErrorIs(t, err, store.ErrNotFound)
	page, _, err = b.api.ListDownloads(t.Context(), store.DownloadFilter{Viewer: ann.Viewer(), ParentID: &d.ID, States: []string{store.StatePaused}})
	require.NoError(t, err)
	require.Empty(t, page)
}

func TestListRefusesGarbage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	v := b.user("ann").Viewer()
	parent := uuid.New()
	for _, f := range []store.DownloadFilter{
		{Viewer: v, Cursor: "!"},
		{Viewer: v, Cursor: "AAAA"},
		{Viewer: v, Cursor: "\x00"},
		{Viewer: v, Cursor: "AAAAAAAAAAAAAAAAAAAAAAAAAAA", ParentID: nil},
		{Viewer: v, Cursor: "AAAAAAAAAAAAAAAAAAAAAA", ParentID: &parent},
		{Viewer: v, Limit: -1},
		{Viewer: v, Limit: 201},
		{Viewer: v, States: []string{"done"}},
		{Viewer: v, States: []string{"queued\x00"}},
	} {
		_, _, err := b.api.ListDownloads(t.Context(), f)
		require.ErrorIs(t, err, store.ErrInvalid, "%+v", f)
	}
	for _, f := range []store.JobFilter{
		{Viewer: v, Cursor: "!"},
		{Viewer: v, Cursor: "AAAA"},
		{Viewer: v, Limit: 201},
		{Viewer: v, States: []string{"done"}},
		{Viewer: v, Kinds: []string{"a\x00"}},
		{Viewer: v, Queues: []string{"\xff"}},
	} {
		_, _, err := b.api.ListJobs(t.Context(), f)
		require.ErrorIs(t, err, store.ErrInvalid, "%+v", f)
	}
}

// A cursor from anywhere is a place in the list or refused; it never breaks the statement.
func FuzzCursor(f *testing.F) {
	for _, seed := range []string{"", "!", "AAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAA", "_____w"} {
		f.Add(seed)
	}
	parent := uuid.New()
	f.Fuzz(func(t *testing.T, cursor string) {
		for _, filter := range []store.DownloadFilter{{Cursor: cursor, Limit: 1}, {Cursor: cursor, Limit: 1, ParentID: &parent}} {
			_, args, err := store.DownloadsQuery(filter)
			if err != nil {
				require.ErrorIs(t, err, store.ErrInvalid)
				continue
			}
			_, placed := args["after_id"]
			require.Equal(t, cursor != "", placed)
		}
		if _, _, err := store.JobsQuery(store.JobFilter{Cursor: cursor, Limit: 1}); err != nil {
			require.ErrorIs(t, err, store.ErrInvalid)
		}
	})
}
