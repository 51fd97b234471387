package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// AuditEntry is something that an administrator did, or asked for.
type AuditEntry struct {
	ID        int64
	At        time.Time
	ActorID   *uuid.UUID
	Actor     string // the actor's name now; "" if there is no such user any more
	Action    string // the operation, such as "set-limit", or "river.jobs.retry"
	Subject   string // what it was done to, such as "key=host:youtube.com"
	Detail    map[string]any
	RequestID string
	Client    string // address
	Status    *int   // of the answer, as in HTTP; nil: it is not known whether it was done
}

// auditRetention is how long it is known who did what.
const auditRetention = 365 * 24 * time.Hour

// maxAuditBytes bounds each text of an entry.
const maxAuditBytes = 2000

// BeginAudit writes down what is about to be done, and returns the entry's id for EndAudit.
func (s *Store) BeginAudit(ctx context.Context, e AuditEntry) (id int64, err error) {
	err = s.pool.QueryRow(ctx, `
		INSERT INTO medianest.audit (actor_id, action, subject, detail, request_id, client)
		VALUES (@actor_id, @action, @subject, @detail, @request_id, @client)
		RETURNING id`,
		pgx.StrictNamedArgs{
			"actor_id": e.ActorID, "action": cleanText(e.Action, maxAuditBytes), "subject": cleanText(e.Subject, maxAuditBytes),
			"detail": detailOf(e.Detail), "request_id": e.RequestID, "client": e.Client,
		}).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("audit %s: %w", e.Action, interpret(err))
	}
	return id, nil
}

// EndAudit writes down what came of it, once, with what has become known besides.
func (s *Store) EndAudit(ctx context.Context, id int64, status int, detail map[string]any) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE medianest.audit
		SET status = @status, detail = detail || @detail
		WHERE id = @id`,
		pgx.StrictNamedArgs{"id": id, "status": status, "detail": detailOf(detail)})
	if err != nil {
		return fmt.Errorf("complete entry %d of the audit: %w", id, interpret(err))
	}
	return nil
}

// AddAudit writes down what has been done already, with its status.
func (s *Store) AddAudit(ctx context.Context, e AuditEntry) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO medianest.audit (actor_id, action, subject, detail, request_id, client, status)
		VALUES (@actor_id, @action, @subject, @detail, @request_id, @client, @status)`,
		pgx.StrictNamedArgs{
			"actor_id": e.ActorID, "action": cleanText(e.Action, maxAuditBytes), "subject": cleanText(e.Subject, maxAuditBytes),
			"detail": detailOf(e.Detail), "request_id": e.RequestID, "client": e.Client, "status": e.Status,
		})
	if err != nil {
		return fmt.Errorf("audit %s: %w", e.Action, interpret(err))
	}
	return nil
}

// detailOf is never null, and nothing that the database could not store.
func detailOf(detail map[string]any) json.RawMessage {
	clean := make(map[string]any, len(detail))
	for name, value := range detail {
		if text, ok := value.(string); ok {
			value = cleanText(text, maxAuditBytes)
		}
		clean[name] = value
	}
	encoded, err := json.Marshal(clean)
	if err != nil {
		return json.RawMessage(`{}`)
	}
	return encoded
}

// AuditFilter says which entries are wanted. What is empty does not matter.
type AuditFilter struct {
	ActorID uuid.UUID
	Action  string
	Since   time.Time // from then on
	Until   time.Time // before then
	Cursor  string
	Limit   int
}

// ListAudit returns a page, newest first, and the cursor of the next one, or "" after the last.
func (s *Store) ListAudit(ctx context.Context, f AuditFilter) (page []AuditEntry, next string, err error) {
	limit, err := pageSize(f.Limit)
	if err != nil {
		return nil, "", err
	}
	before := int64(1<<63 - 1)
	if f.Cursor != "" {
		if before, err = strconv.ParseInt(f.Cursor, 10, 64); err != nil {
			return nil, "", &InvalidError{Field: "cursor", Reason: "is not one that a list of this kind gave"}
		}
	}
	sql := `
		SELECT a.id, a.at, a.actor_id, coalesce(u.name, '') AS actor, a.action, a.subject, a.detail, a.request_id, a.client, a.status
		FROM medianest.audit AS a
		LEFT JOIN medianest.users AS u ON u.id = a.actor_id
		WHERE a.id < @before`
	args := pgx.StrictNamedArgs{"before": before, "limit": limit + 1}
	add := func(condition, name string, value any) {
		sql += ` AND ` + condition
		args[name] = value
	}
	if f.ActorID != uuid.Nil {
		add(`a.actor_id = @actor_id`, "actor_id", f.ActorID)
	}
	if f.Action != "" {
		add(`a.action = @action`, "action", f.Action)
	}
	if !f.Since.IsZero() {
		add(`a.at >= @since`, "since", f.Since)
	}
	if !f.Until.IsZero() {
		add(`a.at < @until`, "until", f.Until)
	}
	rows, err := s.pool.Query(ctx, sql+`
		ORDER BY a.id DESC
		LIMIT @limit`, args)
	if err != nil {
		return nil, "", fmt.Errorf("list audit: %w", interpret(err))
	}
	page, err = pgx.CollectRows(rows, pgx.RowToStructByName[AuditEntry])
	if err != nil {
		return nil, "", fmt.Errorf("list audit: %w", interpret(err))
	}
	if len(page) > limit {
		page = page[:limit]
		next = strconv.FormatInt(page[limit-1].ID, 10)
	}
	return page, next, nil
}

// trimAudit removes entries by a function, since no role may delete them otherwise.
func (s *Store) trimAudit(ctx context.Context) (total int64, err error) {
	if _, err := s.SealAudit(ctx); err != nil { // what is removed is removed from the chain
		return 0, err
	}
	for {
		var n int64
		err := s.pool.QueryRow(ctx, `SELECT medianest.trim_audit(@age, @batch)`,
			pgx.StrictNamedArgs{"age": auditRetention, "batch": trimBatch}).Scan(&n)
		total += n
		if err != nil || n < trimBatch {
			return total, err
		}
	}
}

// SupersededRows are those of the rows whose jobs go on as other rows: they stay as they are.
func (s *Store) SupersededRows(ctx context.Context, ids []int64) ([]int64, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT j.id
		FROM river.river_job AS j
		WHERE j.id = ANY(@ids) AND j.metadata ? 'superseded_by'
		ORDER BY j.id`,
		pgx.StrictNamedArgs{"ids": ids})
	if err != nil {
		return nil, fmt.Errorf("find superseded rows: %w", interpret(err))
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("find superseded rows: %w", interpret(err))
	}
	return found, nil
}
