package store_test

import (
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

func TestUsers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()

	ann, err := b.api.CreateUser(ctx, store.NewUser{Name: "ann", Role: store.UserMember})
	require.NoError(t, err)
	require.False(t, ann.IsAdmin())
	require.Equal(t, store.Viewer{UserID: ann.ID}, ann.Viewer())

	found, err := b.worker.FindUser(ctx, ann.ID)
	require.NoError(t, err)
	require.Equal(t, ann, found)
	found, err = b.worker.FindUserByName(ctx, "ann")
	require.NoError(t, err)
	require.Equal(t, ann, found)

	_, err = b.api.CreateUser(ctx, store.NewUser{Name: "ann", Role: store.UserAdmin})
	require.ErrorIs(t, err, store.ErrConflict)
	_, err = b.api.FindUser(ctx, uuid.New())
	require.ErrorIs(t, err, store.ErrNotFound)
	_, err = b.api.FindUserByName(ctx, "nobody\x00")
	require.ErrorIs(t, err, store.ErrNotFound)
}

func TestUserNamesAreFolderNames(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, name := range []string{"", ".", "..", "a/b", "-a", "A", "ä", "a\x00", "a\n", " a", strings.Repeat("a", 64)} {
		_, err := b.api.CreateUser(t.Context(), store.NewUser{Name: name, Role: store.UserMember})
		require.ErrorIs(t, err, store.ErrInvalid, "%q", name)
	}
	_, err := b.api.CreateUser(t.Context(), store.NewUser{Name: "a", Role: "owner"})
	require.ErrorIs(t, err, store.ErrInvalid)
}

func TestEnsureAdminOnceForMany(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hash := sha256.Sum256([]byte("secret"))
	together(t, 20, func(int) error {
		taken, err := b.api.EnsureAdmin(t.Context(), hash)
		if err == nil && !taken {
			t.Error("the token does not work")
		}
		return err
	})
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.users`))
	require.Equal(t, 1, b.count(`SELECT count(*) FROM medianest.tokens`))

	identity, err := b.api.IdentifyToken(t.Context(), hash)
	require.NoError(t, err)
	require.Equal(t, store.AdminName, identity.User.Name)
	require.True(t, identity.User.Viewer().Admin)

	require.NoError(t, b.api.RevokeToken(t.Context(), identity.Token.ID, identity.User.Viewer()))
	taken, err := b.api.EnsureAdmin(t.Context(), hash)
	require.NoError(t, err)
	require.False(t, taken, "a revoked token came back")
}

func TestTokens(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	ann, ben := b.user("ann"), b.user("ben")
	hashOf := func(secret string) [32]byte { return sha256.Sum256([]byte(secret)) }

	token, err := b.api.CreateToken(ctx, store.NewToken{UserID: ann.ID, Name: "laptop", Hash: hashOf("one")})
	require.NoError(t, err)
	identity, err := b.api.IdentifyToken(ctx, hashOf("one"))
	require.NoError(t, err)
	require.Equal(t, ann, identity.User)
	require.Equal(t, token, *identity.Token)
	require.Nil(t, identity.Session)
	require.Empty(t, identity.Rules)

	_, err = b.api.IdentifyToken(ctx, hashOf("two"))
	require.ErrorIs(t, err, store.ErrNotFound)
	_, err = b.api.CreateToken(ctx, store.NewToken{UserID: ben.ID, Name: "same", Hash: hashOf("one")})
	require.ErrorIs(t, err, store.ErrConflict)
	_, err = b.api.CreateToken(ctx, store.NewToken{UserID: ben.ID, Name: "nul\x00", Hash: hashOf("nul")})
	require.ErrorIs(t, err, store.ErrInvalid)

	past := time.Now().Add(-time.Second)
	_, err = b.api.CreateToken(ctx, store.NewToken{UserID: ann.ID, Name: "old", Hash: hashOf("expired"), ExpiresAt: &past})
	require.ErrorIs(t, err, store.ErrInvalid)
	_, err = b.api.CreateToken(ctx, store.NewToken{UserID: ann.ID, Name: "old", Hash: hashOf("expired")})
	require.NoError(t, err)
	b.exec(`UPDATE medianest.tokens SET expires_at = now() - interval '1 s' WHERE name = 'old'`)
	_, err = b.api.IdentifyToken(ctx, hashOf("expired"))
	require.ErrorIs(t, err, store.ErrNotFound)

	require.ErrorIs(t, b.api.RevokeToken(ctx, token.ID, ben.Viewer()), store.ErrNotFound)
	require.NoError(t, b.api.RevokeToken(ctx, token.ID, ann.Viewer()))
	require.ErrorIs(t, b.api.RevokeToken(ctx, token.ID, ann.Viewer()), store.ErrConflict)
	_, err = b.api.IdentifyToken(ctx, hashOf("one"))
	require.ErrorIs(t, err, store.ErrNotFound)

	_, err = b.api.CreateToken(ctx, store.NewToken{UserID: ben.ID, Name: "phone", Hash: hashOf("three")})
	require.NoError(t, err)
	b.exec(`UPDATE medianest.users SET disabled_at = now() WHERE id = $1`, ben.ID)
	_, err = b.api.IdentifyToken(ctx, hashOf("three"))
	require.ErrorIs(t, err, store.ErrNotFound)
}

func TestTokenUseIsNotedOnceAMinute(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ann := b.user("ann")
	hash := sha256.Sum256([]byte("secret"))
	token, err := b.api.CreateToken(t.Context(), store.NewToken{UserID: ann.ID, Name: "laptop", Hash: hash})
	require.NoError(t, err)

	use := func() time.Time {
		together(t, 20, func(int) error {
			_, err := b.api.IdentifyToken(t.Context(), hash)
			return err
		})
		var at time.Time
		require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT last_used_at FROM medianest.tokens WHERE id = $1`, token.ID).Scan(&at))
		return at
	}
	first := use()
	require.Equal(t, first, use())
	b.exec(`UPDATE medianest.tokens SET last_used_at = last_used_at - interval '61 s'`)
	require.False(t, use().Before(first))
}
