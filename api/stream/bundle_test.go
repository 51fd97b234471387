package stream_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"medianest/api/stream"
	"medianest/store"
	"medianest/store/storetest"
)

// bundle is a platform as far as streams are concerned: a database, an outbox, hubs.
type bundle struct {
	t    testing.TB
	url  string
	pool *pgxpool.Pool // as the owner, to play River and the domain
}

func setup(t testing.TB) *bundle {
	t.Helper()
	url := storetest.DB(t)
	return &bundle{t: t, url: url, pool: storetest.OpenPool(t, url, "")}
}

// store returns a store of a process's own.
func (b *bundle) store(role string) *store.Store {
	b.t.Helper()
	return store.New(storetest.OpenPool(b.t, b.url, role))
}

// background runs fn until the test's end, or until stop is called, and waits for its end.
func (b *bundle) background(fn func(ctx context.Context) error) (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				b.t.Errorf("background: %v", err)
			}
		})
	}
	b.t.Cleanup(stop)
	return stop
}

// outbox runs an outbox with quick ticks.
func (b *bundle) outbox(hubs ...*hub) (stop func()) {
	b.t.Helper()
	outbox := store.NewOutbox(store.OutboxOptions{
		Store: b.store(store.RoleWorker), Logger: quiet(), Holder: uuid.NewString(), TickInterval: 5 * time.Millisecond, IdleInterval: 10 * time.Millisecond,
		OnTick: func() {
			for _, h := range hubs {
				h.Ring()
			}
		},
	})
	return b.background(outbox.Run)
}

// hub is a replica of the API as far as streams are concerned.
type hub struct {
	*stream.Hub

	t       testing.TB
	server  *httptest.Server
	metrics *prometheus.Registry
	stop    func()
}

// hub starts a replica. Each request names its viewer by ?user=, or sees everything.
func (b *bundle) hub(change ...func(*stream.Options)) *hub {
	b.t.Helper()
	h := &hub{t: b.t, metrics: prometheus.NewRegistry()}
	o := stream.Options{
		Source: b.store(store.RoleAPI), Logger: quiet(), Registerer: h.metrics,
		PollInterval: 10 * time.Millisecond, ProgressInterval: 10 * time.Millisecond,
	}
	for _, c := range change {
		c(&o)
	}
	h.Hub = stream.New(o)
	h.server = httptest.NewUnstartedServer(http.HandlerFunc(h.handle))
	h.server.Start()
	b.t.Cleanup(h.server.Close)
	h.stop = b.background(h.Run)
	return h
}

func (h *hub) handle(w http.ResponseWriter, r *http.Request) {
	if err := h.Serve(w, r, subscriptionOf(r)); err != nil {
		http.Error(w, err.Error(), http.StatusTooManyRequests)
	}
}

func subscriptionOf(r *http.Request) stream.Subscription {
	q := r.URL.Query()
	s := stream.Subscription{
		Viewer: store.Viewer{Admin: true}, Topics: q["topic"], Kinds: q["kind"], Queues: q["queue"], States: q["state"],
		LastEventID: q.Get("last_event_id"),
	}
	if user := q.Get("user"); user != "" {
		s.Viewer = store.Viewer{UserID: uuid.MustParse(user), Admin: q.Has("admin")}
	}
	for _, id := range q["job_id"] {
		n, _ := strconv.ParseInt(id, 10, 64)
		s.JobIDs = append(s.JobIDs, n)
	}
	for _, id := range q["download_id"] {
		s.DownloadIDs = append(s.DownloadIDs, uuid.MustParse(id))
	}
	return s
}

// metric sums the values of a metric, of those with the label's value if one is given.
func (h *hub) metric(name string, label ...string) float64 {
	h.t.Helper()
	families, err := h.metrics.Gather()
	require.NoError(h.t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if len(label) > 0 && m.GetLabel()[0].GetValue() != label[0] {
				continue
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	_, err := b.pool.Exec(context.Background(), sql, args...)
	require.NoError(b.t, err)
}

func (b *bundle) scan(target any, sql string, args ...any) {
	b.t.Helper()
	require.NoError(b.t, b.pool.QueryRow(context.Background(), sql, args...).Scan(target))
}

// jobs inserts jobs that nobody views, and returns their ids.
func (b *bundle) jobs(n int) []int64 {
	b.t.Helper()
	var ids []int64
	b.scan(&ids, `
		WITH made AS (
			INSERT INTO river.river_job (args, kind, max_attempts, queue)
			SELECT '{}', 'download', 8, 'download' FROM generate_series(1, $1::int)
			RETURNING id
		)
		SELECT array_agg(id ORDER BY id) FROM made`, n)
	return ids
}

// setJob puts a job into a state, as River would.
func (b *bundle) setJob(id int64, state string) {
	b.t.Helper()
	b.exec(setJob, id, state)
}

const setJob = `
	UPDATE river.river_job
	SET state = $2::river.river_job_state,
		attempt = attempt + CASE WHEN $2 = 'running' THEN 1 ELSE 0 END,
		finalized_at = CASE WHEN $2 IN ('completed', 'cancelled', 'discarded') THEN now() END
	WHERE id = coalesce((SELECT m.row_id FROM medianest.job_map AS m WHERE m.public_id = $1), $1)`

// reclaim lets a job that runs go on as another row of river_job, as the queue does when a worker is lost.
const reclaim = `
	WITH lost AS (
		SELECT j.id, nextval('river.river_job_id_seq') AS successor
		FROM river.river_job AS j
		WHERE j.id = coalesce((SELECT m.row_id FROM medianest.job_map AS m WHERE m.public_id = $1), $1)
			AND j.state = 'running'
		FOR UPDATE SKIP LOCKED
	), old AS (
		UPDATE river.river_job AS j
		SET state = 'discarded', finalized_at = now(),
			metadata = j.metadata || jsonb_build_object('superseded_by', l.successor::text)
		FROM lost AS l
		WHERE j.id = l.id
		RETURNING j.*, l.successor
	), new AS (
		INSERT INTO river.river_job (id, args, kind, max_attempts, queue, attempt, metadata)
		SELECT o.successor, o.args, o.kind, o.max_attempts, o.queue, greatest(o.attempt - 1, 0),
			o.metadata - 'superseded_by' || jsonb_build_object('public_id', $1::bigint::text)
		FROM old AS o
	)
	INSERT INTO medianest.job_map (public_id, row_id)
	SELECT $1, o.successor
	FROM old AS o
	ON CONFLICT (public_id) DO UPDATE
	SET row_id = excluded.row_id`

func (b *bundle) reclaim(jobID int64) {
	b.t.Helper()
	tag, err := b.pool.Exec(context.Background(), reclaim, jobID)
	require.NoError(b.t, err)
	require.EqualValues(b.t, 1, tag.RowsAffected(), "job %d does not run", jobID)
}

// join puts a process among the workers; leave takes it away again, as one that stopped or that was lost.
func (b *bundle) join(id string) {
	b.t.Helper()
	b.exec(`
		INSERT INTO medianest.worker (id, mode, host, version, expires_at)
		VALUES ($1, 'work', 'nas', 'v1', now() + interval '1 h')`, id)
}

func (b *bundle) leave(id string, lost bool) {
	b.t.Helper()
	if lost {
		b.exec(`UPDATE medianest.worker SET expires_at = now() WHERE id = $1`, id)
	}
	b.exec(`DELETE FROM medianest.worker WHERE id = $1`, id)
}

func (b *bundle) user(name string) uuid.UUID {
	b.t.Helper()
	id := uuid.Must(uuid.NewV7())
	b.exec(`INSERT INTO medianest.users (id, name, role) VALUES ($1, $2, 'member')`, id, name)
	return id
}

// download is a user's wish and the job that it follows.
type download struct {
	id    uuid.UUID
	jobID int64
}

// downloads makes downloads of one content, one for each user, that follow one job; all in one transaction.
func (b *bundle) downloads(parent *uuid.UUID, users ...uuid.UUID) []download {
	b.t.Helper()
	content := uuid.Must(uuid.NewV7())
	var made []download
	err := pgx.BeginFunc(context.Background(), b.pool, func(tx pgx.Tx) error {
		var jobID int64
		err := tx.QueryRow(context.Background(), `
			INSERT INTO river.river_job (args, kind, max_attempts, queue)
			VALUES ('{}', 'download', 8, 'download')
			RETURNING id`).Scan(&jobID)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(context.Background(), `
			INSERT INTO medianest.content (id, key, url, profile, job_id)
			VALUES ($1, $2, 'https://example.com/', 'best', $3)`, content, content.String(), jobID); err != nil {
			return err
		}
		for _, user := range users {
			d := download{id: uuid.Must(uuid.NewV7()), jobID: jobID}
			if _, err := tx.Exec(context.Background(), `
				WITH viewer AS (INSERT INTO medianest.job_viewer (job_id, user_id, download_id) VALUES ($5, $2, $1))
				INSERT INTO medianest.downloads (id, user_id, content_id, parent_id, url, profile, state, job_id)
				VALUES ($1, $2, $3, $4, 'https://example.com/', 'best', 'queued', $5)`, d.id, user, content, parent, jobID); err != nil {
				return err
			}
			made = append(made, d)
		}
		return nil
	})
	require.NoError(b.t, err)
	return made
}

// whole is the stream as the table has it.
func (b *bundle) whole(after stream.Position) []store.Event {
	b.t.Helper()
	s := b.store("")
	head, err := s.Head(context.Background())
	require.NoError(b.t, err)
	events, err := s.EventsAfter(context.Background(), store.EventQuery{Epoch: after.Epoch, After: after.Cursor, ToTick: head.Newest, Limit: 1_000_000})
	require.NoError(b.t, err)
	return events
}

// end is the place behind all that there is.
func (b *bundle) end() store.Cursor {
	b.t.Helper()
	b.settle()
	head, err := b.store("").Head(context.Background())
	require.NoError(b.t, err)
	return head.End()
}

// settle waits until a tick has every event.
func (b *bundle) settle() {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		var left int
		b.scan(&left, `
			SELECT count(*) FROM medianest.event
			WHERE NOT pg_visible_in_snapshot(xid, (SELECT snapshot FROM medianest.tick ORDER BY id DESC LIMIT 1))`)
		return left == 0
	}, 10*time.Second, 5*time.Millisecond)
}

// smallBuffers makes the server's connections hold little in the kernel, so that a reader that does not read is noticed
// soon.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		err = conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	return conn, err
}

// countedSource counts what a hub asks for, and fails when told to.
type countedSource struct {
	stream.Source

	heads, reads atomic.Int64
	broken       atomic.Bool
}

func (s *countedSource) Head(ctx context.Context) (store.Head, error) {
	s.heads.Add(1)
	if s.broken.Load() {
		return store.Head{}, store.ErrUnavailable
	}
	return s.Source.Head(ctx)
}

func (s *countedSource) EventsAfter(ctx context.Context, q store.EventQuery) ([]store.Event, error) {
	s.reads.Add(1)
	if s.broken.Load() {
		return nil, store.ErrUnavailable
	}
	return s.Source.EventsAfter(ctx, q)
}

func jobIDs(ids ...int64) string {
	var q strings.Builder
	for _, id := range ids {
		q.WriteString("&job_id=" + strconv.FormatInt(id, 10))
	}
	return q.String()
}
