package oidc_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"medianest/jobs/oidc"
)

// idp is an OpenID provider that vouches as the test says.
type idp struct {
	t         *testing.T
	key, sign *rsa.PrivateKey
	server    *httptest.Server
	challenge string
	claims    map[string]any
}

func newIDP(t *testing.T) *idp {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	p := &idp{t: t, key: key, sign: key, claims: map[string]any{}}
	p.server = httptest.NewServer(p)
	t.Cleanup(p.server.Close)
	return p
}

func (p *idp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		answer(map[string]any{
			"issuer": p.server.URL, "authorization_endpoint": p.server.URL + "/authorize", "token_endpoint": p.server.URL + "/token",
			"jwks_uri": p.server.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256"},
		})
	case "/keys":
		answer(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: "k", Algorithm: "RS256", Use: "sig"}}})
	case "/token":
		sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
		if r.FormValue("code") != "good" || base64.RawURLEncoding.EncodeToString(sum[:]) != p.challenge {
			w.WriteHeader(http.StatusBadRequest)
			answer(map[string]string{"error": "invalid_grant"})
			return
		}
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: p.sign}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
		if err != nil {
			p.t.Error(err)
		}
		payload, _ := json.Marshal(p.claims)
		signed, err := signer.Sign(payload)
		if err != nil {
			p.t.Error(err)
		}
		token, _ := signed.CompactSerialize()
		answer(map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": token})
	}
}

func TestSignIn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(p *idp)
		code   string
		want   error
	}{
		"good":             {func(*idp) {}, "good", nil},
		"wrong code":       {func(*idp) {}, "stolen", oidc.ErrRefused},
		"other nonce":      {func(p *idp) { p.claims["nonce"] = "x" }, "good", oidc.ErrRefused},
		"for another":      {func(p *idp) { p.claims["aud"] = "another" }, "good", oidc.ErrRefused},
		"of another":       {func(p *idp) { p.claims["iss"] = "https://evil.example" }, "good", oidc.ErrRefused},
		"past its time":    {func(p *idp) { p.claims["exp"] = time.Now().Add(-time.Hour).Unix() }, "good", oidc.ErrRefused},
		"nobody":           {func(p *idp) { p.claims["sub"] = "" }, "good", oidc.ErrRefused},
		"other's verifier": {func(p *idp) { p.challenge = "x" }, "good", oidc.ErrRefused},
		"signed by another": {func(p *idp) {
			var err error
			p.sign, err = rsa.GenerateKey(rand.Reader, 2048)
			require.NoError(p.t, err)
		}, "good", oidc.ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newIDP(t)
			provider := oidc.New(oidc.Options{Issuer: p.server.URL, ClientID: "medianest", Client: p.server.Client()})
			link, attempt, err := provider.Link(t.Context(), "state", "https://media.example/login/oidc/done")
			require.NoError(t, err)
			u, err := url.Parse(link)
			require.NoError(t, err)
			require.Equal(t, "state", u.Query().Get("state"))
			require.Equal(t, "S256", u.Query().Get("code_challenge_method"))
			require.Equal(t, "https://media.example/login/oidc/done", u.Query().Get("redirect_uri"))
			p.challenge = u.Query().Get("code_challenge")
			p.claims = map[string]any{
				"iss": p.server.URL, "aud": "medianest", "sub": "s-1", "nonce": u.Query().Get("nonce"), "preferred_username": "carla",
				"exp": time.Now().Add(time.Minute).Unix(), "iat": time.Now().Unix(),
			}
			test.change(p)
			who, err := provider.Finish(t.Context(), attempt, test.code, "https://media.example/login/oidc/done")
			require.ErrorIs(t, err, test.want)
			if test.want == nil {
				require.Equal(t, oidc.Person{ID: "s-1", Name: "carla"}, who)
			}
		})
	}
}

// A provider that is away is asked again when it is needed.
func TestProviderIsAway(t *testing.T) {
	t.Parallel()
	provider := oidc.New(oidc.Options{Issuer: "http://127.0.0.1:1", ClientID: "x", Client: http.DefaultClient})
	_, _, err := provider.Link(t.Context(), "s", "b")
	require.ErrorIs(t, err, oidc.ErrUnavailable)
}
