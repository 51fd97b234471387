// Package oidc lets people in whom an OpenID provider vouches for: the authorization code flow with PKCE
// (https://openid.net/specs/openid-connect-core-1_0.html, RFC 7636).
package oidc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

var (
	// ErrUnavailable says that the provider does not answer, or not as it should.
	ErrUnavailable = errors.New("the identity provider does not answer")
	// ErrRefused says that the provider, or the person there, said no, or that what it says does not hold.
	ErrRefused = errors.New("the identity provider does not vouch for this")
)

// Options are what a Provider is made of.
type Options struct {
	Issuer       string // URL, with /.well-known/openid-configuration below it
	ClientID     string
	ClientSecret string       // empty for a public client
	Client       *http.Client // guarded: package egress
}

// Provider is one identity provider. It is asked for its configuration when it is first needed, so that one that is away
// keeps nothing else from starting.
type Provider struct {
	options Options

	mu    sync.Mutex
	found *oidc.Provider
}

// New returns one.
func New(o Options) *Provider { return &Provider{options: o} }

// Issuer names it.
func (p *Provider) Issuer() string { return p.options.Issuer }

// Attempt is a sign-in that is under way at the provider: secrets of ours, that what comes back is held against.
type Attempt struct {
	Nonce    string `json:"nonce"`
	Verifier string `json:"verifier"`
}

// Person is whom the provider vouches for.
type Person struct {
	ID   string // the subject: never changes
	Name string
}

// Link is the page of the provider where the person signs in. It leads back to redirect with the state and a code.
func (p *Provider) Link(ctx context.Context, state, redirect string) (string, Attempt, error) {
	provider, err := p.discover(ctx)
	if err != nil {
		return "", Attempt{}, err
	}
	a := Attempt{Nonce: oauth2.GenerateVerifier(), Verifier: oauth2.GenerateVerifier()}
	return p.config(provider, redirect).AuthCodeURL(state, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)), a, nil
}

// Finish returns who has signed in there, by the code that came back: signed by the provider, for us, for this attempt, and
// not past its time; or ErrRefused.
func (p *Provider) Finish(ctx context.Context, a Attempt, code, redirect string) (Person, error) {
	provider, err := p.discover(ctx)
	if err != nil {
		return Person{}, err
	}
	ctx = oidc.ClientContext(ctx, p.options.Client)
	token, err := p.config(provider, redirect).Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		if _, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
			return Person{}, fmt.Errorf("%w: the code is not taken", ErrRefused)
		}
		return Person{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return Person{}, fmt.Errorf("%w: there is no id token", ErrRefused)
	}
	id, err := provider.VerifierContext(ctx, &oidc.Config{ClientID: p.options.ClientID}).Verify(ctx, raw)
	if err != nil {
		return Person{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if id.Nonce != a.Nonce || id.Subject == "" {
		return Person{}, fmt.Errorf("%w: it is another attempt's", ErrRefused)
	}
	var claims struct {
		Name     string `json:"name"`
		Username string `json:"preferred_username"`
	}
	if err := id.Claims(&claims); err != nil {
		return Person{}, fmt.Errorf("%w: its claims are malformed", ErrRefused)
	}
	name := claims.Username
	if name == "" {
		name = claims.Name
	}
	return Person{ID: id.Subject, Name: name}, nil
}

func (p *Provider) config(provider *oidc.Provider, redirect string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.options.ClientID, ClientSecret: p.options.ClientSecret, Endpoint: provider.Endpoint(), RedirectURL: redirect,
		Scopes: []string{oidc.ScopeOpenID, "profile"},
	}
}

func (p *Provider) discover(ctx context.Context) (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil {
		return p.found, nil
	}
	// The provider keeps the client for its keys, and must not keep the request's context.
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, p.options.Client), p.options.Issuer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	p.found = found
	return found, nil
}
