package queue

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"medianest/jobs/reason"
)

// What the tests and benchmarks compare with.
const (
	DepthSQL      = depthSQL
	WaitingSQL    = waitingSQL
	ReclaimSQL    = reclaimSQL
	PlanSQL       = planSQL
	LookSQL       = lookSQL
	GiveBackSQL   = giveBackSQL
	NotifyWindow  = notifyWindow
	FetchCooldown = fetchCooldown
	FetchPoll     = fetchPoll
	MaxExamined   = maxExamined
)

// BreakerLadder are the waits of a breaker.
var BreakerLadder = breakerLadder

// TripAs trips a breaker as an attempt of that job does.
func (c *Client) TripAs(ctx context.Context, job int64, key string, failure *reason.Error) error {
	return c.breakers.trip(ctx, key, job, failure)
}

// Statements of a round.
const (
	BeginSQL    = beginSQL
	StateSQL    = stateSQL
	UsesSQL     = usesSQL
	BreakersSQL = breakersSQL
	SourcesSQL  = sourcesSQL
	HeadsSQL    = headsSQL
	PromoteSQL  = promoteSQL
	MarkSQL     = markSQL
	TakeBackSQL = takeBackSQL
)

// Decision is what a round did. Ours is false where another process decides.
type Decision struct {
	Admitted, Demoted, Examined int
	Again                       time.Duration
	Ours                        bool
}

// Round decides once.
func (a *Admission) Round(ctx context.Context) (Decision, error) {
	var d Decision
	err := pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) (err error) {
		d, err = DecideIn(ctx, tx)
		return err
	})
	return d, err
}

// DecideIn decides once in a transaction of the caller's.
func DecideIn(ctx context.Context, tx pgx.Tx) (Decision, error) {
	d, err := decide(ctx, tx)
	if err == errNotUs { //nolint:errorlint // as it is
		return Decision{}, nil
	}
	return Decision{d.admitted, d.demoted, d.examined, d.again, true}, err
}

// QueryFleet asks for what the statistics and metrics of queues are made of.
func QueryFleet(ctx context.Context, pool *pgxpool.Pool) ([]Statistics, error) {
	found, err := queryFleet(ctx, pool)
	return found.statistics(), err
}
