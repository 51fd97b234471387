package api

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// Tokens are what programs show.
type Tokens interface {
	CreateToken(ctx context.Context, n store.NewToken) (store.Token, error)
	ListTokens(ctx context.Context, userID uuid.UUID) ([]store.Token, error)
	// RevokeToken ends one: ErrNotFound if it is another's, ErrConflict if it has ended.
	RevokeToken(ctx context.Context, id uuid.UUID, v store.Viewer) error
}

// Token lets a program act as a user.
type Token struct {
	ID         uuid.UUID  `json:"id" format:"uuid" doc:"Identifies the token."`
	UserID     uuid.UUID  `json:"user_id" format:"uuid" doc:"Whom it acts as."`
	Name       string     `json:"name" doc:"What it is for." example:"home assistant"`
	Scopes     []string   `json:"scopes,omitempty" doc:"What it may do, of what its user may. Missing: all of it." example:"[\"downloads:read\"]"`
	Networks   []string   `json:"networks,omitempty" doc:"From where it is taken. Missing: from anywhere." example:"[\"192.168.1.0/24\"]"`
	CreatedAt  time.Time  `json:"created_at" doc:"When it was made."`
	ExpiresAt  *time.Time `json:"expires_at,omitempty" doc:"When it ends. Missing: when it is revoked."`
	LastUsedAt *time.Time `json:"last_used_at,omitempty" doc:"When it was used last, to the minute. Missing: never."`
	RevokedAt  *time.Time `json:"revoked_at,omitempty" doc:"When it was revoked."`
}

// NewToken is a token with its secret.
type NewToken struct {
	Token

	Secret string `json:"secret" doc:"What goes into the header Authorization: Bearer. It is shown here, once, and kept by nobody." example:"mn_…"`
}

// TokenRequest is the token that is to be.
type TokenRequest struct {
	Name      string     `json:"name" minLength:"1" maxLength:"255" doc:"What it is for." example:"home assistant"`
	UserID    *uuid.UUID `json:"user_id,omitempty" format:"uuid" doc:"Whom it acts as; another user than yourself takes the scope users:write. Missing: yourself."`
	Scopes    []string   `json:"scopes,omitempty" maxItems:"50" doc:"What it may do, of what the user may. Missing: all of it. See GET /roles." example:"[\"downloads:read\",\"downloads:write\"]"`
	Networks  []string   `json:"networks,omitempty" maxItems:"50" doc:"Addresses and networks from which it is taken. Missing: from anywhere." example:"[\"192.168.1.0/24\"]"`
	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"When it ends. Missing: when it is revoked."`
}

// TokenList is all of a user's tokens.
type TokenList struct {
	Items []Token `json:"items" nullable:"false" doc:"The tokens, newest first; those that ended within a month are among them."`
}

func presentToken(t store.Token) Token {
	return Token{
		ID: t.ID, UserID: t.UserID, Name: t.Name, Scopes: t.Scopes, Networks: networkNames(t.Networks), CreatedAt: t.CreatedAt,
		ExpiresAt: t.ExpiresAt, LastUsedAt: t.LastUsedAt, RevokedAt: t.RevokedAt,
	}
}

func networkNames(networks []netip.Prefix) []string {
	var names []string
	for _, n := range networks {
		names = append(names, n.String())
	}
	return names
}

// parseNetworks reads addresses and networks; an address is a network of one.
func parseNetworks(names []string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, name := range names {
		n, err := netip.ParsePrefix(name)
		if err != nil {
			address, addrErr := netip.ParseAddr(name)
			if addrErr != nil || address.Zone() != "" {
				return nil, &store.InvalidError{Field: "networks", Reason: "has one that is no address and no network, such as 192.168.1.0/24"}
			}
			n = netip.PrefixFrom(address.Unmap(), address.Unmap().BitLen())
		}
		networks = append(networks, n.Masked())
	}
	slices.SortFunc(networks, netip.Prefix.Compare)
	return slices.Compact(networks), nil
}

var createToken = described{
	id: "create-token", tag: tagUsers, scope: ScopeProfile, status: http.StatusCreated, summary: "Make an API token",
	text:     "For a program that is to act as you. Its secret is in the answer, and nowhere else. A token that is bound to scopes or networks makes none.",
	problems: []Code{CodeConflict, CodeNotFound, CodeValidationFailed},
}

type createTokenOutput struct{ Body NewToken }

func (a *API) handleCreateToken(ctx context.Context, input *struct{ Body TokenRequest }) (*createTokenOutput, error) {
	s := scopeOf(ctx)
	who, asked := s.identity, input.Body
	if p := who.inPerson(); p != nil {
		return nil, p
	}
	userID := who.User.ID
	if asked.UserID != nil && *asked.UserID != userID {
		if p := who.permit(ScopeUsersWrite); p != nil {
			return nil, p
		}
		user, err := a.store.FindUser(ctx, *asked.UserID)
		if err != nil {
			return nil, notFound(err, "user")
		}
		userID = user.ID
	}
	if err := checkScopes(asked.Scopes); err != nil {
		return nil, err
	}
	networks, err := parseNetworks(asked.Networks)
	if err != nil {
		return nil, err
	}
	if len(asked.Scopes) == 0 {
		asked.Scopes = nil
	}
	secret, hash := newSecret("mn_")
	token, err := a.store.CreateToken(ctx, store.NewToken{
		UserID: userID, Name: asked.Name, Hash: hash, Scopes: asked.Scopes, Networks: networks, ExpiresAt: asked.ExpiresAt,
	})
	if err != nil {
		return nil, conflict(err, "There are too many tokens: revoke some.")
	}
	a.noteEvent(ctx, s.gin, store.AuditEntry{
		ActorID: &who.User.ID, Action: "create-token", Subject: "id=" + token.ID.String(),
		Detail: map[string]any{"name": token.Name, "user_id": userID, "scopes": token.Scopes},
	}, http.StatusCreated)
	return &createTokenOutput{NewToken{Token: presentToken(token), Secret: secret}}, nil
}

var listTokens = described{
	id: "list-tokens", tag: tagUsers, scope: ScopeProfile, summary: "List API tokens",
	text:     "Your own, or another user's.",
	problems: []Code{CodeValidationFailed},
}

type listTokensOutput struct{ Body TokenList }

func (a *API) handleListTokens(ctx context.Context, input *struct {
	UserID uuid.UUID `query:"user_id" format:"uuid" doc:"Whose; another user than yourself takes the scope users:read."`
}) (*listTokensOutput, error) {
	who := scopeOf(ctx).identity
	userID := who.User.ID
	if input.UserID != uuid.Nil && input.UserID != userID {
		if p := who.permit(ScopeUsersRead); p != nil {
			return nil, p
		}
		userID = input.UserID
	}
	tokens, err := a.store.ListTokens(ctx, userID)
	if err != nil {
		return nil, err
	}
	list := TokenList{Items: make([]Token, len(tokens))}
	for i, t := range tokens {
		list.Items[i] = presentToken(t)
	}
	return &listTokensOutput{list}, nil
}

var revokeToken = described{
	id: "revoke-token", tag: tagUsers, scope: ScopeProfile, summary: "Revoke an API token",
	text:     "It is refused from now on, at every replica, and the sessions that began with it have ended. Another user's takes the scope users:write.",
	problems: []Code{CodeConflict, CodeNotFound},
}

func (a *API) handleRevokeToken(ctx context.Context, input *struct {
	ID uuid.UUID `path:"id" format:"uuid" doc:"The token."`
}) (*struct{}, error) {
	s := scopeOf(ctx)
	viewer := store.Viewer{UserID: s.identity.User.ID, Admin: s.identity.permit(ScopeUsersWrite) == nil}
	if err := a.store.RevokeToken(ctx, input.ID, viewer); err != nil {
		return nil, conflict(notFound(err, "token"), "The token was revoked before.")
	}
	return nil, nil //nolint:nilnil // huma's answer without a body
}
