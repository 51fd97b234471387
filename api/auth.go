package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"
	"time"

	"medianest/store"
)

// Users finds who a token belongs to.
type Users interface {
	// FindUserByToken returns the user of the token with this SHA-256, and ErrNotFound for a token that is unknown,
	// revoked or expired, or whose user is disabled.
	FindUserByToken(ctx context.Context, hash [32]byte) (store.User, store.Token, error)
}

// identity is who sends a request, and how they showed it.
type identity struct {
	User     store.User
	Token    store.Token
	byCookie bool // a browser sends it by itself: cross-site requests must be told apart
}

// viewerOf is on whose behalf the store reads and writes in the request of ctx. Without an identity it sees nothing.
func viewerOf(ctx context.Context) store.Viewer {
	if who := scopeOf(ctx).identity; who != nil {
		return who.User.Viewer()
	}
	return store.Viewer{}
}

const (
	// maxTokenLength bounds what is hashed. Tokens are mn_ and 43 characters.
	maxTokenLength = 256

	// identifyTimeout bounds the lookup of a token, also of requests that are not bounded as a whole.
	identifyTimeout = 10 * time.Second
)

// errNoToken says that a request carries neither a bearer token nor the cookie.
var errNoToken = errors.New("no token")

// authenticate finds who sends the request, once: the identity stays in its scope. It answers with a problem, or with
// errNoToken where nothing was shown. A bearer token that is wrong is refused even if the cookie is right: who
// sends one means it.
func (a *API) authenticate(r *http.Request) (*identity, error) {
	s := scopeOf(r.Context())
	if s.identity != nil {
		return s.identity, nil
	}
	token, byCookie := bearerToken(r), false
	if token == "" {
		token, byCookie = cookieToken(r), true
	}
	if token == "" {
		return nil, errNoToken
	}
	who, err := a.identify(r.Context(), token)
	if err != nil {
		return nil, err
	}
	who.byCookie = byCookie
	s.identity = who
	return who, nil
}

// identify finds whose token this is. Tokens are compared by a lookup of their hash, so the time it takes says nothing
// about how much of a guess was right.
func (a *API) identify(ctx context.Context, token string) (*identity, error) {
	if len(token) > maxTokenLength {
		return nil, unauthenticated("The token is not valid.")
	}
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	user, row, err := a.store.FindUserByToken(ctx, sha256.Sum256([]byte(token)))
	if errors.Is(err, store.ErrNotFound) {
		return nil, unauthenticated("The token is not valid: it is unknown, revoked or expired.")
	}
	if err != nil {
		return nil, err
	}
	return &identity{User: user, Token: row}, nil
}

func unauthenticated(detail string) *Problem {
	p := newProblem(CodeUnauthenticated, detail)
	p.header = http.Header{"Www-Authenticate": {`Bearer realm="medianest"`}}
	return p
}

// requireUser returns who sends the request, or the problem to answer with. A request that a browser authenticated by
// itself, by the cookie, must come from one of our own pages if it can change something.
func (a *API) requireUser(r *http.Request) (*identity, error) {
	who, err := a.authenticate(r)
	if errors.Is(err, errNoToken) {
		return nil, unauthenticated("")
	}
	if err != nil {
		return nil, err
	}
	if who.byCookie {
		if err := a.crossOrigin.Check(r); err != nil {
			return nil, newProblem(CodeCrossSite, "").because(err)
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

// cookieName is the cookie that the sign-in form sets. It holds the token itself: there is no second secret to store,
// and revoking the token ends its sessions at once. In exchange the cookie is worth as much as the token, so no script
// can read it (HttpOnly), no other site can make a browser send it (SameSite=Strict), and no other path of
// the host receives it (Path).
const cookieName = "medianest_token"

func cookieToken(r *http.Request) string {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return ""
	}
	return cookie.Value
}
