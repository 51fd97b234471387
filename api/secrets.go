package api

import (
	"context"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// Secrets are what is kept and shown to nobody.
type Secrets interface {
	SetSecret(ctx context.Context, name string, value []byte, userID, by *uuid.UUID) (store.Secret, error)
	ListSecrets(ctx context.Context, cursor string, limit int) ([]store.Secret, string, error)
	DeleteSecret(ctx context.Context, name string) error
	// RotateSecrets seals all anew that is not under the active key.
	RotateSecrets(ctx context.Context) (store.Rotation, error)
}

// Secret is what is told of a secret.
type Secret struct {
	Name      string     `json:"name" doc:"Its name, by which what needs it finds it." example:"plex:token"`
	KeyID     string     `json:"key_id" doc:"The secret key that it is sealed under." example:"9f2c41d7"`
	UserID    *uuid.UUID `json:"user_id,omitempty" format:"uuid" doc:"Whose it is. Missing: the platform's."`
	UpdatedAt time.Time  `json:"updated_at" doc:"When it was set."`
	UpdatedBy *uuid.UUID `json:"updated_by,omitempty" format:"uuid" doc:"By whom."`
}

// SecretRequest is a value to be sealed.
type SecretRequest struct {
	Value string `json:"value" minLength:"1" maxLength:"262144" doc:"The secret: a token, a password, a cookie jar. Nothing shows it again."`
}

// SecretList is a page of secrets.
type SecretList struct {
	Items      []Secret `json:"items" nullable:"false" doc:"The page, by name. Values are not shown."`
	NextCursor string   `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

// Rotation is what came of sealing everything anew.
type Rotation struct {
	Active string   `json:"active" doc:"The secret key that all is under now." example:"9f2c41d7"`
	Sealed int      `json:"sealed" doc:"How many were sealed anew." example:"12"`
	Lost   []string `json:"lost" nullable:"false" doc:"Names of those that none of the keys opens: set them again, or bring back the key."`
}

func presentSecret(s store.Secret) Secret { return Secret(s) }

var listSecrets = described{
	id: "list-secrets", scope: ScopeSecretsWrite, tag: tagSecrets, summary: "List secrets",
	text: "Their names, and under which key they are sealed.", problems: []Code{CodeValidationFailed},
}

type listSecretsOutput struct{ Body SecretList }

func (a *API) handleListSecrets(ctx context.Context, input *struct{ Paging }) (*listSecretsOutput, error) {
	secrets, next, err := a.store.ListSecrets(ctx, input.Cursor, input.Limit)
	if err != nil {
		return nil, err
	}
	list := SecretList{Items: make([]Secret, len(secrets)), NextCursor: next}
	for i, s := range secrets {
		list.Items[i] = presentSecret(s)
	}
	return &listSecretsOutput{list}, nil
}

var setSecret = described{
	id: "set-secret", scope: ScopeSecretsWrite, tag: tagSecrets, summary: "Set a secret",
	text:     "Seals the value (AES-256-GCM) and keeps it under the name, in place of what was there. It is opened only where it is used, and shown nowhere: not here, nor in jobs, events, logs or traces.",
	problems: []Code{CodeConflict, CodeValidationFailed},
}

type secretOutput struct{ Body Secret }

func (a *API) handleSetSecret(ctx context.Context, input *struct {
	Name string `path:"name" maxLength:"200" pattern:"^[a-z0-9][a-z0-9._:-]*$" doc:"Its name." example:"plex:token"`
	Body SecretRequest
}) (*secretOutput, error) {
	by := scopeOf(ctx).identity.User.ID
	secret, err := a.store.SetSecret(ctx, input.Name, []byte(input.Body.Value), nil, &by)
	if err != nil {
		return nil, conflict(err, "There are too many secrets.")
	}
	return &secretOutput{presentSecret(secret)}, nil
}

var deleteSecret = described{
	id: "delete-secret", scope: ScopeSecretsWrite, tag: tagSecrets, summary: "Forget a secret", problems: []Code{CodeNotFound},
}

func (a *API) handleDeleteSecret(ctx context.Context, input *struct {
	Name string `path:"name" maxLength:"200" doc:"Its name."`
}) (*struct{}, error) {
	if err := a.store.DeleteSecret(ctx, input.Name); err != nil {
		return nil, notFound(err, "secret")
	}
	return nil, nil //nolint:nilnil // huma's answer without a body
}

var rotateSecrets = described{
	id: "rotate-secrets", scope: ScopeSecretsWrite, tag: tagSecrets, summary: "Seal all secrets under the active key",
	text: "After a new key was put before the old one in `MEDIANEST_SECRET_KEYS` of all processes; a schedule does it every day as well. When nothing is lost, the old key can go: in ten minutes, when no session is signed by it any more.",
}

type rotationOutput struct{ Body Rotation }

func (a *API) handleRotateSecrets(ctx context.Context, _ *struct{}) (*rotationOutput, error) {
	r, err := a.store.RotateSecrets(ctx)
	if err != nil {
		return nil, err
	}
	rotation := Rotation{Active: r.Active, Sealed: r.Sealed, Lost: r.Lost}
	if rotation.Lost == nil {
		rotation.Lost = []string{}
	}
	note(ctx, "sealed", r.Sealed)
	return &rotationOutput{rotation}, nil
}
