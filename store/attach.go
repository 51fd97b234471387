package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

var errNoQueue = errors.New("the store was given no queue")

// attachment ties a download to the job that it follows from now on, in the job's present state.
type attachment struct {
	JobID     int64
	State     string
	WaitingOn string
	NextTryAt *time.Time
}

// attachment of a job that is locked and can be joined.
func (j lockedJob) attachment() attachment {
	a := attachment{JobID: j.ID, State: StateQueued}
	switch j.State {
	case "running":
		a.State = StateRunning
	case "scheduled":
		if a.State, a.WaitingOn = parked(j.Parked); a.State == StateWaiting {
			a.NextTryAt = &j.ScheduledAt
		}
	case "retryable":
		a.State, a.WaitingOn, a.NextTryAt = StateWaiting, WaitingOnRetry, &j.ScheduledAt
	}
	return a
}

// need is a locked content that has to be fetched, and for whom: whose job it is where a new one is made.
type need struct {
	lockedContent

	UserID uuid.UUID
}

// attachOrEnqueue gives each of the locked contents a job that will end after this transaction, and makes it the
// content's. The contents' jobs are locked, and given.
func (s *Store) attachOrEnqueue(ctx context.Context, tx pgx.Tx, contents []need, jobs map[int64]lockedJob) (map[uuid.UUID]attachment, error) {
	attachments, fresh, err := s.findOrEnqueue(ctx, tx, contents, jobs)
	if err != nil || len(fresh) == 0 {
		return attachments, err
	}
	jobIDs := make([]int64, len(fresh))
	for i, id := range fresh {
		jobIDs[i] = attachments[id].JobID
	}
	_, err = tx.Exec(ctx, `
		UPDATE medianest.content AS c
		SET job_id = n.job_id
		FROM unnest(@ids::uuid[], @job_ids::bigint[]) AS n (id, job_id)
		WHERE c.id = n.id`,
		pgx.StrictNamedArgs{"ids": fresh, "job_ids": jobIDs})
	if err != nil {
		return nil, fmt.Errorf("set jobs of contents: %w", err)
	}
	return attachments, nil
}

// findOrEnqueue finds the job that is at each content, or else enqueues one. It is left to the caller to write down the
// fresh ones.
func (s *Store) findOrEnqueue(ctx context.Context, tx pgx.Tx, contents []need, jobs map[int64]lockedJob) (_ map[uuid.UUID]attachment, fresh []uuid.UUID, err error) {
	attachments := make(map[uuid.UUID]attachment, len(contents))
	var fetches []NewFetch
	for _, c := range contents {
		// A job whose end is asked for is left to die: its last wish was cancelled, this one is new.
		if c.JobID != nil {
			if job, ok := jobs[*c.JobID]; ok && !job.final() && !job.CancelAsked {
				attachments[c.ID] = job.attachment()
				continue
			}
		}
		fresh = append(fresh, c.ID)
		fetches = append(fetches, NewFetch{ContentID: c.ID, Host: hostOf(c.URL), UserID: c.UserID})
	}
	if len(fresh) == 0 {
		return attachments, nil, nil
	}
	if s.queue == nil {
		return nil, nil, errNoQueue
	}
	jobIDs, err := s.queue.EnqueueDownloadsTx(ctx, tx, fetches)
	if err != nil {
		return nil, nil, fmt.Errorf("enqueue downloads: %w", err)
	}
	if len(jobIDs) != len(fresh) {
		return nil, nil, fmt.Errorf("enqueue downloads: %d jobs for %d contents", len(jobIDs), len(fresh))
	}
	for i, id := range fresh {
		attachments[id] = attachment{JobID: jobIDs[i], State: StateQueued}
	}
	return attachments, fresh, nil
}

func jobsOf(contents []lockedContent) []int64 {
	var ids []int64
	for _, c := range contents {
		if c.JobID != nil {
			ids = append(ids, *c.JobID)
		}
	}
	return ids
}

// addViewers lets the owners of the downloads see the jobs that these follow now.
func addViewers(ctx context.Context, tx pgx.Tx, downloadIDs []uuid.UUID) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO medianest.job_viewer (job_id, user_id, download_id)
		SELECT d.job_id, d.user_id, d.id
		FROM medianest.downloads AS d
		WHERE d.id = ANY(@ids) AND d.job_id IS NOT NULL
		ORDER BY d.job_id, d.user_id, d.id
		ON CONFLICT DO NOTHING`,
		pgx.StrictNamedArgs{"ids": downloadIDs})
	if err != nil {
		return fmt.Errorf("add job viewers: %w", err)
	}
	return nil
}

// follow ties downloads that ended to the jobs of their contents, as if they began anew.
func follow(ctx context.Context, tx pgx.Tx, downloads []treeRow, attachments map[uuid.UUID]attachment) error {
	if len(downloads) == 0 {
		return nil
	}
	n := len(downloads)
	ids, jobIDs, states, waits, tries := make([]uuid.UUID, n), make([]int64, n), make([]string, n), make([]string, n), make([]*time.Time, n)
	for i, d := range downloads {
		a := attachments[d.ContentID]
		ids[i], jobIDs[i], states[i], waits[i], tries[i] = d.ID, a.JobID, a.State, a.WaitingOn, a.NextTryAt
	}
	_, err := tx.Exec(ctx, `
		UPDATE medianest.downloads AS d
		SET state = n.state,
			waiting_on = n.waiting_on,
			next_try_at = n.next_try_at,
			job_id = n.job_id,
			cancelled_at = NULL,
			start_by = NULL,
			failure_reason = '',
			failure_detail = '',
			started_at = CASE WHEN n.state = 'running' THEN now() END,
			finished_at = NULL
		FROM unnest(@ids::uuid[], @job_ids::bigint[], @states::text[], @waits::text[], @tries::timestamptz[])
			AS n (id, job_id, state, waiting_on, next_try_at)
		WHERE d.id = n.id`,
		pgx.StrictNamedArgs{"ids": ids, "job_ids": jobIDs, "states": states, "waits": waits, "tries": tries})
	if err != nil {
		return fmt.Errorf("tie downloads to jobs: %w", err)
	}
	return addViewers(ctx, tx, ids)
}

// storedKey is the form in which a content's key is kept: itself, or its digest where it is too long for an index.
func storedKey(key string) string {
	if len(key) <= maxKeyBytes {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256:" + hex.EncodeToString(sum[:])
}
