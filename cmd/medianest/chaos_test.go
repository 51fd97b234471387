//go:build chaos

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"medianest/api/client"
)

// The environment of `make test-chaos`.
const (
	chaosSeed   = "CHAOS_SEED"   // of what is killed when, and of what is asked for; default: another one each time
	chaosKills  = "CHAOS_KILLS"  // how many SIGKILLs; default 1000
	chaosFor    = "CHAOS_FOR"    // a duration after which it is enough, whatever was killed; default: none
	chaosPause  = "CHAOS_PAUSE"  // mean time between two kills; default 2s
	chaosAt     = "CHAOS_AT"     // what is killed how often, as parts: default work=60,serve=20,postgres=10,redis=10
	chaosKeep   = "CHAOS_KEEP"   // anything: the processes' logs are kept although nothing is wrong
	chaosRounds = "CHAOS_ROUNDS" // of TestChaosRecoveryTimes; default 5
)

// What may be killed.
const (
	targetWork     = "work"
	targetServe    = "serve"
	targetPostgres = "postgres"
	targetRedis    = "redis"
)

// The size of the platform and of its load.
const (
	chaosServes  = 2
	chaosWorks   = 3
	chaosSlots   = 4
	chaosWishes  = 10
	chaosLasts   = 10 * time.Second // a fetch that nothing disturbs
	chaosTTL     = 5 * time.Second
	chaosBeat    = time.Second
	chaosSay     = 5 * time.Second
	chaosQuiet   = 5 * time.Minute // in which everything must have come to its end, when nothing is killed any more
	chaosStall   = 2 * time.Second // for how long the site may take a killed fetch for one that goes on
	chaosRefetch = 3 * time.Second // of fetching, and a fragment, is what an interruption may cost on average
)

// chaosPlan is what the environment says.
type chaosPlan struct {
	seed  uint64
	kills int
	limit time.Duration
	pause time.Duration
	parts map[string]int
}

func newChaosPlan(t *testing.T) chaosPlan {
	t.Helper()
	p := chaosPlan{
		seed: rand.Uint64(), kills: 1000, pause: 2 * time.Second, //nolint:gosec // no secret
		parts: map[string]int{targetWork: 60, targetServe: 20, targetPostgres: 10, targetRedis: 10},
	}
	from := func(name string, read func(string) error) {
		if value := os.Getenv(name); value != "" {
			require.NoError(t, read(value), name)
		}
	}
	from(chaosSeed, func(v string) (err error) { p.seed, err = strconv.ParseUint(v, 10, 64); return err })
	from(chaosKills, func(v string) (err error) { p.kills, err = strconv.Atoi(v); return err })
	from(chaosFor, func(v string) (err error) { p.limit, err = time.ParseDuration(v); return err })
	from(chaosPause, func(v string) (err error) { p.pause, err = time.ParseDuration(v); return err })
	from(chaosAt, func(v string) error {
		p.parts = map[string]int{}
		for part := range strings.SplitSeq(v, ",") {
			name, count, _ := strings.Cut(part, "=")
			n, err := strconv.Atoi(count)
			if err != nil || n < 0 {
				return fmt.Errorf("%q is not a target and a number", part)
			}
			p.parts[name] = n
		}
		return nil
	})
	return p
}

// next is a target.
func (p chaosPlan) next(random *rand.Rand) string {
	sum := 0
	for _, n := range p.parts {
		sum += n
	}
	at := random.IntN(sum)
	for _, name := range slices.Sorted(maps.Keys(p.parts)) {
		if at -= p.parts[name]; at < 0 {
			return name
		}
	}
	return targetWork
}

// loss is a job whose worker was killed while it ran.
type loss struct {
	job string
	at  time.Time
}

// chaos is one run.
type chaos struct {
	*chaosFleet
	plan  chaosPlan
	load  *load
	begun time.Time

	from    string // the event behind which everything happens
	ledgers []*ledger
	reading sync.WaitGroup

	mu     sync.Mutex
	kills  map[string]int
	losses []loss
	asking sync.WaitGroup // for what a killed worker ran

	starting sync.WaitGroup // Postgres
}

// Everything that can be killed is killed at random, again and again, under a load of downloads and short jobs. Nothing
// that was accepted may be lost, done twice, damaged, or missing in the event stream.
func TestChaos(t *testing.T) {
	plan := newChaosPlan(t)
	say("chaos: %d kills, CHAOS_SEED=%d", plan.kills, plan.seed)
	c := &chaos{plan: plan, kills: map[string]int{}}
	c.chaosFleet = startChaosFleet(t, plan.seed, chaosServes, chaosWorks,
		"MEDIANEST_WORKER_TTL="+chaosTTL.String(), "MEDIANEST_WORKER_BEAT="+chaosBeat.String(), "MEDIANEST_MAX_LOSSES=1000",
		fmt.Sprintf("MEDIANEST_WORKER_QUEUES=download=%d,library=4", chaosSlots))
	c.load = &load{fleet: c.chaosFleet, lasts: chaosLasts, random: rand.New(rand.NewPCG(plan.seed, 1))} //nolint:gosec // to be repeated

	c.load.measure(t.Context())
	c.openLedgers()
	c.begun = time.Now()
	hard, cancel := context.WithCancel(t.Context())
	defer cancel()
	loading, stopLoading := context.WithCancel(hard)
	defer stopLoading()
	var wishing sync.WaitGroup
	for range chaosWishes {
		wishing.Go(func() { c.load.run(loading, hard) })
	}
	saying := c.sayHowItGoes(hard)

	c.killAtRandom()
	c.starting.Wait()
	say("chaos: no more kills; what is under way comes to its end")
	stopLoading()
	c.awaitReady()
	quiet := time.AfterFunc(chaosQuiet, cancel)
	wishing.Wait()
	quiet.Stop()
	c.asking.Wait()
	c.awaitNothingToDo()
	cancel()
	<-saying
	c.checkStream()
	c.checkLosses()
	c.checkDatabase()
	c.checkLibrary()
	c.checkSite()
	c.stopGracefully()
	c.checkLeftovers()
	c.summarise(os.Stdout)
	count, texts := c.bad.all()
	require.Zero(t, count, "violations (CHAOS_SEED=%d):\n%s", plan.seed, strings.Join(texts, "\n"))
}

func say(format string, args ...any) { fmt.Fprintf(os.Stdout, format+"\n", args...) }

// openLedgers begins to read the stream of each replica, all from the same event on.
func (c *chaos) openLedgers() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for event, err := range client.Events(ctx, c.clients["admin"][0], client.EventsOptions{}) {
		require.NoError(c.t, err)
		if event.Type == client.EventOpen {
			c.from = event.ID
			break
		}
	}
	require.NotEmpty(c.t, c.from)
	ctx, cancel = context.WithCancel(context.Background())
	for n, replica := range c.clients["admin"] {
		l := newLedger(numbered("reader ", n+1), c.bad)
		c.ledgers = append(c.ledgers, l)
		c.reading.Go(func() { l.read(ctx, replica, c.from) })
	}
	c.t.Cleanup(func() { cancel(); c.reading.Wait() })
}

// killAtRandom is the plan's work.
func (c *chaos) killAtRandom() {
	var after <-chan time.Time
	if c.plan.limit > 0 {
		after = time.After(c.plan.limit)
	}
	for killed := 0; killed < c.plan.kills; {
		timer := time.NewTimer(time.Duration(c.random.ExpFloat64() * float64(c.plan.pause)))
		select {
		case <-timer.C:
		case <-after:
			return
		}
		if c.killOne(c.plan.next(c.random)) {
			killed++
		}
	}
}

// killOne kills a target if it is there to be killed.
func (c *chaos) killOne(target string) (killed bool) {
	switch target {
	case targetWork:
		id, at, ok := c.works[c.random.IntN(len(c.works))].kill()
		if killed = ok; ok {
			c.asking.Go(func() { c.noteLosses(id, at) })
		}
	case targetServe:
		_, _, killed = c.serves[c.random.IntN(len(c.serves))].kill()
	case targetPostgres:
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		defer cancel()
		if c.pool.Ping(ctx) == nil { // it is back from the last time
			c.starting.Wait()
			c.postgres.Kill()
			killed = true
			c.starting.Go(c.postgres.Start)
		}
	case targetRedis:
		c.redis.Stop()
		c.redis.Start()
		killed = true
	}
	if killed {
		c.mu.Lock()
		c.kills[target]++
		c.mu.Unlock()
	}
	return killed
}

// noteLosses keeps what a worker ran when it was killed.
func (c *chaos) noteLosses(worker string, at time.Time) {
	ctx, cancel := context.WithTimeout(c.t.Context(), chaosTTL-chaosBeat) // after that the rows may be another's
	defer cancel()
	for ctx.Err() == nil {
		jobs, err := c.runningOf(ctx, worker)
		if err != nil {
			_ = sleep(ctx, 50*time.Millisecond) // the database may have been killed as well
			continue
		}
		c.mu.Lock()
		for _, job := range jobs {
			c.losses = append(c.losses, loss{job, at})
		}
		c.mu.Unlock()
		return
	}
}

// recoveries are the times from a worker's death until its jobs ran again elsewhere, as the first reader saw them.
func (c *chaos) recoveries() (times distribution, waiting int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.losses {
		if at, ok := c.ledgers[0].ranAfter(l.job, l.at); ok {
			times = append(times, at.Sub(l.at))
		} else {
			waiting++
		}
	}
	return times, waiting
}

// killed is how many kills there were, and of what.
func (c *chaos) killed() (sum int, parts string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var each []string
	for _, name := range slices.Sorted(maps.Keys(c.kills)) {
		sum += c.kills[name]
		each = append(each, fmt.Sprintf("%s %d", name, c.kills[name]))
	}
	return sum, strings.Join(each, ", ")
}

// sayHowItGoes prints a line every few seconds until ctx ends.
func (c *chaos) sayHowItGoes(ctx context.Context) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		defer close(done)
		for sleep(ctx, chaosSay) == nil {
			sum, parts := c.killed()
			times, _ := c.recoveries()
			count, texts := c.bad.all()
			c.load.mu.Lock()
			accepted, over := c.load.accepted, c.load.done
			c.load.mu.Unlock()
			say("%6s  kills %d/%d (%s)  downloads %d accepted, %d over  jobs %s  events %d  lost and found: %s  violations %d",
				time.Since(c.begun).Round(time.Second), sum, c.plan.kills, parts, accepted, over, c.jobStates(ctx), c.ledgers[0].length(), times, count)
			if count > 0 {
				say("        last: %s", texts[len(texts)-1])
			}
		}
	}()
	return done
}

// jobStates counts the jobs that have not ended.
func (c *chaos) jobStates(ctx context.Context) (states string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := c.pool.QueryRow(ctx, `
		SELECT coalesce(string_agg(n || ' ' || state, ', ' ORDER BY state), 'none')
		FROM (SELECT state, count(*) AS n FROM river.river_job WHERE finalized_at IS NULL GROUP BY state) s`).Scan(&states)
	if err != nil {
		return "unknown"
	}
	return states
}

// awaitNothingToDo waits until every job has ended, the short ones that nobody waits for included.
func (c *chaos) awaitNothingToDo() {
	ctx, cancel := context.WithTimeout(c.t.Context(), chaosQuiet)
	defer cancel()
	for {
		open := -1
		err := c.pool.QueryRow(ctx, `SELECT count(*) FROM river.river_job WHERE finalized_at IS NULL`).Scan(&open)
		if err == nil && open == 0 {
			return
		}
		if sleep(ctx, 200*time.Millisecond) != nil {
			c.bad.add("%d jobs have not come to an end: %v", open, err)
			return
		}
	}
}

// checkStream compares what the readers have seen with each other, with a replay of everything, and with the outbox.
func (c *chaos) checkStream() {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	tick, err := strconv.ParseInt(strings.Split(c.from, ".")[1], 10, 64)
	require.NoError(c.t, err)
	var there int
	// Whatever was committed after the tick before the first event, counted without the code that serves it.
	err = c.pool.QueryRow(ctx, `
		SELECT count(*) FROM medianest.event
		WHERE NOT pg_visible_in_snapshot(xid, (SELECT snapshot FROM medianest.tick WHERE id = $1))`, tick-1).Scan(&there)
	if err != nil {
		c.bad.add("count the outbox: %v", err)
		return
	}
	replay := newLedger("replay", c.bad)
	replaying, stop := context.WithCancel(ctx)
	defer stop()
	c.reading.Go(func() { replay.read(replaying, c.clients["admin"][0], c.from) })
	first := c.ledgers[0]
	for _, l := range append(c.ledgers, replay) {
		if !l.awaitLength(ctx, there) {
			c.bad.add("%s saw %d of %d events", l.name, l.length(), there)
		}
		if l != first {
			l.requireSame(first)
		}
	}
}

// checkLosses looks for lost jobs that nobody went on with.
func (c *chaos) checkLosses() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.losses {
		_, again := c.ledgers[0].ranAfter(l.job, l.at)
		if state := c.ledgers[0].state("job " + l.job); !again && state != stateCompleted && state != stateCancelled {
			c.bad.add("job %s was lost, never ran again, and is %s", l.job, state)
		}
	}
}

// checkDatabase looks at the rows themselves.
func (c *chaos) checkDatabase() {
	for what, query := range map[string]string{
		"downloads that have not ended":              `SELECT count(*) FROM medianest.downloads WHERE state NOT IN ('completed', 'cancelled')`,
		"jobs with more than one current row":        `SELECT count(*) FROM (SELECT FROM river.river_job WHERE NOT metadata ? 'superseded_by' GROUP BY coalesce(metadata ->> 'public_id', id::text) HAVING count(*) > 1) x`,
		"jobs that were given up":                    `SELECT count(*) FROM river.river_job WHERE state = 'discarded' AND NOT metadata ? 'superseded_by'`,
		"jobs mapped to another row than their last": `SELECT count(*) FROM medianest.job_map m JOIN river.river_job j ON j.id = m.row_id WHERE j.metadata ? 'superseded_by' OR j.metadata ->> 'public_id' IS DISTINCT FROM m.public_id::text`,
		"files for one user and content twice":       `SELECT count(*) FROM (SELECT FROM medianest.files GROUP BY user_id, content_id HAVING count(*) > 1) x`,
		"downloads completed without a file": `SELECT count(*) FROM medianest.downloads d
			WHERE d.state = 'completed' AND NOT EXISTS (SELECT FROM medianest.files f WHERE f.content_id = d.content_id AND f.user_id = d.user_id)`,
	} {
		var n int
		if err := c.pool.QueryRow(c.t.Context(), query).Scan(&n); err != nil || n > 0 {
			c.bad.add("%s: %d %v", what, n, errOrNothing(err))
		}
	}
}

// checkLibrary compares the folder with the rows and with what the wishes say.
func (c *chaos) checkLibrary() {
	have, err := filesIn(c.home.media())
	require.NoError(c.t, err)
	rows, err := c.pool.Query(c.t.Context(), `SELECT path FROM medianest.files`)
	require.NoError(c.t, err)
	recorded, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(c.t, err)
	for _, path := range recorded {
		if !have[path] {
			c.bad.add("%s is recorded, and not in the library", path)
		}
	}
	for path := range have {
		if !slices.Contains(recorded, path) {
			c.bad.add("%s is in the library, and not recorded", path)
		}
	}
	kept := map[string]bool{}
	for _, w := range c.load.wishes {
		for _, path := range w.paths {
			if kept[path] {
				c.bad.add("%s is the file of two downloads", path)
			}
			kept[path] = true
			if err := c.load.checkFile(c.t.Context(), w, path, ""); err != nil {
				c.bad.add("wish %d, at the end: %v", w.n, err)
			}
		}
	}
	if originals := len(films); len(have) != len(kept)+originals {
		c.bad.add("the library has %d files instead of %d", len(have), len(kept)+originals)
	}
}

// fetched is what the films of some wishes cost.
type fetched struct {
	wishes        int
	bytes         int64 // served
	needed        int64 // had nothing been disturbed
	interruptions int
	allowed       int64
}

// cost sums up the wishes of a shape that completed.
func (c *chaos) cost(f film) (sum fetched) {
	original := c.load.originals[f.kind].bytes
	for _, w := range c.load.wishes {
		if w.film.kind != f.kind || !w.done || w.cancel || len(w.jobs) == 0 {
			continue
		}
		interruptions := max(0, c.ledgers[0].attempts(w.jobs[0])-1)
		sum.wishes++
		sum.bytes += c.meter.of(w.name()).bytes
		sum.needed += original
		sum.interruptions += interruptions
		sum.allowed += original * 105 / 100
		sum.allowed += int64(interruptions) * (int64(chaosRefetch.Seconds()*float64(f.rate(chaosLasts))) + largestFragment)
	}
	return sum
}

// largestFragment is of the site's streams, in bytes.
const largestFragment = 32_000

// checkSite looks for what was fetched needlessly.
func (c *chaos) checkSite() {
	for _, f := range films {
		if sum := c.cost(f); sum.bytes > sum.allowed {
			c.bad.add("%s: %d bytes were fetched for %d wishes with %d interruptions, %d undisturbed, %d allowed",
				f.kind, sum.bytes, sum.wishes, sum.interruptions, sum.needed, sum.allowed)
		}
	}
	for _, w := range c.load.wishes {
		if a := c.meter.of(w.name()); a.overlap > chaosStall || a.active > 0 {
			c.bad.add("wish %d (%s) was fetched by two at a time for %s; %d fetch it now", w.n, w.film.kind, a.overlap, a.active)
		}
	}
}

// checkLeftovers looks for what the processes have left behind when all have stopped. What a killed one left in the
// staging area is swept by the next worker that starts.
func (c *chaos) checkLeftovers() {
	sweeper := startChild(c.t, c.env, "work")
	sweeper.await(sweeper.stderr, "msg=ready mode=work")
	staging := c.home.media() + "/.medianest/staging"
	deadline, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	for {
		left, err := os.ReadDir(staging)
		if err == nil && len(left) == 0 {
			break
		}
		if sleep(deadline, 100*time.Millisecond) != nil {
			c.bad.add("%d folders are left in the staging area: %v", len(left), left)
			break
		}
	}
	sweeper.stop()
	if left := processesBelow(c.t, c.home.media()); len(left) > 0 {
		c.bad.add("processes are left: %v", left)
	}
}

// summarise prints what there is to say at the end, as a table for the documentation.
func (c *chaos) summarise(w io.Writer) {
	sum, parts := c.killed()
	times, waiting := c.recoveries()
	count, texts := c.bad.all()
	row := func(what, format string, args ...any) {
		fmt.Fprintf(w, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	var cancelled, deleted int
	for _, wish := range c.load.wishes {
		cancelled += wish.cancelled
		if wish.deleted {
			deleted += len(wish.ids)
		}
	}
	fmt.Fprintf(w, "\n| chaos | |\n|---|---|\n")
	row("seed", "%d", c.plan.seed)
	row("time", "%s, a kill every %s on average", time.Since(c.begun).Round(time.Second), c.plan.pause)
	row("SIGKILLs", "%d: %s", sum, parts)
	row("starts given up as something was killed meanwhile", "%d; processes that were starved for a TTL: %d", c.gaveUp.Load(), c.overslept.Load())
	row("fleet", "%d serve, %d work with %d downloads at a time, TTL %s, beat %s", chaosServes, chaosWorks, chaosSlots, chaosTTL, chaosBeat)
	row("downloads accepted", "%d, of which %d were cancelled by their users; %d deleted after completion", c.load.accepted, cancelled, deleted)
	row("jobs lost with their worker", "%d, of which %d had no need to run again: cancelled, or completed in the moment of the kill", len(times)+waiting, waiting)
	row("from the kill to running elsewhere", "p50 %s, p90 %s, p99 %s, max %s", times.at(0.5), times.at(0.9), times.at(0.99), times.at(1))
	for _, f := range films {
		if s := c.cost(f); s.wishes > 0 {
			row("bytes fetched, "+f.kind, "%d films, %d interruptions: %.3f times what undisturbed ones take, %s an interruption",
				s.wishes, s.interruptions, float64(s.bytes)/float64(s.needed), perInterruption(s))
		}
	}
	l := c.ledgers[0]
	row("events", "%d to each of %d readers, who reconnected %d times; replayed once more at the end", l.length(), len(c.ledgers), c.reconnects())
	row("violations", "%d", count)
	for _, text := range texts {
		fmt.Fprintf(w, "violation: %s\n", text)
	}
	fmt.Fprintln(w)
}

func perInterruption(s fetched) string {
	if s.interruptions == 0 {
		return "0 kB"
	}
	return fmt.Sprintf("%d kB", (s.bytes-s.needed)/int64(s.interruptions)/1000)
}

func (c *chaos) reconnects() (sum int) {
	for _, l := range c.ledgers {
		l.mu.Lock()
		sum += l.reconnects
		l.mu.Unlock()
	}
	return sum
}

func mustUUID(id string) uuid.UUID { return uuid.MustParse(id) }

func text(s *string) string {
	if s == nil {
		return "none"
	}
	return *s
}

func errOrNothing(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
