package reason_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"medianest/jobs/reason"
)

// declared reads the constants from the source, so that one without an entry in the list cannot go unnoticed.
func declared(t *testing.T) []reason.Reason {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	require.NoError(t, err)
	var found []reason.Reason
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if ident, ok := spec.Type.(*ast.Ident); ok && ident.Name == "Reason" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			found = append(found, reason.Reason(text))
		}
		return true
	})
	return found
}

func TestEveryConstantIsOnTheList(t *testing.T) {
	t.Parallel()

	constants := declared(t)
	require.ElementsMatch(t, constants, reason.All())
	for _, r := range constants {
		require.True(t, r.Valid())
		require.Regexp(t, regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`), string(r))
		require.Regexp(t, regexp.MustCompile(`^[A-Z].*\.$`), r.Sentence(), "a whole sentence")
		require.NotEqual(t, "invalid", r.Policy().String())
		if r.Policy() != reason.Permanent {
			require.True(t, r.Retryable(), "%s is retried by the queue, so a person may retry it too", r)
		}
	}
}

func TestAStrangerReadsAsUnknown(t *testing.T) {
	t.Parallel()

	stranger := reason.Reason("of_a_newer_build")
	require.False(t, stranger.Valid())
	require.False(t, reason.Reason("").Valid())
	require.Equal(t, reason.Unknown.Policy(), stranger.Policy())
	require.Equal(t, reason.Unknown.Sentence(), stranger.Sentence())
}

func TestDoubts(t *testing.T) {
	t.Parallel()

	// What a hasty addition to the list could get wrong: bytes thrown away because a host was away for a moment.
	for _, r := range []reason.Reason{reason.Network, reason.Timeout, reason.RateLimited, reason.BotCheck, reason.Internal} {
		require.False(t, r.Doubts(), r)
	}
	for _, r := range []reason.Reason{reason.Damaged, reason.Postprocess, reason.DiskFull, reason.Unknown, "of_a_newer_build"} {
		require.True(t, r.Doubts(), r)
	}
}

func TestSite(t *testing.T) {
	t.Parallel()

	want := map[reason.Site][]reason.Reason{
		reason.SiteAnswers: {reason.DRM, reason.FormatUnavailable, reason.Gone, reason.NotFound, reason.Upcoming},
		// HTTP 403, and a page without a film, may be how a site says that we ask too often.
		reason.SiteFails: {
			reason.AuthRequired, reason.BotCheck, reason.Damaged, reason.ExtractorBug, reason.GeoBlocked, reason.Network, reason.NoMedia,
			reason.RateLimited, reason.Timeout, reason.Unknown,
		},
	}
	for _, r := range reason.All() {
		switch {
		case slices.Contains(want[reason.SiteAnswers], r):
			require.Equal(t, reason.SiteAnswers, r.Site(), r)
		case slices.Contains(want[reason.SiteFails], r):
			require.Equal(t, reason.SiteFails, r.Site(), r)
		default:
			require.Equal(t, reason.SiteUnknown, r.Site(), r)
		}
		if r.Policy() == reason.ParkHost {
			require.Equal(t, reason.SiteFails, r.Site(), r)
		}
	}
	require.Equal(t, reason.SiteUnknown, reason.Reason("of_a_newer_build").Site())
	require.Equal(t, reason.SiteUnknown, reason.Reason("").Site())
}

func TestError(t *testing.T) {
	t.Parallel()

	err := fmt.Errorf("fetch content 1: %w", &reason.Error{Reason: reason.Network, Detail: "connection reset", Err: fs.ErrClosed})
	require.ErrorIs(t, err, fs.ErrClosed)
	require.Equal(t, "fetch content 1: network: connection reset: file already closed", err.Error())
	require.Equal(t, "connection reset", reason.Find(err).Describe())

	require.Equal(t, reason.Gone.Sentence(), (&reason.Error{Reason: reason.Gone}).Describe())
	require.Equal(t, "gone", (&reason.Error{Reason: reason.Gone}).Error())
	require.Nil(t, reason.Find(errors.New("plain")))
	require.Nil(t, reason.Find(nil))
	require.False(t, strings.Contains(reason.Internal.Sentence(), "error"), "words for people")
}
