package jobs_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/jobs/ytdlp/ytdlptest"
	"medianest/store"
)

// served is how many bytes of a path the site has sent.
func (b *bundle) served(path string) int64 {
	var sum int64
	for _, r := range b.site.Requests(path) {
		sum += r.Bytes
	}
	return sum
}

// waitFetched waits until yt-dlp has so many bytes.
func (b *bundle) waitFetched(t *testing.T, jobID, size int64) {
	t.Helper()
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(b.progress.of(jobID), func(p store.Progress) bool { return p.DownloadedBytes >= size })
	}, patience, 5*time.Millisecond)
}

// A worker is stopped in the midst of a film. The next one fetches the rest, also when what the first one found out
// about the film is too old to be used again.
func TestNextWorkerFetchesTheRest(t *testing.T) {
	t.Parallel()

	for name, old := range map[string]bool{"ProbeIsFresh": false, "ProbeIsOld": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			d := b.wish(t, b.user(t, "anna"), halfFetched)
			b.waitFetched(t, *d.JobID, halfFetchedSize/4)
			stop(t, b.queue)
			require.NotEmpty(t, b.staged(t))
			if old {
				_, err := b.owner.Exec(t.Context(), `UPDATE medianest.content SET probed_at = now() - interval '4 h'`)
				require.NoError(t, err)
			}
			b.another(t, b.root, "second")
			served := b.requireRest(t, d)
			t.Logf("%.2f of the film's bytes were served", float64(served)/halfFetchedSize)
			require.Less(t, served, int64(halfFetchedSize*115/100))
		})
	}
}

// A worker is taken for dead, and is not, while yt-dlp writes: the next one goes on with what was there at that moment.
// The first one stops within seconds, and nothing of what it still gets finds its way into the film.
func TestLostWorkersFilmIsFetchedOn(t *testing.T) {
	t.Parallel()

	b := setup(t)
	d := b.wish(t, b.user(t, "anna"), halfFetched)
	b.waitFetched(t, *d.JobID, halfFetchedSize/4)
	b.supersede(t, *d.JobID)
	b.requireRest(t, d)
	require.True(t, slices.ContainsFunc(b.site.Requests("/big.mp4"), func(r ytdlptest.Request) bool {
		var from int64
		_, err := fmt.Sscanf(r.Range, "bytes=%d-", &from)
		return err == nil && from >= halfFetchedSize/4
	}), "it began anew")
	stop(t, b.queue)
	require.Empty(t, b.processes(t))
}

const (
	halfFetched     = "/big.mp4?mb=8&rate=3000000"
	halfFetchedSize = 8 << 20
)

// requireRest waits for the film that was half fetched, and asserts that it is whole, and all that there is. It returns
// how many bytes of it the site has sent.
func (b *bundle) requireRest(t *testing.T, d store.Download) int64 {
	t.Helper()
	d = b.wait(t, d.ID)
	served := b.served("/big.mp4")
	require.Equal(t, store.StateCompleted, d.State, d.FailureDetail)
	require.Equal(t, 1, b.job(t, d.JobID).Attempt)
	require.Equal(t, b.sum(t, halfFetched), d.Files[0].SHA256)
	require.Eventually(t, func() bool { return len(b.files(t)) == 1 }, patience, 10*time.Millisecond)
	b.requireLibrary(t, d.Files[0].Path)
	return served
}

// sum is that of what the site has at the address.
func (b *bundle) sum(t *testing.T, address string) []byte {
	t.Helper()
	address, _, _ = strings.Cut(address, "&rate=")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.siteURL+address, http.NoBody)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	hash := sha256.New()
	_, err = io.Copy(hash, resp.Body)
	require.NoError(t, err)
	return hash.Sum(nil)
}

// What was fetched whole is not fetched again because it could not be published.
func TestPublishingFailsAndIsTriedAgain(t *testing.T) {
	t.Parallel()

	m := &meddler{}
	var tries atomic.Int64
	m.publish = func(context.Context, string) error {
		if tries.Add(1) == 1 {
			return errors.New("the media server has the folder locked")
		}
		return nil
	}
	b := setup(t, withMeddler(m), hurry)
	d := b.wait(t, b.wish(t, b.user(t, "anna"), "/big.mp4?mb=4&rate=4000000").ID)
	require.Equal(t, store.StateCompleted, d.State, d.FailureDetail)
	require.Equal(t, []string{"internal", ""}, b.reasons(t, d.JobID))
	require.Less(t, b.served("/big.mp4"), int64(4<<20*115/100))
	b.requireLibrary(t, d.Files[0].Path)
}
