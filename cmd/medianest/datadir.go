package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"medianest/store"
)

// adminTokenFile is the first API token, in the data directory. Its content is printed nowhere.
const adminTokenFile = "admin-token"

// tokenPrefix tells people and secret scanners what they are looking at.
const tokenPrefix = "mn_"

// openDataDir makes the data directory where it is missing. Only its owner may look into it.
func openDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return usageError("MEDIANEST_DATA_DIR: %v", err)
	}
	probe, err := os.CreateTemp(dir, ".write-probe-*")
	if err != nil {
		return usageError("MEDIANEST_DATA_DIR: user %d may not write to %s: %v", os.Getuid(), dir, err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// lockDataDir makes sure that one `up` at a time uses the directory. The lock ends with the process, however it ends.
func lockDataDir(dir string) (release func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		content, _ := io.ReadAll(io.LimitReader(file, 32))
		_ = file.Close()
		holder := "another medianest"
		if pid, err := strconv.Atoi(strings.TrimSpace(string(content))); err == nil {
			holder += " (process " + strconv.Itoa(pid) + ")"
		}
		return nil, usageError("%s is running on the data directory %s; stop it first, or give this one its own MEDIANEST_DATA_DIR", holder, dir)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := errors.Join(file.Truncate(0), writeAt(file, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return func() { _ = file.Close() }, nil
}

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}

// instanceFile names the installation, in the data directory.
const instanceFile = "instance-id"

// instanceID returns the name of the installation on this data directory, which stays the same: by it, a process that
// was started again finds what the one before it, on the same directory, had in hand.
func instanceID(dir string) (string, error) {
	path := filepath.Join(dir, instanceFile)
	content, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(content)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the instance's id: %w", err)
	}
	id := "up-" + strings.ToLower(rand.Text())
	if err := writeFileDurably(path, id+"\n"); err != nil {
		return "", fmt.Errorf("keep the instance's id: %w", err)
	}
	return id, nil
}

// Files of the data directory besides: the platform's secret keys, and the code by which the first person sets the admin's
// password.
const (
	secretKeysFile = "keys/secret-keys" // in a folder of its own: what works needs the keys, and not the admin's token
	setupCodeFile  = "setup-code"
)

// setupCodeAge is how long a set-up code is good after a start.
const setupCodeAge = 7 * 24 * time.Hour

// secretKeys reads the platform's keys from the setting, or else from the data directory; make says whether they are made
// there when there are none. They are made once: what is sealed under keys that are lost is lost.
func secretKeys(c Config, make bool) (*store.Keyring, error) {
	if c.SecretKeys != "" {
		return store.ParseKeyring(c.SecretKeys.reveal()) // as the setting was parsed
	}
	path := filepath.Join(c.DataDir, secretKeysFile)
	content, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && make:
		content = []byte(store.NewKey() + "\n")
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = writeFileDurably(path, string(content))
		}
	case errors.Is(err, fs.ErrNotExist):
		return nil, usageError("MEDIANEST_SECRET_KEYS: there are none, nor is there a file %s, which `medianest migrate up` makes; "+
			"all replicas need the same (`echo 1:$(openssl rand -base64 32)` makes one)", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the secret keys: %w", err)
	}
	keys, err := store.ParseKeyring(string(content))
	if err != nil {
		return nil, usageError("%s: %v", path, err)
	}
	return keys, nil
}

// people is what ensureSetupCode needs of the store.
type people interface {
	FindUserByName(ctx context.Context, name string) (store.User, error)
	ReplaceOneTime(ctx context.Context, hash [32]byte, o store.OneTime) error
}

// ensureSetupCode keeps a code in the data directory by which a person sets the admin's password, as long as there is none,
// and returns its path, or "".
func ensureSetupCode(ctx context.Context, p people, dir string) (string, error) {
	path := filepath.Join(dir, setupCodeFile)
	admin, err := p.FindUserByName(ctx, store.AdminName)
	if errors.Is(err, store.ErrNotFound) || err == nil && (admin.HasPassword || admin.DisabledAt != nil) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("remove the set-up code: %w", err)
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	code, err := readToken(path)
	if errors.Is(err, fs.ErrNotExist) {
		code = "mni_" + strings.TrimPrefix(newToken(), tokenPrefix)
		err = writeFileDurably(path, code+"\n")
	}
	if err != nil {
		return "", fmt.Errorf("keep the set-up code: %w", err)
	}
	err = p.ReplaceOneTime(ctx, sha256.Sum256([]byte(code)), store.OneTime{
		Purpose: store.CodeInvitation, UserID: &admin.ID, ExpiresAt: time.Now().Add(setupCodeAge),
	})
	if err != nil {
		return "", err
	}
	return path, nil
}

// admins is what ensureAdmin needs of the store.
type admins interface {
	// EnsureAdmin makes the user admin and its token of this hash where they are not there, and says whether the token
	// works: one that was revoked stays so.
	EnsureAdmin(ctx context.Context, tokenHash [32]byte) (taken bool, err error)
}

// ensureAdmin makes sure that the user admin exists and that the data directory holds a token of its, and returns the
// token file's path. The file is written before the database knows the token: a stop between the two leaves a token
// that works after the next start, never an admin whose only token nobody has.
func ensureAdmin(ctx context.Context, a admins, dir string) (path string, err error) {
	path = filepath.Join(dir, adminTokenFile)
	token, err := readToken(path)
	if errors.Is(err, fs.ErrNotExist) {
		token = newToken()
		err = writeFileDurably(path, token+"\n")
	}
	if err != nil {
		return "", fmt.Errorf("keep the admin's token: %w", err)
	}
	works, err := a.EnsureAdmin(ctx, sha256.Sum256([]byte(token)))
	if err != nil {
		return "", fmt.Errorf("create the user admin: %w", err)
	}
	if !works {
		return "", usageError("the token in %s was revoked or has expired; delete the file and start again for a new one", path)
	}
	return path, nil
}

// newToken returns 256 random bits in a form that goes into a header and a URL as it is.
func newToken() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(raw[:])
}

// readToken reads a token file.
func readToken(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(content))
	if token == "" {
		return "", fmt.Errorf("%s is empty; delete it and start again for a new token", path)
	}
	return token, nil
}

// writeFileDurably writes a file of mode 0600 that is there whole or not at all, also after a power cut.
func writeFileDurably(path, content string) error {
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) //nolint:errcheck // gone after the rename
	_, err = temp.WriteString(content)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
