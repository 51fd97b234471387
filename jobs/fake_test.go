package jobs_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"medianest/jobs"
	"medianest/jobs/queue"
	"medianest/jobs/ytdlp"
	"medianest/jobs/ytdlp/ytdlptest"
)

// fake is an extractor that needs no process. Without functions it finds one film everywhere and brings it: the sample
// site's.
type fake struct {
	film   string // a file
	probe  func(ctx context.Context, req ytdlp.ProbeRequest) (ytdlp.Probe, error)
	fetch  func(ctx context.Context, req ytdlp.FetchRequest) error // before the film is there
	probes atomic.Int64
}

func newFake(t *testing.T) *fake {
	t.Helper()
	site, err := ytdlptest.New(t.Context(), "", tool(t, "ffmpeg"))
	if err != nil {
		t.Fatal(err)
	}
	return &fake{film: site.Path("plain.mp4")}
}

var _ jobs.Extractor = (*fake)(nil)

func (f *fake) Probe(ctx context.Context, req ytdlp.ProbeRequest) (ytdlp.Probe, error) {
	f.probes.Add(1)
	if f.probe != nil {
		return f.probe(ctx, req)
	}
	return film("Film"), nil
}

// film is a probe of one film.
func film(title string) ytdlp.Probe {
	return ytdlp.Probe{
		Extractor: "fake", ID: "f1", Title: title, Ext: "mp4", DurationS: 5,
		Info: json.RawMessage(`{"id": "f1", "ext": "mp4", "duration": 5}`),
	}
}

func (f *fake) Fetch(ctx context.Context, req ytdlp.FetchRequest) (ytdlp.Media, error) {
	if f.fetch != nil {
		if err := f.fetch(ctx, req); err != nil {
			return ytdlp.Media{}, err
		}
	}
	content, err := os.ReadFile(f.film)
	if err != nil {
		return ytdlp.Media{}, err
	}
	path := filepath.Join(req.Dir, "media.mp4")
	return ytdlp.Media{Path: path, Ext: "mp4"}, os.WriteFile(path, content, 0o600)
}

// meddler is a library that fails where it is told to.
type meddler struct {
	jobs.Library

	publish func(ctx context.Context, userName string) error // before
	link    func(ctx context.Context, userName string) error // before
	remove  func(rel string) error                           // before
}

// withMeddler puts m between the worker and the library.
func withMeddler(m *meddler) setting {
	return func(deps *jobs.Deps, _ *queue.Options, _ *ytdlp.Options) {
		m.Library = deps.Library
		deps.Library = m
	}
}

func (m *meddler) Publish(ctx context.Context, staged, userName, fileName string, sum []byte) (string, error) {
	if m.publish != nil {
		if err := m.publish(ctx, userName); err != nil {
			return "", err
		}
	}
	return m.Library.Publish(ctx, staged, userName, fileName, sum)
}

func (m *meddler) Link(ctx context.Context, existing, userName, fileName string, sum []byte) (string, error) {
	if m.link != nil {
		if err := m.link(ctx, userName); err != nil {
			return "", err
		}
	}
	return m.Library.Link(ctx, existing, userName, fileName, sum)
}

func (m *meddler) Remove(rel string) error {
	if m.remove != nil {
		if err := m.remove(rel); err != nil {
			return err
		}
	}
	return m.Library.Remove(rel)
}
