package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"medianest/api"
	"medianest/jobs/egress"
	"medianest/jobs/oidc"
	"medianest/jobs/plex"
	"medianest/store"
)

// providers are the ways to sign in besides passwords that the settings name. What they ask of others goes out guarded.
func (a *assembly) providers(ctx context.Context) ([]api.Provider, error) {
	if a.config.PlexServerID == "" && a.config.OIDCIssuer == "" {
		return nil, nil
	}
	allowed, err := egress.ParseAllow(a.config.EgressAllow)
	if err != nil {
		return nil, usageError("MEDIANEST_EGRESS_ALLOW: %v", err)
	}
	guard := egress.NewGuard(egress.Options{Policy: allowed, Forbidden: a.ownAddresses(ctx), Logger: a.log})
	client := guard.Client(egress.ClientOptions{Version: buildVersion()})
	var found []api.Provider
	if a.config.PlexServerID != "" {
		found = append(found, plexProvider{plex.NewSignIn(plex.Options{
			ServerID: a.config.PlexServerID, Version: buildVersion(), Client: client,
		})})
	}
	if a.config.OIDCIssuer != "" {
		found = append(found, oidcProvider{oidc.New(oidc.Options{
			Issuer: a.config.OIDCIssuer, ClientID: a.config.OIDCClientID, ClientSecret: a.config.OIDCSecret.reveal(), Client: client,
		}), a.config.OIDCTitle})
	}
	return found, nil
}

func (a *assembly) signUpRole() string {
	if a.config.SignUpRole == "none" {
		return ""
	}
	return a.config.SignUpRole
}

// plexProvider has people sign in by plex.tv.
type plexProvider struct{ signIn *plex.SignIn }

func (plexProvider) Name() string  { return "plex" }
func (plexProvider) Title() string { return "Plex" }

func (p plexProvider) Begin(ctx context.Context, _, back string) (string, json.RawMessage, error) {
	pin, err := p.signIn.Begin(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", api.ErrProviderAway, err)
	}
	attempt, err := json.Marshal(pin)
	return p.signIn.Link(pin, back), attempt, err
}

func (p plexProvider) Finish(ctx context.Context, attempt json.RawMessage, _, _ string) (store.ExternalIdentity, []byte, error) {
	var pin plex.Pin
	if err := json.Unmarshal(attempt, &pin); err != nil {
		return store.ExternalIdentity{}, nil, err
	}
	who, err := p.signIn.Finish(ctx, pin)
	switch {
	case errors.Is(err, plex.ErrPending):
		return store.ExternalIdentity{}, nil, api.ErrPending
	case errors.Is(err, plex.ErrExpired):
		return store.ExternalIdentity{}, nil, &api.RefusedError{Why: "The sign-in was not confirmed on plex.tv in time: begin again."}
	case errors.Is(err, plex.ErrNoAccess):
		return store.ExternalIdentity{}, nil, &api.RefusedError{Why: "Your Plex account has no access to this server. Ask its owner to share it with you."}
	case err != nil:
		return store.ExternalIdentity{}, nil, fmt.Errorf("%w: %w", api.ErrProviderAway, err)
	}
	return store.ExternalIdentity{Provider: "plex", Subject: who.ID, Name: who.Name}, []byte(who.Token), nil
}

// oidcProvider has people sign in by an OpenID provider.
type oidcProvider struct {
	provider *oidc.Provider
	title    string
}

func (oidcProvider) Name() string    { return "oidc" }
func (p oidcProvider) Title() string { return p.title }

func (p oidcProvider) Begin(ctx context.Context, state, back string) (string, json.RawMessage, error) {
	link, attempt, err := p.provider.Link(ctx, state, back)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", api.ErrProviderAway, err)
	}
	encoded, err := json.Marshal(attempt)
	return link, encoded, err
}

func (p oidcProvider) Finish(ctx context.Context, raw json.RawMessage, code, back string) (store.ExternalIdentity, []byte, error) {
	var attempt oidc.Attempt
	if err := json.Unmarshal(raw, &attempt); err != nil {
		return store.ExternalIdentity{}, nil, err
	}
	if code == "" {
		return store.ExternalIdentity{}, nil, &api.RefusedError{Why: "The identity provider did not let you in."}
	}
	who, err := p.provider.Finish(ctx, attempt, code, back)
	if errors.Is(err, oidc.ErrRefused) {
		return store.ExternalIdentity{}, nil, &api.RefusedError{Why: "The identity provider did not let you in."}
	}
	if err != nil {
		return store.ExternalIdentity{}, nil, fmt.Errorf("%w: %w", api.ErrProviderAway, err)
	}
	return store.ExternalIdentity{Provider: p.provider.Issuer(), Subject: who.ID, Name: who.Name}, nil, nil
}
