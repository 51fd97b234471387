package store_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

// What was done is written down before it is done, completed once, and neither changed nor removed after that.
func TestAudit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	begin := func(e store.AuditEntry) int64 {
		t.Helper()
		id, err := b.api.BeginAudit(t.Context(), e)
		require.NoError(t, err)
		return id
	}
	list := func(f store.AuditFilter) []store.AuditEntry {
		t.Helper()
		page, next, err := b.api.ListAudit(t.Context(), f)
		require.NoError(t, err)
		require.Empty(t, next)
		return page
	}
	id := begin(store.AuditEntry{ActorID: &ann.ID, Action: "set-limit", Subject: "key=host:a\x00\xff", Detail: map[string]any{"asked": "\x00"}, RequestID: "r", Client: "192.0.2.1"})
	require.Nil(t, list(store.AuditFilter{})[0].Status, "it is not known whether it was done")
	require.NoError(t, b.api.EndAudit(t.Context(), id, 200, map[string]any{"n": 1}))
	require.Error(t, b.api.EndAudit(t.Context(), id, 500, nil))
	found := list(store.AuditFilter{})[0]
	require.Equal(t, []any{"ann", "set-limit", 200, float64(1)}, []any{found.Actor, found.Action, *found.Status, found.Detail["n"]})
	require.WithinDuration(t, time.Now(), found.At, time.Minute)
	for _, role := range []string{"medianest_api", "medianest_worker"} {
		for _, sql := range []string{`DELETE FROM medianest.audit`, `UPDATE medianest.audit SET action = 'x'`, `TRUNCATE medianest.audit`} {
			_, err := b.pool.Exec(t.Context(), `SET ROLE `+role)
			require.NoError(t, err)
			_, err = b.pool.Exec(t.Context(), sql)
			require.ErrorContains(t, err, "permission denied", "%s: %s", role, sql)
			_, err = b.pool.Exec(t.Context(), `RESET ROLE`)
			require.NoError(t, err)
		}
	}

	ben := b.user("ben")
	begin(store.AuditEntry{ActorID: &ben.ID, Action: "river.jobs.retry", Detail: map[string]any{"long": strings.Repeat("x", 1<<20), "odd": json.RawMessage("{")}})
	require.Len(t, list(store.AuditFilter{ActorID: ann.ID}), 1)
	require.Len(t, list(store.AuditFilter{Action: "river.jobs.retry"}), 1)
	require.Len(t, list(store.AuditFilter{Since: time.Now().Add(-time.Minute), Until: time.Now().Add(time.Minute)}), 2)
	require.Empty(t, list(store.AuditFilter{Until: time.Now().Add(-time.Minute)}))
	page, next, err := b.api.ListAudit(t.Context(), store.AuditFilter{Limit: 1})
	require.NoError(t, err)
	require.Equal(t, "river.jobs.retry", page[0].Action, "the newest first")
	page, next, err = b.api.ListAudit(t.Context(), store.AuditFilter{Limit: 1, Cursor: next})
	require.NoError(t, err)
	require.Equal(t, "set-limit", page[0].Action)
	require.Empty(t, next)
	_, _, err = b.api.ListAudit(t.Context(), store.AuditFilter{Cursor: "x"})
	require.ErrorIs(t, err, store.ErrInvalid)

	b.exec(`ALTER TABLE medianest.audit DISABLE TRIGGER medianest_keep`)
	b.exec(`UPDATE medianest.audit SET at = now() - interval '366 days' WHERE id = $1`, id)
	trimmed, err := b.worker.TrimDomain(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, store.Trimmed{Audit: 1}, trimmed)
	require.Len(t, list(store.AuditFilter{}), 1)
}
