package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

func (b *bundle) entries(n int, e store.AuditEntry) {
	b.t.Helper()
	ok := 200
	e.Status = &ok
	for range n {
		require.NoError(b.t, b.api.AddAudit(b.t.Context(), e))
	}
}

func (b *bundle) proof() store.AuditProof {
	b.t.Helper()
	p, err := b.api.VerifyAudit(b.t.Context())
	require.NoError(b.t, err)
	return p
}

// Whoever changes, removes or puts in an entry breaks the chain at it, also as the owner of the tables.
func TestAuditChain(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ sql, fault string }{
		"untouched":        {`SELECT 1`, ""},
		"status changed":   {`UPDATE medianest.audit SET status = 500 WHERE id = 5`, "entry changed"},
		"detail changed":   {`UPDATE medianest.audit SET detail = '{}' WHERE id = 5`, "entry changed"},
		"address changed":  {`UPDATE medianest.audit SET client = '192.0.2.9' WHERE id = 5`, "entry changed"},
		"actor changed":    {`UPDATE medianest.audit SET actor_id = gen_random_uuid() WHERE id = 5`, "entry changed"},
		"time changed":     {`UPDATE medianest.audit SET at = at - interval '1 h' WHERE id = 5`, "entry changed"},
		"entry removed":    {`DELETE FROM medianest.audit WHERE id = 5`, "entry removed"},
		"link removed":     {`DELETE FROM medianest.audit_seal WHERE audit_id = 5`, "link removed"},
		"both removed":     {`WITH x AS (DELETE FROM medianest.audit_seal WHERE audit_id = 5) DELETE FROM medianest.audit WHERE id = 5`, "link removed"},
		"sealed anew":      {`UPDATE medianest.audit_seal SET hash = sha256('x') WHERE audit_id = 5`, "entry changed"},
		"changed and hash": {`WITH x AS (UPDATE medianest.audit SET status = 500 WHERE id = 5 RETURNING *) UPDATE medianest.audit_seal AS s SET hash = sha256(s.previous || medianest.audit_public(x) || s.private) FROM x WHERE s.audit_id = 5`, "link replaced"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			ann := b.user("ann")
			b.entries(10, store.AuditEntry{ActorID: &ann.ID, Action: "set-limit", Detail: map[string]any{"asked": 1}, Client: "192.0.2.1"})
			n, err := b.worker.SealAudit(t.Context())
			require.NoError(t, err)
			require.EqualValues(t, 10, n)
			require.Empty(t, b.proof().Fault)
			b.exec(`ALTER TABLE medianest.audit DISABLE TRIGGER medianest_keep`)
			b.exec(test.sql)
			p := b.proof()
			require.Equal(t, test.fault, p.Fault)
			if test.fault == "" {
				require.EqualValues(t, 10, p.Links)
				require.EqualValues(t, 10, p.Last)
				require.Len(t, p.Hash, 64)
			}
		})
	}
}

// Writers that commit late, roll back, or never say what came of it: each entry is sealed once, in an order of its own, and
// no writer waits for the sealer.
func TestAuditIsSealedWhileItIsWritten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	late, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer late.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // committed below
	_, err = late.Exec(t.Context(), `INSERT INTO medianest.audit (action, status) VALUES ('late', 200)`)
	require.NoError(t, err)
	unknown, err := b.api.BeginAudit(t.Context(), store.AuditEntry{Action: "unknown"})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { b.entries(50, store.AuditEntry{Action: "x"}) })
		wg.Go(func() {
			for range 20 {
				if _, err := b.worker.SealAudit(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, late.Commit(t.Context()))
	for range 2 {
		_, err = b.worker.SealAudit(t.Context())
		require.NoError(t, err)
	}
	require.Equal(t, 201, b.count(`SELECT count(*) FROM medianest.audit_seal`))
	require.EqualValues(t, 201, b.proof().Links)
	require.NoError(t, b.api.EndAudit(t.Context(), unknown, 200, nil))
	b.exec(`INSERT INTO medianest.audit (action, at) VALUES ('never', now() - interval '11 minutes')`)
	_, err = b.worker.SealAudit(t.Context())
	require.NoError(t, err)
	p := b.proof()
	require.Empty(t, p.Fault)
	require.EqualValues(t, 203, p.Last)
	require.Error(t, b.api.EndAudit(t.Context(), int64(b.count(`SELECT id FROM medianest.audit WHERE action = 'never'`)), 200, nil), "what is sealed stays")
}

// Erasure and retention leave a chain that holds.
func TestAuditChainOutlivesErasureAndRetention(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann, ben := b.user("ann"), b.user("ben")
	b.user("admin")
	b.exec(`UPDATE medianest.users SET role = 'admin' WHERE name = 'admin'`)
	b.entries(3, store.AuditEntry{ActorID: &ann.ID, Action: "cancel-download", Subject: "id=1", Detail: map[string]any{"asked": "canary"}, Client: "192.0.2.77"})
	b.entries(3, store.AuditEntry{Action: "auth.password", Detail: map[string]any{"name": "ann"}, Client: "192.0.2.77"})
	b.entries(3, store.AuditEntry{ActorID: &ben.ID, Action: "cancel-download", Client: "192.0.2.2"})
	_, err := b.worker.SealAudit(t.Context())
	require.NoError(t, err)
	before := b.proof()
	require.NoError(t, b.api.EraseUser(t.Context(), ann.ID))
	require.Zero(t, b.count(`SELECT count(*) FROM medianest.audit AS a WHERE a::text LIKE '%192.0.2.77%' OR a::text LIKE '%canary%' OR a.detail::text LIKE '%ann%'`))
	require.Equal(t, 3, b.count(`SELECT count(*) FROM medianest.audit WHERE client = '192.0.2.2'`))
	require.Equal(t, before, b.proof())

	b.exec(`ALTER TABLE medianest.audit DISABLE TRIGGER medianest_keep`)
	b.exec(`UPDATE medianest.audit SET at = now() - interval '400 days', sealed = false WHERE id <= 5`)
	b.exec(`TRUNCATE medianest.audit_seal`)
	b.exec(`UPDATE medianest.audit SET sealed = false`)
	b.exec(`ALTER TABLE medianest.audit ENABLE TRIGGER medianest_keep`)
	_, err = b.worker.SealAudit(t.Context())
	require.NoError(t, err)
	_, err = b.worker.TrimDomain(t.Context(), 0)
	require.NoError(t, err)
	p := b.proof()
	require.Equal(t, store.AuditProof{Links: 4, Last: 9, Hash: p.Hash}, p)
}

// A receiver outside gets all, in the chain's order, at least once, over failures of its own.
func TestForwardAudit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.entries(1200, store.AuditEntry{Action: "x", Client: "192.0.2.1"})
	_, err := b.worker.SealAudit(t.Context())
	require.NoError(t, err)
	var got []int64
	calls := 0
	send := func(_ context.Context, entries []store.SealedEntry) error {
		if calls++; calls%2 == 0 {
			return errors.New("the receiver is away")
		}
		for _, e := range entries {
			got = append(got, e.N)
		}
		return nil
	}
	for len(got) < 1200 {
		_, err := b.worker.ForwardAudit(t.Context(), "siem", send)
		require.True(t, err == nil || len(got) < 1200)
	}
	for i, n := range got {
		require.EqualValues(t, i+1, n)
	}
	n, err := b.worker.ForwardAudit(t.Context(), "siem", send)
	require.NoError(t, err)
	require.Zero(t, n)

}
