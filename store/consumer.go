package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// The consumer "downloads" lets downloads follow their jobs, whoever changed these: a worker, River's scheduler or
// rescuer, River UI, a statement typed by hand.
//
// The events say which jobs have news; what the news is, it reads from the jobs themselves, which makes doing a thing
// twice, late or in a rush harmless: it always ends with the present. Only of a job whose row is gone, the event is all
// there is. Its position is stored in the transaction that changes the downloads.
//
// It never waits for a row's lock. A download that somebody holds, or that lies in a collection that somebody holds, is
// written down and done later, so that one forgotten transaction does not stop all others' downloads.
const downloadsConsumer = "downloads"

// Reasons that the store gives itself, and what is said with them.
const (
	reasonCancelled  = "cancelled"
	reasonJobDeleted = "job_deleted"
	reasonUnknown    = "unknown"

	detailJobDeleted = "Its job was deleted before it ended."
	detailUnknown    = "It failed in a way that we do not recognise."
)

// jobDeleted is the state of an event that ends a job whose row was deleted before it was final.
const jobDeleted = "deleted"

// consumer is a durable consumer's row.
type consumer struct {
	Epoch     string
	Tick      int64
	EventID   int64
	RebuiltTo *uuid.UUID
	Behind    []uuid.UUID
}

func (c consumer) cursor() Cursor { return Cursor{Tick: c.Tick, ID: c.EventID} }

// FollowJobs does one round of the consumer: up to limit events, and what was left over. It returns how many it did;
// fewer than limit means that there is no more news. One process at a time is at it, others return 0 at once.
//
// Where the events have no way on from the stored position, because the database was restored or retention went past
// it, the next rounds go through all downloads, limit by limit, and bring each to its job's present state.
func (s *Store) FollowJobs(ctx context.Context, limit int) (n int, err error) {
	s = s.Everyone()
	err = s.retryTx(ctx, func(tx pgx.Tx) error {
		n, err = followRound(ctx, tx, limit)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("follow jobs: %w", err)
	}
	return n, nil
}

func followRound(ctx context.Context, tx pgx.Tx, limit int) (n int, err error) {
	before, err := lockConsumer(ctx, tx)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil // another process is at it
	}
	if err != nil {
		return 0, fmt.Errorf("read position: %w", err)
	}
	head, err := queryHead(ctx, tx)
	if errors.Is(err, ErrNoHistory) {
		return 0, nil // the next tick begins one
	}
	if err != nil {
		return 0, fmt.Errorf("read head of the stream: %w", err)
	}
	c := before
	if c.Epoch != head.Epoch || head.Check(c.cursor()) != nil {
		c = consumer{Epoch: head.Epoch, Tick: head.End().Tick, RebuiltTo: &uuid.Nil}
	}
	r := round{tx: tx, byID: c.Behind, gone: map[int64]Event{}}
	if c.RebuiltTo != nil {
		n, err = r.takeRows(ctx, &c, limit)
	} else {
		n, err = r.takeEvents(ctx, &c, head, limit)
	}
	if err != nil {
		return 0, err
	}
	if c.Behind, err = r.follow(ctx); err != nil {
		return 0, err
	}
	if before.cursor() == c.cursor() && before.Epoch == c.Epoch && c.RebuiltTo == nil && before.RebuiltTo == nil && slices.Equal(before.Behind, c.Behind) {
		return n, nil
	}
	return n, saveConsumer(ctx, tx, c)
}

func lockConsumer(ctx context.Context, tx pgx.Tx) (consumer, error) {
	const lock = `
		SELECT c.epoch, c.tick, c.event_id, c.rebuilt_to, c.behind
		FROM medianest.consumer AS c
		WHERE c.name = @name
		FOR NO KEY UPDATE SKIP LOCKED`
	args := pgx.StrictNamedArgs{"name": downloadsConsumer}
	c, err := queryConsumer(ctx, tx, lock, args)
	if !errors.Is(err, pgx.ErrNoRows) {
		return c, err
	}
	if _, err := tx.Exec(ctx, `
		INSERT INTO medianest.consumer (name, epoch, tick, event_id)
		SELECT @name, '', 0, 0
		WHERE NOT EXISTS (SELECT FROM medianest.consumer AS c WHERE c.name = @name)
		ON CONFLICT (name) DO NOTHING`, args); err != nil {
		return consumer{}, err
	}
	return queryConsumer(ctx, tx, lock, args)
}

func queryConsumer(ctx context.Context, tx pgx.Tx, sql string, args pgx.StrictNamedArgs) (consumer, error) {
	rows, err := tx.Query(ctx, sql, args)
	if err != nil {
		return consumer{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[consumer])
}

func saveConsumer(ctx context.Context, tx pgx.Tx, c consumer) error {
	_, err := tx.Exec(ctx, `
		UPDATE medianest.consumer
		SET epoch = @epoch,
			tick = @tick,
			event_id = @event_id,
			rebuilt_to = @rebuilt_to,
			behind = @behind
		WHERE name = @name`,
		pgx.StrictNamedArgs{
			"name": downloadsConsumer, "epoch": c.Epoch, "tick": c.Tick, "event_id": c.EventID,
			"rebuilt_to": c.RebuiltTo, "behind": append([]uuid.UUID{}, c.Behind...),
		})
	if err != nil {
		return fmt.Errorf("store position: %w", err)
	}
	return nil
}

// round is the downloads that one round looks at: those of some jobs, and some by their own id.
type round struct {
	tx   pgx.Tx
	jobs []int64
	byID []uuid.UUID
	gone map[int64]Event // of each job its last event, for jobs whose row is gone
}

// takeEvents takes the next events' jobs and moves the position behind them.
func (r *round) takeEvents(ctx context.Context, c *consumer, head Head, limit int) (int, error) {
	if c.cursor() == head.End() {
		return 0, nil
	}
	events, err := queryEvents(ctx, r.tx, EventQuery{Epoch: head.Epoch, After: c.cursor(), ToTick: head.Newest, Limit: limit})
	if err != nil {
		return 0, fmt.Errorf("read events: %w", err)
	}
	for _, e := range events {
		if e.Topic != TopicJobState {
			continue
		}
		if _, ok := r.gone[e.JobID]; !ok {
			r.jobs = append(r.jobs, e.JobID)
		}
		r.gone[e.JobID] = e
	}
	end := head.End()
	if len(events) == limit {
		end = events[limit-1].Cursor
	}
	c.Tick, c.EventID = end.Tick, end.ID
	return len(events), nil
}

// takeRows takes the next downloads of a rebuild. The rebuild reads the present, and the events since it began are still
// to come: in whatever order they meet, the later look is right.
func (r *round) takeRows(ctx context.Context, c *consumer, limit int) (int, error) {
	rows, err := r.tx.Query(ctx, `
		SELECT d.id
		FROM medianest.downloads AS d
		WHERE d.id > @after
		ORDER BY d.id
		LIMIT @limit`,
		pgx.StrictNamedArgs{"after": c.RebuiltTo, "limit": limit})
	if err != nil {
		return 0, fmt.Errorf("read downloads to rebuild: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return 0, fmt.Errorf("read downloads to rebuild: %w", err)
	}
	r.byID = append(r.byID, ids...)
	if len(ids) < limit {
		c.RebuiltTo = nil
		return limit, nil // the events are next
	}
	c.RebuiltTo = &ids[limit-1]
	return limit, nil
}

// follower is a download with what is known of its job.
type follower struct {
	ID            uuid.UUID
	ParentID      *uuid.UUID
	IsCollection  bool
	State         string
	WaitingOn     string
	NextTryAt     *time.Time
	FailureReason string
	FailureDetail string
	StartedAt     *time.Time
	FinishedAt    *time.Time

	JobID         int64
	JobState      *string // nil: its row is gone
	ScheduledAt   *time.Time
	AttemptedAt   *time.Time
	FinalizedAt   *time.Time
	Reason        string // why the job's last attempt ended as it did
	ContentDetail string
	Now           time.Time
}

// same reports whether the two are the same download in the same state.
func (f follower) same(o follower) bool {
	return f.ID == o.ID && f.State == o.State && f.WaitingOn == o.WaitingOn && sameTime(f.NextTryAt, o.NextTryAt) &&
		f.FailureReason == o.FailureReason && f.FailureDetail == o.FailureDetail &&
		sameTime(f.StartedAt, o.StartedAt) && sameTime(f.FinishedAt, o.FinishedAt)
}

func sameTime(a, b *time.Time) bool {
	return a == b || a != nil && b != nil && a.Equal(*b)
}

// follow brings the round's downloads where their jobs are, derives the collections above them, and returns those that
// have to wait for somebody else's lock.
func (r *round) follow(ctx context.Context) (behind []uuid.UUID, err error) {
	if len(r.jobs) == 0 && len(r.byID) == 0 {
		return nil, nil
	}
	ready, behind, err := r.lock(ctx)
	if err != nil || len(ready) == 0 {
		return behind, err
	}
	followers, err := r.read(ctx, ready)
	if err != nil {
		return nil, err
	}
	var (
		changed     []follower
		collections []uuid.UUID
	)
	for _, f := range followers {
		next, derive := f.next(r.gone[f.JobID])
		if !next.same(f) {
			changed = append(changed, next)
		}
		if derive {
			collections = append(collections, f.ID)
		}
		if f.ParentID != nil {
			collections = append(collections, *f.ParentID)
		}
	}
	if err := r.save(ctx, changed); err != nil {
		return nil, err
	}
	slices.SortFunc(collections, compareUUID)
	return behind, deriveCollections(ctx, r.tx, slices.Compact(collections))
}

func compareUUID(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }

// lock locks, without waiting, the round's downloads and all collections above them, in one statement and by id as
// everybody does. A download is ready if it and all above it could be locked.
func (r *round) lock(ctx context.Context) (ready, behind []uuid.UUID, err error) {
	rows, err := r.tx.Query(ctx, `
		WITH RECURSIVE wanted AS (
			SELECT d.id, d.parent_id, true AS follows
			FROM unnest(@jobs::bigint[]) AS n (job_id)
			JOIN medianest.downloads AS d ON d.job_id = n.job_id
			WHERE d.cancelled_at IS NULL
			UNION
			SELECT d.id, d.parent_id, true
			FROM unnest(@ids::uuid[]) AS n (id)
			JOIN medianest.downloads AS d ON d.id = n.id
			WHERE d.cancelled_at IS NULL AND d.job_id IS NOT NULL
			UNION
			SELECT p.id, p.parent_id, false
			FROM wanted AS w
			JOIN medianest.downloads AS p ON p.id = w.parent_id
		)
		SELECT w.id, w.parent_id, bool_or(w.follows) AS follows
		FROM wanted AS w
		GROUP BY w.id, w.parent_id
		ORDER BY w.id`,
		pgx.StrictNamedArgs{"jobs": r.jobs, "ids": r.byID})
	if err != nil {
		return nil, nil, fmt.Errorf("find downloads: %w", err)
	}
	type wanted struct {
		ID       uuid.UUID
		ParentID *uuid.UUID
		Follows  bool
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[wanted])
	if err != nil {
		return nil, nil, fmt.Errorf("find downloads: %w", err)
	}
	if len(all) == 0 {
		return nil, nil, nil
	}
	ids, parents := make([]uuid.UUID, len(all)), make(map[uuid.UUID]*uuid.UUID, len(all))
	for i, w := range all {
		ids[i], parents[w.ID] = w.ID, w.ParentID
	}
	rows, err = r.tx.Query(ctx, `
		SELECT d.id
		FROM unnest(@ids::uuid[]) AS n (id)
		JOIN medianest.downloads AS d ON d.id = n.id
		ORDER BY d.id
		FOR NO KEY UPDATE OF d SKIP LOCKED`,
		pgx.StrictNamedArgs{"ids": ids})
	if err != nil {
		return nil, nil, fmt.Errorf("lock downloads: %w", err)
	}
	locked, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, nil, fmt.Errorf("lock downloads: %w", err)
	}
	isLocked := make(map[uuid.UUID]bool, len(locked))
	for _, id := range locked {
		isLocked[id] = true
	}
	for _, w := range all {
		if !w.Follows {
			continue
		}
		free := true
		for id := &w.ID; id != nil && free; id = parents[*id] {
			free = isLocked[*id]
		}
		if free {
			ready = append(ready, w.ID)
		} else {
			behind = append(behind, w.ID)
		}
	}
	return ready, behind, nil
}

// read reads the locked downloads, which cannot change any more, and their jobs as they are now.
func (r *round) read(ctx context.Context, ids []uuid.UUID) ([]follower, error) {
	rows, err := r.tx.Query(ctx, `
		SELECT d.id, d.parent_id, d.is_collection, d.state, d.waiting_on, d.next_try_at, d.failure_reason, d.failure_detail,
			d.started_at, d.finished_at, d.job_id,
			j.state::text AS job_state, j.scheduled_at, j.attempted_at, j.finalized_at,
			-- as the trigger puts it into events
			CASE
				-- a job that is parked had its attempt taken back
				WHEN j.state = 'scheduled' AND j.metadata ->> 'reason_attempt' = (j.attempt + 1)::text THEN coalesce(j.metadata ->> 'reason', '')
				WHEN j.state NOT IN ('cancelled', 'discarded') THEN ''
				WHEN j.state = 'cancelled' AND j.metadata ? 'cancel_attempted_at' THEN @cancelled
				WHEN j.metadata ->> 'reason_attempt' = j.attempt::text THEN coalesce(j.metadata ->> 'reason', '')
				ELSE ''
			END AS reason,
			c.failure_detail AS content_detail,
			now() AS now
		FROM unnest(@ids::uuid[]) AS n (id)
		JOIN medianest.downloads AS d ON d.id = n.id
		JOIN medianest.content AS c ON c.id = d.content_id
		LEFT JOIN medianest.job_map AS m ON m.public_id = d.job_id
		LEFT JOIN river.river_job AS j ON j.id = coalesce(m.row_id, d.job_id)
		WHERE d.cancelled_at IS NULL AND d.job_id IS NOT NULL`,
		pgx.StrictNamedArgs{"ids": ids, "cancelled": reasonCancelled})
	if err != nil {
		return nil, fmt.Errorf("read downloads and jobs: %w", err)
	}
	followers, err := pgx.CollectRows(rows, pgx.RowToStructByName[follower])
	if err != nil {
		return nil, fmt.Errorf("read downloads and jobs: %w", err)
	}
	return followers, nil
}

// save writes what may have changed.
func (r *round) save(ctx context.Context, changed []follower) error {
	if len(changed) == 0 {
		return nil
	}
	n := len(changed)
	ids, states, waits, tries := make([]uuid.UUID, n), make([]string, n), make([]string, n), make([]*time.Time, n)
	reasons, details := make([]string, n), make([]string, n)
	starts, ends := make([]*time.Time, n), make([]*time.Time, n)
	for i, f := range changed {
		ids[i], states[i], waits[i], tries[i] = f.ID, f.State, f.WaitingOn, f.NextTryAt
		reasons[i], details[i], starts[i], ends[i] = f.FailureReason, f.FailureDetail, f.StartedAt, f.FinishedAt
	}
	_, err := r.tx.Exec(ctx, `
		UPDATE medianest.downloads AS d
		SET state = n.state,
			waiting_on = n.waiting_on,
			next_try_at = n.next_try_at,
			failure_reason = n.failure_reason,
			failure_detail = n.failure_detail,
			started_at = n.started_at,
			finished_at = n.finished_at
		FROM unnest(@ids::uuid[], @states::text[], @waits::text[], @tries::timestamptz[], @reasons::text[], @details::text[],
			@starts::timestamptz[], @ends::timestamptz[])
			AS n (id, state, waiting_on, next_try_at, failure_reason, failure_detail, started_at, finished_at)
		WHERE d.id = n.id`,
		pgx.StrictNamedArgs{
			"ids": ids, "states": states, "waits": waits, "tries": tries, "reasons": reasons, "details": details,
			"starts": starts, "ends": ends,
		})
	if err != nil {
		return fmt.Errorf("update %d downloads: %w", n, err)
	}
	return nil
}

// next is the download where its job is now, and whether it is a collection that its children decide about. last is the
// job's last event, if it has one that is news.
func (f follower) next(last Event) (next follower, derive bool) {
	state, reason, at := "", f.Reason, cmp.Or(f.FinalizedAt, f.FinishedAt, &f.Now)
	if f.JobState != nil {
		state = *f.JobState
	} else {
		// The job's row is gone. Retention removes rows that were final: their end was, or is, in an event. A download
		// that has ended has nothing to follow any more; one that has not, and has no event to tell why, lost its job.
		switch {
		case isFinalJobState(last.State) || last.State == jobDeleted:
			state, reason, at = last.State, last.Reason, &last.At
		case last.State == "" && isActive(f.State) && !f.IsCollection:
			state = jobDeleted
		default:
			return f, f.IsCollection
		}
	}

	next = f
	next.WaitingOn, next.NextTryAt = "", nil
	next.FailureReason, next.FailureDetail, next.FinishedAt = "", "", nil
	switch state {
	case "available", "pending":
		next.State = StateQueued
	case "scheduled":
		next.State, next.WaitingOn = parked(reason)
		if next.State == StateWaiting {
			next.NextTryAt = f.ScheduledAt
		}
	case "retryable":
		next.State, next.WaitingOn, next.NextTryAt = StateWaiting, WaitingOnRetry, f.ScheduledAt
	case "running":
		next.State, next.StartedAt = StateRunning, cmp.Or(f.StartedAt, f.AttemptedAt)
	case "completed":
		if f.IsCollection {
			return f, true
		}
		next.State, next.StartedAt, next.FinishedAt = StateCompleted, cmp.Or(f.StartedAt, f.AttemptedAt), at
	case "cancelled":
		if reason == "" || reason == reasonCancelled {
			next.State, next.FinishedAt = StateCancelled, at
			break
		}
		next.fail(reason, f.ContentDetail, at)
	case "discarded":
		next.fail(reason, f.ContentDetail, at)
	case jobDeleted:
		next.fail(reasonJobDeleted, "", at)
	default:
		return f, false // a state of a River newer than this
	}
	return next, false
}

// fail ends the download. The worker's words are about the worker's reasons.
func (f *follower) fail(reason, detail string, at *time.Time) {
	switch reason {
	case "":
		reason, detail = reasonUnknown, detailUnknown
	case reasonJobDeleted:
		detail = detailJobDeleted
	}
	f.State, f.FailureReason, f.FailureDetail, f.FinishedAt = StateFailed, reason, detail, at
}
