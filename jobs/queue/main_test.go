package queue_test

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/store"
	"medianest/store/storetest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == beWorker {
		os.Exit(workAsChild(os.Args[2:]))
	}
	os.Exit(storetest.Main(m))
}

// synthetic is a kind of the tests: what its worker does is in the test.
type synthetic struct {
	N int `json:"n"`
}

func (synthetic) Kind() string { return "synthetic" }

// work is a worker's function.
type work func(ctx context.Context, job *river.Job[synthetic]) error

// bundle is a client on a database of its own.
type bundle struct {
	*queue.Client
	url   string // for the owner
	owner *pgxpool.Pool
	logs  *logbook
}

// setup starts a client that works queue "test" under River's own role.
func setup(t *testing.T, do work, change func(*queue.Options)) *bundle {
	t.Helper()
	return assemble(t, do, change).start(t)
}

// start starts the client, which ends with the test.
func (b *bundle) start(t *testing.T) *bundle {
	t.Helper()
	require.NoError(t, b.Start(t.Context()))
	t.Cleanup(func() {
		// The test's context has ended by now, which stops the client as well.
		select {
		case <-b.Stopped():
		case <-time.After(20 * time.Second):
			t.Error("client did not stop")
		}
	})
	return b
}

func assemble(t *testing.T, do work, change func(*queue.Options)) *bundle {
	t.Helper()
	return assembleAt(t, storetest.DB(t), do, change)
}

// assembleAt puts a client on a database that it may share with others.
func assembleAt(t *testing.T, url string, do work, change func(*queue.Options)) *bundle {
	t.Helper()
	b := &bundle{url: url, logs: &logbook{}}
	t.Cleanup(func() {
		if t.Failed() {
			for _, l := range b.logs.above(slog.LevelWarn) {
				t.Log(l.at.Format(time.TimeOnly+".000"), l.level, l.text, l.attrs)
			}
		}
	})
	b.owner = storetest.OpenPool(t, url, "")
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(do))
	options := queue.Options{
		Pool: storetest.OpenPool(t, url, store.RoleRiver), Logger: slog.New(b.logs), ID: t.Name(),
		Queues: map[string]int{"test": 4}, Workers: workers, StopTimeout: 10 * time.Second,
	}
	if change != nil {
		change(&options)
	}
	var err error
	b.Client, err = queue.New(options)
	require.NoError(t, err)
	return b
}

// insert adds jobs and returns their ids.
func (b *bundle) insert(t *testing.T, opts river.InsertOpts, args ...synthetic) []int64 {
	t.Helper()
	opts.Queue = "test"
	params := make([]river.InsertManyParams, len(args))
	for i, a := range args {
		params[i] = river.InsertManyParams{Args: a, InsertOpts: &opts}
	}
	results, err := b.River().InsertMany(t.Context(), params)
	require.NoError(t, err)
	ids := make([]int64, len(results))
	for i, r := range results {
		ids[i] = r.Job.ID
	}
	return ids
}

// job reads a row.
func (b *bundle) job(t *testing.T, id int64) *rivertype.JobRow {
	t.Helper()
	row, err := b.River().JobGet(t.Context(), id)
	require.NoError(t, err)
	return row
}

// waitState waits until a job is in the state.
func (b *bundle) waitState(t *testing.T, id int64, state rivertype.JobState) *rivertype.JobRow {
	t.Helper()
	var row *rivertype.JobRow
	require.Eventually(t, func() bool {
		row = b.job(t, id)
		return row.State == state
	}, 15*time.Second, 10*time.Millisecond, "job %d never was %s", id, state)
	return row
}

// event is what the outbox's trigger wrote.
type event struct {
	State   string
	Attempt int
	Reason  string
}

// events are the job's, in order.
func (b *bundle) events(t *testing.T, id int64) []event {
	t.Helper()
	rows, err := b.owner.Query(t.Context(), `
		SELECT state, attempt, reason
		FROM medianest.event
		WHERE topic = 'job.state' AND job_id = $1
		ORDER BY id`, id)
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowToStructByName[event])
	require.NoError(t, err)
	return found
}

// exec runs a statement as the owner.
func (b *bundle) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	_, err := b.owner.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

// logbook is a log handler that keeps what it is told.
type logbook struct {
	mu      sync.Mutex
	records []line
}

type line struct {
	at    time.Time
	level slog.Level
	text  string
	attrs map[string]any
}

// find returns the lines with that text.
func (l *logbook) find(text string) []line {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []line
	for _, r := range l.records {
		if r.text == text {
			found = append(found, r)
		}
	}
	return found
}

// above returns the lines of that level and worse.
func (l *logbook) above(level slog.Level) []line {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.records), func(r line) bool { return r.level < level })
}

func (l *logbook) add(r slog.Record, with []slog.Attr) {
	attrs := make(map[string]any)
	for _, a := range with {
		attrs[a.Key] = a.Value.Any()
	}
	r.Attrs(func(a slog.Attr) bool {
		attrs[a.Key] = a.Value.Any()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, line{r.Time, r.Level, r.Message, attrs})
}

func (l *logbook) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l *logbook) Handle(_ context.Context, r slog.Record) error {
	l.add(r, nil)
	return nil
}

func (l *logbook) WithAttrs(attrs []slog.Attr) slog.Handler { return &logWith{l, attrs} }

func (l *logbook) WithGroup(string) slog.Handler { return l }

// logWith is a logbook's handler with attributes of its own.
type logWith struct {
	*logbook
	attrs []slog.Attr
}

func (l *logWith) Handle(_ context.Context, r slog.Record) error {
	l.add(r, l.attrs)
	return nil
}

func (l *logWith) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logWith{l.logbook, append(slices.Clone(l.attrs), attrs...)}
}
