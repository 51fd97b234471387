package api

import (
	"context"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// Pauses are what is to stand still, for administrators.
type Pauses interface {
	ListPauses(ctx context.Context) ([]store.Pause, error)
	// SetPause pauses a key, or changes the note of a pause. It is in force when SetPause returns.
	SetPause(ctx context.Context, p store.Pause) (store.Pause, error)
	DeletePause(ctx context.Context, key string) error
}

// Pause keeps jobs under a key from starting until it is taken back.
type Pause struct {
	Key      string     `json:"key" doc:"What stands still: queue:, kind:, host:, user: (with the id), service: or cookie: and a name, or * for all of the form." example:"kind:download"`
	Note     string     `json:"note,omitempty" doc:"Why." example:"the disk is being replaced"`
	PausedAt time.Time  `json:"paused_at" doc:"Since when."`
	PausedBy *uuid.UUID `json:"paused_by,omitempty" format:"uuid" doc:"Who paused it; missing where River UI or somebody at the database did."`
}

// PauseRequest is what is said of a pause.
type PauseRequest struct {
	Note string `json:"note,omitempty" maxLength:"500" doc:"Why, for others." example:"the disk is being replaced"`
}

// PauseList is all pauses there are.
type PauseList struct {
	Items []Pause `json:"items" nullable:"false" doc:"The pauses, by key."`
}

var listPauses = described{
	id: "list-pauses", scope: ScopeQueueRead, tag: tagLimits, summary: "List pauses",
	text: "What stands still. A queue that was paused in River UI is among them.",
}

type listPausesOutput struct{ Body PauseList }

func (a *API) handleListPauses(ctx context.Context, _ *struct{}) (*listPausesOutput, error) {
	pauses, err := a.store.ListPauses(ctx)
	if err != nil {
		return nil, err
	}
	list := PauseList{Items: make([]Pause, len(pauses))}
	for i, p := range pauses {
		list.Items[i] = Pause(p)
	}
	return &listPausesOutput{list}, nil
}

var setPause = described{
	id: "set-pause", scope: ScopeQueueWrite, tag: tagLimits, summary: "Pause a queue, a kind, a host",
	text:     "Nothing starts under the key when the answer comes, in the whole fleet, and what was about to begin waits again; what runs goes on. It stays so until it is taken back, whatever is restarted meanwhile. Jobs that wait keep their place.",
	problems: []Code{CodeValidationFailed},
}

type setPauseInput struct {
	Key  string `path:"key" maxLength:"1024" doc:"What is to stand still." example:"kind:download"`
	Body PauseRequest
}

type pauseOutput struct{ Body Pause }

func (a *API) handleSetPause(ctx context.Context, input *setPauseInput) (*pauseOutput, error) {
	note(ctx, "asked", input.Body)
	by := viewerOf(ctx).UserID
	pause, err := a.store.SetPause(ctx, store.Pause{Key: input.Key, Note: input.Body.Note, PausedBy: &by})
	if err != nil {
		return nil, err
	}
	a.onLimits()
	return &pauseOutput{Pause(pause)}, nil
}

var deletePause = described{
	id: "delete-pause", scope: ScopeQueueWrite, tag: tagLimits, summary: "Resume",
	text:     "Takes a pause back: what waited begins, in its order and within its limits.",
	problems: []Code{CodeNotFound, CodeValidationFailed},
}

func (a *API) handleDeletePause(ctx context.Context, input *limitInput) (*struct{}, error) {
	if err := a.store.DeletePause(ctx, input.Key); err != nil {
		return nil, noneOf(err, "This key is not paused by itself.")
	}
	a.onLimits()
	return nil, nil //nolint:nilnil // huma's answer without a body
}
