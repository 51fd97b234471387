package api

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"medianest/store"
)

// SignIns is what the ways in need of the data.
type SignIns interface {
	// SignInWait says how long a try under the keys has to wait; the other two count what came of one.
	SignInWait(ctx context.Context, keys ...string) (time.Duration, error)
	SignInFailed(ctx context.Context, keys ...string) error
	SignInSucceeded(ctx context.Context, keys ...string) error
	// FindPassword returns the user of a name and the hash of the password, or ErrNotFound.
	FindPassword(ctx context.Context, name string) (store.User, string, error)
	SetPassword(ctx context.Context, userID uuid.UUID, hash string, but *uuid.UUID) error
	ReplacePasswordHash(ctx context.Context, userID uuid.UUID, old, hash string) error
	// AddOneTime and ReplaceOneTime keep a code, which TakeOneTime takes once.
	AddOneTime(ctx context.Context, hash [32]byte, o store.OneTime) error
	ReplaceOneTime(ctx context.Context, hash [32]byte, o store.OneTime) error
	PeekOneTime(ctx context.Context, hash [32]byte, purpose string) (store.OneTime, error)
	TakeOneTime(ctx context.Context, hash [32]byte, purpose string) (store.OneTime, error)
}

// Ways to sign in.
const (
	methodPassword   = "password"
	methodToken      = "token"
	methodInvitation = "invitation"
)

// try is an attempt to sign in. It is slowed down by name and by address, at all replicas together.
type try struct {
	method string
	keys   []string // that it counts under
	detail map[string]any
}

// attempt has a way in tried, unless too many tries have failed, and begins a session for who it says. What came of it is
// counted and written down. A way in refuses by CodeUnauthenticated.
func (a *API) attempt(ctx context.Context, c *gin.Context, t try, remember bool, find func() (store.NewSession, error)) (store.Session, error) {
	t.keys = append(t.keys, "net:"+network(c.ClientIP()).String())
	wait, err := a.store.SignInWait(ctx, t.keys...)
	if err != nil {
		return store.Session{}, err
	}
	if wait > 0 {
		a.metrics.signIns.WithLabelValues("slowed_down").Inc()
		return store.Session{}, newProblem(CodeTooManyAttempts, "").retryAfter(wait)
	}
	n, err := find()
	if errors.Is(err, ErrPending) {
		return store.Session{}, err
	}
	event := store.AuditEntry{Action: "auth." + t.method, Detail: t.detail}
	if p, ok := errors.AsType[*Problem](err); ok && p.Code == CodeUnauthenticated {
		a.metrics.signIns.WithLabelValues("refused").Inc()
		a.noteEvent(ctx, c, event, p.Status)
		return store.Session{}, errors.Join(err, a.store.SignInFailed(ctx, t.keys...))
	}
	if err != nil {
		return store.Session{}, err
	}
	n.Method, n.Remember = t.method, remember || n.Remember
	session, err := a.beginSession(ctx, c, n)
	if err != nil {
		return store.Session{}, err
	}
	a.metrics.signIns.WithLabelValues("ok").Inc()
	event.ActorID, event.Subject = &n.UserID, "session="+session.ID.String()
	a.noteEvent(ctx, c, event, http.StatusOK)
	return session, a.store.SignInSucceeded(ctx, t.keys...)
}

// userName is what names can be.
var userName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// signInByPassword is the same to who guesses a name as to who guesses a password.
func (a *API) signInByPassword(ctx context.Context, c *gin.Context, name, password string, remember bool) (store.Session, error) {
	name = strings.ToLower(strings.TrimSpace(name))
	if !userName.MatchString(name) {
		name = "" // nobody's: such tries share one place
	}
	t := try{method: methodPassword, keys: []string{"user:" + name}, detail: map[string]any{"name": name}}
	return a.attempt(ctx, c, t, remember, func() (store.NewSession, error) {
		user, hash, err := a.store.FindPassword(ctx, name)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return store.NewSession{}, err
		}
		matches, err := a.passwords.matches(ctx, password, hash)
		if err != nil {
			return store.NewSession{}, err
		}
		if !matches {
			return store.NewSession{}, newProblem(CodeUnauthenticated, "The name or the password is wrong.")
		}
		if isStale(hash) {
			if fresh, err := a.passwords.hash(ctx, password); err == nil {
				_ = a.store.ReplacePasswordHash(ctx, user.ID, hash, fresh) //nolint:errcheck // the next sign-in does it
			}
		}
		return store.NewSession{UserID: user.ID}, nil
	})
}

// signInByToken begins a session that may no more than the token, and ends with it.
func (a *API) signInByToken(ctx context.Context, c *gin.Context, token string, remember bool) (store.Session, error) {
	return a.attempt(ctx, c, try{method: methodToken}, remember, func() (store.NewSession, error) {
		who, err := a.identify(ctx, strings.TrimSpace(token), addressOf(c.ClientIP()))
		if err != nil {
			return store.NewSession{}, err
		}
		return store.NewSession{UserID: who.User.ID, TokenID: &who.Token.ID}, nil
	})
}

// signInByInvitation sets the password of who was invited, and signs them in. The code is good once; a password that is
// refused leaves it good.
func (a *API) signInByInvitation(ctx context.Context, c *gin.Context, code, password string, remember bool) (store.Session, error) {
	return a.attempt(ctx, c, try{method: methodInvitation}, remember, func() (store.NewSession, error) {
		hash := hashOf(strings.TrimSpace(code))
		refused := newProblem(CodeUnauthenticated, "The code is not valid: it is unknown, used or expired.")
		invitation, err := a.store.PeekOneTime(ctx, hash, store.CodeInvitation)
		if errors.Is(err, store.ErrNotFound) || err == nil && invitation.UserID == nil {
			return store.NewSession{}, refused
		}
		if err != nil {
			return store.NewSession{}, err
		}
		if err := checkPassword(password, ""); err != nil {
			return store.NewSession{}, err
		}
		hashed, err := a.passwords.hash(ctx, password)
		if err != nil {
			return store.NewSession{}, err
		}
		if _, err = a.store.TakeOneTime(ctx, hash, store.CodeInvitation); errors.Is(err, store.ErrNotFound) {
			return store.NewSession{}, refused // another was quicker
		}
		if err == nil {
			err = a.store.SetPassword(ctx, *invitation.UserID, hashed, nil)
		}
		return store.NewSession{UserID: *invitation.UserID}, err
	})
}

// Session is a browser, or another program, that is signed in.
type Session struct {
	ID         uuid.UUID `json:"id" format:"uuid" doc:"Identifies the session."`
	Current    bool      `json:"current" doc:"It is the one that asks."`
	Method     string    `json:"method" doc:"How it was begun: password, token, invitation, plex or oidc." example:"password"`
	Remember   bool      `json:"remember" doc:"It outlives the browser."`
	Client     string    `json:"client,omitempty" doc:"The address that it was begun from." example:"192.0.2.7"`
	UserAgent  string    `json:"user_agent,omitempty" doc:"What it was begun with, as that calls itself."`
	CreatedAt  time.Time `json:"created_at" doc:"When it was begun."`
	LastUsedAt time.Time `json:"last_used_at" doc:"When it was renewed last: every ten minutes while it is used."`
	ExpiresAt  time.Time `json:"expires_at" doc:"When it ends unless it is used before."`
}

func presentSession(s store.Session, current bool) Session {
	return Session{
		ID: s.ID, Current: current, Method: s.Method, Remember: s.Remember, Client: s.Client, UserAgent: s.UserAgent,
		CreatedAt: s.CreatedAt, LastUsedAt: s.LastUsedAt, ExpiresAt: s.ExpiresAt,
	}
}

// SessionList is all of a user's sessions.
type SessionList struct {
	Items []Session `json:"items" nullable:"false" doc:"The sessions, the one used last first."`
}

// SignInRequest is a name and a password.
type SignInRequest struct {
	Name     string `json:"name" maxLength:"255" doc:"The user's name." example:"anna"`
	Password string `json:"password" maxLength:"1024" doc:"The password."`
	Remember bool   `json:"remember,omitempty" doc:"Stay signed in when the browser is closed: for 30 days after the last use, 90 in all."`
}

// InvitationRequest is a code and the password that is to be.
type InvitationRequest struct {
	Code     string `json:"code" maxLength:"255" doc:"The code of the invitation. It is good once."`
	Password string `json:"password" maxLength:"1024" doc:"The new password: 10 characters or more."`
	Remember bool   `json:"remember,omitempty" doc:"Stay signed in when the browser is closed."`
}

type sessionOutput struct{ Body Session }

const signInText = " The answer sets cookies: one that no script can read, which is renewed by itself; and `" + csrfCookie + "`, whose value every request that changes something must send back as the header `" + csrfHeader + "`. Tries that fail make the next ones wait, by name and by address."

var signIn = described{
	id: "sign-in", tag: tagAuth, summary: "Sign in by name and password", public: true,
	text:     "Begins a session for a browser; programs are better off with an API token." + signInText,
	problems: []Code{CodeUnauthenticated, CodeTooManyAttempts, CodeCrossSite, CodeValidationFailed},
}

func (a *API) handleSignIn(ctx context.Context, input *struct{ Body SignInRequest }) (*sessionOutput, error) {
	c := scopeOf(ctx).gin
	if err := a.crossOrigin.Check(c.Request); err != nil {
		return nil, newProblem(CodeCrossSite, "").because(err)
	}
	session, err := a.signInByPassword(ctx, c, input.Body.Name, input.Body.Password, input.Body.Remember)
	if err != nil {
		return nil, err
	}
	return &sessionOutput{presentSession(session, true)}, nil
}

var redeemInvitation = described{
	id: "redeem-invitation", tag: tagAuth, summary: "Take an invitation", public: true,
	text:     "Sets the password of the user that was invited, and signs in. The first start writes an invitation of the user admin into the file `setup-code` of the data directory." + signInText,
	problems: []Code{CodeUnauthenticated, CodeTooManyAttempts, CodeCrossSite, CodeValidationFailed},
}

func (a *API) handleRedeemInvitation(ctx context.Context, input *struct{ Body InvitationRequest }) (*sessionOutput, error) {
	c := scopeOf(ctx).gin
	if err := a.crossOrigin.Check(c.Request); err != nil {
		return nil, newProblem(CodeCrossSite, "").because(err)
	}
	session, err := a.signInByInvitation(ctx, c, input.Body.Code, input.Body.Password, input.Body.Remember)
	if err != nil {
		return nil, err
	}
	return &sessionOutput{presentSession(session, true)}, nil
}

var refreshSession = described{
	id: "refresh-session", tag: tagAuth, summary: "Renew the session", public: true,
	text:     "Replaces the session's cookies now. It need not be called: any request renews a session that is due. A refresh token that comes a second time ends the session, since one of the two that hold it has stolen it.",
	problems: []Code{CodeSessionEnded, CodeUnauthenticated, CodeCrossSite},
}

func (a *API) handleRefreshSession(ctx context.Context, _ *struct{}) (*sessionOutput, error) {
	c := scopeOf(ctx).gin
	if err := a.crossOrigin.Check(c.Request); err != nil {
		return nil, newProblem(CodeCrossSite, "").because(err)
	}
	refresh := cookieValue(c.Request, refreshCookie)
	if refresh == "" {
		return nil, unauthenticated("There is no session.")
	}
	session, err := a.renewSession(ctx, c, refresh)
	if err != nil {
		return nil, err
	}
	return &sessionOutput{presentSession(session, true)}, nil
}

var signOut = described{
	id: "sign-out", tag: tagAuth, scope: ScopeProfile, summary: "Sign out",
	text:     "Ends the session that asks. A bearer of a token has none.",
	problems: []Code{CodeConflict},
}

func (a *API) handleSignOut(ctx context.Context, _ *struct{}) (*struct{}, error) {
	s := scopeOf(ctx)
	if s.identity.Session == nil {
		return nil, newProblem(CodeConflict, "This request is of no session.")
	}
	return nil, a.endSession(ctx, s.gin, s.identity)
}

// endSession ends the session that asks. One that has ended meanwhile is no error.
func (a *API) endSession(ctx context.Context, c *gin.Context, who *identity) error {
	err := a.store.RevokeSession(ctx, who.Session.ID, who.User.ID, "signed_out")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	a.forgetSession(c)
	a.noteEvent(ctx, c, store.AuditEntry{ActorID: &who.User.ID, Action: "auth.sign_out", Subject: "session=" + who.Session.ID.String()}, http.StatusNoContent)
	return nil
}

var listSessions = described{
	id: "list-sessions", tag: tagAuth, scope: ScopeProfile, summary: "List your sessions",
	text: "Where you are signed in.",
}

type sessionsOutput struct{ Body SessionList }

func (a *API) handleListSessions(ctx context.Context, _ *struct{}) (*sessionsOutput, error) {
	who := scopeOf(ctx).identity
	sessions, err := a.store.ListSessions(ctx, who.User.ID)
	if err != nil {
		return nil, err
	}
	list := SessionList{Items: make([]Session, len(sessions))}
	for i, s := range sessions {
		list.Items[i] = presentSession(s, who.Session != nil && who.Session.ID == s.ID)
	}
	return &sessionsOutput{list}, nil
}

var revokeSession = described{
	id: "revoke-session", tag: tagAuth, scope: ScopeProfile, summary: "End one of your sessions",
	text:     "It is refused from now on, at every replica.",
	problems: []Code{CodeNotFound},
}

func (a *API) handleRevokeSession(ctx context.Context, input *struct {
	ID uuid.UUID `path:"id" format:"uuid" doc:"The session."`
}) (*struct{}, error) {
	if err := a.store.RevokeSession(ctx, input.ID, scopeOf(ctx).identity.User.ID, "revoked"); err != nil {
		return nil, notFound(err, "session")
	}
	return nil, nil //nolint:nilnil // huma's answer without a body
}

var signOutEverywhere = described{
	id: "sign-out-everywhere", tag: tagAuth, scope: ScopeProfile, summary: "Sign out everywhere",
	text: "Ends all of your sessions, this one too. Tokens go on: they are ended one by one.",
}

func (a *API) handleSignOutEverywhere(ctx context.Context, _ *struct{}) (*struct{}, error) {
	s := scopeOf(ctx)
	n, err := a.store.RevokeSessions(ctx, s.identity.User.ID, nil, "signed_out")
	if err != nil {
		return nil, err
	}
	if s.identity.byCookie {
		a.forgetSession(s.gin)
	}
	a.noteEvent(ctx, s.gin, store.AuditEntry{
		ActorID: &s.identity.User.ID, Action: "auth.sign_out_everywhere", Detail: map[string]any{"sessions": n},
	}, http.StatusNoContent)
	return nil, nil //nolint:nilnil // huma's answer without a body
}

// PasswordRequest changes one's own password.
type PasswordRequest struct {
	Current  string `json:"current,omitempty" maxLength:"1024" doc:"The password until now, if there is one."`
	Password string `json:"password" maxLength:"1024" doc:"The new password: 10 characters or more."`
}

var setMyPassword = described{
	id: "set-my-password", tag: tagAuth, scope: ScopeProfile, summary: "Change your password",
	text:     "Ends all of your sessions but the one that asks. It takes the present password, where there is one: who finds a browser signed in cannot keep the account.",
	problems: []Code{CodeTooManyAttempts, CodeValidationFailed},
}

func (a *API) handleSetMyPassword(ctx context.Context, input *struct{ Body PasswordRequest }) (*struct{}, error) {
	s := scopeOf(ctx)
	who := s.identity
	if p := who.inPerson(); p != nil {
		return nil, p
	}
	keys := []string{"user:" + who.User.Name}
	wait, err := a.store.SignInWait(ctx, keys...)
	if err != nil {
		return nil, err
	}
	if wait > 0 {
		return nil, newProblem(CodeTooManyAttempts, "").retryAfter(wait)
	}
	if err := checkPassword(input.Body.Password, who.User.Name); err != nil {
		return nil, err
	}
	_, hash, err := a.store.FindPassword(ctx, who.User.Name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if hash != "" {
		matches, err := a.passwords.matches(ctx, input.Body.Current, hash)
		if err != nil {
			return nil, err
		}
		if !matches {
			p := newProblem(CodeValidationFailed, "")
			p.Errors = []ProblemError{{Location: "body.current", Message: "is not the present password"}}
			return nil, errors.Join(p, a.store.SignInFailed(ctx, keys...))
		}
	}
	fresh, err := a.passwords.hash(ctx, input.Body.Password)
	if err != nil {
		return nil, err
	}
	var but *uuid.UUID
	if who.Session != nil {
		but = &who.Session.ID
	}
	if err := a.store.SetPassword(ctx, who.User.ID, fresh, but); err != nil {
		return nil, err
	}
	a.noteEvent(ctx, s.gin, store.AuditEntry{ActorID: &who.User.ID, Action: "auth.set_password"}, http.StatusNoContent)
	return nil, nil //nolint:nilnil // huma's answer without a body
}

// inPerson refuses whoever comes with a token that carries less than its user may: it must not make itself more.
func (who *identity) inPerson() *Problem {
	if t := who.Token; t != nil && (t.Scopes != nil || t.Networks != nil) {
		return newProblem(CodeForbidden, "A token that is bound to scopes or networks cannot do this.")
	}
	return nil
}

// Ticket opens one event stream.
type Ticket struct {
	Ticket    string    `json:"ticket" doc:"Goes into the query of GET /events as ticket. It is good once."`
	ExpiresAt time.Time `json:"expires_at" doc:"Until when the stream must be opened."`
}

// ticketAge is how long a ticket waits for its stream to be opened.
const ticketAge = time.Minute

var createTicket = described{
	id: "create-event-ticket", tag: tagEvents, scope: ScopeEventsRead, status: http.StatusCreated, summary: "Get a ticket for an event stream",
	text: "For an EventSource on another site's page, which can send neither a header nor our cookies: a ticket, good once and for a minute, in place of a token in an address. When a stream breaks, a new ticket opens the next one; `last_event_id` goes on where it broke.",
}

type ticketOutput struct{ Body Ticket }

func (a *API) handleCreateTicket(ctx context.Context, _ *struct{}) (*ticketOutput, error) {
	who := scopeOf(ctx).identity
	ticket, hash := newSecret("mnt_")
	o := store.OneTime{Purpose: store.CodeTicket, UserID: &who.User.ID, ExpiresAt: a.now().Add(ticketAge)}
	if who.Session != nil {
		o.SessionID = &who.Session.ID
	} else {
		o.TokenID = &who.Token.ID
	}
	if err := a.store.AddOneTime(ctx, hash, o); err != nil {
		return nil, err
	}
	return &ticketOutput{Ticket{Ticket: ticket, ExpiresAt: o.ExpiresAt}}, nil
}
