package stream_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/api/stream"
	"medianest/store"
	"medianest/store/pgserver"
	"medianest/store/storetest"
)

// postgres runs a program of Postgres's.
func postgres(t *testing.T, name string, args ...string) {
	t.Helper()
	dir, err := pgserver.FindBinDir("")
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), filepath.Join(dir, name), args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", name, out)
}

// A dump goes back over what has happened since: places in the stream of before mean nothing any more, neither in another
// database nor in the same, whose tables were dropped, and clients are told so.
func TestRestoreOfADumpResets(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.hub()
	stopOutbox := b.outbox(h)
	jobs := b.jobs(3)
	b.settle()
	g := h.readNow("")
	b.setJob(jobs[0], "running")
	inDump := g.want(store.TopicJobState).ID
	b.settle()

	dump := filepath.Join(t.TempDir(), "dump")
	postgres(t, "pg_dump", "--format=custom", "--file="+dump, b.url)
	b.setJob(jobs[1], "running")
	lost := g.want(store.TopicJobState).ID

	t.Run("IntoAnotherDatabase", func(t *testing.T) { //nolint:paralleltest // before the other
		other := &bundle{t: t, url: storetest.EmptyDB(t)}
		postgres(t, "pg_restore", "--exit-on-error", "--dbname="+other.url, dump)
		other.pool = storetest.OpenPool(t, other.url, "")
		checkRestored(t, other, inDump, lost, jobs)
	})

	t.Run("IntoTheSame", func(t *testing.T) { //nolint:paralleltest // after the other
		stopOutbox()
		// The API goes on meanwhile: its stream is told as well.
		b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		postgres(t, "pg_restore", "--clean", "--if-exists", "--exit-on-error", "--dbname="+b.url, dump)
		same := &bundle{t: t, url: b.url, pool: storetest.OpenPool(t, b.url, "")}
		checkRestored(t, same, inDump, lost, jobs)
		g.wantReset("unknown_epoch")
		same.setJob(jobs[2], "retryable")
		same.outbox(h)
		for state := ""; state != "retryable"; { // it may have seen the change before as well
			state = g.want(store.TopicJobState).payload(t).State
		}
	})
}

func checkRestored(t *testing.T, b *bundle, inDump, lost string, jobs []int64) {
	t.Helper()
	var ticks int
	b.scan(&ticks, `SELECT count(*) FROM medianest.tick`)
	require.Greater(t, ticks, 1, "the dump has the ticks of before")
	h := b.hub()
	waiting := h.read("", inDump) // before anybody began the new history
	stop := b.outbox(h)
	defer stop()
	waiting.wantReset("unknown_epoch")
	h.read("", lost).wantReset("unknown_epoch")
	h.read("", inDump).wantReset("unknown_epoch")

	// The new history tells nothing twice, and everything new.
	g := h.readNow("")
	b.setJob(jobs[2], "running")
	p := g.wantState(store.TopicJobState, "running")
	require.Equal(t, "available", *p.PreviousState)
	place, err := stream.ParsePosition(g.opened)
	require.NoError(t, err)
	require.Len(t, b.whole(place), 1)

	n, err := b.store("").FollowJobs(context.Background(), 100)
	require.NoError(t, err)
	require.LessOrEqual(t, n, 100)
}
