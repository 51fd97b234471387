package store_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store"
)

// The database tells when windows open as a clock on the wall does, also over the changes of daylight saving time in zones
// that change at different hours and in different directions.
func TestWindowsGoByTheZonesClocks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, windows := range map[string][]store.Window{
		"night":           {{From: "23:00", To: "07:00"}},
		"around a change": {{From: "01:30", To: "02:30"}},
		"days":            {{Days: []string{"sat", "sun"}, From: "00:00", To: "24:00"}, {Days: []string{"fri"}, From: "22:15", To: "04:45"}},
		"weekly":          {{Days: []string{"wed"}, From: "12:00", To: "12:01"}},
	} {
		for _, zone := range []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"} {
			t.Run(name+" "+zone, func(t *testing.T) {
				t.Parallel()
				loc, err := time.LoadLocation(zone)
				require.NoError(t, err)
				encoded, err := json.Marshal(windows)
				require.NoError(t, err)
				moment := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
				for range 3 {
					_, change := moment.In(loc).ZoneBounds()
					if change.IsZero() {
						change = moment.AddDate(0, 4, 3)
					}
					rows, err := b.pool.Query(t.Context(), `
						SELECT at, medianest.window_opens_at($1, $2, at)
						FROM generate_series($3::timestamptz, $3::timestamptz + interval '4 days', interval '15 min') AS at`,
						string(encoded), zone, change.Add(-48*time.Hour))
					require.NoError(t, err)
					for rows.Next() {
						var at time.Time
						var opens *time.Time
						require.NoError(t, rows.Scan(&at, &opens))
						if isOpen(windows, at.In(loc)) {
							require.Nil(t, opens, "open at %s", at.In(loc))
							continue
						}
						require.NotNil(t, opens, "shut at %s", at.In(loc))
						require.True(t, isOpen(windows, opens.In(loc)), "%s opens at %s", at.In(loc), opens.In(loc))
						for m := at; m.Before(*opens); m = m.Add(15 * time.Minute) {
							require.False(t, isOpen(windows, m.In(loc)), "%s opens at %s, is open at %s", at.In(loc), opens.In(loc), m.In(loc))
						}
					}
					require.NoError(t, rows.Err())
					moment = change.Add(time.Hour)
				}
			})
		}
	}
}

// isOpen goes by what a clock shows. A time that it shows twice is told apart as the platform does: a window that begins then
// begins the second time, and one that ends then ends the second time.
func isOpen(windows []store.Window, at time.Time) bool {
	for _, w := range windows {
		for back := range 3 {
			y, m, d := at.Date()
			day := time.Date(y, m, d-back, 12, 0, 0, 0, time.UTC)
			if len(w.Days) > 0 && !slices.Contains(w.Days, strings.ToLower(day.Format("Mon"))) {
				continue
			}
			opens, closes := onClock(day, w.From, at.Location()), onClock(day, w.To, at.Location())
			if w.To <= w.From {
				closes = onClock(day.AddDate(0, 0, 1), w.To, at.Location())
			}
			if !at.Before(opens) && at.Before(closes) {
				return true
			}
		}
	}
	return false
}

// onClock is the moment at which a clock shows the time on the day, the later of two, and as much after the jump where it
// shows no such time.
func onClock(day time.Time, clock string, loc *time.Location) time.Time {
	var hour, minute int
	_, _ = fmt.Sscanf(clock, "%d:%d", &hour, &minute)
	want := time.Date(day.Year(), day.Month(), day.Day(), hour, minute, 0, 0, time.UTC)
	var found time.Time
	for m := want.Add(-15 * time.Hour); m.Before(want.Add(15 * time.Hour)); m = m.Add(15 * time.Minute) {
		l := m.In(loc)
		if shown := time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), 0, 0, time.UTC); shown.Equal(want) {
			found = m
		}
	}
	if found.IsZero() { // skipped: by the offset of before
		_, offset := want.Add(-15 * time.Hour).In(loc).Zone()
		return want.Add(-time.Duration(offset) * time.Second)
	}
	return found
}

// What is no window, or of no zone, stops nothing.
func TestOddWindowsStopNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, odd := range []string{`{}`, `"x"`, `[{}]`, `[{"from":"x","to":"y"}]`, `[{"from":"25:00","to":"99:99"}]`, `[1]`, `[null]`, `[{"days":"x","from":"00:00","to":"24:00"}]`} {
		for _, zone := range []string{"UTC", "Mars/Olympus"} {
			b.exec(`SELECT medianest.window_opens_at($1::jsonb, $2, now())`, odd, zone)
		}
	}
}

func TestLimitsWithWindows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.create(b.user("ann"), "https://site.test/1")
	now := time.Now().UTC()
	in := func(hours time.Duration) string { return now.Add(hours * time.Hour).Format("15:04") }
	shut := store.Limit{Key: "host:*", Windows: []store.Window{{From: in(2), To: in(3)}}}
	set, err := b.api.SetLimit(t.Context(), shut)
	require.NoError(t, err)
	require.Equal(t, shut.Windows, set.Windows)
	require.Equal(t, "UTC", set.Timezone)
	found := b.find(d)
	require.Equal(t, []string{store.StateWaiting, store.WaitingOnWindow, store.WaitsForWindow, "host:site.test"},
		[]string{found.State, found.WaitingOn, found.Waiting.Reason, found.Waiting.Key})
	require.WithinDuration(t, now.Add(2*time.Hour), *found.Waiting.NotBefore, 2*time.Minute)
	_, err = b.api.SetLimit(t.Context(), store.Limit{Key: "host:*", Windows: []store.Window{{From: in(-1), To: in(1)}}})
	require.NoError(t, err)
	require.Equal(t, store.StateQueued, b.find(d).State)

	for _, l := range []store.Limit{
		{Windows: []store.Window{{From: "7:00", To: "08:00"}}},
		{Windows: []store.Window{{From: "24:00", To: "08:00"}}},
		{Windows: []store.Window{{From: "07:00", To: "07:00"}}},
		{Windows: []store.Window{{From: "07:00", To: "25:00"}}},
		{Windows: []store.Window{{From: "07:00", To: "08:00", Days: []string{"monday"}}}},
		{Windows: make([]store.Window, 21)},
		{Timezone: "Mars/Olympus"},
		{Timezone: "Local"},
	} {
		l.Key = "kind:download"
		_, err := b.api.SetLimit(t.Context(), l)
		require.ErrorIs(t, err, store.ErrInvalid, "%+v", l)
	}
}
