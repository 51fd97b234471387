package api

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"medianest/store"
)

// Sessions are browsers that are signed in.
type Sessions interface {
	// CreateSession begins one.
	CreateSession(ctx context.Context, n store.NewSession) (store.Session, error)
	// RenewSession replaces a refresh token, which is good once: ErrNotFound for one that does not count, ErrReused for one
	// that came again, which ends the session.
	RenewSession(ctx context.Context, refresh, successor [32]byte) (store.Renewal, error)
	// ListSessions, RevokeSession and RevokeSessions are of one user's.
	ListSessions(ctx context.Context, userID uuid.UUID) ([]store.Session, error)
	RevokeSession(ctx context.Context, id, userID uuid.UUID, why string) error
	RevokeSessions(ctx context.Context, userID uuid.UUID, but *uuid.UUID, why string) (int64, error)
}

// A browser's session is three cookies. No other site can make a browser send them (SameSite=Strict), and no other path of
// the host receives them (Path).
const (
	// sessionCookie is a signed statement whose session it is (JWT, RFC 7519), good for accessAge. No script can read it.
	// It only saves a look at who sends it: whether the session counts is looked up with each request.
	sessionCookie = "medianest_session"

	// refreshCookie is a secret that is good once, for the next sessionCookie. No script can read it.
	refreshCookie = "medianest_refresh"

	// csrfCookie is for our own pages' scripts to read, and send back in csrfHeader. It is worth nothing by itself.
	csrfCookie = "medianest_csrf"
	csrfHeader = "X-CSRF-Token"
	csrfField  = "csrf_token" // of forms
)

// accessAge is how long a session goes without being renewed.
const accessAge = 10 * time.Minute

// Purposes of keys.
const (
	keyForSessions = "session"
	keyForCSRF     = "csrf"
)

const sessionIssuer = "medianest"

// signSession states whose session it is.
func (a *API) signSession(id uuid.UUID, now time.Time) string {
	key, _ := a.keys.Derive(a.keys.Active(), keyForSessions)
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{
		Issuer: sessionIssuer, ID: id.String(), IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(accessAge)),
	})
	token.Header["kid"] = a.keys.Active()
	signed, err := token.SignedString(key)
	if err != nil {
		panic(err) // the key is bytes, as the method wants
	}
	return signed
}

// verifySession reads what signSession has stated, under any of the keys. It reports false for all else, and for what is
// past its time.
func (a *API) verifySession(signed string, now time.Time) (id uuid.UUID, ok bool) {
	if len(signed) > 1000 {
		return uuid.UUID{}, false
	}
	var claims jwt.RegisteredClaims
	_, err := jwt.ParseWithClaims(signed, &claims, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		key, known := a.keys.Derive(kid, keyForSessions)
		if !known {
			return nil, errors.New("unknown key")
		}
		return key, nil
	}, jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithIssuer(sessionIssuer), jwt.WithExpirationRequired(),
		jwt.WithTimeFunc(func() time.Time { return now }))
	if err != nil {
		return uuid.UUID{}, false
	}
	id, err = uuid.Parse(claims.ID)
	return id, err == nil
}

// identifyBrowser finds whose session the request's cookies are of, and renews it when it is time: once, whatever the
// request is for, so that neither pages nor River UI need to know of it.
func (a *API) identifyBrowser(ctx context.Context, c *gin.Context) (*identity, error) {
	refresh := cookieValue(c.Request, refreshCookie)
	id, fresh := a.verifySession(cookieValue(c.Request, sessionCookie), a.now())
	if !fresh && refresh == "" {
		return nil, errNoToken
	}
	if !fresh {
		session, err := a.renewSession(ctx, c, refresh)
		if err != nil {
			return nil, err
		}
		id = session.ID
	}
	found, err := a.store.IdentifySession(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		a.forgetSession(c)
		return nil, newProblem(CodeSessionEnded, "")
	}
	if err != nil {
		return nil, err
	}
	who := newIdentity(found, addressOf(c.ClientIP()))
	who.byCookie = true
	return who, nil
}

// renewSession takes the refresh token and sets the cookies that follow.
func (a *API) renewSession(ctx context.Context, c *gin.Context, refresh string) (store.Session, error) {
	if len(refresh) > maxTokenLength {
		return store.Session{}, newProblem(CodeSessionEnded, "")
	}
	successor, hash := newSecret(refreshPrefix)
	renewal, err := a.store.RenewSession(ctx, hashOf(refresh), hash)
	switch {
	case errors.Is(err, store.ErrReused):
		a.metrics.signIns.WithLabelValues("reused").Inc()
		a.noteEvent(ctx, c, store.AuditEntry{
			ActorID: &renewal.Session.UserID, Action: "auth.refresh", Subject: "session=" + renewal.Session.ID.String(),
			Detail: map[string]any{"why": "a refresh token came a second time: the session has ended"},
		}, http.StatusUnauthorized)
		fallthrough
	case errors.Is(err, store.ErrNotFound):
		a.forgetSession(c)
		return store.Session{}, newProblem(CodeSessionEnded, "").because(err)
	case err != nil:
		return store.Session{}, err
	}
	if !renewal.Rotated {
		successor = "" // the request that came first has got it
	}
	a.setSession(c, renewal.Session, successor)
	return renewal.Session, nil
}

const refreshPrefix = "mnr_"

// beginSession signs a browser in: as the user, or as the bearer of a token, by whose restrictions and end the session is
// bound.
func (a *API) beginSession(ctx context.Context, c *gin.Context, n store.NewSession) (store.Session, error) {
	refresh, hash := newSecret(refreshPrefix)
	n.Refresh, n.Client, n.UserAgent = hash, c.ClientIP(), c.Request.UserAgent()
	session, err := a.store.CreateSession(ctx, n)
	if err != nil {
		return store.Session{}, err
	}
	a.setSession(c, session, refresh)
	return session, nil
}

// setSession sets the session's cookies; without a refresh token that one stays as it is. They last as long as the browser
// runs, or for as long as the session may go unused.
func (a *API) setSession(c *gin.Context, s store.Session, refresh string) {
	age := 0
	if s.Remember {
		age = max(1, int(s.ExpiresAt.Sub(a.now()).Seconds()))
	}
	a.setCookie(c, sessionCookie, a.signSession(s.ID, a.now()), age, true)
	a.setCookie(c, csrfCookie, a.csrfToken(s.ID), age, false)
	if refresh != "" {
		a.setCookie(c, refreshCookie, refresh, age, true)
	}
}

func (a *API) forgetSession(c *gin.Context) {
	for _, name := range []string{sessionCookie, refreshCookie, csrfCookie} {
		a.setCookie(c, name, "", -1, name != csrfCookie)
	}
}

// setCookie sets one of ours, in place of what the answer has set before.
func (a *API) setCookie(c *gin.Context, name, value string, maxAge int, httpOnly bool) {
	h := c.Writer.Header()
	set := h["Set-Cookie"][:0:0]
	for _, line := range h["Set-Cookie"] {
		if !strings.HasPrefix(line, name+"=") {
			set = append(set, line)
		}
	}
	cookie := http.Cookie{
		Name: name, Value: value, Path: a.basePath + "/", MaxAge: maxAge,
		HttpOnly: httpOnly, SameSite: http.SameSiteStrictMode, Secure: a.isSecure(c.Request),
	}
	h["Set-Cookie"] = append(set, cookie.String())
}

func cookieValue(r *http.Request, name string) string {
	cookie, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return cookie.Value
}

// csrfToken is bound to the session: another user's is worth nothing, and so is one that a neighbour of our domain sets.
func (a *API) csrfToken(session uuid.UUID) string {
	token, _ := a.csrfTokenBy(a.keys.Active(), session)
	return token
}

func (a *API) csrfTokenBy(keyID string, session uuid.UUID) (string, bool) {
	key, ok := a.keys.Derive(keyID, keyForCSRF)
	if !ok {
		return "", false
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(session[:])
	return keyID + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), true
}

// csrfMatches reports whether what was sent is what the cookie has, and the session's.
func (a *API) csrfMatches(r *http.Request, session uuid.UUID, sent string) bool {
	keyID, _, _ := strings.Cut(sent, ".")
	want, ok := a.csrfTokenBy(keyID, session)
	return ok && hmac.Equal([]byte(want), []byte(sent)) && hmac.Equal([]byte(cookieValue(r, csrfCookie)), []byte(sent))
}

// isSecure reports whether the browser reaches us by https. The forwarded header is believed from anyone: who forges
// it only makes their own cookie stricter.
func (a *API) isSecure(r *http.Request) bool {
	return a.publicURL != nil && a.publicURL.Scheme == "https" || r.TLS != nil ||
		strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}
