package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Pause keeps jobs under a key from starting until it is taken back: a queue, a kind, a host, a user, or all of a form
// ("host:*"). It is what people want and stays, whoever comes and goes; River forgets the pause of a queue that nobody works
// for a day.
type Pause struct {
	Key      string
	Note     string // why, for people
	PausedAt time.Time
	PausedBy *uuid.UUID // nil: by River UI or a statement typed by hand
}

const maxPauseNoteBytes = 500

const pauseColumns = `p.key, p.note, p.paused_at, p.paused_by`

// ListPauses returns all there are, by key.
func (s *Store) ListPauses(ctx context.Context) ([]Pause, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+pauseColumns+`
		FROM medianest.pause AS p
		ORDER BY p.key`)
	if err != nil {
		return nil, fmt.Errorf("list pauses: %w", interpret(err))
	}
	pauses, err := pgx.CollectRows(rows, pgx.RowToStructByName[Pause])
	if err != nil {
		return nil, fmt.Errorf("list pauses: %w", interpret(err))
	}
	return pauses, nil
}

// SetPause pauses the key in the name of p.PausedBy, and returns the pause; one that is there keeps its time. Nothing
// starts under the key when SetPause has returned, and what was about to begin waits again. What runs goes on.
func (s *Store) SetPause(ctx context.Context, p Pause) (Pause, error) {
	err := checkKey(p.Key)
	if err == nil && p.Note != "" {
		err = checkText("note", p.Note, maxPauseNoteBytes)
	}
	if err == nil {
		err = s.changeLimits(ctx, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `
				INSERT INTO medianest.pause AS p (key, note, paused_by)
				VALUES (@key, @note, @paused_by)
				ON CONFLICT (key) DO UPDATE
				SET note = excluded.note, paused_by = excluded.paused_by
				RETURNING `+pauseColumns,
				pgx.StrictNamedArgs{"key": p.Key, "note": p.Note, "paused_by": p.PausedBy})
			if err != nil {
				return err
			}
			if p, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Pause]); err != nil {
				return err
			}
			return tellRiver(ctx, tx, p.Key, true)
		})
	}
	if err != nil {
		return Pause{}, fmt.Errorf("pause %q: %w", p.Key, err)
	}
	return p, nil
}

// DeletePause takes a pause back: what waited may begin. ErrNotFound if the key is not paused by itself.
func (s *Store) DeletePause(ctx context.Context, key string) error {
	err := checkKey(key)
	if err == nil {
		err = s.changeLimits(ctx, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `DELETE FROM medianest.pause WHERE key = @key`, pgx.StrictNamedArgs{"key": key})
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				return ErrNotFound
			}
			return tellRiver(ctx, tx, key, false)
		})
	}
	if err != nil {
		return fmt.Errorf("resume %q: %w", key, err)
	}
	return nil
}

// tellRiver has River's own queue stand still or go on with ours, for the jobs that name no keys, and tells its workers as
// River's client does. A queue that River does not know (yet) gets its pause when it does, by a trigger.
func tellRiver(ctx context.Context, tx pgx.Tx, key string, paused bool) error {
	queue, ok := strings.CutPrefix(key, "queue:")
	if !ok || queue == anyOfForm {
		return nil
	}
	action := "resume"
	if paused {
		action = "pause"
	}
	payload, err := json.Marshal(map[string]string{"action": action, "queue": queue})
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		WITH changed AS (
			UPDATE river.river_queue
			SET paused_at = CASE WHEN @paused THEN now() END, updated_at = now()
			WHERE name = @queue AND (paused_at IS NOT NULL) <> @paused
			RETURNING name
		)
		SELECT pg_notify('river.river_control', @payload)
		FROM changed`,
		pgx.StrictNamedArgs{"queue": queue, "paused": paused, "payload": string(payload)})
	if err != nil {
		return fmt.Errorf("tell River's queue: %w", err)
	}
	return nil
}
