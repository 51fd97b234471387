package api

import (
	"context"
	"strconv"
	"time"

	"medianest/store"
)

// Breakers keep jobs away from what asked for less; for administrators.
type Breakers interface {
	// ListBreakers returns a page by key, and the cursor of the next one, or "".
	ListBreakers(ctx context.Context, cursor string, limit int) ([]store.Breaker, string, error)
	ResetBreaker(ctx context.Context, key string) error
}

// Breaker is a key whose breaker has tripped and not closed.
type Breaker struct {
	Key        string    `json:"key" doc:"What is left alone, as limits name it: host: and a site." example:"host:youtube.com"`
	State      string    `json:"state" enum:"open,due,probing" doc:"open: nothing begins. due: the wait is over, and the next job that can begin is the probe. probing: the probe is under way, and nothing else begins." example:"open"`
	Step       int       `json:"step" minimum:"0" maximum:"9" doc:"How far up the ladder of waits it is: 0, 1, 5, 15, 30 minutes, 1, 3, 6, 12, 24 hours." example:"2"`
	OpenUntil  time.Time `json:"open_until" doc:"No probe begins before."`
	TrippedAt  time.Time `json:"tripped_at" doc:"When the site last asked for less."`
	Trips      int       `json:"trips" minimum:"1" doc:"How often it did, to the first job and to each probe since." example:"3"`
	ProbeJobID string    `json:"probe_job_id,omitempty" doc:"The probe that is under way." example:"17"`
	Reason     string    `json:"reason" doc:"Why the job failed that tripped it last." example:"rate_limited"`
}

// BreakerList is a page of breakers.
type BreakerList struct {
	Items      []Breaker `json:"items" nullable:"false" doc:"The page."`
	NextCursor string    `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

var listBreakers = described{
	id: "list-breakers", scope: ScopeQueueRead, tag: tagLimits, summary: "List breakers",
	text: "The sites that asked for less and are left alone, by key. A breaker is here from when it trips until it closes.\n\n" +
		"A site that answers that we ask too often (`rate_limited`), or wants proof that no robot is asking (`bot_check`), trips its breaker: none of its jobs begins for a while. Then one does, the probe. If the site answers, the breaker closes and all go on; if it refuses again, the next wait is longer. The jobs wait without spending an attempt.",
	problems: []Code{CodeValidationFailed},
}

type listBreakersInput struct{ Paging }

type listBreakersOutput struct{ Body BreakerList }

func (a *API) handleListBreakers(ctx context.Context, input *listBreakersInput) (*listBreakersOutput, error) {
	breakers, next, err := a.store.ListBreakers(ctx, input.Cursor, input.Limit)
	if err != nil {
		return nil, err
	}
	list := BreakerList{Items: make([]Breaker, len(breakers)), NextCursor: next}
	for i, b := range breakers {
		list.Items[i] = mapBreaker(b)
	}
	return &listBreakersOutput{list}, nil
}

var resetBreaker = described{
	id: "reset-breaker", scope: ScopeQueueWrite, tag: tagLimits, summary: "Reset a breaker",
	text:     "Closes it as if it had never tripped: what waits for it begins at once, as far as limits allow. If the site still refuses, it trips again.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

type resetBreakerInput struct {
	Key string `path:"key" maxLength:"1024" doc:"What has been left alone." example:"host:youtube.com"`
}

func (a *API) handleResetBreaker(ctx context.Context, input *resetBreakerInput) (*struct{}, error) {
	if err := a.store.ResetBreaker(ctx, input.Key); err != nil {
		return nil, noBreaker(err)
	}
	a.onLimits()
	return nil, nil //nolint:nilnil // huma's answer without a body
}

// noBreaker is problemOf's not_found with words about breakers, other errors unchanged.
func noBreaker(err error) error {
	if p, ok := notFound(err, "breaker").(*Problem); ok { //nolint:errorlint // notFound's own
		p.Detail = "The breaker of this key has not tripped."
		return p
	}
	return err
}

func mapBreaker(b store.Breaker) Breaker {
	mapped := Breaker{
		Key: b.Key, State: b.State, Step: b.Step, OpenUntil: b.OpenUntil, TrippedAt: b.TrippedAt, Trips: b.Trips, Reason: b.Reason,
	}
	if b.ProbeJob != nil {
		mapped.ProbeJobID = strconv.FormatInt(*b.ProbeJob, 10)
	}
	return mapped
}
