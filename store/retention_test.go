package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

func TestTrimDomain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann := b.user("ann")
	trim := func() store.Trimmed {
		trimmed, err := b.worker.TrimDomain(ctx, time.Hour)
		require.NoError(t, err)
		return trimmed
	}
	n := wish(ann, "https://site.test/a")
	n.IdempotencyKey = "key"
	d, _, err := b.api.CreateDownload(ctx, n)
	require.NoError(t, err)
	kept := b.create(ann, "https://site.test/kept")
	b.fetch(kept, "kept.mp4")
	require.Equal(t, store.Trimmed{}, trim())

	// Old, but needed: by a download, by a file, by a job at work.
	b.exec(`UPDATE medianest.content SET created_at = now() - interval '25 h'`)
	require.Equal(t, store.Trimmed{}, trim())
	b.exec(`DELETE FROM medianest.downloads`)
	require.Equal(t, store.Trimmed{}, trim())

	b.setJob(*d.JobID, "completed")
	require.Equal(t, store.Trimmed{Contents: 1}, trim())
	// Viewers once went by when they had joined: who had waited for a day missed the end of the job in the replay.
	b.exec(`DELETE FROM river.river_job`)
	require.Equal(t, store.Trimmed{}, trim(), "the job's last events are still told")
	b.exec(`UPDATE medianest.job_viewer SET gone_at = gone_at - interval '2 h'`)
	require.Equal(t, store.Trimmed{JobViewers: 2}, trim())
	b.exec(`UPDATE medianest.idempotency SET created_at = now() - interval '25 h'`)
	require.Equal(t, store.Trimmed{IdempotencyKeys: 1}, trim())
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.content`))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.files`))
}

func TestTrimDomainInBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	rows := 2*store.TrimBatch + 10
	b.exec(`INSERT INTO medianest.content (id, key, url, profile, created_at)
		SELECT gen_random_uuid(), 'k' || n, 'u', 'p', now() - interval '2 d' FROM generate_series(1, $1::int) AS n`, rows)
	b.exec(`INSERT INTO medianest.idempotency (user_id, key, fingerprint, resource_id, created_at)
		SELECT $2, 'k' || n, '', gen_random_uuid(), now() - interval '2 d' FROM generate_series(1, $1::int) AS n`, rows, ann.ID)
	b.exec(`INSERT INTO medianest.job_viewer (job_id, user_id, download_id, gone_at)
		SELECT n / 2, $2, gen_random_uuid(), now() - interval '2 d' FROM generate_series(2, $1::int + 1) AS n`, rows, ann.ID)
	trimmed, err := b.worker.TrimDomain(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, store.Trimmed{IdempotencyKeys: int64(rows), JobViewers: int64(rows), Contents: int64(rows)}, trimmed)
}

// Retention and wishes for the very same contents, at once: no wish is refused and none loses its content.
func TestTrimDomainWhileWished(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	urls := []string{"https://site.test/0", "https://site.test/1", "https://site.test/2"}
	for range 10 {
		for _, url := range urls {
			b.exec(`INSERT INTO medianest.content (id, key, url, profile, created_at) VALUES (gen_random_uuid(), $1, $2, 'best', now() - interval '2 d')`, "best "+url, url)
		}
		together(t, 2*len(urls), func(i int) error {
			if i%2 == 0 {
				_, err := b.worker.TrimDomain(t.Context(), time.Hour)
				return err
			}
			_, _, err := b.api.CreateDownload(t.Context(), wish(ann, urls[i/2]))
			return err
		})
		require.Equal(t, len(urls), b.count(`SELECT count(*) FROM medianest.downloads`))
		b.exec(`DELETE FROM medianest.downloads`)
		b.exec(`DELETE FROM medianest.content`)
	}
}

// It is known of a process for a day that it is gone, and for as long as jobs run in its name.
func TestTrimWorkers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	d := b.create(b.user("ann"), "https://site.test/a")
	for _, id := range []string{"present", "gone", "lately", "named"} {
		b.joinWorker(id, "work", "vol")
	}
	b.exec(`UPDATE medianest.worker SET gone_at = now() - interval '25 h' WHERE id IN ('gone', 'named')`)
	b.exec(`UPDATE medianest.worker SET gone_at = now() - interval '23 h' WHERE id = 'lately'`)
	b.exec(`UPDATE medianest.worker SET expires_at = now() - interval '25 h' WHERE id = 'present'`)
	b.exec(`UPDATE river.river_job SET attempted_by = '{gone,named}' WHERE id = $1`, *d.JobID)
	b.setJob(*d.JobID, "running")
	left := func() (ids []string) {
		require.NoError(t, b.pool.QueryRow(ctx, `SELECT array_agg(id ORDER BY id) FROM medianest.worker`).Scan(&ids))
		return ids
	}
	for _, step := range []struct {
		by      *store.Store
		trimmed int64
		left    []string
	}{
		{b.worker, 1, []string{"lately", "named", "present"}},
		{b.api, 0, []string{"lately", "named", "present"}},
	} {
		trimmed, err := step.by.TrimDomain(ctx, time.Hour)
		require.NoError(t, err)
		require.Equal(t, store.Trimmed{Workers: step.trimmed}, trimmed)
		require.Equal(t, step.left, left())
	}
	b.setJob(*d.JobID, "completed")
	trimmed, err := b.worker.TrimDomain(ctx, time.Hour)
	require.NoError(t, err)
	require.Equal(t, store.Trimmed{Workers: 1}, trimmed)
	require.Equal(t, []string{"lately", "present"}, left())
}
