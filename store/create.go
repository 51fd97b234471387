package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// NewDownload is a user's wish.
type NewDownload struct {
	UserID         uuid.UUID
	URL            string
	ContentKey     string // the same for all wishes that the same fetch fulfils
	Profile        string
	StartBy        *time.Time // by when it is to begin, or be dropped; nil: whenever it can
	IdempotencyKey string     // of the request; empty: none
	Fingerprint    [32]byte   // of the request; needed with a key
}

func (n NewDownload) validate() error {
	err := errors.Join(
		checkText("url", n.URL, maxURLBytes),
		checkText("content_key", n.ContentKey, 2*maxURLBytes),
		checkText("profile", n.Profile, maxKeyBytes),
	)
	if n.StartBy != nil && !n.StartBy.After(time.Now()) {
		err = errors.Join(err, &InvalidError{Field: "start_by", Reason: "is not to come"})
	}
	if n.IdempotencyKey != "" {
		err = errors.Join(err, checkText("idempotency_key", n.IdempotencyKey, maxIdempotencyKeyBytes))
	}
	return err
}

// CreateDownload makes a download and sees to it that a job fetches it: the one that is at the content already, whoever
// asked for it, or a new one. Everything is one transaction. The user's active download of the same content at top
// level is returned instead, as is what the same idempotency key made before: then created is false.
//
// ErrIdempotencyMismatch: the key came with another request. ErrConflict: what the key made is deleted. ErrQuota: the user
// has as much as they may have.
func (s *Store) CreateDownload(ctx context.Context, n NewDownload) (d Download, created bool, err error) {
	s = s.asUser(n.UserID)
	if err := n.validate(); err != nil {
		return Download{}, false, fmt.Errorf("create download: %w", err)
	}
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		id := uuid.Must(uuid.NewV7())
		owner := Viewer{UserID: n.UserID}
		if n.IdempotencyKey != "" {
			resource, claimed, err := claimKey(ctx, tx, n.UserID, n.IdempotencyKey, n.Fingerprint, id)
			if err != nil {
				return err
			}
			if !claimed {
				d, err = findDownload(ctx, tx, resource, owner)
				if errors.Is(err, ErrNotFound) {
					return fmt.Errorf("what the idempotency key made is deleted: %w", ErrConflict)
				}
				return err
			}
		}
		content, made, err := lockOrMakeContent(ctx, tx, n)
		if err != nil {
			return err
		}
		var existing *uuid.UUID
		if !made {
			if existing, err = activeTopLevel(ctx, tx, n.UserID, content.ID, id); err != nil {
				return err
			}
		}
		if existing == nil {
			if err := checkQuota(ctx, tx, n.UserID); err != nil {
				return err
			}
		}
		if existing != nil {
			if n.IdempotencyKey != "" {
				if err := answerKey(ctx, tx, n.UserID, n.IdempotencyKey, *existing); err != nil {
					return err
				}
			}
			d, err = findDownload(ctx, tx, *existing, owner)
			return err
		}
		if d, err = s.insertDownload(ctx, tx, id, n, content); err != nil {
			return err
		}
		created = true
		if !made {
			d.Files, err = queryFilesOf(ctx, tx, []ContentView{{UserID: n.UserID, ContentID: content.ID}})
		}
		return err
	})
	if err != nil {
		return Download{}, false, fmt.Errorf("create download: %w", err)
	}
	return d, created, nil
}

// lockOrMakeContent takes no lock but the one on the row that it returns, and says whether it made that row.
func lockOrMakeContent(ctx context.Context, tx pgx.Tx, n NewDownload) (content lockedContent, made bool, err error) {
	// The update changes nothing: it locks the row that is there, and returns it. A row that was inserted has no xmax.
	err = tx.QueryRow(ctx, `
		INSERT INTO medianest.content AS c (id, key, url, profile)
		VALUES (@id, @key, @url, @profile)
		ON CONFLICT (key) DO UPDATE
		SET url = c.url
		RETURNING `+lockedContentColumns+`, c.xmax = 0`,
		pgx.StrictNamedArgs{
			"id": uuid.Must(uuid.NewV7()), "key": storedKey(n.ContentKey), "url": n.URL, "profile": n.Profile,
		}).Scan(&content.ID, &content.Key, &content.URL, &content.JobID, &content.Title, &content.StagedOn, &made)
	if err != nil {
		return lockedContent{}, false, fmt.Errorf("lock content: %w", err)
	}
	return content, made, nil
}

// activeTopLevel finds another active download of the content by the user than except, or nil. The content is locked.
// The outbox's consumer may be a moment behind: an item whose job has ended is not active any more, so that who has
// seen the end may wish again, and one whose job came back to life is.
func activeTopLevel(ctx context.Context, tx pgx.Tx, userID, contentID, except uuid.UUID) (*uuid.UUID, error) {
	var id uuid.UUID
	err := tx.QueryRow(ctx, `
		SELECT d.id
		FROM medianest.downloads AS d
		LEFT JOIN medianest.job_map AS m ON m.public_id = d.job_id
		LEFT JOIN river.river_job AS j ON j.id = coalesce(m.row_id, d.job_id)
		WHERE d.content_id = @content_id
			AND d.user_id = @user_id
			AND d.parent_id IS NULL
			AND d.id <> @except
			AND d.cancelled_at IS NULL
			AND CASE
				WHEN j.id IS NOT NULL AND j.finalized_at IS NULL THEN true
				WHEN j.id IS NULL OR d.is_collection THEN d.state = ANY(@active)
				ELSE false
			END
		ORDER BY d.id DESC
		LIMIT 1`,
		pgx.StrictNamedArgs{"content_id": contentID, "user_id": userID, "except": except, "active": activeStates}).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find active download: %w", err)
	}
	return &id, nil
}

func (s *Store) insertDownload(ctx context.Context, tx pgx.Tx, id uuid.UUID, n NewDownload, content lockedContent) (Download, error) {
	jobs, err := lockJobs(ctx, tx, jobsOf([]lockedContent{content}))
	if err != nil {
		return Download{}, err
	}
	attachments, _, err := s.findOrEnqueue(ctx, tx, []need{{content, n.UserID}}, jobs)
	if err != nil {
		return Download{}, err
	}
	a := attachments[content.ID]
	rows, err := tx.Query(ctx, `
		WITH d AS (
			INSERT INTO medianest.downloads AS d
				(id, user_id, content_id, url, profile, title, state, waiting_on, next_try_at, start_by, job_id, started_at)
			VALUES (@id, @user_id, @content_id, @url, @profile, @title, @state, @waiting_on, @next_try_at, @start_by, @job_id,
				CASE WHEN @running THEN now() END)
			RETURNING `+downloadColumns("d")+`
		), seen AS (
			INSERT INTO medianest.job_viewer (job_id, user_id, download_id)
			SELECT d.job_id, d.user_id, d.id
			FROM d
		), taken AS (
			UPDATE medianest.content
			SET job_id = @job_id
			WHERE id = @content_id AND job_id IS DISTINCT FROM @job_id
		)
		SELECT `+downloadColumns("d")+`
		FROM d`,
		pgx.StrictNamedArgs{
			"id": id, "user_id": n.UserID, "content_id": content.ID, "url": n.URL, "profile": n.Profile, "title": content.Title,
			"state": a.State, "waiting_on": a.WaitingOn, "next_try_at": a.NextTryAt, "start_by": n.StartBy, "job_id": a.JobID, "running": a.State == StateRunning,
		})
	if err != nil {
		return Download{}, fmt.Errorf("insert download: %w", err)
	}
	d, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Download])
	if err != nil {
		return Download{}, fmt.Errorf("insert download: %w", err)
	}
	return d, nil
}
