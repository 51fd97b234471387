package stream_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api/stream"
	"medianest/store"
)

// A thousand readers at once, over real connections: half see everything, half are users of whom each has a download of
// their own. Halfway all are cut off and come back at the same moment.
func TestAThousandReaders(t *testing.T) {
	t.Parallel()
	const (
		readers = 1000
		changes = 20
	)
	b := setup(t)
	h := b.hub()
	b.outbox(h)
	jobs := b.jobs(changes)
	users := make([]uuid.UUID, readers/2)
	for i := range users {
		users[i] = uuid.Must(uuid.NewV7())
	}
	b.exec(`INSERT INTO medianest.users (id, name, role) SELECT u, u::text, 'member' FROM unnest($1::uuid[]) AS u`, users)
	b.exec(`INSERT INTO medianest.job_viewer (job_id, user_id, download_id) SELECT $1, u, gen_random_uuid() FROM unnest($2::uuid[]) AS u`, jobs[0], users)
	b.settle()

	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var (
		opened, halfway, ended sync.WaitGroup
		again                  = make(chan struct{})
		errs                   = make(chan error, readers)
	)
	follow := func(i int) error {
		query, want := "?topic=job.state", changes
		if i%2 == 1 {
			query, want = query+"&user="+users[i/2].String(), 1
		}
		r, err := open(ctx, client, h.server.URL, query, "")
		if err != nil {
			opened.Done()
			halfway.Done()
			return err
		}
		m, err := r.next()
		opened.Done()
		if err != nil || m.Event != "open" {
			halfway.Done()
			return fmt.Errorf("reader %d: %s: %w", i, m.Event, err)
		}
		seen := make(map[string]bool)
		for len(seen) < want {
			m, err := r.next()
			if err != nil {
				return fmt.Errorf("reader %d after %d: %w", i, len(seen), err)
			}
			if seen[m.ID] {
				return fmt.Errorf("reader %d: twice: %s", i, m.Data)
			}
			seen[m.ID] = true
			if len(seen) == (want+1)/2 {
				r.close()
				halfway.Done()
				<-again
				if r, err = open(ctx, client, h.server.URL, query, r.lastID); err != nil {
					return fmt.Errorf("reader %d again: %w", i, err)
				}
			}
		}
		r.close()
		return nil
	}
	opened.Add(readers)
	halfway.Add(readers)
	for i := range readers {
		ended.Go(func() {
			if err := follow(i); err != nil {
				errs <- err
			}
		})
	}
	opened.Wait()
	require.InDelta(t, readers, h.metric("medianest_stream_subscribers"), 0)
	for _, id := range jobs[:changes/2] {
		b.setJob(id, "running")
	}
	halfway.Wait()
	for _, id := range jobs[changes/2:] {
		b.setJob(id, "running")
	}
	close(again)
	ended.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return h.metric("medianest_stream_subscribers") == 0 }, 20*time.Second, 10*time.Millisecond)
}

// Of two replicas one is always a tick ahead: who comes from there to the other is not told anything twice.
func TestReplicasAgree(t *testing.T) {
	t.Parallel()
	b := setup(t)
	source := &countedSource{Source: b.store(store.RoleAPI)}
	ahead, late := b.hub(), b.hub(func(o *stream.Options) { o.Source = source })
	b.outbox(ahead)
	jobs := b.jobs(1)
	b.settle()
	g := ahead.readNow("")
	other := late.readNow("")
	source.broken.Store(true)
	var place string
	for _, state := range []string{"running", "retryable", "available"} {
		b.setJob(jobs[0], state)
		m := g.want(store.TopicJobState)
		require.Equal(t, state, m.payload(t).State)
		place = m.ID
	}
	moved := late.read("", place) // far ahead of what this hub knows
	source.broken.Store(false)
	b.setJob(jobs[0], "completed")
	moved.wantState(store.TopicJobState, "completed")
	for _, state := range []string{"running", "retryable", "available", "completed"} {
		other.wantState(store.TopicJobState, state)
	}
}
