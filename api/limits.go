package api

import (
	"context"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// Limits is what is allowed of the things that jobs share, for administrators.
type Limits interface {
	// ListLimits returns a page by key, and the cursor of the next one, or "".
	ListLimits(ctx context.Context, cursor string, limit int) ([]store.Limit, string, error)
	FindLimit(ctx context.Context, key string) (store.Limit, error)
	// SetLimit sets the limit of its key. It is in force when SetLimit returns.
	SetLimit(ctx context.Context, l store.Limit) (store.Limit, error)
	DeleteLimit(ctx context.Context, key string) error
}

// Limit is what is allowed of a key.
type Limit struct {
	Key        string     `json:"key" doc:"What is limited: host:, user: (with the id), kind:, service:, cookie: or queue: and a name, or * for each of the form that has no limit of its own." example:"host:youtube.com"`
	MaxRunning *int       `json:"max_running,omitempty" doc:"How many jobs run at a time; with 0 none begins. Missing: as many as there are workers for." example:"2"`
	MaxStarts  *int       `json:"max_starts,omitempty" doc:"How many begin within period_s." example:"100"`
	PeriodS    *int       `json:"period_s,omitempty" doc:"In seconds, together with max_starts." example:"3600"`
	SpacingS   float64    `json:"spacing_s" doc:"How many seconds lie between two that begin, at least." example:"10"`
	JitterS    float64    `json:"jitter_s" doc:"Up to so many seconds more, each time another number of them." example:"10"`
	Windows    []Window   `json:"windows,omitempty" nullable:"false" doc:"When jobs begin; missing: at any time."`
	Timezone   string     `json:"timezone" doc:"Whose clocks the windows go by." example:"Europe/Berlin"`
	Running    *int       `json:"running,omitempty" doc:"How many jobs run under the key now, those included that are about to; missing with *." example:"1"`
	UpdatedAt  time.Time  `json:"updated_at" doc:"When it was set."`
	UpdatedBy  *uuid.UUID `json:"updated_by,omitempty" format:"uuid" doc:"Who set it; missing where the platform did."`
}

// Window is a time of the day at which jobs begin.
type Window struct {
	Days []string `json:"days,omitempty" maxItems:"7" nullable:"false" enum:"mon,tue,wed,thu,fri,sat,sun" doc:"The days on which it begins; missing: every day."`
	From string   `json:"from" pattern:"^([01][0-9]|2[0-3]):[0-5][0-9]$" doc:"When it begins." example:"23:00"`
	To   string   `json:"to" pattern:"^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$" doc:"When it ends; on the next day if that is not after from." example:"07:00"`
}

func windowsOf(windows []store.Window) []Window {
	var shown []Window
	for _, w := range windows {
		shown = append(shown, Window(w))
	}
	return shown
}

func limitOf(l store.Limit) Limit {
	return Limit{
		Key: l.Key, MaxRunning: l.MaxRunning, MaxStarts: l.MaxStarts, PeriodS: l.PeriodS, SpacingS: l.SpacingS, JitterS: l.JitterS,
		Windows: windowsOf(l.Windows), Timezone: l.Timezone, Running: l.Running, UpdatedAt: l.UpdatedAt, UpdatedBy: l.UpdatedBy,
	}
}

// LimitRequest is all that a limit says. What is missing is not limited.
type LimitRequest struct {
	MaxRunning *int     `json:"max_running,omitempty" minimum:"0" maximum:"100000" doc:"How many jobs run at a time; with 0 none begins." example:"2"`
	MaxStarts  *int     `json:"max_starts,omitempty" minimum:"1" maximum:"1000" doc:"How many begin within period_s." example:"100"`
	PeriodS    *int     `json:"period_s,omitempty" minimum:"1" maximum:"2592000" doc:"In seconds, together with max_starts." example:"3600"`
	SpacingS   float64  `json:"spacing_s,omitempty" minimum:"0" maximum:"86400" doc:"How many seconds lie between two that begin, at least." example:"10"`
	JitterS    float64  `json:"jitter_s,omitempty" minimum:"0" maximum:"86400" doc:"Up to so many seconds more, each time another number of them." example:"10"`
	Windows    []Window `json:"windows,omitempty" nullable:"false" maxItems:"20" doc:"When jobs begin. What runs when a window closes goes on."`
	Timezone   string   `json:"timezone,omitempty" maxLength:"64" doc:"Whose clocks the windows go by, as an IANA name. Default: UTC." example:"Europe/Berlin"`
}

// LimitList is a page of limits.
type LimitList struct {
	Items      []Limit `json:"items" nullable:"false" doc:"The page."`
	NextCursor string  `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

// Waiting is why a job waits that could be worked now.
type Waiting struct {
	Reason    string     `json:"reason" enum:"paused,window,limit,pace,breaker,slots" doc:"paused: somebody has paused the key. window: jobs under the key begin at other times of the day. limit: as many as are allowed at a time run under the key. pace: too many have begun under the key of late. breaker: what stands behind the key asked for less or fails, and is tried by one job at a time. slots: all workers are busy, or there is none; or it has only just come." example:"limit"`
	Key       string     `json:"key,omitempty" doc:"The first of its keys that has no room; see the limits. Where it is another user's, the name is not told." example:"host:youtube.com"`
	Position  int        `json:"position,omitempty" minimum:"1" maximum:"1000" doc:"Its place in line by what is known now, of those that wait for the same: 1 is next, 1000 is that or more. Users are served in turn, so a user's first job is not behind all of another's. Told where one is shown, not in lists." example:"3"`
	NotBefore *time.Time `json:"not_before,omitempty" doc:"When it may begin at the earliest, if that is known."`
}

type limitInput struct {
	Key string `path:"key" maxLength:"1024" doc:"What is limited." example:"host:youtube.com"`
}

type limitOutput struct{ Body Limit }

var listLimits = described{
	id: "list-limits", scope: ScopeQueueRead, tag: tagLimits, summary: "List limits",
	text:     "What is allowed of the things that jobs share, by key. A new platform has some.",
	problems: []Code{CodeValidationFailed},
}

type listLimitsInput struct{ Paging }

type listLimitsOutput struct{ Body LimitList }

func (a *API) handleListLimits(ctx context.Context, input *listLimitsInput) (*listLimitsOutput, error) {
	limits, next, err := a.store.ListLimits(ctx, input.Cursor, input.Limit)
	if err != nil {
		return nil, err
	}
	list := LimitList{Items: make([]Limit, len(limits)), NextCursor: next}
	for i, l := range limits {
		list.Items[i] = limitOf(l)
	}
	return &listLimitsOutput{list}, nil
}

var findLimit = described{
	id: "find-limit", scope: ScopeQueueRead, tag: tagLimits, summary: "Show a limit",
	text:     "The key's own. One that it has by its form is found under that: `host:*`.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

func (a *API) handleFindLimit(ctx context.Context, input *limitInput) (*limitOutput, error) {
	limit, err := a.store.FindLimit(ctx, input.Key)
	if err != nil {
		return nil, noneOf(err, "This key has no limit of its own.")
	}
	return &limitOutput{limitOf(limit)}, nil
}

var setLimit = described{
	id: "set-limit", scope: ScopeQueueWrite, tag: tagLimits, summary: "Set a limit",
	text: "Sets all of it, whether there was one or not. It is in force when the answer comes, in the whole fleet and for what waits already: no job is admitted against it. What runs goes on.\n\n" +
		"A key's own limit goes before that of its form, also one that says nothing: `{}` frees `host:example.org` from what holds for `host:*`.\n\n" +
		"Jobs count under the keys that they name: downloads under the site that they come from (`host:youtube.com` for www.youtube.com and m.youtube.com), the user who asked first, their kind and their queue.",
	problems: []Code{CodeValidationFailed},
}

type setLimitInput struct {
	Key  string `path:"key" maxLength:"1024" doc:"What is limited." example:"host:youtube.com"`
	Body LimitRequest
}

func (a *API) handleSetLimit(ctx context.Context, input *setLimitInput) (*limitOutput, error) {
	note(ctx, "asked", input.Body)
	by := viewerOf(ctx).UserID
	var windows []store.Window
	for _, w := range input.Body.Windows {
		windows = append(windows, store.Window(w))
	}
	limit, err := a.store.SetLimit(ctx, store.Limit{
		Key: input.Key, MaxRunning: input.Body.MaxRunning, MaxStarts: input.Body.MaxStarts, PeriodS: input.Body.PeriodS,
		SpacingS: input.Body.SpacingS, JitterS: input.Body.JitterS, Windows: windows, Timezone: input.Body.Timezone, UpdatedBy: &by,
	})
	if err != nil {
		return nil, err
	}
	a.onLimits()
	return &limitOutput{limitOf(limit)}, nil
}

var deleteLimit = described{
	id: "delete-limit", scope: ScopeQueueWrite, tag: tagLimits, summary: "Delete a limit",
	text:     "What waited for it begins at once, unless its form or another key has a limit.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

func (a *API) handleDeleteLimit(ctx context.Context, input *limitInput) (*struct{}, error) {
	if err := a.store.DeleteLimit(ctx, input.Key); err != nil {
		return nil, noneOf(err, "This key has no limit of its own.")
	}
	a.onLimits()
	return nil, nil //nolint:nilnil // huma's answer without a body
}

// noneOf is problemOf's not_found with words about a key, other errors unchanged.
func noneOf(err error, sentence string) error {
	if p, ok := notFound(err, "key").(*Problem); ok { //nolint:errorlint // notFound's own
		p.Detail = sentence
		return p
	}
	return err
}

func mapWaiting(w *store.Waiting) *Waiting {
	if w == nil {
		return nil
	}
	return &Waiting{Reason: w.Reason, Key: w.Key, Position: w.Position, NotBefore: w.NotBefore}
}
