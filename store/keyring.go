package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Keyring holds the platform's secret keys. The first one seals and signs; all open and verify. So a key is replaced by
// putting a new one first, sealing everything anew, and taking the old one out when nothing is under it any more.
//
// It never prints its keys.
type Keyring struct {
	ids  []string
	keys map[string][]byte
}

const (
	keyBytes   = 32
	maxKeyID   = 32
	sealFormat = 1
)

var keyID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// ErrSealed says that a sealed value cannot be opened: by a key that is not there, or it is not what was sealed.
var ErrSealed = errors.New("sealed value cannot be opened")

// ParseKeyring reads keys as NewKey writes them, separated by commas or white space: "id:base64 of 32 bytes". Its errors
// repeat nothing of the keys.
func ParseKeyring(text string) (*Keyring, error) {
	k := &Keyring{keys: map[string][]byte{}}
	for i, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\r' || r == '\t' }) {
		id, encoded, ok := strings.Cut(part, ":")
		key, err := base64.StdEncoding.DecodeString(encoded)
		switch {
		case !ok || !keyID.MatchString(id):
			return nil, fmt.Errorf("key %d does not begin with an id of 1 to 32 letters, digits, - or _, and a colon", i+1)
		case err != nil || len(key) != keyBytes:
			return nil, fmt.Errorf("key %s is not the base64 of 32 bytes", id)
		case k.keys[id] != nil:
			return nil, fmt.Errorf("key %s is there twice", id)
		}
		k.ids, k.keys[id] = append(k.ids, id), key
	}
	if len(k.ids) == 0 {
		return nil, errors.New("there is no key")
	}
	return k, nil
}

// NewKey returns a random key in the form that ParseKeyring reads.
func NewKey() string {
	var random [4 + keyBytes]byte
	_, _ = rand.Read(random[:]) // never fails
	return hex.EncodeToString(random[:4]) + ":" + base64.StdEncoding.EncodeToString(random[4:])
}

// String names the keys and does not show them.
func (k *Keyring) String() string { return "keys " + strings.Join(k.ids, ", ") }

// GoString is String: %#v shows no keys either.
func (k *Keyring) GoString() string { return k.String() }

// Active is the id of the key that seals and signs.
func (k *Keyring) Active() string { return k.ids[0] }

// Derive returns a key for one purpose, made of the key with that id (HKDF with SHA-256, RFC 5869), so that what is known
// of one purpose's tells nothing of another's. It reports false for an id that is not there.
func (k *Keyring) Derive(id, purpose string) ([]byte, bool) {
	key, ok := k.keys[id]
	if !ok {
		return nil, false
	}
	derived, err := hkdf.Key(sha256.New, key, nil, "medianest "+purpose, keyBytes)
	if err != nil {
		panic(err) // lengths are constant
	}
	return derived, true
}

// Seal encrypts a value with AES-256-GCM under the active key. It opens only with the same context, which says what the
// value is and whose: a sealed value that is moved to another row is worth nothing there.
func (k *Keyring) Seal(value []byte, context string) []byte {
	id := k.Active()
	aead := k.cipher(id)
	sealed := make([]byte, 0, 2+len(id)+aead.NonceSize()+len(value)+aead.Overhead())
	sealed = append(sealed, sealFormat, byte(len(id)))
	sealed = append(sealed, id...)
	nonce := make([]byte, aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return aead.Seal(append(sealed, nonce...), nonce, value, []byte(context)) // #nosec G407 -- the nonce is random
}

// Open returns what was sealed with the context. ErrSealed if it cannot be.
func (k *Keyring) Open(sealed []byte, context string) ([]byte, error) {
	id, rest, err := splitSealed(sealed)
	if err != nil {
		return nil, err
	}
	aead := k.cipher(id)
	if aead == nil {
		return nil, fmt.Errorf("key %s is not among the secret keys: %w", id, ErrSealed)
	}
	if len(rest) < aead.NonceSize() {
		return nil, ErrSealed
	}
	value, err := aead.Open(nil, rest[:aead.NonceSize()], rest[aead.NonceSize():], []byte(context))
	if err != nil {
		return nil, ErrSealed
	}
	return value, nil
}

// SealedBy is the id of the key that a sealed value is under.
func SealedBy(sealed []byte) (string, error) {
	id, _, err := splitSealed(sealed)
	return id, err
}

func splitSealed(sealed []byte) (id string, rest []byte, err error) {
	if len(sealed) < 2 || sealed[0] != sealFormat || sealed[1] > maxKeyID || len(sealed) < 2+int(sealed[1]) {
		return "", nil, ErrSealed
	}
	n := 2 + int(sealed[1])
	return string(sealed[2:n]), sealed[n:], nil
}

func (k *Keyring) cipher(id string) cipher.AEAD {
	key, ok := k.Derive(id, "seal")
	if !ok {
		return nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has the length
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}
