package queue

import (
	"cmp"
	"container/heap"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Limit is what is allowed of one key.
type Limit struct {
	Key        string
	MaxRunning *int // nil: no limit; 0: nothing starts
	MaxStarts  *int // per PeriodS
	PeriodS    *int
	SpacingS   float64
	JitterS    float64
	OpensAt    *time.Time // by its windows; nil: it is open
}

func (l Limit) paced() bool { return l.MaxStarts != nil || l.SpacingS > 0 || l.JitterS > 0 }

func (l Limit) period() time.Duration {
	if l.PeriodS == nil {
		return 0
	}
	return time.Duration(*l.PeriodS) * time.Second
}

// use is what is known of a key's starts. Kept for users, who are served in turn, and for keys that have a pace.
type use struct {
	Key    string
	LastAt time.Time
	NextAt time.Time   // the next start may not be before, by spacing and jitter
	Starts []time.Time // within the period, oldest first

	fresh  int  // starts that are not yet written, the last ones
	before *use // what it was before them
}

// useMemory is how long a user's last turn counts.
const useMemory = time.Hour

// waiting is a job that waits for admission.
type waiting struct {
	RowID       int64
	Queue       string
	Priority    int16
	Keys        []string
	UserKey     string
	ScheduledAt time.Time
	BlockedOn   string
}

// holds is what the job counts under: its keys, its queue, and nobody where it is no user's.
func holds(queue string, keys []string, userKey string) []string {
	all := append(slices.Clone(keys), "queue:"+queue)
	if userKey == "" {
		all = append(all, "")
	}
	return all
}

// table is what a round decides on. Only the round changes it.
type table struct {
	now      time.Time
	read     time.Time // on this process's clock, when it was now
	limits   map[string]Limit
	uses     map[string]*use
	breakers map[string]*breaker
	paused   map[string]bool
	running  map[string]int // of each key: jobs that hold it, and under "" those of nobody
	free     map[string]int // of each queue: slots to be filled

	admitted []waiting
	blocked  map[int64]string // by row: the key
	wake     time.Time        // when a key opens by time; zero: none
}

// limit finds what holds for a key: its own, or that of its form.
func (t *table) limit(key string) (Limit, bool) {
	if l, ok := t.limits[key]; ok {
		return l, true
	}
	if form, _, ok := strings.Cut(key, ":"); ok {
		l, ok := t.limits[form+":*"]
		return l, ok
	}
	return Limit{}, false
}

// isPaused reports whether somebody has paused the key, or all of its form.
func (t *table) isPaused(key string) bool {
	if len(t.paused) == 0 {
		return false
	}
	form, _, ok := strings.Cut(key, ":")
	return t.paused[key] || ok && t.paused[form+":*"]
}

// room reports whether one more job may start under the key.
func (t *table) room(key string) bool {
	if t.isPaused(key) {
		return false
	}
	l, ok := t.limit(key)
	if ok && l.MaxRunning != nil && t.running[key] >= *l.MaxRunning {
		return false
	}
	b := t.breakers[key]
	if b != nil && b.Probing {
		return false
	}
	opens := t.opens(key, l)
	if l.OpensAt != nil && l.OpensAt.After(opens) {
		opens = *l.OpensAt
	}
	if b != nil && b.OpenUntil.After(opens) {
		opens = b.OpenUntil
	}
	if opens.After(t.now) {
		if t.wake.IsZero() || opens.Before(t.wake) {
			t.wake = opens
		}
		return false
	}
	return true
}

// opens is when the next start may be, by the key's pace.
func (t *table) opens(key string, l Limit) time.Time {
	u := t.uses[key]
	if u == nil || !l.paced() {
		return time.Time{}
	}
	// A spacing that was changed holds for the start that is past, too.
	least, most := u.LastAt.Add(seconds(l.SpacingS)), u.LastAt.Add(seconds(l.SpacingS+l.JitterS))
	opens := u.NextAt
	if opens.Before(least) {
		opens = least
	} else if opens.After(most) {
		opens = most
	}
	if l.MaxStarts != nil && len(u.Starts) >= *l.MaxStarts {
		oldest := u.Starts[len(u.Starts)-*l.MaxStarts].Add(l.period())
		if oldest.After(opens) {
			opens = oldest
		}
	}
	return opens
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// blockedBy is the first of the job's keys without room, and of its queue; "" if there is none.
func (t *table) blockedBy(w waiting) string {
	for _, key := range w.Keys {
		if !t.room(key) {
			return key
		}
	}
	if key := "queue:" + w.Queue; !t.room(key) {
		return key
	}
	return ""
}

// admit takes a job that is not blocked.
func (t *table) admit(w waiting) {
	t.admitted = append(t.admitted, w)
	t.free[w.Queue]--
	for _, key := range holds(w.Queue, w.Keys, w.UserKey) {
		t.running[key]++
		if b := t.breakers[key]; b != nil {
			b.Probing, b.probe, b.changed = true, w.RowID, true
		}
		l, _ := t.limit(key)
		if !l.paced() && key != w.UserKey {
			continue
		}
		u := t.uses[key]
		if u == nil {
			u = &use{Key: key}
			t.uses[key] = u
		}
		if u.before == nil {
			before := *u
			before.Starts = slices.Clone(u.Starts)
			u.before = &before
		}
		u.fresh++
		u.LastAt = t.now
		u.NextAt = t.now.Add(seconds(l.SpacingS + rand.Float64()*l.JitterS)) //nolint:gosec // no secret
		// Without a period none is remembered but those of this round.
		past := t.now.Add(-l.period())
		u.Starts = slices.DeleteFunc(u.Starts, func(at time.Time) bool { return !at.After(past) && at.Before(t.now) })
		u.Starts = append(u.Starts, t.now)
	}
}

// undo takes back what admit did: the job could not be had.
func (t *table) undo(w waiting) {
	t.free[w.Queue]++
	for _, key := range holds(w.Queue, w.Keys, w.UserKey) {
		t.running[key]--
		if b := t.breakers[key]; b != nil && b.probe == w.RowID {
			b.Probing, b.changed = false, false
		}
		u := t.uses[key]
		if u == nil || u.fresh == 0 {
			continue
		}
		u.Starts = u.Starts[:len(u.Starts)-1]
		if u.fresh--; u.fresh == 0 {
			*u = *u.before
		}
	}
}

// stamp gives the starts that are not yet written the time of now, when their jobs have become available, and returns
// their uses.
func (t *table) stamp() (started []*use) {
	at := t.now.Add(time.Since(t.read))
	for _, u := range t.uses {
		if u.fresh == 0 {
			continue
		}
		for i := range u.fresh {
			u.Starts[len(u.Starts)-1-i] = at
		}
		if l, _ := t.limit(u.Key); l.MaxStarts == nil {
			u.Starts = nil
		}
		u.NextAt = u.NextAt.Add(at.Sub(u.LastAt))
		u.LastAt, u.fresh, u.before = at, 0, nil
		started = append(started, u)
	}
	return started
}

// stale are the keys of uses that decide nothing any more.
func (t *table) stale() (keys []string) {
	for key, u := range t.uses {
		l, _ := t.limit(key)
		if t.now.Sub(u.LastAt) > max(useMemory, l.period()) && !u.NextAt.After(t.now) {
			keys = append(keys, key)
		}
	}
	return keys
}

// lane is the waiting jobs of one user and priority, in order of age. Its place among lanes is what is remembered of
// the user: how many jobs run, and when the last one was admitted.
type lane struct {
	jobs    []waiting
	running int
	served  time.Time
}

// lanes is a heap of lanes in the order in which their first jobs are served: priority, then the user who has least
// running, then who was served longest ago, then age.
type lanes []*lane

func (ls lanes) Len() int      { return len(ls) }
func (ls lanes) Swap(i, j int) { ls[i], ls[j] = ls[j], ls[i] }
func (ls *lanes) Push(x any)   { *ls = append(*ls, x.(*lane)) }
func (ls *lanes) Pop() any     { panic("lanes are not popped") }

func (ls lanes) Less(i, j int) bool {
	a, b := ls[i], ls[j]
	return cmp.Or(
		cmp.Compare(a.jobs[0].Priority, b.jobs[0].Priority),
		cmp.Compare(a.running, b.running),
		a.served.Compare(b.served),
		byAge(a.jobs[0], b.jobs[0]),
	) < 0
}

func byAge(a, b waiting) int {
	return cmp.Or(a.ScheduledAt.Compare(b.ScheduledAt), cmp.Compare(a.RowID, b.RowID))
}

// served is when the user was last served; the zero time for one that was not of late.
func (t *table) served(userKey string) time.Time {
	if u := t.uses[userKey]; u != nil {
		return u.LastAt
	}
	return time.Time{}
}

// lanesOf sorts candidates into lanes.
func (t *table) lanesOf(candidates []waiting) lanes {
	slices.SortFunc(candidates, func(a, b waiting) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.UserKey, b.UserKey), byAge(a, b))
	})
	var all lanes
	for i, w := range candidates {
		if i > 0 && candidates[i-1].Priority == w.Priority && candidates[i-1].UserKey == w.UserKey {
			last := all[len(all)-1]
			last.jobs = append(last.jobs, w)
			continue
		}
		all = append(all, &lane{jobs: []waiting{w}, running: t.running[w.UserKey], served: t.served(w.UserKey)})
	}
	heap.Init(&all)
	return all
}

// choose admits from the candidates of one queue until there is no slot or no candidate, and notes what blocks others.
func (t *table) choose(queue string, candidates []waiting) {
	all := t.lanesOf(candidates)
	for t.free[queue] > 0 && len(all) > 0 {
		first := all[0]
		w := first.jobs[0]
		// A user who was served since only moves back: the lane's place is where it is at the latest.
		running, served := t.running[w.UserKey], t.served(w.UserKey)
		if running != first.running || !served.Equal(first.served) {
			first.running, first.served = running, served
			heap.Fix(&all, 0)
			continue
		}
		if key := t.blockedBy(w); key == "" {
			t.admit(w)
		} else if key != w.BlockedOn {
			t.blocked[w.RowID] = key
		}
		if first.jobs = first.jobs[1:]; len(first.jobs) > 0 {
			heap.Fix(&all, 0)
			continue
		}
		all.Swap(0, len(all)-1)
		if all = all[:len(all)-1]; len(all) > 0 {
			heap.Fix(&all, 0)
		}
	}
}
