package store

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // images without a zone database know all zones too

	"github.com/robfig/cron/v3"
)

// Bounds of what a schedule may ask for. A day more or less is nobody's need; a run a second is nobody's wish.
const (
	minInterval = 10 * time.Second
	maxInterval = 366 * 24 * time.Hour

	maxCronBytes     = 200
	maxTimeZoneBytes = 64
)

// A Calendar says when a schedule's ticks are: by a cron expression in a time zone, or every so often from a moment on.
// It is a pure function of its fields, whoever asks and whenever.
//
// Clocks that are put forward or back do to a cron expression what people expect. One whose hour is named, as in
// "30 2 * * *", has a tick on each of its days: what falls into the hour that is left out comes at the moment when the
// clock passes over it, once however many ticks fall into it; what falls into the hour that comes twice comes the first
// time only. One whose hour begins with a star, as in "*/15 * * * *" or "0 */2 * * *", goes by time that passes: it has
// no ticks in an hour that is left out, and comes both times in one that comes twice.
type Calendar struct {
	spec     *cron.SpecSchedule // evaluated on clock readings as though they were UTC; nil: by interval
	zone     *time.Location
	hourly   bool // the hour begins with a star
	anchor   time.Time
	interval time.Duration
}

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// NewCronCalendar reads a cron expression of five fields, or one of @hourly, @daily, @weekly, @monthly and @yearly, and
// a zone of the IANA database. Its errors are InvalidErrors of the fields cron and timezone.
func NewCronCalendar(expression, timezone string) (Calendar, error) {
	zone, err := loadZone(timezone)
	if err != nil {
		return Calendar{}, err
	}
	invalid := func(why string) (Calendar, error) {
		return Calendar{}, &InvalidError{Field: "cron", Reason: why}
	}
	expression = strings.TrimSpace(expression)
	switch {
	case len(expression) > maxCronBytes:
		return invalid(fmt.Sprintf("is longer than %d bytes", maxCronBytes))
	case strings.Contains(expression, "TZ="):
		return invalid("names a time zone, which timezone is for")
	case strings.HasPrefix(expression, "@every"):
		return invalid("says every how long, which interval_s is for")
	}
	parsed, err := parseCron(expression)
	if err != nil {
		return invalid(fmt.Sprintf("is no cron expression of minute, hour, day of month, month and day of week: %v", err))
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return invalid("is no cron expression")
	}
	spec.Location = time.UTC
	hour := "*"
	if fields := strings.Fields(expression); len(fields) == 5 {
		hour = fields[1]
	} else if expression != "@hourly" {
		hour = "0"
	}
	c := Calendar{spec: spec, zone: zone, hourly: strings.HasPrefix(hour, "*") || hour == "?"}
	if c.Next(time.Now()).IsZero() {
		return invalid("has no time in the coming years")
	}
	return c, nil
}

// parseCron is the parser, whose panics on odd input would be the sender's to cause.
func parseCron(expression string) (parsed cron.Schedule, err error) {
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("%q cannot be read", expression)
		}
	}()
	return cronParser.Parse(expression)
}

var errNoZone = &InvalidError{
	Field: "timezone", Reason: "is no time zone of the IANA database, like Europe/Berlin or UTC",
}

func loadZone(name string) (*time.Location, error) {
	// "" and "Local" would be whatever the process' machine has.
	if name == "" || name == "Local" || len(name) > maxTimeZoneBytes {
		return nil, errNoZone
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, errNoZone
	}
	return zone, nil
}

// NewIntervalCalendar has a tick at each whole number of intervals after anchor. Its errors are InvalidErrors of the
// field interval_s.
func NewIntervalCalendar(anchor time.Time, interval time.Duration) (Calendar, error) {
	if interval < minInterval || interval > maxInterval {
		return Calendar{}, &InvalidError{
			Field:  "interval_s",
			Reason: fmt.Sprintf("must be from %d to %d", int(minInterval.Seconds()), int(maxInterval.Seconds())),
		}
	}
	return Calendar{anchor: anchor.UTC(), interval: interval}, nil
}

// Next returns the first tick after t, in UTC, or the zero time if there is none within five years.
func (c Calendar) Next(t time.Time) time.Time {
	switch {
	case c.spec == nil:
		return c.nextInterval(t)
	case c.hourly:
		return c.nextElapsed(t)
	}
	return c.nextOnClock(t)
}

func (c Calendar) nextInterval(t time.Time) time.Time {
	if t.Before(c.anchor) {
		return c.anchor
	}
	return c.anchor.Add((t.Sub(c.anchor)/c.interval + 1) * c.interval).UTC()
}

// nextElapsed looks in one stretch of constant offset after the other: within it, clock and time go alike.
func (c Calendar) nextElapsed(t time.Time) time.Time {
	local := t.In(c.zone)
	for {
		_, offset := local.Zone()
		_, end := local.ZoneBounds()
		tick := c.spec.Next(reading(t, offset))
		if tick.IsZero() {
			return time.Time{}
		}
		tick = tick.Add(-time.Duration(offset) * time.Second)
		if end.IsZero() || tick.Before(end) {
			return tick
		}
		t, local = end.Add(-time.Nanosecond), end.In(c.zone)
	}
}

// nextOnClock goes from one reading of the clock to the next until one is after t. The moments of readings do not
// decrease, so no reading before t's own can be.
func (c Calendar) nextOnClock(t time.Time) time.Time {
	_, offset := t.In(c.zone).Zone()
	clock := reading(t, offset)
	for {
		if clock = c.spec.Next(clock); clock.IsZero() {
			return time.Time{}
		}
		if tick := c.first(clock); tick.After(t) {
			return tick
		}
	}
}

// reading is what a clock with the offset shows at t, as though it were UTC.
func reading(t time.Time, offset int) time.Time {
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// first is the first moment at which the zone's clock shows the reading; where it never does, the moment at which it
// is put forward past it.
func (c Calendar) first(clock time.Time) time.Time {
	guess := time.Date(clock.Year(), clock.Month(), clock.Day(), clock.Hour(), clock.Minute(), clock.Second(), 0, c.zone)
	start, end := guess.ZoneBounds()
	_, offset := guess.Zone()
	switch shown := reading(guess, offset); {
	case shown.After(clock): // left out; guess is after the change
		return start.UTC()
	case shown.Before(clock): // likewise, before it
		return end.UTC()
	}
	if start.IsZero() {
		return guess.UTC()
	}
	_, before := start.Add(-time.Nanosecond).In(c.zone).Zone()
	if earlier := clock.Add(-time.Duration(before) * time.Second); earlier.Before(start) {
		return earlier
	}
	return guess.UTC()
}

// Between returns the last n ticks from first to last, both included, oldest first. It costs little however long ago
// first is.
func (c Calendar) Between(first, last time.Time, n int) []time.Time {
	if last.Before(first) || n <= 0 {
		return nil
	}
	if c.spec == nil && last.Sub(first)/c.interval > time.Duration(n) {
		first = last.Add(-time.Duration(n+1) * c.interval)
	}
	for span := time.Hour; ; span *= 4 {
		from := last.Add(-span)
		if from.Before(first) || span > 10*maxInterval {
			from = first
		}
		var ticks []time.Time
		for t := c.Next(from.Add(-time.Nanosecond)); !t.IsZero() && !t.After(last); t = c.Next(t) {
			ticks = append(ticks, t)
		}
		if len(ticks) >= n || from.Equal(first) {
			return slices.Clone(ticks[max(0, len(ticks)-n):])
		}
	}
}

// Upcoming returns the next n ticks after t.
func (c Calendar) Upcoming(t time.Time, n int) []time.Time {
	ticks := make([]time.Time, 0, n)
	for t = c.Next(t); !t.IsZero() && len(ticks) < n; t = c.Next(t) {
		ticks = append(ticks, t)
	}
	return ticks
}
