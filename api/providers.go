package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"medianest/store"
)

// Provider is somebody else who knows who people are: plex.tv, an OpenID provider.
type Provider interface {
	// Name is in paths and in the audit: plex, oidc. Title is for people.
	Name() string
	Title() string
	// Begin returns where the person says yes, and what Finish will need to know. The page leads to back, with the state
	// where the provider has a use for it.
	Begin(ctx context.Context, state, back string) (link string, attempt json.RawMessage, err error)
	// Finish returns who has said yes, and a secret of theirs to be kept, if there is one. ErrPending before they did;
	// a RefusedError if they must not come in; ErrProviderAway if it could not be found out.
	Finish(ctx context.Context, attempt json.RawMessage, code, back string) (store.ExternalIdentity, []byte, error)
}

var (
	// ErrPending says that the person has not said yes yet.
	ErrPending = errors.New("sign-in is not confirmed yet")
	// ErrProviderAway says that the provider does not answer.
	ErrProviderAway = errors.New("identity provider is away")
)

// RefusedError says why a person must not come in, in words for them.
type RefusedError struct{ Why string }

func (e *RefusedError) Error() string { return e.Why }

// attemptCookie ties a sign-in to the browser that began it: nobody can have another's browser finish theirs. It is sent along
// when the provider's page leads back, which another site's does with nothing else of ours.
const attemptCookie = "medianest_attempt"

// attemptAge is how long a person has to say yes.
const attemptAge = 15 * time.Minute

// attempt is what is kept of a sign-in that is under way.
type attempt struct {
	Provider string          `json:"provider"`
	Next     string          `json:"next"`
	Remember bool            `json:"remember"`
	Detail   json.RawMessage `json:"detail"`
	UserID   *uuid.UUID      `json:"user_id,omitempty"` // who was signed in when it began: is tied to the person
}

func (a *API) provider(name string) Provider {
	for _, p := range a.providers {
		if p.Name() == name {
			return p
		}
	}
	return nil
}

func (a *API) backFrom(c *gin.Context, p Provider) string {
	return a.server(c.Request) + "/login/" + p.Name() + "/done"
}

// beginElsewhere begins a sign-in at a provider, and returns where the person says yes.
func (a *API) beginElsewhere(ctx context.Context, c *gin.Context, p Provider, next string, remember bool) (link string, expires time.Time, err error) {
	secret, hash := newSecret("mna_")
	link, detail, err := p.Begin(ctx, secret, a.backFrom(c, p))
	if err != nil {
		return "", time.Time{}, providerProblem(p, err)
	}
	t := attempt{Provider: p.Name(), Next: next, Remember: remember, Detail: detail}
	if in, err := a.authenticate(c); err == nil && in.Session != nil && in.inPerson() == nil {
		t.UserID = &in.User.ID
	}
	encoded, err := json.Marshal(t)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("encode attempt: %w", err)
	}
	expires = a.now().Add(attemptAge)
	if err := a.store.AddOneTime(ctx, hash, store.OneTime{Purpose: store.CodeSignIn, Detail: encoded, ExpiresAt: expires}); err != nil {
		return "", time.Time{}, err
	}
	cookie := http.Cookie{
		Name: attemptCookie, Value: secret, Path: a.basePath + "/", MaxAge: int(attemptAge.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: a.isSecure(c.Request),
	}
	c.Writer.Header().Add("Set-Cookie", cookie.String())
	return link, expires, nil
}

// finishElsewhere ends a sign-in that this browser began. It returns ErrPending while the person has not said yes.
func (a *API) finishElsewhere(ctx context.Context, c *gin.Context, p Provider, code, state string) (store.Session, attempt, error) {
	refused := newProblem(CodeUnauthenticated, "The sign-in is not known here, or took too long: begin again.")
	secret := cookieValue(c.Request, attemptCookie)
	if secret == "" || len(secret) > maxTokenLength || (code != "" || state != "") && state != secret {
		return store.Session{}, attempt{}, refused
	}
	var t attempt
	session, err := a.attempt(ctx, c, try{method: p.Name()}, false, func() (store.NewSession, error) {
		kept, err := a.store.PeekOneTime(ctx, hashOf(secret), store.CodeSignIn)
		if errors.Is(err, store.ErrNotFound) {
			return store.NewSession{}, refused
		}
		if err != nil {
			return store.NewSession{}, err
		}
		if json.Unmarshal(kept.Detail, &t) != nil || t.Provider != p.Name() {
			return store.NewSession{}, refused
		}
		who, token, err := p.Finish(ctx, t.Detail, code, a.backFrom(c, p))
		if err != nil {
			return store.NewSession{}, providerProblem(p, err)
		}
		if _, err = a.store.TakeOneTime(ctx, hashOf(secret), store.CodeSignIn); errors.Is(err, store.ErrNotFound) {
			return store.NewSession{}, refused // another was quicker
		}
		if err != nil {
			return store.NewSession{}, err
		}
		user, err := a.userOf(ctx, t, who)
		if err != nil {
			return store.NewSession{}, err
		}
		if token != nil {
			if _, err := a.store.SetSecret(ctx, p.Name()+":user:"+user.ID.String(), token, &user.ID, nil); err != nil {
				return store.NewSession{}, err
			}
		}
		return store.NewSession{UserID: user.ID, Remember: t.Remember}, nil
	})
	return session, t, err
}

// userOf is the user that a provider's person is: the one that they are tied to; or else the one that was signed in when it
// began, who is tied to them by this; or else a new one, where strangers may come.
func (a *API) userOf(ctx context.Context, t attempt, who store.ExternalIdentity) (store.User, error) {
	user, err := a.store.FindUserByIdentity(ctx, who)
	if err == nil && user.DisabledAt != nil {
		return store.User{}, newProblem(CodeUnauthenticated, "This account is disabled.")
	}
	if !errors.Is(err, store.ErrNotFound) {
		return user, err
	}
	if t.UserID != nil {
		user, err := a.store.FindUser(ctx, *t.UserID)
		if err != nil {
			return store.User{}, err
		}
		if user.DisabledAt != nil {
			return store.User{}, newProblem(CodeUnauthenticated, "This account is disabled.")
		}
		return user, a.store.LinkIdentity(ctx, user.ID, who)
	}
	if a.signUpRole == "" {
		return store.User{}, newProblem(CodeUnauthenticated, "There is no account for you here. Ask an administrator for an invitation, sign in by it, and then once more this way.")
	}
	name := canonicalName(who.Name)
	if name == "" {
		name = "user"
	}
	for n := 1; ; n++ {
		tried := name
		if n > 1 {
			tried = fmt.Sprintf("%s-%d", name, n)
		}
		user, err := a.store.CreateUser(ctx, store.NewUser{Name: tried, Role: a.signUpRole})
		if errors.Is(err, store.ErrConflict) && n < maxNamesakes {
			continue
		}
		if err != nil {
			return store.User{}, err
		}
		return user, a.store.LinkIdentity(ctx, user.ID, who)
	}
}

// maxNamesakes bounds the search for a name that is free.
const maxNamesakes = 100

func providerProblem(p Provider, err error) error {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return newProblem(CodeUnauthenticated, refused.Why).because(err)
	}
	if errors.Is(err, ErrProviderAway) {
		return newProblem(CodeUnavailable, p.Title()+" does not answer. Sign in another way, or try again.").because(err).retryAfter(unavailableRetry)
	}
	return err
}

// handleLoginElsewhere leads to the provider's page.
func (a *API) handleLoginElsewhere(c *gin.Context) {
	p := a.provider(c.Param("provider"))
	if p == nil {
		a.writeProblem(c, newProblem(CodeNoSuchRoute, ""))
		return
	}
	if problem := a.within(c, RateSignIn, nil); problem != nil {
		a.writeProblem(c, problem)
		return
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), requestTimeout)
	defer cancel()
	link, _, err := a.beginElsewhere(ctx, c, p, a.localPath(c.Query("next")), true)
	if err != nil {
		a.writeProblem(c, problemOf(ctx, err))
		return
	}
	c.Redirect(http.StatusSeeOther, link)
}

// donePage leads on. A redirect would not do: it would count as the provider's, with which a browser sends no cookie of the
// session that has just begun.
type donePage struct {
	Next    string
	Pending bool // the person has not said yes yet: the page asks again by itself
}

// handleLoginDone is where the provider's page leads back to.
func (a *API) handleLoginDone(c *gin.Context) {
	p := a.provider(c.Param("provider"))
	if p == nil {
		a.writeProblem(c, newProblem(CodeNoSuchRoute, ""))
		return
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), requestTimeout)
	defer cancel()
	_, t, err := a.finishElsewhere(ctx, c, p, c.Query("code"), c.Query("state"))
	switch {
	case errors.Is(err, ErrPending):
		a.renderPage(c, http.StatusAccepted, "done.html", donePage{Next: c.Request.URL.RequestURI(), Pending: true})
	case err != nil:
		a.afterForm(c, err, "", "login.html", func(fault string) any { return a.loginPage(loginPage{Fault: fault}) })
	default:
		a.renderPage(c, http.StatusOK, "done.html", donePage{Next: a.localPath(t.Next)})
	}
}

// SignInProvider is a way in besides passwords.
type SignInProvider struct {
	Name  string `json:"name" doc:"Its name." example:"plex"`
	Title string `json:"title" doc:"For people." example:"Plex"`
	Link  string `json:"link" doc:"A page of ours that leads there and back." example:"https://media.example/login/plex"`
}

// SignInProviders are the ways in.
type SignInProviders struct {
	Items []SignInProvider `json:"items" nullable:"false" doc:"The ways in besides passwords."`
}

var listProviders = described{
	id: "list-sign-in-providers", tag: tagAuth, summary: "List ways to sign in", public: true,
	text: "Besides name and password.",
}

type providersOutput struct{ Body SignInProviders }

func (a *API) handleListProviders(ctx context.Context, _ *struct{}) (*providersOutput, error) {
	list := SignInProviders{Items: []SignInProvider{}}
	for _, p := range a.providers {
		list.Items = append(list.Items, SignInProvider{Name: p.Name(), Title: p.Title(), Link: a.server(scopeOf(ctx).gin.Request) + "/login/" + p.Name()})
	}
	return &providersOutput{list}, nil
}

// PlexPin is a sign-in that waits for the person to say yes on a page of plex.tv.
type PlexPin struct {
	Link      string    `json:"link" doc:"Open it in a window, for the person to say yes."`
	ExpiresAt time.Time `json:"expires_at" doc:"Until when."`
}

var createPlexPin = described{
	id: "create-plex-pin", tag: tagAuth, summary: "Begin to sign in by Plex", public: true, status: http.StatusCreated,
	text:     "For a frontend that stays open: open the link in a window, and ask `POST /auth/plex/verify` every other second until it answers 200. The page `/login/plex` does without scripts.",
	problems: []Code{CodeNotFound, CodeCrossSite},
}

type plexPinOutput struct{ Body PlexPin }

func (a *API) handleCreatePlexPin(ctx context.Context, _ *struct{}) (*plexPinOutput, error) {
	c, p := scopeOf(ctx).gin, a.provider("plex")
	if p == nil {
		return nil, newProblem(CodeNotFound, "Signing in by Plex is not set up here.")
	}
	if err := a.crossOrigin.Check(c.Request); err != nil {
		return nil, newProblem(CodeCrossSite, "").because(err)
	}
	link, expires, err := a.beginElsewhere(ctx, c, p, "", true)
	if err != nil {
		return nil, err
	}
	return &plexPinOutput{PlexPin{Link: link, ExpiresAt: expires}}, nil
}

var verifyPlexPin = described{
	id: "verify-plex-pin", tag: tagAuth, summary: "End signing in by Plex", public: true,
	text:     "Begins a session once the person has said yes and plex.tv tells that they may use this platform's server; 409 `conflict` before. Nobody else gets an account.",
	problems: []Code{CodeConflict, CodeNotFound, CodeUnauthenticated, CodeTooManyAttempts, CodeCrossSite},
}

func (a *API) handleVerifyPlexPin(ctx context.Context, _ *struct{}) (*sessionOutput, error) {
	c, p := scopeOf(ctx).gin, a.provider("plex")
	if p == nil {
		return nil, newProblem(CodeNotFound, "Signing in by Plex is not set up here.")
	}
	if err := a.crossOrigin.Check(c.Request); err != nil {
		return nil, newProblem(CodeCrossSite, "").because(err)
	}
	session, _, err := a.finishElsewhere(ctx, c, p, "", "")
	if errors.Is(err, ErrPending) {
		return nil, newProblem(CodeConflict, "The sign-in has not been confirmed on plex.tv yet.")
	}
	if err != nil {
		return nil, err
	}
	return &sessionOutput{presentSession(session, true)}, nil
}
