package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

func TestExpand(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	anns, bens := b.create(ann, "https://site.test/list"), b.create(ben, "https://site.test/list")
	alone := b.create(ben, "https://site.test/2")
	b.setJob(*alone.JobID, "running")
	b.expand(anns, entry("https://site.test/1"), entry("https://site.test/2"), entry("https://site.test/1"),
		store.NewEntry{ContentKey: "best https://site.test/3", URL: "https://site.test/3", Title: "nul\x00"})

	require.Equal(t, "completed", b.jobState(*anns.JobID))
	for _, d := range []store.Download{anns, bens} {
		parent := b.find(d)
		require.True(t, parent.IsCollection)
		require.Equal(t, 3, parent.Children.Total)
		kids := b.children(d)
		require.Len(t, kids, 3)
		for i, kid := range kids {
			require.Equal(t, d.UserID, kid.UserID)
			require.Equal(t, fmt.Sprintf("https://site.test/%d", i+1), kid.URL)
			require.Equal(t, i, kid.Position)
			require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.job_viewer WHERE job_id = $1 AND download_id = $2`, *kid.JobID, kid.ID))
		}
		require.Equal(t, "about 1", kids[0].Title)
		require.Equal(t, store.StateQueued, kids[0].State)
		require.Equal(t, alone.JobID, kids[1].JobID)
		require.Equal(t, store.StateRunning, kids[1].State)
		require.NotNil(t, kids[1].StartedAt)
		require.Equal(t, "nul", kids[2].Title)
	}
	require.Equal(t, b.children(anns)[0].JobID, b.children(bens)[0].JobID, "fetched once for both")
	require.Equal(t, 1+1+2, b.count(`SELECT count(*) FROM river.river_job`))
}

func TestExpandRefusesWhatIsNoCollection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	list := b.create(b.user("ann"), "https://site.test/list")
	b.setJob(*list.JobID, "running")
	many := make([]store.NewEntry, 10_001)
	for name, entries := range map[string][]store.NewEntry{
		"nothing":   nil,
		"itself":    {entry("https://site.test/list")},
		"nul":       {entry("https://site.test/1"), entry("https://site.test/\x00")},
		"too long":  {entry("https://site.test/" + strings.Repeat("a", 10_000))},
		"too many":  many,
		"empty key": {{URL: "https://site.test/1"}},
	} {
		err := b.worker.Expand(ctx, list.ContentID, rowOf(list), entries, "", completeJob(*list.JobID))
		require.ErrorIs(t, err, store.ErrInvalid, name)
	}
	require.ErrorIs(t, b.worker.Expand(ctx, uuid.New(), rowOf(list), []store.NewEntry{entry("https://site.test/1")}, "", completeJob(*list.JobID)), store.ErrNotFound)

	boom := errors.New("boom")
	require.ErrorIs(t, b.worker.Expand(ctx, list.ContentID, rowOf(list), []store.NewEntry{entry("https://site.test/1"), entry("https://site.test/2")},
		"", func(context.Context, pgx.Tx) error { return boom }), boom)
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.downloads`))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.content`))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM river.river_job`))
	require.Equal(t, "running", b.jobState(*list.JobID))
}

// Pages that list each other, or ever new pages, come to an end.
func TestExpandDoesNotGoRound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	level := b.create(b.user("ann"), "https://site.test/0")
	for i := range 3 {
		b.expand(level, entry(fmt.Sprintf("https://site.test/%d", i+1)), entry("https://site.test/0"), entry(fmt.Sprintf("https://site.test/%d/item", i)))
		kids := b.children(level)
		require.Len(t, kids, 2)
		level = kids[0]
	}
	b.setJob(*level.JobID, "running")
	err := b.worker.Expand(t.Context(), level.ContentID, rowOf(level), []store.NewEntry{entry("https://site.test/4")}, "", completeJob(*level.JobID))
	require.ErrorIs(t, err, store.ErrInvalid)
}

func TestExpandWithoutAWishOnlyCompletes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	list := b.create(ann, "https://site.test/list")
	b.setJob(*list.JobID, "running")
	require.NoError(t, b.api.DeleteDownload(t.Context(), list.ID, ann.Viewer()))
	require.NoError(t, b.worker.Expand(t.Context(), list.ContentID, rowOf(list), []store.NewEntry{entry("https://site.test/1")}, "", completeJob(*list.JobID)))
	require.Equal(t, "completed", b.jobState(*list.JobID))
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.downloads`))
}

func TestExpandOfThousands(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	list := b.create(ann, "https://site.test/list")
	var entries []store.NewEntry
	for i := range 2000 {
		entries = append(entries, entry(fmt.Sprintf("https://site.test/%d", i)))
	}
	b.expand(list, entries...)
	require.Equal(t, &store.ChildCounts{Total: 2000, Queued: 2000}, b.find(list).Children)
	_, err := b.api.CancelDownload(t.Context(), list.ID, ann.Viewer())
	require.NoError(t, err)
	require.Equal(t, 2000, b.count(`SELECT count(*) FROM river.river_job WHERE state = 'cancelled'`))
	require.NoError(t, b.api.DeleteDownload(t.Context(), list.ID, ann.Viewer()))
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.downloads`))
}
