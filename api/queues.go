package api

import (
	"context"

	"medianest/jobs/queue"
)

// Queues tells what waits.
type Queues interface {
	// Statistics returns what is known of the queues, by name. It may be some seconds old.
	Statistics(ctx context.Context) ([]queue.Statistics, error)
}

// QueueStatistics is what is known of a queue.
type QueueStatistics struct {
	Name        string           `json:"name" doc:"The queue's name." example:"download"`
	Jobs        map[string]int64 `json:"jobs" nullable:"false" doc:"Jobs that have not ended, by state. Those that wait for a limit or a free slot are pending."`
	OldestAgeS  float64          `json:"oldest_age_s" doc:"For how many seconds the oldest available or pending job has been due." example:"12.5"`
	Slots       int              `json:"slots" doc:"How many jobs its workers can run at a time." example:"4"`
	NeededSlots int64            `json:"needed_slots" doc:"How many slots would be of use now: the jobs that run, and those that could begin within limits, paces, breakers and pauses if there were slots for all." example:"6"`
	AtLeast     bool             `json:"at_least,omitempty" doc:"There are too many to count: the numbers are at least so high."`
}

// QueueList is all queues.
type QueueList struct {
	Items []QueueStatistics `json:"items" nullable:"false" doc:"The queues, by name."`
}

var listQueues = described{
	id: "list-queues", scope: ScopeQueueRead, tag: tagWorkers, summary: "List queues",
	text: "The queues that jobs are in or workers work, with how much waits, for how long, and how many slots would be of use. Counts stop at 10,000. The answer is at most five seconds old.",
}

type listQueuesOutput struct{ Body QueueList }

func (a *API) handleListQueues(ctx context.Context, _ *struct{}) (*listQueuesOutput, error) {
	list := QueueList{Items: []QueueStatistics{}}
	if a.queues == nil {
		return &listQueuesOutput{list}, nil
	}
	statistics, err := a.queues.Statistics(ctx)
	if err != nil {
		return nil, newProblem(CodeUnavailable, "").because(err)
	}
	for _, s := range statistics {
		list.Items = append(list.Items, QueueStatistics{
			Name: s.Queue, Jobs: s.Jobs, OldestAgeS: s.OldestAge.Seconds(), Slots: s.Slots, NeededSlots: s.NeededSlots, AtLeast: s.AtLeast,
		})
	}
	return &listQueuesOutput{list}, nil
}
