package queue

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

const (
	defaultTTL       = 25 * time.Second
	defaultBeat      = 5 * time.Second
	defaultMaxLosses = 5

	// beatsPerTTL is the fewest renewals that must fit into a TTL, so that one that fails does no harm.
	beatsPerTTL = 3

	// cancelPoll is how often cancel requests are looked for in the database. River tells of them by notification and
	// looks itself only once a minute, but a cancel must take effect within two seconds, also when the notification
	// was lost, as it is while the listening connection is being made again.
	cancelPoll = time.Second

	// cancelMinAge is how long an attempt must have run to be asked for: most are over by then, and cost no query.
	cancelMinAge = 200 * time.Millisecond

	// lookTimeout bounds that question, so that it does not hold up the next renewal.
	lookTimeout = 2 * time.Second

	// leaveTimeout bounds the last words to the database. Who cannot say them counts as lost a TTL later.
	leaveTimeout = 5 * time.Second
)

// Why a job's context ended, other than by a stop or a cancel. They are the context's cause.
var (
	// ErrFenced ends every job of a process that has not renewed its presence for so long that others may soon take it
	// for dead. The jobs go back to the queue without having spent an attempt.
	ErrFenced = errors.New("this process is cut off from the database; the job goes on elsewhere")

	// ErrSuperseded ends a job that this process was taken to have lost: it goes on elsewhere, or has ended. Nothing
	// more may be done for it, and what was fetched for it is the successor's.
	ErrSuperseded = errors.New("the job was taken from this process")
)

var errTooLong = errors.New("the database takes too long")

// Presence says how a process shows the others that it lives, and what becomes of its jobs when it does not. A client
// that has started renews its row in medianest.worker each Beat. Jobs whose worker has not done so for a TTL are lost,
// and any process that has a presence reclaims them.
type Presence struct {
	Mode    string // up, serve or work. Empty: work where the client works queues, serve elsewhere.
	Host    string // shown to people
	Version string // shown to people
	Volume  string // id of the media volume that this process sees; empty for none

	// TTL is after how long without renewal a process counts as lost. Zero means 25 s.
	TTL time.Duration
	// Beat is the time between renewals, at most a third of TTL. Zero means 5 s, or a fifth of a shorter TTL.
	Beat time.Duration
	// ReclaimEvery is how often jobs of lost workers are looked for. Zero means Beat.
	ReclaimEvery time.Duration

	// MaxLosses is how many workers one attempt may lose before its job is set aside as a poison pill. Zero means 5.
	MaxLosses int

	// Alone says that no other process can have a presence in this database: nobody takes this one for dead, so its
	// jobs go on while the database is away or the machine sleeps.
	Alone bool

	// OnBeat is called after each renewal, no later than a fifth of the TTL after the moment from which the others
	// count, and each Beat where Alone. It must not block.
	OnBeat func()
	// OnOverslept is called when this process has not run for longer than its TTL: it was stopped, or its machine
	// slept. Its jobs are others' by now and their contexts ended. Not called where Alone.
	OnOverslept func(gap time.Duration)
}

func (p Presence) withDefaults(working bool) (Presence, error) {
	if p.Mode == "" {
		p.Mode = "serve"
		if working {
			p.Mode = "work"
		}
	}
	p.TTL = cmp.Or(p.TTL, defaultTTL)
	p.Beat = cmp.Or(p.Beat, min(defaultBeat, p.TTL/5))
	p.ReclaimEvery = cmp.Or(p.ReclaimEvery, p.Beat)
	p.MaxLosses = cmp.Or(p.MaxLosses, defaultMaxLosses)
	switch {
	case p.TTL < 0 || p.Beat < 0 || p.ReclaimEvery < 0 || p.MaxLosses < 0:
		return p, errors.New("presence: a negative time or number")
	case p.TTL < beatsPerTTL*p.Beat:
		return p, fmt.Errorf("presence: a TTL of %s is less than %d beats of %s", p.TTL, beatsPerTTL, p.Beat)
	}
	return p, nil
}

// renewTimeout bounds a renewal. Together with the four fifths of a TTL that the guard of a child process waits for the
// next beat, it stays within the TTL.
func (p Presence) renewTimeout() time.Duration { return p.TTL / 5 }

// fenceAfter is how long after the start of the last renewal the jobs of this process end. They, and their children,
// have the rest of the TTL to do so.
func (p Presence) fenceAfter() time.Duration { return p.TTL * 3 / 5 }

// maxGap is the longest time between two renewals that follow each other as they should.
func (p Presence) maxGap() time.Duration { return 2*p.Beat + p.renewTimeout() }

// presence is this process among the others. It knows the attempts that run here, names them in the database, and ends
// those whose job was asked to be cancelled, those that are not this process's any more, and all of them when it is cut
// off. Its own times are sinceBoot's; attempts have the cheaper clock, which is read for each.
type presence struct {
	Presence

	id      string
	queues  map[string]int
	pool    *pgxpool.Pool
	log     *slog.Logger
	metrics *metrics
	wake    *Wake

	drainAsked chan struct{} // closed when a drain was found to be asked for
	kick       chan struct{} // makes the next renewal due

	mu      sync.Mutex
	running map[int64]*holding
	ended   map[int64]time.Time // attempts that may have been named, and until when they still are
	given   map[int64]time.Time // attempts to be handed back when the database answers, and when they were fetched
	joined  time.Duration
	renewed time.Duration // start of the last renewal that succeeded
	steady  time.Duration // since when renewals have followed each other without a gap
	now     time.Time     // what the database's clock said at the last renewal
	fenced  bool
	drained bool
}

type holding struct {
	begun  time.Time
	cancel context.CancelCauseFunc
	cause  error // why it was ended here: river.ErrJobCancelledRemotely, ErrSuperseded or ErrFenced
}

func newPresence(o Options, p Presence, metrics *metrics) *presence {
	return &presence{
		Presence: p, queues: o.Queues, pool: o.Pool, log: o.Logger, metrics: metrics, wake: cmp.Or(o.Wake, &Wake{}),
		drainAsked: make(chan struct{}), kick: make(chan struct{}, 1),
		running: make(map[int64]*holding), ended: make(map[int64]time.Time), given: make(map[int64]time.Time),
	}
}

// enter notes an attempt. The context it returns ends when a cancel of the job is found, when the row is not this
// process's any more, and when the process is cut off, which it may be already. release forgets the attempt and says
// which of these it was.
func (p *presence) enter(ctx context.Context, row int64) (_ context.Context, release func() (cause error)) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &holding{begun: time.Now(), cancel: cancel}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fenced {
		a.end(ErrFenced)
	}
	p.running[row] = a
	return ctx, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.running[row] == a {
			delete(p.running, row)
		}
		// River writes the end a moment later, or much later when the database is away: until then nobody may find that
		// the row is not named any more. Shorter attempts need no name so soon.
		if now := time.Now(); now.Sub(a.begun) >= p.TTL/4 {
			p.ended[row] = now.Add(p.TTL)
		}
		cancel(nil)
		return a.cause
	}
}

// end ends the attempt's context. The first cause counts.
func (a *holding) end(cause error) {
	if a.cause == nil {
		a.cause = cause
		a.cancel(cause)
	}
}

// overdue reports whether the last renewal is so long ago that no job may run here.
func (p *presence) overdue(now time.Duration) bool {
	return !p.Alone && p.renewed > 0 && now-p.renewed > p.fenceAfter()
}

// succeedSQL says that an earlier process of the same id is gone, if there was one, and forgets what was asked of it.
const succeedSQL = `
	UPDATE medianest.worker
	SET gone_at = coalesce(gone_at, now()), held = '{}', running = 0, drain_asked_at = NULL, drained_at = NULL
	WHERE id = $1`

// leaveSQL says that this process is gone: jobs that still run in its name are nobody's.
const leaveSQL = `
	UPDATE medianest.worker
	SET gone_at = now(), held = '{}', running = 0
	WHERE id = $1 AND gone_at IS NULL`

// join makes this process known, with a row that says nothing of an earlier process of the same id.
func (p *presence) join(ctx context.Context) error {
	now := sinceBoot()
	p.mu.Lock()
	p.joined, p.renewed, p.steady = now, now, now
	p.mu.Unlock()
	if _, err := p.pool.Exec(ctx, succeedSQL, p.id); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if err := p.renew(ctx); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	return nil
}

// leave tells the others that this process is gone.
func (p *presence) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	err := p.giveBack(ctx)
	if err == nil {
		_, err = p.pool.Exec(ctx, leaveSQL, p.id)
	}
	if err != nil {
		p.log.WarnContext(ctx, "presence not taken back; others will find this process lost", "client_id", p.id, "err", err)
	}
}

// run renews the presence, looks for what became of the jobs in between, reclaims what others lost, and watches the
// clock, until ctx ends.
func (p *presence) run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { p.beat(ctx) })
	all.Go(func() { p.reclaimLost(ctx) })
	if p.Alone {
		all.Go(func() { p.beatByClock(ctx) })
	} else {
		all.Go(func() { p.watchClock(ctx) })
	}
	all.Wait()
}

// beat is the one place that asks the database about the jobs of this process: with each renewal, and between them as
// often as cancels must be found.
func (p *presence) beat(ctx context.Context) {
	poll := min(cancelPoll, p.Beat)
	timer := time.NewTimer(poll)
	defer timer.Stop()
	due := sinceBoot() + p.Beat
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
			due = 0
		case <-timer.C:
		}
		next := poll
		if now := sinceBoot(); now >= due {
			due = now + p.Beat
			if err := p.renew(ctx); err != nil && ctx.Err() == nil {
				p.log.WarnContext(ctx, "presence not renewed", "client_id", p.id, "err", err)
				next = p.Beat / 5
				due = sinceBoot() + next
			} else if err := p.giveBack(ctx); err != nil && ctx.Err() == nil {
				p.log.WarnContext(ctx, "jobs not handed back yet", "client_id", p.id, "err", err)
			}
		} else if err := p.look(ctx); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "cancel requests not read", "err", err)
		}
		timer.Reset(max(0, min(next, due-sinceBoot())))
	}
}

// beatByClock tells that this process lives where it need not prove it to others.
func (p *presence) beatByClock(ctx context.Context) {
	ticker := time.NewTicker(p.Beat)
	defer ticker.Stop()
	for {
		p.tellBeat()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (p *presence) tellBeat() {
	if p.OnBeat != nil {
		p.OnBeat()
	}
}

// handBack has an attempt that was fenced returned to the queue, as soon as the database answers.
func (p *presence) handBack(job *rivertype.JobRow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if job.AttemptedAt != nil {
		p.given[job.ID] = *job.AttemptedAt
	}
}

// giveBackSQL returns attempts to their old place in the queue, unspent, or ends those whose cancel was asked for. The
// time of the fetch tells an attempt from the row's next one: the statement may arrive late, or twice.
const giveBackSQL = `
	UPDATE river.river_job AS j
	SET state = CASE WHEN j.metadata ? 'cancel_attempted_at' THEN 'cancelled' ELSE 'available' END::river.river_job_state,
		finalized_at = CASE WHEN j.metadata ? 'cancel_attempted_at' THEN now() END,
		attempt = CASE WHEN j.metadata ? 'cancel_attempted_at' THEN j.attempt ELSE greatest(j.attempt - 1, 0) END,
		metadata = j.metadata - '{reason,reason_attempt}'::text[]
	FROM unnest(@rows::bigint[], @fetched::timestamptz[]) AS g (id, fetched_at)
	WHERE j.id = g.id
		AND j.attempted_at = g.fetched_at
		AND j.attempted_by[array_upper(j.attempted_by, 1)] = @worker
		AND j.state = 'running'
		AND NOT j.metadata ? 'superseded_by'`

// giveBack hands back what there is.
func (p *presence) giveBack(ctx context.Context) error {
	p.mu.Lock()
	given := maps.Clone(p.given)
	p.mu.Unlock()
	if len(given) == 0 {
		return nil
	}
	var (
		rows    []int64
		fetched []time.Time
	)
	for row, at := range given {
		rows, fetched = append(rows, row), append(fetched, at)
	}
	ctx, stop := context.WithTimeoutCause(ctx, p.renewTimeout(), errTooLong)
	defer stop()
	_, err := p.pool.Exec(ctx, giveBackSQL, pgx.StrictNamedArgs{"rows": rows, "fetched": fetched, "worker": p.id})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for row, at := range given {
		if p.given[row].Equal(at) {
			delete(p.given, row)
		}
	}
	return nil
}

// watchClock ends the jobs when the presence was not renewed in time, and finds out when this process overslept. It
// asks nobody, so that nothing can hold it up.
func (p *presence) watchClock(ctx context.Context) {
	ticker := time.NewTicker(max(p.TTL/50, time.Millisecond))
	defer ticker.Stop()
	last := sinceBoot()
	p.wake.note(last, p.TTL)
	defer p.wake.rest()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := sinceBoot()
		p.fence(ctx, now)
		if gap := now - last; gap > p.TTL {
			p.log.ErrorContext(ctx, "this process did not run for longer than its presence lasts", "client_id", p.id,
				"gap_ms", gap.Milliseconds())
			if p.OnOverslept != nil {
				p.OnOverslept(gap)
			}
		}
		last = now
		p.wake.note(now, p.TTL)
	}
}

// fence ends all jobs if the presence is overdue.
func (p *presence) fence(ctx context.Context, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fenced || !p.overdue(now) {
		return
	}
	p.fenced = true
	for _, a := range p.running {
		a.end(ErrFenced)
	}
	p.metrics.fences.Inc()
	p.log.ErrorContext(ctx, "cut off from the database; jobs stop and go on elsewhere", "client_id", p.id,
		"jobs", len(p.running), "silent_ms", (now - p.renewed).Milliseconds())
}

// fateSQL finds, of the rows @rows that this process holds, those whose cancel was asked for, and those that are not
// its own any more. A completed row is: nobody else completes what runs here, and who did it in a transaction of its
// own may still have to tidy up.
const fateSQL = `
		SELECT h.id,
			coalesce(j.state = 'running' AND j.metadata ? 'cancel_attempted_at', false) AS asked,
			j.id IS NULL
				OR j.state NOT IN ('running', 'completed')
				OR j.metadata ? 'superseded_by'
				OR j.attempted_by[array_upper(j.attempted_by, 1)] IS DISTINCT FROM @worker AS lost
		FROM unnest(@rows::bigint[]) AS h (id)
		LEFT JOIN river.river_job AS j ON j.id = h.id`

// fates are the rows among those asked for whose attempts must end.
type fates struct {
	Asked []int64
	Lost  []int64
}

// lookSQL is for the time between renewals.
const lookSQL = `
	WITH fate AS (` + fateSQL + `
	)
	SELECT coalesce(array_agg(id) FILTER (WHERE asked), '{}') AS asked,
		coalesce(array_agg(id) FILTER (WHERE lost), '{}') AS lost
	FROM fate`

// look asks once for the attempts that are old enough.
func (p *presence) look(ctx context.Context) error {
	held := p.holding()
	if len(held) == 0 {
		return nil
	}
	ctx, stop := context.WithTimeoutCause(ctx, min(lookTimeout, p.renewTimeout()), errTooLong)
	defer stop()
	rows, err := p.pool.Query(ctx, lookSQL, pgx.StrictNamedArgs{"rows": slices.Collect(maps.Keys(held)), "worker": p.id})
	if err != nil {
		return err
	}
	found, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[fates])
	if err != nil {
		return err
	}
	p.apply(ctx, held, found)
	return nil
}

// holding returns the attempts that are worth a question.
func (p *presence) holding() map[int64]*holding {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := make(map[int64]*holding)
	for row, a := range p.running {
		if a.cause == nil && time.Since(a.begun) >= cancelMinAge {
			held[row] = a
		}
	}
	return held
}

// apply ends the attempts that must end. A row may have come back as another attempt since it was asked for: that one
// is left alone.
func (p *presence) apply(ctx context.Context, held map[int64]*holding, found fates) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, row := range found.Lost {
		if a := p.running[row]; a != nil && a == held[row] {
			p.log.WarnContext(ctx, "job taken from this process", "row_id", row, "client_id", p.id)
			a.end(ErrSuperseded)
		}
	}
	for _, row := range found.Asked {
		if a := p.running[row]; a != nil && a == held[row] {
			a.end(river.ErrJobCancelledRemotely)
		}
	}
}

// renewSQL says that this process lives and what it holds, and returns what it must know. It may have been taken for
// lost meanwhile, or its row removed: then it joins anew. A drain that was asked for stays so.
const renewSQL = `
	WITH renewed AS (
		INSERT INTO medianest.worker AS w (
			id, mode, host, version, volume, queues, held, running, started_at, renewed_at, expires_at,
			drain_asked_at, drained_at
		)
		VALUES (
			@worker, @mode, @host, @version, @volume, @queues, @held, @running, now() - make_interval(secs => @age),
			now(), now() + make_interval(secs => @ttl),
			CASE WHEN @drained THEN now() END, CASE WHEN @drained THEN now() END
		)
		ON CONFLICT (id) DO UPDATE
		SET mode = excluded.mode, host = excluded.host, version = excluded.version,
			volume = excluded.volume, queues = excluded.queues,
			held = excluded.held, running = excluded.running,
			started_at = CASE WHEN w.gone_at IS NULL THEN w.started_at ELSE excluded.started_at END,
			renewed_at = excluded.renewed_at, expires_at = excluded.expires_at,
			drain_asked_at = coalesce(w.drain_asked_at, excluded.drain_asked_at),
			drained_at = coalesce(w.drained_at, excluded.drained_at),
			gone_at = NULL
		RETURNING w.renewed_at, w.drain_asked_at IS NOT NULL AS drain
	), fate AS (` + fateSQL + `
	)
	SELECT r.renewed_at, r.drain,
		coalesce((SELECT array_agg(id) FROM fate WHERE asked), '{}') AS asked,
		coalesce((SELECT array_agg(id) FROM fate WHERE lost), '{}') AS lost
	FROM renewed AS r`

type renewal struct {
	RenewedAt time.Time
	Drain     bool
	fates
}

// renew renews the presence once.
func (p *presence) renew(ctx context.Context) error {
	queues, err := json.Marshal(p.queues)
	if err != nil {
		return err
	}
	if p.queues == nil {
		queues = []byte(`{}`)
	}
	start := sinceBoot()
	held := p.holding()
	p.mu.Lock()
	args := pgx.StrictNamedArgs{
		"worker": p.id, "mode": p.Mode, "host": p.Host, "version": p.Version, "volume": p.Volume, "queues": queues,
		"held": p.named(time.Now()), "running": len(p.running), "age": (start - p.joined).Seconds(), "ttl": p.TTL.Seconds(),
		"drained": p.drained, "rows": slices.Collect(maps.Keys(held)),
	}
	p.mu.Unlock()

	ctx, stop := context.WithTimeoutCause(ctx, p.renewTimeout(), errTooLong)
	defer stop()
	rows, err := p.pool.Query(ctx, renewSQL, args)
	if err != nil {
		return err
	}
	said, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[renewal])
	if err != nil {
		return err
	}
	p.settle(ctx, start, said.RenewedAt)
	p.apply(ctx, held, said.fates)
	if !p.Alone {
		p.tellBeat()
	}
	if said.Drain {
		p.mu.Lock()
		select {
		case <-p.drainAsked:
		default:
			close(p.drainAsked)
		}
		p.mu.Unlock()
	}
	return nil
}

// named are the rows that must not be taken for unclaimed: those held for long, and those whose end River may not have
// written yet. Short attempts are over before anybody misses their name. Called with the lock held.
func (p *presence) named(now time.Time) []int64 {
	names := make([]int64, 0, len(p.running))
	for row, a := range p.running {
		if now.Sub(a.begun) >= p.TTL/2 {
			names = append(names, row)
		}
	}
	for row, until := range p.ended {
		switch {
		case now.After(until):
			delete(p.ended, row)
		case p.running[row] == nil && p.given[row].IsZero():
			names = append(names, row)
		}
	}
	for row := range p.given {
		if p.running[row] == nil {
			names = append(names, row)
		}
	}
	return names
}

// settle takes note of a renewal that succeeded: jobs may run again, and how long renewals have followed each other
// begins anew if this one came late, or if the database's clock was set meanwhile, by which others may seem lost.
func (p *presence) settle(ctx context.Context, start time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	step := start - p.renewed
	skew := time.Duration(0)
	if !p.now.IsZero() {
		skew = now.Sub(p.now) - step
	}
	if step > p.maxGap() || p.differs(skew) {
		p.steady = start
	}
	p.renewed, p.now = start, now
	if p.fenced && !p.overdue(sinceBoot()) {
		p.fenced = false
		p.log.WarnContext(ctx, "the database answers again; jobs are taken again", "client_id", p.id)
	}
}

// isSteady reports whether this process has been with the database for a whole TTL without a gap. Before that, others
// may not have had the chance to renew their presence after an outage.
func (p *presence) isSteady(now time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now-p.steady >= p.TTL && now-p.renewed <= p.maxGap()
}

// clockDiffers reports whether the database's clock, which said now at the moment at, was set since the last renewal: then
// others seem lost who only have not renewed their presence by the new time yet.
func (p *presence) clockDiffers(at time.Duration, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.differs(now.Sub(p.now) - (at - p.renewed))
}

// differs tells a step of the database's clock from what an answer may take.
func (p *presence) differs(skew time.Duration) bool { return skew.Abs() > p.Beat+p.renewTimeout() }

// restartGrace has the others get a whole TTL anew before this process judges them.
func (p *presence) restartGrace(at time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.steady = max(p.steady, at)
}

// setDrained notes that there are no jobs here any more, nor will be, and has the database told.
func (p *presence) setDrained() {
	p.mu.Lock()
	p.drained = true
	p.mu.Unlock()
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// age is how long ago the last successful renewal began.
func (p *presence) age() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.renewed == 0 {
		return 0
	}
	return sinceBoot() - p.renewed
}
