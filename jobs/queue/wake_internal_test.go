package queue

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A process that did not run for too long is refused the database until it has noticed.
func TestWake(t *testing.T) {
	t.Parallel()

	var w Wake
	require.NoError(t, w.Err(), "nobody watches yet")
	w.note(sinceBoot(), time.Hour)
	require.NoError(t, w.Err())
	w.note(sinceBoot()-2*time.Hour, time.Hour)
	require.ErrorIs(t, w.Err(), ErrOverslept)
	w.note(sinceBoot(), time.Hour)
	require.NoError(t, w.Err(), "it has noticed")
	w.note(sinceBoot()-2*time.Hour, time.Hour)
	w.rest()
	require.NoError(t, w.Err(), "nobody watches any more")
}
