package jobs_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
	"medianest/jobs/ytdlp"
	"medianest/store"
)

// collection is a probe of one.
func collection(title string, addresses ...string) ytdlp.Probe {
	p := ytdlp.Probe{IsCollection: true, Extractor: "fake", ID: "c1", Title: title}
	for i, address := range addresses {
		p.Entries = append(p.Entries, ytdlp.Entry{URL: address, ID: fmt.Sprint(i), Title: fmt.Sprintf("Episode %d", i+1)})
	}
	return p
}

func TestCollectionWithFaults(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	var b *bundle
	f.probe = func(_ context.Context, req ytdlp.ProbeRequest) (ytdlp.Probe, error) {
		switch {
		case strings.HasSuffix(req.URL, "/list"):
			return collection("List", b.siteURL+"/good", "ftp://elsewhere/film", b.siteURL+"/list", b.siteURL+"/good", b.siteURL+"/bad"), nil
		case strings.HasSuffix(req.URL, "/bad"):
			return ytdlp.Probe{}, &reason.Error{Reason: reason.Gone}
		}
		return film("Film"), nil
	}
	b = setup(t, with(f))
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/list").ID)
	require.Equal(t, store.StateCompleted, d.State)
	require.Equal(t, "some_children_failed", d.FailureReason)
	require.Equal(t, "Some of the items could not be downloaded. One of its items cannot be downloaded from.", d.FailureDetail)
	children := b.children(t, d.ID)
	require.Len(t, children, 2, "what cannot be addressed, occurs twice, or is the list itself is left out")
	require.Equal(t, store.StateCompleted, children[0].State)
	require.Equal(t, "gone", children[1].FailureReason)
}

// A page that is longer than what is taken of it, and lists addresses of no use: the rest completes, and says so.
func TestCollectionThatIsCutShort(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	var b *bundle
	f.probe = func(_ context.Context, req ytdlp.ProbeRequest) (ytdlp.Probe, error) {
		if !strings.HasSuffix(req.URL, "/list") {
			return film("Film"), nil
		}
		p := collection("List", b.siteURL+"/good", "ftp://one/", "ftp://two/")
		p.Truncated = true
		return p, nil
	}
	b = setup(t, with(f))
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/list").ID)
	require.Equal(t, store.StateCompleted, d.State)
	require.Equal(t, "some_children_failed", d.FailureReason)
	require.Equal(t, "Only the first 5,000 of its items were taken. 2 of its items cannot be downloaded from.", d.FailureDetail)
}

func TestCollectionOfNothingToFetch(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	var b *bundle
	f.probe = func(_ context.Context, req ytdlp.ProbeRequest) (ytdlp.Probe, error) {
		switch {
		case strings.HasSuffix(req.URL, "/self"):
			return collection("Self", req.URL, req.URL+"#there"), nil
		case strings.HasSuffix(req.URL, "/strange"):
			return collection("Strange", "ftp://one/", "ftp://two/"), nil
		}
		// Each list holds the next one: a site can go on for ever.
		n := 0
		_, err := fmt.Sscanf(req.URL[strings.LastIndex(req.URL, "/")+1:], "deep%d", &n)
		return collection("Deep", fmt.Sprintf("%s/deep%d", b.siteURL, n+1), fmt.Sprintf("%s/deep%d", b.siteURL, n+1000)), err
	}
	b = setup(t, with(f))
	anna := b.user(t, "anna")
	for address, want := range map[string]string{"/self": "no_media", "/strange": "unsupported_url", "/deep1": "children_failed"} {
		d := b.wait(t, b.wish(t, anna, address).ID)
		require.Equal(t, store.StateFailed, d.State)
		require.Equal(t, want, d.FailureReason, "%s: %s", address, d.FailureDetail)
	}
	require.Less(t, f.probes.Load(), int64(40))
}

// A collection whose job is run again begins what failed anew and leaves the rest.
func TestCollectionRetried(t *testing.T) {
	t.Parallel()

	f := newFake(t)
	var b *bundle
	broken := true
	f.probe = func(_ context.Context, req ytdlp.ProbeRequest) (ytdlp.Probe, error) {
		switch {
		case strings.HasSuffix(req.URL, "/list"):
			return collection("List", b.siteURL+"/one", b.siteURL+"/two"), nil
		case strings.HasSuffix(req.URL, "/two") && broken:
			return ytdlp.Probe{}, &reason.Error{Reason: reason.AuthRequired}
		}
		return film("Film"), nil
	}
	b = setup(t, with(f))
	anna := b.user(t, "anna")
	d := b.wait(t, b.wish(t, anna, "/list").ID)
	require.Equal(t, "some_children_failed", d.FailureReason)
	first := b.children(t, d.ID)

	broken = false
	_, err := b.api.RetryDownload(t.Context(), d.ID, store.Viewer{UserID: anna.ID})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		again := b.find(t, d.ID)
		return again.State == store.StateCompleted && again.FailureReason == ""
	}, patience, 20*time.Millisecond)
	second := b.children(t, d.ID)
	require.Len(t, second, 2)
	require.Equal(t, first[0].JobID, second[0].JobID, "what was completed is not run again")
	require.NotEqual(t, first[1].JobID, second[1].JobID)
}
