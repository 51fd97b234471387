package queue_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"medianest/jobs/queue"
	"medianest/jobs/reason"
	"medianest/store"
	"medianest/store/storetest"
)

// attempts are what is told of the job's attempts, oldest first.
func (b *bundle) attempts(t *testing.T, id int64) (list []store.Attempt) {
	t.Helper()
	s := store.New(storetest.OpenPool(t, b.url, store.RoleAPI))
	found, err := s.ListAttempts(t.Context(), id, store.Viewer{Admin: true})
	require.NoError(t, err)
	for i := range found {
		list = append(list, found[len(found)-1-i])
	}
	return list
}

func outcomes(list []store.Attempt) (told []string) {
	for _, a := range list {
		told = append(told, a.Outcome+" "+a.Reason)
	}
	return told
}

// A job tells of each attempt how it ended, over failures, pauses and the loss of its worker; the last one as it succeeds.
func TestHistory(t *testing.T) {
	t.Parallel()

	n := 0
	b := assemble(t, func(ctx context.Context, _ *river.Job[synthetic]) error {
		n++
		switch n {
		case 1:
			queue.NoteBytes(ctx, 100)
			return &reason.Error{Reason: reason.Network, Detail: "no route"}
		case 2:
			return errors.Join(river.JobSnooze(0), &reason.Error{Reason: reason.DiskFull})
		}
		queue.NoteBytes(ctx, 300)
		return nil
	}, quick)
	id := b.insert(t, river.InsertOpts{MaxAttempts: 3}, synthetic{})[0]
	b.run(t, id, 1, t.Name())
	_, err := b.TakeBack(t.Context())
	require.NoError(t, err)
	b.start(t)
	b.waitCurrent(t, id, rivertype.JobStateCompleted)
	list := b.attempts(t, id)
	require.Equal(t, []string{"lost ", "retried network", "snoozed disk_full", "completed "}, outcomes(list))
	require.Equal(t, []int{1, 1, 2, 2}, []int{list[0].Attempt, list[1].Attempt, list[2].Attempt, list[3].Attempt})
	require.Equal(t, "no route", list[1].Detail)
	require.EqualValues(t, 100, *list[1].Bytes)
	for _, a := range list {
		require.Equal(t, t.Name(), a.Worker)
		require.WithinDuration(t, time.Now(), a.StartedAt, time.Minute)
		require.NotNil(t, a.EndedAt)
		require.False(t, a.EndedAt.Before(a.StartedAt.Add(-time.Second)))
	}
}

// A job that names keys, as downloads do, is completed along with what it fetched.
func TestHistoryOfAFetch(t *testing.T) {
	t.Parallel()

	b := assemble(t, func(ctx context.Context, _ *river.Job[synthetic]) error {
		queue.NoteBytes(ctx, 7)
		return nil
	}, quick)
	y := newYard(t, b)
	id := y.add(t, 1, "host:a")[0]
	b.start(t)
	require.Eventually(t, func() bool {
		_, err := y.admission.Round(t.Context())
		return err == nil && b.job(t, id).State == rivertype.JobStateCompleted
	}, 20*time.Second, 10*time.Millisecond)
	list := b.attempts(t, id)
	require.Equal(t, []string{"completed "}, outcomes(list))
	require.EqualValues(t, 7, *list[0].Bytes)
}

// One that is put off again and again keeps the newest fifty.
func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()

	const pauses = 60
	n := 0
	b := assemble(t, func(context.Context, *river.Job[synthetic]) error {
		if n++; n <= pauses {
			return river.JobSnooze(0)
		}
		return nil
	}, quick)
	b.start(t)
	id := b.insert(t, river.InsertOpts{}, synthetic{})[0]
	require.Eventually(t, func() bool { return b.job(t, id).State == rivertype.JobStateCompleted }, time.Minute, 20*time.Millisecond)
	require.Len(t, b.attempts(t, id), 50)
	require.Equal(t, 50, b.count(t, `SELECT count(*) FROM medianest.attempt`))
}
