package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// fakePlatform is a platform whose downloads a test moves by hand.
type fakePlatform struct {
	mu        sync.Mutex
	downloads map[string]*remoteDownload
	order     []string
	refuse    map[string]error // by URL
	listeners []listener
	listening chan struct{} // closed when somebody listens
	keys      []string
	streamErr error
}

func newFakePlatform() *fakePlatform {
	return &fakePlatform{downloads: map[string]*remoteDownload{}, refuse: map[string]error{}, listening: make(chan struct{})}
}

func (f *fakePlatform) create(_ context.Context, url, key string) (remoteDownload, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = append(f.keys, key)
	if err := f.refuse[url]; err != nil {
		return remoteDownload{}, false, err
	}
	for _, id := range f.order {
		if d := f.downloads[id]; d.URL == url {
			return *d, false, nil
		}
	}
	return f.addLocked(remoteDownload{URL: url, State: stateQueued}), true, nil
}

func (f *fakePlatform) addLocked(d remoteDownload) remoteDownload {
	d.ID = fmt.Sprint(len(f.order) + 1)
	f.downloads[d.ID] = &d
	f.order = append(f.order, d.ID)
	return d
}

func (f *fakePlatform) find(_ context.Context, id string) (remoteDownload, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.downloads[id]
	if !ok {
		return remoteDownload{}, fmt.Errorf("download %s: %w", id, errNoDownload)
	}
	return *d, nil
}

func (f *fakePlatform) children(_ context.Context, id string) ([]remoteDownload, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var children []remoteDownload
	for _, other := range f.order {
		if d := f.downloads[other]; d != nil && d.ParentID == id {
			children = append(children, *d)
		}
	}
	return children, nil
}

func (f *fakePlatform) cancel(_ context.Context, id string) error {
	f.set(id, func(d *remoteDownload) { d.State = stateCancelled })
	return nil
}

func (f *fakePlatform) events(ctx context.Context, l listener) error {
	if f.streamErr != nil {
		return f.streamErr
	}
	f.mu.Lock()
	f.listeners = append(f.listeners, l)
	f.mu.Unlock()
	l.connected()
	close(f.listening)
	<-ctx.Done()
	return nil
}

// set changes a download and tells who listens.
func (f *fakePlatform) set(id string, change func(*remoteDownload)) {
	f.mu.Lock()
	d := f.downloads[id]
	change(d)
	event := streamEvent{Type: eventDownloadState, DownloadID: id, ParentID: d.ParentID, State: d.State}
	listeners := slices.Clone(f.listeners)
	f.mu.Unlock()
	for _, l := range listeners {
		l.event(event)
	}
}

func (f *fakePlatform) emit(e streamEvent) {
	f.mu.Lock()
	listeners := slices.Clone(f.listeners)
	f.mu.Unlock()
	for _, l := range listeners {
		l.event(e)
	}
}

// downloadRun is one run of the command against a fake platform, without a terminal.
type downloadRun struct {
	platform *fakePlatform
	signals  chan os.Signal
	out      bytes.Buffer
	result   chan error
}

func startDownload(t *testing.T, f *fakePlatform, detach bool, urls ...string) *downloadRun {
	t.Helper()
	r := &downloadRun{platform: f, signals: make(chan os.Signal, 2), result: make(chan error, 1)}
	s := &downloadSession{
		process:  process{stdin: strings.NewReader(""), stdout: &r.out, stderr: &r.out, signals: r.signals},
		platform: f, view: newPlainView(&r.out),
	}
	go func() { r.result <- s.run(t.Context(), urls, "", detach) }()
	return r
}

func exitCode(err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	}
	return exitFailure
}

func TestDownloadFollowsToTheEnd(t *testing.T) {
	t.Parallel()
	f := newFakePlatform()
	r := startDownload(t, f, false, "https://example.org/1")
	<-f.listening
	f.set("1", func(d *remoteDownload) { d.State, d.Title, d.JobID = stateRunning, "Clip", "7" })
	f.emit(streamEvent{Type: eventProgress, JobID: "7", Progress: remoteProgress{Phase: "downloading", Percent: 55, DownloadedBytes: 55, TotalBytes: 100}})
	f.emit(streamEvent{Type: eventProgress, JobID: "8", Progress: remoteProgress{Percent: 99}}) // somebody else's
	f.set("1", func(d *remoteDownload) {
		d.State, d.Files = stateCompleted, []remoteFile{{Path: "admin/Clip [1].mp4", SizeBytes: 100}}
	})
	require.NoError(t, <-r.result)
	require.Contains(t, r.out.String(), "queued     https://example.org/1\n")
	require.Contains(t, r.out.String(), "completed  admin/Clip [1].mp4 (100 B)\n")
	require.NotContains(t, r.out.String(), "90 %")
}

func TestDownloadOfACollectionShowsItsItems(t *testing.T) {
	t.Parallel()
	f := newFakePlatform()
	r := startDownload(t, f, false, "https://example.org/gallery")
	<-f.listening
	f.mu.Lock()
	f.downloads["1"].IsCollection, f.downloads["1"].State = true, stateRunning
	for _, title := range []string{"A", "B"} {
		f.addLocked(remoteDownload{ParentID: "1", Title: title, State: stateQueued, URL: title})
	}
	f.mu.Unlock()
	f.emit(streamEvent{Type: eventDownloadState, DownloadID: "2", ParentID: "1", State: stateQueued})
	f.set("2", func(d *remoteDownload) {
		d.State, d.Files = stateCompleted, []remoteFile{{Path: "admin/A.mp4", SizeBytes: 1}}
	})
	f.set("3", func(d *remoteDownload) {
		d.State, d.Failure = stateFailed, &remoteFailure{Reason: "not_found", Detail: "There is nothing at this address."}
	})
	f.set("1", func(d *remoteDownload) {
		d.State, d.Failure = stateCompleted, &remoteFailure{Reason: "some_children_failed"}
	})
	require.Equal(t, exitFailure, exitCode(<-r.result), "one item failed")
	require.Contains(t, r.out.String(), "completed  admin/A.mp4 (1 B)\n")
	require.Contains(t, r.out.String(), "failed     B: There is nothing at this address (not_found)\n")
	require.Contains(t, r.out.String(), "1 completed, 1 failed\n")
}

// What happened while the stream was not there is asked for when it says reset.
func TestDownloadAsksForTheTruthAfterReset(t *testing.T) {
	t.Parallel()
	f := newFakePlatform()
	r := startDownload(t, f, false, "https://example.org/1")
	<-f.listening
	f.mu.Lock()
	f.downloads["1"].State = stateCompleted // and no event
	f.mu.Unlock()
	f.emit(streamEvent{Type: eventReset})
	require.NoError(t, <-r.result)
}

// A stream that is back at once is no news; one that stays away is told, once, and its return.
func TestDownloadTellsOfAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakePlatform()
		r := startDownload(t, f, false, "https://example.org/1")
		<-f.listening
		f.listeners[0].lost()
		<-time.After(outageTold / 2)
		f.listeners[0].connected()
		f.listeners[0].lost()
		<-time.After(outageTold / 2)
		f.listeners[0].lost()
		<-time.After(2 * outageTold)
		f.listeners[0].connected()
		f.set("1", func(d *remoteDownload) { d.State = stateCompleted })
		require.NoError(t, <-r.result)
		require.Equal(t, 1, strings.Count(r.out.String(), "lost the connection"))
		require.Equal(t, 1, strings.Count(r.out.String(), "connected again"))
	})
}

func TestDownloadGoesOnWithTheOthersWhenOneIsRefused(t *testing.T) {
	t.Parallel()
	f := newFakePlatform()
	f.refuse["file:///etc/passwd"] = fmt.Errorf("%w: only http and https", errBadRequest)
	r := startDownload(t, f, true, "file:///etc/passwd", "https://example.org/1", "https://example.org/1")
	require.Equal(t, exitFailure, exitCode(<-r.result))
	require.Contains(t, r.out.String(), "file:///etc/passwd: ")
	require.Contains(t, r.out.String(), "https://example.org/1: is being downloaded already\n")
	require.Len(t, f.order, 1)
	slices.Sort(f.keys)
	require.Len(t, slices.Compact(f.keys), 3, "each request has a key of its own")
}

func TestDownloadLeavesDownloadsRunningWhenInterruptedWithoutATerminal(t *testing.T) {
	t.Parallel()
	f := newFakePlatform()
	r := startDownload(t, f, false, "https://example.org/1")
	<-f.listening
	r.signals <- syscall.SIGINT
	err := <-r.result
	require.Equal(t, exitInterrupted, exitCode(err))
	require.ErrorContains(t, err, "1 download goes on")
	require.Equal(t, stateQueued, f.downloads["1"].State)
}

func TestDownloadEndsWhenTheDownloadIsDeletedElsewhere(t *testing.T) {
	t.Parallel()
	f := newFakePlatform()
	r := startDownload(t, f, false, "https://example.org/1")
	<-f.listening
	f.mu.Lock()
	delete(f.downloads, "1")
	f.mu.Unlock()
	f.emit(streamEvent{Type: eventDownloadState, DownloadID: "1", State: stateDeleted})
	require.Equal(t, exitFailure, exitCode(<-r.result))
	require.Contains(t, r.out.String(), "deleted    https://example.org/1\n")
}

func TestDownloadEndsWhenTheStreamIsRefused(t *testing.T) {
	t.Parallel()
	f := newFakePlatform()
	f.streamErr = fmt.Errorf("%w: the token was revoked", errRefused)
	r := startDownload(t, f, false, "https://example.org/1")
	require.ErrorContains(t, <-r.result, "the token was revoked")
}

func TestDownloadSaysWhereATokenIsMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	code, _, stderr := invoke(t, []string{"MEDIANEST_DATA_DIR=" + dir}, "download", "https://example.org/1")
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr, dir+"/admin-token")
	require.Contains(t, stderr, "MEDIANEST_TOKEN")
}
