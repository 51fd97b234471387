package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Content is a thing that can be fetched, once for all users who wish for it.
type Content struct {
	ID            uuid.UUID
	Key           string // unique; see storedKey
	URL           string // what the extractor is given
	Profile       string
	JobID         *int64 // the job that fetches it, or fetched it last
	Generation    int    // counts the fetches begun
	IsCollection  bool   // a page, playlist or feed: children instead of files
	Extractor     string
	ExtractorID   string
	Title         string
	Probe         json.RawMessage // the extractor's info; nil before the first probe
	ProbedAt      *time.Time
	FailureDetail string // of the last failed attempt, fit to be shown
	CreatedAt     time.Time
}

const contentColumns = `c.id, c.key, c.url, c.profile, c.job_id, c.generation, c.is_collection, c.extractor, c.extractor_id,
			c.title, c.probe, c.probed_at, c.failure_detail, c.created_at`

// lockedContent is what is known of a content's row that stays so until the transaction ends. The probe may be large and
// is left out.
type lockedContent struct {
	ID       uuid.UUID
	Key      string
	URL      string
	JobID    *int64
	Title    string
	StagedOn string
}

const lockedContentColumns = `c.id, c.key, c.url, c.job_id, c.title, c.staged_on`

// Wish is a download that follows a job and that its user has not cancelled.
type Wish struct {
	DownloadID   uuid.UUID
	UserID       uuid.UUID
	UserName     string
	IsCollection bool
}

// Fetch is what a worker needs to begin.
type Fetch struct {
	JobID      int64 // the job's public id
	Content    Content
	Generation int    // of this fetch: no other has had it
	Wishes     []Wish // by download id; a user may occur more than once
	Files      []File // of all users
	LeftOn     string // the volume where what was fetched so far is left behind; "" if there is none but this
}

// BeginFetchParams say who begins a fetch, and where.
type BeginFetchParams struct {
	ContentID uuid.UUID
	Row       JobRow
	Volume    string        // the worker's media volume
	Wait      time.Duration // how long to leave a content to the workers of the volume where it was begun
}

// BeginFetch begins an attempt of the job at the content. With no wish there is nothing to do: Publish then completes the
// job, unless somebody joined in the meantime.
//
// ErrNotFound if the content is gone. ErrSuperseded if the row does not run, or the job goes on as another. ErrOtherJob
// if another job is at it, which those who followed this one follow now. ErrStagedElsewhere if what has been fetched so
// far lies on another volume: the job should be put off for a moment, and is left to the workers of that volume, whether
// or not there is one now, as one that restarts is back in seconds. That ends when Wait has passed since it was first
// said, and the fetch begins from nothing.
func (s *Store) BeginFetch(ctx context.Context, p BeginFetchParams) (Fetch, error) {
	var (
		f       Fetch
		refusal error
	)
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		content, err := lockContent(ctx, tx, p.ContentID)
		if err != nil {
			return err
		}
		if f.JobID, err = publicIDOf(ctx, tx, p.Row); err != nil {
			return err
		}
		handedOver, err := handOver(ctx, tx, content, f.JobID, p.Row)
		if err != nil {
			return err
		}
		if handedOver {
			refusal = ErrOtherJob
			return nil
		}
		if f.Wishes, err = queryWishes(ctx, tx, p.ContentID, f.JobID); err != nil {
			return err
		}
		if content.StagedOn != "" && content.StagedOn != p.Volume && len(f.Wishes) > 0 {
			leave, err := leaveToVolume(ctx, tx, content, p.Wait)
			if err != nil {
				return err
			}
			if leave {
				refusal = ErrStagedElsewhere
				return nil
			}
			f.LeftOn = content.StagedOn
		}
		// A job that an operator brought back to life takes the content over, so that further wishes join it.
		rows, err := tx.Query(ctx, `
			UPDATE medianest.content AS c
			SET generation = c.generation + 1, job_id = @job_id, staged_on = @volume, staged_wait_from = NULL
			WHERE c.id = @id
			RETURNING `+contentColumns,
			pgx.StrictNamedArgs{"id": p.ContentID, "job_id": f.JobID, "volume": p.Volume})
		if err != nil {
			return err
		}
		if f.Content, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Content]); err != nil {
			return err
		}
		f.Generation = f.Content.Generation
		f.Files, err = queryFiles(ctx, tx, p.ContentID)
		return err
	})
	if err == nil {
		err = refusal
	}
	if err != nil {
		return Fetch{}, fmt.Errorf("begin fetch of content %s by row %d: %w", p.ContentID, p.Row, err)
	}
	return f, nil
}

// leaveToVolume reports whether the locked content is left to the workers of the volume that it is staged on: the wait
// for them, which begins with the first such answer, is not over.
func leaveToVolume(ctx context.Context, tx pgx.Tx, content lockedContent, wait time.Duration) (bool, error) {
	tag, err := tx.Exec(ctx, `
		UPDATE medianest.content AS c
		SET staged_wait_from = coalesce(c.staged_wait_from, now())
		WHERE c.id = @id
			AND coalesce(c.staged_wait_from, now()) > now() - @wait::interval`,
		pgx.StrictNamedArgs{"id": content.ID, "wait": wait})
	if err != nil {
		return false, fmt.Errorf("wait for volume %q: %w", content.StagedOn, err)
	}
	return tag.RowsAffected() == 1, nil
}

// ForgetStaged says that nothing that has been fetched of the content is kept: any worker may begin anew. It changes
// nothing, without an error, where a later fetch has begun or the content is gone.
func (s *Store) ForgetStaged(ctx context.Context, contentID uuid.UUID, generation int) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE medianest.content
		SET staged_on = '', staged_wait_from = NULL
		WHERE id = @id AND generation = @generation AND (staged_on <> '' OR staged_wait_from IS NOT NULL)`,
		pgx.StrictNamedArgs{"id": contentID, "generation": generation})
	if err != nil {
		return fmt.Errorf("forget what is staged of content %s: %w", contentID, interpret(err))
	}
	return nil
}

// Wishes lists the downloads that follow the job now.
func (s *Store) Wishes(ctx context.Context, contentID uuid.UUID, jobID int64) ([]Wish, error) {
	s = s.Everyone()
	wishes, err := queryWishes(ctx, s.pool, contentID, jobID)
	if err != nil {
		return nil, fmt.Errorf("list wishes for content %s by job %d: %w", contentID, jobID, interpret(err))
	}
	return wishes, nil
}

// queryWishes goes by who follows the job and not by the downloads' states, which the outbox's consumer brings up to
// date a moment after the job's.
func queryWishes(ctx context.Context, db rowQuerier, contentID uuid.UUID, jobID int64) ([]Wish, error) {
	rows, err := db.Query(ctx, `
		SELECT d.id AS download_id, d.user_id, u.name AS user_name, d.is_collection
		FROM medianest.downloads AS d
		JOIN medianest.users AS u ON u.id = d.user_id
		WHERE d.job_id = @job_id AND d.content_id = @content_id AND d.cancelled_at IS NULL
		ORDER BY d.id`,
		pgx.StrictNamedArgs{"job_id": jobID, "content_id": contentID})
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Wish])
}

// ProbeResult is what an extractor says of a content.
type ProbeResult struct {
	Extractor    string
	ExtractorID  string
	Title        string
	IsCollection bool
	Info         json.RawMessage // kept as it is but for what Postgres cannot hold
}

// SaveProbe keeps what was found out, and names the downloads after it. ErrSuperseded if a later fetch than that of the
// generation has begun, or the content is gone.
func (s *Store) SaveProbe(ctx context.Context, contentID uuid.UUID, generation int, p ProbeResult) error {
	info, err := cleanJSON(p.Info)
	if err != nil {
		return fmt.Errorf("save probe of content %s: %w", contentID, &InvalidError{Field: "info", Reason: "is not JSON"})
	}
	title := cleanText(p.Title, maxTitleBytes)
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			UPDATE medianest.content
			SET extractor = @extractor,
				extractor_id = @extractor_id,
				title = @title,
				is_collection = @is_collection,
				probe = @probe,
				probed_at = now()
			WHERE id = @id AND generation = @generation`,
			pgx.StrictNamedArgs{
				"id": contentID, "generation": generation,
				"extractor": cleanText(p.Extractor, maxTitleBytes), "extractor_id": cleanText(p.ExtractorID, maxTitleBytes),
				"title": title, "is_collection": p.IsCollection, "probe": info,
			})
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return fmt.Errorf("it is not at generation %d: %w", generation, ErrSuperseded)
		}
		// The title of what is in the library already stays the one that its file has.
		_, err = tx.Exec(ctx, `
			UPDATE medianest.downloads
			SET title = @title
			WHERE id IN (
				SELECT d.id
				FROM medianest.downloads AS d
				WHERE d.content_id = @content_id
					AND d.title IS DISTINCT FROM @title
					AND (d.title = '' OR d.state = ANY(@active))
				ORDER BY d.id
				FOR NO KEY UPDATE
			)`,
			pgx.StrictNamedArgs{"content_id": contentID, "title": title, "active": activeStates})
		return err
	})
	if err != nil {
		return fmt.Errorf("save probe of content %s: %w", contentID, err)
	}
	return nil
}

// SaveFailure keeps why the last attempt failed, in words fit to be shown; the outbox's consumer copies them to the
// downloads. Empty takes them back. ErrSuperseded if a later fetch than that of the generation has begun, or the content
// is gone.
func (s *Store) SaveFailure(ctx context.Context, contentID uuid.UUID, generation int, detail string) error {
	tag, err := s.pool.Exec(ctx, `
		UPDATE medianest.content
		SET failure_detail = @detail
		WHERE id = @id AND generation = @generation`,
		pgx.StrictNamedArgs{"id": contentID, "generation": generation, "detail": cleanText(detail, maxDetailBytes)})
	if err != nil {
		return fmt.Errorf("save failure of content %s: %w", contentID, interpret(err))
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("save failure of content %s: it is not at generation %d: %w", contentID, generation, ErrSuperseded)
	}
	return nil
}
