package api

import (
	"context"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// User is who uses the platform.
type User struct {
	ID        uuid.UUID `json:"id" format:"uuid" doc:"Identifies the user."`
	Name      string    `json:"name" doc:"Unique, and part of the paths of the user's files." example:"anna"`
	Role      string    `json:"role" enum:"admin,manager,member,viewer" doc:"What the user may do. An admin sees everything of everybody."`
	CreatedAt time.Time `json:"created_at" doc:"When the user was created."`
}

var findMe = described{
	id: "find-me", tag: tagUsers, summary: "Who am I?",
	text: "The user that the request's token belongs to.",
}

type findMeOutput struct{ Body User }

func (a *API) handleFindMe(ctx context.Context, _ *struct{}) (*findMeOutput, error) {
	return &findMeOutput{*presentUser(scopeOf(ctx).identity.User)}, nil
}

func presentUser(u store.User) *User {
	return &User{ID: u.ID, Name: u.Name, Role: u.Role, CreatedAt: u.CreatedAt}
}
