package api

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"medianest/store"
)

// Passwords are hashed with argon2id (RFC 9106), at the cost that OWASP's Password Storage Cheat Sheet recommends.
const (
	argonMemoryKiB = 19 << 10
	argonPasses    = 2
	argonThreads   = 1
	argonSalt      = 16
	argonKey       = 32

	minPassword = 10 // characters
	maxPassword = 256

	// passwordsAtOnce bounds the memory that hashing takes, whoever tries how many.
	passwordsAtOnce = 4
)

// passwords hashes and checks, a few at a time.
type passwords struct {
	turns chan struct{}
	dummy string // the hash of nobody's password, so that an unknown name takes as long as a wrong password
}

func newPasswords() *passwords {
	p := &passwords{turns: make(chan struct{}, passwordsAtOnce)}
	p.dummy = hashPassword(rand.Text())
	return p
}

// checkPassword says what is wrong with a new password. Length is all that is asked of it (NIST SP 800-63B, 3.1.1.2).
func checkPassword(password, name string) error {
	switch n := utf8.RuneCountInString(password); {
	case !utf8.ValidString(password) || strings.ContainsRune(password, 0):
		return &store.InvalidError{Field: "password", Reason: "is not text"}
	case n < minPassword:
		return &store.InvalidError{Field: "password", Reason: fmt.Sprintf("is shorter than %d characters", minPassword)}
	case n > maxPassword:
		return &store.InvalidError{Field: "password", Reason: fmt.Sprintf("is longer than %d characters", maxPassword)}
	case strings.EqualFold(password, name) || strings.Trim(password, password[:1]) == "":
		return &store.InvalidError{Field: "password", Reason: "is the first that anybody would try"}
	}
	return nil
}

// hash waits for its turn.
func (p *passwords) hash(ctx context.Context, password string) (string, error) {
	if err := p.turn(ctx); err != nil {
		return "", err
	}
	defer func() { <-p.turns }()
	return hashPassword(password), nil
}

// matches waits for its turn, and takes the same time whether or not hash is empty.
func (p *passwords) matches(ctx context.Context, password, hash string) (bool, error) {
	if err := p.turn(ctx); err != nil {
		return false, err
	}
	defer func() { <-p.turns }()
	if hash == "" {
		_ = passwordMatches(password, p.dummy)
		return false, nil
	}
	return passwordMatches(password, hash), nil
}

func (p *passwords) turn(ctx context.Context) error {
	select {
	case p.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hashPassword returns the hash in the form of the Password Hashing Competition:
// $argon2id$v=19$m=19456,t=2,p=1$salt$key.
func hashPassword(password string) string {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails
	key := argon2.IDKey([]byte(password), salt, argonPasses, argonMemoryKiB, argonThreads, argonKey)
	return argonPrefix() + base64.RawStdEncoding.EncodeToString(salt) + "$" + base64.RawStdEncoding.EncodeToString(key)
}

func argonPrefix() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$", argon2.Version, argonMemoryKiB, argonPasses, argonThreads)
}

// Bounds of what a stored hash may ask for: nobody but us writes them, and a damaged one must not take the machine down.
const (
	mostArgonMemoryKiB = 1 << 20
	mostArgonPasses    = 20
)

func passwordMatches(password, hash string) bool {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false
	}
	var (
		version        int
		memory, passes uint32
		threads        uint8
	)
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &passes, &threads); err != nil ||
		memory < 8 || memory > mostArgonMemoryKiB || passes == 0 || passes > mostArgonPasses || threads == 0 {
		return false
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil {
		return false
	}
	key, err := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || len(key) < 16 || len(key) > 64 {
		return false
	}
	return subtle.ConstantTimeCompare(key, argon2.IDKey([]byte(password), salt, passes, memory, threads, uint32(len(key)))) == 1
}

// isStale reports whether a hash was made at another cost than today's.
func isStale(hash string) bool { return !strings.HasPrefix(hash, argonPrefix()) }
