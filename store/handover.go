package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// handOver locks the job, which runs as the row, lets the downloads that follow it follow the one that is at the locked
// content by now, and reports whether there is one. An operator may bring back a job that ended long ago, while another
// one fetches the same.
func handOver(ctx context.Context, tx pgx.Tx, content lockedContent, jobID int64, row JobRow) (bool, error) {
	if content.JobID == nil || *content.JobID == jobID {
		return false, lockRunning(ctx, tx, jobID, row)
	}
	// The downloads before the jobs, also where it turns out that they stay.
	wishes, err := queryWishes(ctx, tx, content.ID, jobID)
	if err != nil {
		return false, fmt.Errorf("list wishes: %w", err)
	}
	ids := make([]uuid.UUID, len(wishes))
	for i, w := range wishes {
		ids[i] = w.DownloadID
	}
	rows, err := lockAncestry(ctx, tx, ids, false)
	if err != nil {
		return false, err
	}
	jobs, err := lockJobs(ctx, tx, []int64{jobID, *content.JobID})
	if err != nil {
		return false, err
	}
	if err := checkRunning(jobs, jobID, row); err != nil {
		return false, err
	}
	other, ok := jobs[*content.JobID]
	switch {
	case !ok || other.final():
		return false, nil
	case jobs[jobID].CancelAsked:
		return true, nil // it ends for all who follow it
	case other.CancelAsked:
		return false, nil
	}
	var (
		moved []treeRow
		above []uuid.UUID
	)
	for _, r := range rows {
		if r.Below {
			moved = append(moved, r)
		} else {
			above = append(above, r.ID)
		}
	}
	if err := follow(ctx, tx, moved, map[uuid.UUID]attachment{content.ID: other.attachment()}); err != nil {
		return false, err
	}
	return true, deriveCollections(ctx, tx, above)
}
