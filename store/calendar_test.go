package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"medianest/store"
)

func cronOf(t *testing.T, expression, zone string) store.Calendar {
	t.Helper()
	c, err := store.NewCronCalendar(expression, zone)
	require.NoError(t, err, "%s in %s", expression, zone)
	return c
}

func at(t *testing.T, text string) time.Time {
	t.Helper()
	moment, err := time.Parse("2006-01-02 15:04", text)
	require.NoError(t, err)
	return moment
}

// What clocks that are put forward and back do, in words that can be checked by hand. Times are UTC.
func TestCalendarOverChangesOfClocks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, zone, cron, after string
		want                    []string
	}{
		{
			"An hour that is left out: the tick comes as it would end", "Europe/Berlin", "30 2 * * *", "2026-03-28 00:00",
			[]string{"2026-03-28 01:30", "2026-03-29 01:00", "2026-03-30 00:30"},
		},
		{
			"Several ticks that are left out are one", "America/New_York", "0,30 2 * * *", "2026-03-08 00:00",
			[]string{"2026-03-08 07:00", "2026-03-09 06:00", "2026-03-09 06:30"},
		},
		{
			"An hour that comes twice: the first time", "America/New_York", "30 1 * * *", "2026-10-31 00:00",
			[]string{"2026-10-31 05:30", "2026-11-01 05:30", "2026-11-02 06:30"},
		},
		{
			"A time just after the change", "Europe/Berlin", "0 3 * * *", "2026-10-24 00:00",
			[]string{"2026-10-24 01:00", "2026-10-25 02:00", "2026-10-26 02:00"},
		},
		{
			"Half an hour that is left out", "Australia/Lord_Howe", "15 2 * * *", "2026-10-02 12:00",
			[]string{"2026-10-02 15:45", "2026-10-03 15:30", "2026-10-04 15:15"},
		},
		{
			"Half an hour that comes twice", "Australia/Lord_Howe", "45 1 * * *", "2026-04-03 12:00",
			[]string{"2026-04-03 14:45", "2026-04-04 14:45", "2026-04-05 15:15"},
		},
		{
			"Each hour goes by time that passes, where one is left out", "Europe/Berlin", "0 * * * *", "2026-03-28 23:30",
			[]string{"2026-03-29 00:00", "2026-03-29 01:00", "2026-03-29 02:00"},
		},
		{
			"and where one comes twice", "America/New_York", "*/30 * * * *", "2026-11-01 04:59",
			[]string{"2026-11-01 05:00", "2026-11-01 05:30", "2026-11-01 06:00", "2026-11-01 06:30", "2026-11-01 07:00"},
		},
		{
			"Midnight that is left out", "Africa/Cairo", "@daily", "2026-04-23 12:00",
			[]string{"2026-04-23 22:00", "2026-04-24 21:00"},
		},
		{
			"A day that is left out", "Pacific/Apia", "0 12 * * *", "2011-12-29 00:00",
			[]string{"2011-12-29 22:00", "2011-12-30 10:00", "2011-12-30 22:00"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, tick := range cronOf(t, c.cron, c.zone).Upcoming(at(t, c.after), len(c.want)) {
				require.Equal(t, time.UTC, tick.Location())
				got = append(got, tick.Format("2006-01-02 15:04"))
			}
			require.Equal(t, c.want, got)
		})
	}
}

// Minute by minute, a clock is looked at as a person would, around every change of two years in zones of many kinds.
func TestCalendarAgreesWithAClock(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{
		"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Africa/Cairo", "America/Santiago",
		"Antarctica/Troll",
	} {
		t.Run(zone, func(t *testing.T) {
			t.Parallel()
			loc, err := time.LoadLocation(zone)
			require.NoError(t, err)
			changes := 0
			for _, change := at(t, "2026-01-01 00:00").In(loc).ZoneBounds(); change.Year() < 2028; _, change = change.ZoneBounds() {
				changes++
				from, to := change.UTC().Add(-30*time.Hour), change.UTC().Add(30*time.Hour)
				for _, expression := range []string{"30 2 * * *", "0,30 0-3 * * *", "*/20 1 * * 0", "17 * * * *", "0 */2 * * *", "0 0 * * *"} {
					require.Equal(t, ticksOfAClock(t, expression, zone, from, to),
						cronOf(t, expression, zone).Between(from, to, 1<<20), expression)
				}
			}
			require.GreaterOrEqual(t, changes, 4)
		})
	}
}

func ticksOfAClock(t *testing.T, expression, zone string, from, to time.Time) (ticks []time.Time) {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	require.NoError(t, err)
	parsed, err := cron.ParseStandard(expression)
	require.NoError(t, err)
	matches := func(shown time.Time) bool { return parsed.Next(shown.Add(-time.Second)).Equal(shown) }
	byElapsed := strings.HasPrefix(strings.Fields(expression)[1], "*")
	var newest time.Time // what the clock has shown at most
	for moment := from.Add(-3 * time.Hour); !moment.After(to); moment = moment.Add(time.Minute) {
		local := moment.In(loc)
		shown := time.Date(local.Year(), local.Month(), local.Day(), local.Hour(), local.Minute(), 0, 0, time.UTC)
		tick := byElapsed && matches(shown)
		if !byElapsed {
			if newest.IsZero() {
				newest = shown.Add(-time.Minute)
			}
			for newest.Before(shown) { // once for each reading that is new, more than one where some were left out
				newest = newest.Add(time.Minute)
				tick = tick || matches(newest)
			}
		}
		if tick && !moment.Before(from) {
			ticks = append(ticks, moment)
		}
	}
	return ticks
}

func TestCalendarOfIntervals(t *testing.T) {
	t.Parallel()
	anchor := at(t, "2026-01-01 00:00")
	c, err := store.NewIntervalCalendar(anchor, 90*time.Minute)
	require.NoError(t, err)
	require.Equal(t, anchor, c.Next(anchor.Add(-time.Hour)), "none is before the anchor")
	require.Equal(t, anchor.Add(90*time.Minute), c.Next(anchor))
	require.Equal(t, anchor.Add(180*time.Minute), c.Next(anchor.Add(91*time.Minute)))
	require.Equal(t, []time.Time{anchor.Add(90 * time.Minute), anchor.Add(180 * time.Minute)},
		c.Between(anchor, anchor.Add(200*time.Minute), 2))
	for _, interval := range []time.Duration{0, -time.Second, time.Second, 10*time.Second - 1, 367 * 24 * time.Hour} {
		_, err := store.NewIntervalCalendar(anchor, interval)
		require.ErrorIs(t, err, store.ErrInvalid, interval.String())
		require.ErrorContains(t, err, "interval_s must be from 10 to")
	}
}

// The newest ticks of a long time are found from its end.
func TestCalendarBetween(t *testing.T) {
	t.Parallel()
	c := cronOf(t, "* * * * *", "Europe/Berlin")
	last := at(t, "2026-06-01 12:00")
	got := c.Between(last.AddDate(-30, 0, 0), last.Add(30*time.Second), 3)
	require.Equal(t, []time.Time{last.Add(-2 * time.Minute), last.Add(-time.Minute), last}, got)
	require.Equal(t, []time.Time{last}, c.Between(last, last, 3))
	require.Empty(t, c.Between(last.Add(time.Second), last.Add(2*time.Second), 3))
	require.Empty(t, c.Between(last, last.Add(-time.Minute), 3))
	rare := cronOf(t, "0 0 29 2 *", "UTC")
	require.Equal(t, []time.Time{at(t, "2020-02-29 00:00"), at(t, "2024-02-29 00:00")},
		rare.Between(at(t, "2016-03-01 00:00"), last, 10))
}

func TestCalendarRefuses(t *testing.T) {
	t.Parallel()
	for expression, why := range map[string]string{
		"":                          "cron is no cron expression",
		"* * * *":                   "cron is no cron expression",
		"* * * * * *":               "cron is no cron expression",
		"60 * * * *":                "cron is no cron expression",
		"0 0 0 * *":                 "cron is no cron expression",
		"0 0 * * mon-":              "cron is no cron expression",
		"*/0 * * * *":               "cron is no cron expression",
		"@sometimes":                "cron is no cron expression",
		"@every 1h":                 "cron says every how long",
		"TZ=UTC 0 0 * * *":          "cron names a time zone",
		"CRON_TZ=X":                 "cron names a time zone",
		"0 0 30 2 *":                "cron has no time in the coming years",
		strings.Repeat("1,", 200):   "cron is longer than",
		"0 0 * * \x00":              "cron is no cron expression",
		"99999999999999999 * * * *": "cron is no cron expression",
	} {
		_, err := store.NewCronCalendar(expression, "UTC")
		require.ErrorIs(t, err, store.ErrInvalid, expression)
		require.ErrorContains(t, err, why, expression)
	}
	for _, zone := range []string{"", "Local", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "\x00", strings.Repeat("x", 100)} {
		_, err := store.NewCronCalendar("0 0 * * *", zone)
		require.ErrorIs(t, err, store.ErrInvalid, zone)
		require.ErrorContains(t, err, "timezone is no time zone", zone)
	}
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+12"} {
		cronOf(t, "@hourly", zone)
	}
}

// Whatever is read has ticks that come one after the other.
func FuzzCalendar(f *testing.F) {
	for _, seed := range []string{"30 2 * * *", "*/15 0-6/2 1,15 * mon-fri", "@weekly", "0 0 29 2 *", "? ? ? ? ?", "5-3 * * * *"} {
		f.Add(seed, "Europe/Berlin", int64(1774742400))
	}
	f.Fuzz(func(t *testing.T, expression, zone string, unix int64) {
		c, err := store.NewCronCalendar(expression, zone)
		if err != nil {
			require.ErrorIs(t, err, store.ErrInvalid)
			return
		}
		now := time.Unix(unix%(1<<32), 0)
		for range 20 {
			next := c.Next(now)
			if next.IsZero() {
				return
			}
			require.True(t, next.After(now), "%s after %s", next, now)
			now = next
		}
	})
}
