package api_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/jobs/queue"
)

// queues answers with what it is.
type queues struct {
	list []queue.Statistics
	err  error
}

func (q *queues) Statistics(context.Context) ([]queue.Statistics, error) { return q.list, q.err }

func TestQueues(t *testing.T) {
	t.Parallel()
	known := &queues{list: []queue.Statistics{{
		Queue: "download", Jobs: map[string]int64{"pending": 10_000, "running": 3}, AtLeast: true, OldestAge: 1500 * time.Millisecond,
		Slots: 4, NeededSlots: 6,
	}}}
	b := setup(t, func(_ *bundle, o *api.Options) { o.Queues = known })
	list := request{method: "GET", path: "/api/v1/queues", token: b.admin.token}
	a := b.do(list)
	require.JSONEq(t, `{"items":[{"name":"download","jobs":{"pending":10000,"running":3},"oldest_age_s":1.5,"slots":4,"needed_slots":6,"at_least":true}]}`, string(a.body))
	known.err = errors.New("away")
	b.do(list).problem(http.StatusServiceUnavailable, api.CodeUnavailable)
	list.token = b.anna.token
	b.do(list).problem(http.StatusForbidden, api.CodeForbidden)
}
