package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"medianest/store"
)

// Identities finds who comes in.
type Identities interface {
	// IdentifyToken returns whom the token of this SHA-256 stands for, and ErrNotFound for one that is unknown, revoked or
	// expired, or whose user is disabled.
	IdentifyToken(ctx context.Context, hash [32]byte) (store.Identity, error)
	// IdentifySession returns whose session it is, and ErrNotFound for one that has ended.
	IdentifySession(ctx context.Context, id uuid.UUID) (store.Identity, error)
	// IdentifyCode returns whose session or token a code came with, and ErrNotFound if that has ended.
	IdentifyCode(ctx context.Context, o store.OneTime) (store.Identity, error)
	// FindUserByIdentity returns the user that a provider's person is, or ErrNotFound; LinkIdentity ties the two.
	FindUserByIdentity(ctx context.Context, e store.ExternalIdentity) (store.User, error)
	LinkIdentity(ctx context.Context, userID uuid.UUID, e store.ExternalIdentity) error
}

const (
	// maxTokenLength bounds what is hashed. Tokens are mn_ and 43 characters.
	maxTokenLength = 256

	// identifyTimeout bounds the lookup of a token, also of requests that are not bounded as a whole.
	identifyTimeout = 10 * time.Second
)

// errNoToken says that a request carries neither a bearer token nor a session.
var errNoToken = errors.New("no token")

// newSecret returns a secret with the prefix, and the hash that is kept of it: 256 bits, so the hash needs no salt.
func newSecret(prefix string) (secret string, hash [32]byte) {
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	secret = prefix + base64.RawURLEncoding.EncodeToString(random[:])
	return secret, hashOf(secret)
}

func hashOf(secret string) [32]byte { return sha256.Sum256([]byte(secret)) }

// authenticate finds who sends the request, once: the identity stays in its scope. It answers with a problem, or with
// errNoToken where nothing was shown. A bearer token that is wrong is refused even if the session is right: who
// sends one means it.
func (a *API) authenticate(c *gin.Context) (*identity, error) {
	s := scopeOf(c.Request.Context())
	if s.identity != nil {
		return s.identity, nil
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), identifyTimeout)
	defer cancel()
	var (
		who *identity
		err error
	)
	if ticket := c.Query("ticket"); ticket != "" && c.FullPath() == a.basePath+eventsPath {
		who, err = a.identifyTicket(ctx, ticket, addressOf(c.ClientIP()))
	} else if token := bearerToken(c.Request); token != "" {
		who, err = a.identify(ctx, token, addressOf(c.ClientIP()))
	} else {
		who, err = a.identifyBrowser(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	s.identity = who
	return who, nil
}

// identify finds whose token this is. Tokens are compared by a lookup of their hash, so the time it takes says nothing
// about how much of a guess was right.
func (a *API) identify(ctx context.Context, token string, from netip.Addr) (*identity, error) {
	if len(token) > maxTokenLength {
		return nil, unauthenticated("The token is not valid.")
	}
	found, err := a.store.IdentifyToken(ctx, hashOf(token))
	if errors.Is(err, store.ErrNotFound) {
		return nil, unauthenticated("The token is not valid: it is unknown, revoked or expired.")
	}
	if err != nil {
		return nil, err
	}
	return newIdentity(found, from), nil
}

// identifyTicket takes a ticket, which is good once, for who got it.
func (a *API) identifyTicket(ctx context.Context, ticket string, from netip.Addr) (*identity, error) {
	if len(ticket) > maxTokenLength {
		return nil, unauthenticated("The ticket is not valid.")
	}
	o, err := a.store.TakeOneTime(ctx, hashOf(ticket), store.CodeTicket)
	var found store.Identity
	if err == nil {
		found, err = a.store.IdentifyCode(ctx, o)
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil, unauthenticated("The ticket is not valid: it is unknown, used or expired.")
	}
	if err != nil {
		return nil, err
	}
	return newIdentity(found, from), nil
}

// stillCounts asks again for who was identified before, and reports whether they may still do what needs the scope. A
// database that is away changes nothing.
func (a *API) stillCounts(ctx context.Context, who *identity, need Scope) bool {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	var code store.OneTime
	if who.Session != nil {
		code.SessionID = &who.Session.ID
	} else {
		code.TokenID = &who.Token.ID
	}
	found, err := a.store.IdentifyCode(ctx, code)
	if err != nil {
		return !errors.Is(err, store.ErrNotFound)
	}
	now := newIdentity(found, who.from)
	return now.permit(need) == nil && now.viewer(need) == who.viewer(need)
}

func unauthenticated(detail string) *Problem {
	p := newProblem(CodeUnauthenticated, detail)
	p.header = http.Header{"Www-Authenticate": {`Bearer realm="medianest"`}}
	return p
}

// requireUser returns who sends the request, or the problem to answer with. A request that a browser authenticated by
// itself, by its session, must come from one of our own pages if it can change something: by what the browser says of its
// origin, and by a token that only our pages can read (double submit).
func (a *API) requireUser(c *gin.Context) (*identity, error) {
	who, err := a.authenticate(c)
	if errors.Is(err, errNoToken) {
		return nil, unauthenticated("")
	}
	if err != nil {
		return nil, err
	}
	if who.byCookie {
		if err := a.crossOrigin.Check(c.Request); err != nil {
			return nil, newProblem(CodeCrossSite, "").because(err)
		}
		if !isSafe(c.Request.Method) && !a.csrfMatches(c.Request, who.Session.ID, c.GetHeader(csrfHeader)) {
			return nil, newProblem(CodeCSRF, "")
		}
	}
	return who, nil
}

// bearerToken reads the Authorization header. Other schemes are not ours: a proxy in front may use them.
func bearerToken(r *http.Request) string {
	scheme, token, found := strings.Cut(r.Header.Get("Authorization"), " ")
	if !found || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
