package api_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The client is generated from the committed document, so the document must be what the API says of itself. To bring
// both up to date: make generate.
func TestDocumentIsCommitted(t *testing.T) {
	t.Parallel()
	b := setupFake(t, &fakeStore{})
	document, err := b.api.Document30()
	require.NoError(t, err)
	const file = "client/openapi.json"
	if *update {
		require.NoError(t, os.WriteFile(file, document, 0o600))
	}
	committed, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(committed), string(document), "run make generate")
}
