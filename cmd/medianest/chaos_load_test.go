//go:build chaos

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api/client"
)

// How often a wish is one of these, out of a hundred.
const (
	sharedOf100    = 20 // asked for by two users
	cancelledOf100 = 8  // cancelled by its user while it runs, or a little before or after
	deletedOf100   = 60 // deleted by its user when it is completed, which makes a short job
)

// wish is a film that one user wants, or two.
type wish struct {
	n       int
	film    film
	address string // of the film, its own
	users   []string
	cancel  bool // by its users, at some time
	deleted bool // by its users, when it was completed

	ids       []string // of the downloads, user by user; empty until accepted
	jobs      []string
	paths     []string // in the library; of what completed and was not deleted
	cancelled int      // how many downloads ended so
	accepted  time.Time
	done      bool
}

// name is the wish's at the meter.
func (w *wish) name() string { return numbered("", w.n) }

// original is what an undisturbed fetch of a film gives and costs.
type original struct {
	bytes   int64 // served for it
	streams string
	sum     string // SHA-256 of the file
}

// load keeps a number of wishes going and keeps book on them.
type load struct {
	fleet     *chaosFleet
	lasts     time.Duration // a fetch
	originals map[string]original

	mu       sync.Mutex
	random   *rand.Rand // guarded by mu
	wishes   []*wish
	accepted int
	done     int
}

// pick is a number below n.
func (l *load) pick(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.random.IntN(n)
}

// next is a new wish.
func (l *load) next() *wish {
	chance := func(percent int) bool { return l.pick(100) < percent }
	w := &wish{film: films[l.pick(len(films))], users: []string{"admin"}}
	switch {
	case chance(cancelledOf100):
		w.cancel = true
	case chance(sharedOf100):
		w.users = append(w.users, otherUser)
	}
	w.deleted = !w.cancel && chance(deletedOf100)
	l.mu.Lock()
	defer l.mu.Unlock()
	w.n = len(l.wishes) + 1
	w.address = l.fleet.meter.address(w.name(), w.film.rate(l.lasts), w.film.path)
	l.wishes = append(l.wishes, w)
	return w
}

// measure fetches one film of each shape while nothing disturbs it.
func (l *load) measure(ctx context.Context) {
	l.fleet.t.Helper()
	found, errs := make([]original, len(films)), make([]error, len(films))
	var wg sync.WaitGroup
	for i, f := range films {
		wg.Go(func() { found[i], errs[i] = l.fetchOriginal(ctx, f) })
	}
	wg.Wait()
	require.NoError(l.fleet.t, errors.Join(errs...))
	l.originals = map[string]original{}
	for i, f := range films {
		l.originals[f.kind] = found[i]
	}
}

func (l *load) fetchOriginal(ctx context.Context, f film) (original, error) {
	name := "original-" + f.kind
	d, err := l.ask(ctx, "admin", l.fleet.meter.address(name, f.rate(l.lasts), f.path), name)
	if err == nil {
		d, err = l.await(ctx, "admin", d.ID.String(), isOver)
	}
	if err != nil || string(d.State) != stateCompleted {
		return original{}, fmt.Errorf("an undisturbed download of %s is %s: %w", f.path, d.State, err)
	}
	streams, err := streamHash(ctx, l.fleet.ffmpeg, filepath.Join(l.fleet.home.media(), filepath.FromSlash(d.Files[0].Path)))
	if err != nil {
		return original{}, err
	}
	o := original{bytes: l.fleet.meter.of(name).bytes, streams: streams, sum: d.Files[0].Sha256}
	if f.name != "" {
		if sum, err := l.fleet.meter.site.SHA256(f.name); err != nil || sum != o.sum {
			return original{}, fmt.Errorf("%s is not the site's film: %w", d.Files[0].Path, err)
		}
	}
	return o, nil
}

// isOver says whether a download has ended.
func isOver(d client.Download) bool {
	switch string(d.State) {
	case stateCompleted, stateFailed, stateCancelled:
		return true
	}
	return false
}

// streamHash is the sums of a film's streams as they are in its container: equal ones are equal frame by frame.
func streamHash(ctx context.Context, ffmpeg, path string) (string, error) {
	command := exec.CommandContext(ctx, ffmpeg, "-nostdin", "-v", "error", "-i", path, "-map", "0", "-c", "copy", "-f", "streamhash", "-hash", "md5", "-")
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("sum the streams of %s: %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// run fulfils one wish after the other until ctx ends, and the one that it then is at.
func (l *load) run(ctx, hard context.Context) {
	for ctx.Err() == nil {
		w := l.next()
		if err := l.fulfil(hard, w); err != nil {
			l.fleet.bad.add("wish %d (%s): %v", w.n, w.film.kind, err)
		}
	}
}

func (l *load) fulfil(ctx context.Context, w *wish) error {
	for i, user := range w.users {
		if i > 0 { // the second one comes before, while or after the film is fetched for the first
			if err := sleep(ctx, time.Duration(l.pick(15_000))*time.Millisecond); err != nil {
				return err
			}
		}
		d, err := l.ask(ctx, user, w.address, fmt.Sprintf("wish-%d", w.n))
		if err != nil {
			return err
		}
		l.mu.Lock()
		w.ids = append(w.ids, d.ID.String())
		if d.JobID != nil {
			w.jobs = append(w.jobs, *d.JobID)
		}
		if i == 0 {
			w.accepted = time.Now()
		}
		l.accepted++
		l.mu.Unlock()
	}
	if w.cancel {
		if err := sleep(ctx, time.Duration(l.pick(15_000))*time.Millisecond); err != nil {
			return err
		}
		if err := l.cancel(ctx, w.users[0], w.ids[0]); err != nil {
			return err
		}
	}
	var completed []client.Download
	for i, user := range w.users {
		d, err := l.await(ctx, user, w.ids[i], isOver)
		if err != nil {
			return err
		}
		switch string(d.State) {
		case stateCompleted:
			if err := l.check(ctx, w, user, d); err != nil {
				return err
			}
			completed = append(completed, d)
		case stateCancelled:
			if !w.cancel {
				return fmt.Errorf("download %s is cancelled, and nobody asked for it", d.ID)
			}
		default:
			return fmt.Errorf("download %s is %s: %+v", d.ID, d.State, d.Failure)
		}
	}
	if w.deleted {
		for i, user := range w.users {
			if err := l.remove(ctx, user, w.ids[i]); err != nil {
				return err
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w.done, w.cancelled = true, len(w.users)-len(completed)
	l.done += len(w.users)
	if !w.deleted {
		for _, d := range completed {
			w.paths = append(w.paths, d.Files[0].Path)
		}
	}
	return nil
}

// check looks whether what is said to be completed is in the library, whole.
func (l *load) check(ctx context.Context, w *wish, user string, d client.Download) error {
	if len(d.Files) != 1 {
		return fmt.Errorf("download %s is completed and has %d files", d.ID, len(d.Files))
	}
	if !strings.HasPrefix(d.Files[0].Path, user+"/") {
		return fmt.Errorf("download %s of %s is at %s", d.ID, user, d.Files[0].Path)
	}
	return l.checkFile(ctx, w, d.Files[0].Path, d.Files[0].Sha256)
}

func (l *load) checkFile(ctx context.Context, w *wish, rel, said string) error {
	path := filepath.Join(l.fleet.home.media(), filepath.FromSlash(rel))
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	is, want := hex.EncodeToString(sum[:]), l.originals[w.film.kind]
	switch {
	case said != "" && is != said:
		return fmt.Errorf("%s has the sum %s, but is said to have %s", rel, is, said)
	case is == want.sum:
		return nil
	case w.film.name != "":
		return fmt.Errorf("%s is not the site's film: %s instead of %s", rel, is, want.sum)
	}
	streams, err := streamHash(ctx, l.fleet.ffmpeg, path)
	if err == nil && streams != want.streams {
		err = fmt.Errorf("%s is damaged: its streams are %s instead of %s", rel, streams, want.streams)
	}
	return err
}

// The four ways to ask the API, which insist: whatever is killed meanwhile, they try again.

var errGone = errors.New("not there")

func (l *load) ask(ctx context.Context, user, address, key string) (d client.Download, err error) {
	err = insistently(ctx, func(ctx context.Context) error {
		answer, err := l.fleet.api(user).CreateDownloadWithResponse(ctx, &client.CreateDownloadParams{IdempotencyKey: &key}, client.DownloadRequest{URL: address})
		switch {
		case err != nil:
			return err
		case answer.JSON202 != nil:
			d = *answer.JSON202
		case answer.JSON200 != nil:
			d = *answer.JSON200
		default:
			return fmt.Errorf("ask for a film: %w", client.Fault(answer))
		}
		return nil
	})
	return d, err
}

func (l *load) await(ctx context.Context, user, id string, until func(client.Download) bool) (d client.Download, err error) {
	for {
		err = insistently(ctx, func(ctx context.Context) error {
			answer, err := l.fleet.api(user).FindDownloadWithResponse(ctx, mustUUID(id))
			switch {
			case err != nil:
				return err
			case answer.JSON200 != nil:
				d = *answer.JSON200
				return nil
			case answer.StatusCode() == http.StatusNotFound:
				return fmt.Errorf("download %s: %w", id, errGone)
			}
			return client.Fault(answer)
		})
		if err != nil || until(d) {
			return d, err
		}
		if err := sleep(ctx, time.Second); err != nil {
			return d, fmt.Errorf("download %s of job %s still is %s: %w", id, text(d.JobID), d.State, err)
		}
	}
}

func (l *load) cancel(ctx context.Context, user, id string) error {
	return insistently(ctx, func(ctx context.Context) error {
		answer, err := l.fleet.api(user).CancelDownloadWithResponse(ctx, mustUUID(id))
		if err != nil || answer.StatusCode() == http.StatusConflict { // it had ended before
			return err
		}
		return client.Fault(answer)
	})
}

func (l *load) remove(ctx context.Context, user, id string) error {
	return insistently(ctx, func(ctx context.Context) error {
		answer, err := l.fleet.api(user).DeleteDownloadWithResponse(ctx, mustUUID(id))
		if err != nil || answer.StatusCode() == http.StatusNotFound { // the answer to the try before was lost
			return err
		}
		return client.Fault(answer)
	})
}

// insistently repeats do until it succeeds, or finds that there is nothing, or ctx ends.
func insistently(ctx context.Context, do func(context.Context) error) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := do(attempt)
		cancel()
		var problem *client.Problem
		refused := errors.As(err, &problem) && problem.Status < http.StatusInternalServerError && problem.Status != http.StatusTooManyRequests
		if err == nil || errors.Is(err, errGone) || refused {
			return err
		}
		if sleep(ctx, 100*time.Millisecond) != nil {
			return fmt.Errorf("never succeeded: %w", err)
		}
	}
}

// sleep is a part of the load's schedule.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// filesIn lists the files of a library by their relative paths, without what is kept in its hidden folder.
func filesIn(root string) (found map[string]bool, err error) {
	found = map[string]bool{}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		case entry.IsDir():
			return nil
		}
		rel, err := filepath.Rel(root, path)
		found[filepath.ToSlash(rel)] = true
		return err
	})
	return found, err
}
