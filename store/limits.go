package store

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/net/publicsuffix"
)

// Limit is what is allowed of a key: of one thing that jobs share, such as "host:youtube.com", or of each thing of a form
// that has no limit of its own, such as "host:*". What is nil or zero is not limited.
type Limit struct {
	Key        string
	MaxRunning *int // at a time; 0: none begins
	MaxStarts  *int // in PeriodS
	PeriodS    *int
	SpacingS   float64  // between two starts, at least
	JitterS    float64  // at most, added to the spacing at random
	Windows    []Window // when jobs may begin, by the clocks of Timezone; none: at any time
	Timezone   string   // by its IANA name; empty means UTC
	Running    *int     // jobs that hold the key, those included that are about to begin; nil for a form
	UpdatedAt  time.Time
	UpdatedBy  *uuid.UUID
}

// Window is a time of the day at which jobs may begin. What runs when it closes goes on.
type Window struct {
	Days []string `json:"days,omitempty"` // on which it begins: "mon", "tue" ...; none: every day
	From string   `json:"from"`           // "23:00"
	To   string   `json:"to"`             // "07:00", on the next day if it is not after From; "24:00" is the day's end
}

// days are the names that a window's days have.
var days = []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}

// timeOfDay is what a window begins and ends with.
var timeOfDay = regexp.MustCompile(`^([01][0-9]|2[0-3]):[0-5][0-9]$`)

func (w Window) validate() error {
	if !timeOfDay.MatchString(w.From) {
		return &InvalidError{Field: "windows", Reason: "begins at no time of the day, such as 23:00"}
	}
	if w.To != "24:00" && !timeOfDay.MatchString(w.To) {
		return &InvalidError{Field: "windows", Reason: "ends at no time of the day, such as 07:00"}
	}
	if w.From == w.To {
		return &InvalidError{Field: "windows", Reason: "ends when it begins; a whole day is from 00:00 to 24:00"}
	}
	for _, day := range w.Days {
		if !slices.Contains(days, day) {
			return &InvalidError{Field: "windows", Reason: "has a day that is none of " + strings.Join(days, " ")}
		}
	}
	return nil
}

// Bounds of what a limit may say. max_starts bounds the starts that are remembered of each key.
const (
	maxLimitRunning = 100_000
	maxLimitStarts  = 1_000
	maxLimitPeriodS = 30 * 24 * 3600
	maxLimitPauseS  = 24 * 3600
	maxWindows      = 20
)

// admissionLock is the advisory lock that a round of admission holds: the one that package queue takes.
const admissionLock = 7239610442311

// anyOfForm is what stands for all keys of a form.
const anyOfForm = "*"

// maxHostBytes is the length of the longest name in DNS.
const maxHostBytes = 253

// keyForms are the forms that a key can have, and what is wrong with one of that form; "" if nothing is.
var keyForms = map[string]func(name string) string{
	"host": func(name string) string {
		host := hostOf("http://" + bracketed(name) + "/")
		switch host {
		case "":
			return "names no host: it is the host's name alone, such as host:example.org"
		case name:
			return ""
		}
		return "is a name that no job counts under: jobs of that site count under host:" + host
	},
	"user": func(name string) string {
		if id, err := uuid.Parse(name); err != nil || id.String() != name {
			return "names no user: it is the user's id in lower case"
		}
		return ""
	},
	"kind":    checkWord,
	"service": checkWord,
	"cookie":  checkWord,
	"queue":   checkWord,
}

const keyFormsText = "host: user: kind: service: cookie: queue:"

var word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func checkWord(name string) string {
	if !word.MatchString(name) {
		return "has a name of other characters than letters, digits and . _ -, or of more than 128"
	}
	return ""
}

// checkKey refuses keys that no job can have: a limit on one would look as if it did something.
func checkKey(key string) error {
	if err := checkText("key", key, maxKeyBytes); err != nil {
		return err
	}
	form, name, _ := strings.Cut(key, ":")
	check, ok := keyForms[form]
	if !ok || !strings.Contains(key, ":") {
		return &InvalidError{Field: "key", Reason: "begins with none of " + keyFormsText}
	}
	if name == anyOfForm {
		return nil
	}
	if fault := check(name); fault != "" {
		return &InvalidError{Field: "key", Reason: fault}
	}
	return nil
}

func (l Limit) validate() error {
	between := func(field string, value *int, least, most int) error {
		if value != nil && (*value < least || *value > most) {
			return &InvalidError{Field: field, Reason: fmt.Sprintf("is not between %d and %d", least, most)}
		}
		return nil
	}
	seconds := func(field string, value float64) error {
		if math.IsNaN(value) || value < 0 || value > maxLimitPauseS {
			return &InvalidError{Field: field, Reason: fmt.Sprintf("is not between 0 and %d", maxLimitPauseS)}
		}
		return nil
	}
	err := errors.Join(
		checkKey(l.Key),
		between("max_running", l.MaxRunning, 0, maxLimitRunning),
		between("max_starts", l.MaxStarts, 1, maxLimitStarts),
		between("period_s", l.PeriodS, 1, maxLimitPeriodS),
		seconds("spacing_s", l.SpacingS),
		seconds("jitter_s", l.JitterS),
	)
	if len(l.Windows) > maxWindows {
		err = errors.Join(err, &InvalidError{Field: "windows", Reason: fmt.Sprintf("has more than %d", maxWindows)})
	}
	for _, w := range l.Windows {
		err = errors.Join(err, w.validate())
	}
	if _, zoneErr := loadZone(l.zone()); zoneErr != nil {
		err = errors.Join(err, zoneErr)
	}
	switch {
	case l.MaxStarts == nil && l.PeriodS != nil:
		err = errors.Join(err, &InvalidError{Field: "max_starts", Reason: "is missing: period_s says in which time so many starts are allowed"})
	case l.MaxStarts != nil && l.PeriodS == nil:
		err = errors.Join(err, &InvalidError{Field: "period_s", Reason: "is missing: it says in which time max_starts are allowed"})
	}
	return err
}

func (l Limit) zone() string { return cmp.Or(l.Timezone, "UTC") }

// heldSQL counts the jobs that hold each key: those that run, and those that are about to.
const heldSQL = `
			SELECT k.key, count(*) AS n
			FROM medianest.admission AS a
			CROSS JOIN unnest(a.keys || ('queue:' || a.queue)) AS k (key)
			WHERE a.admitted_at IS NOT NULL
			GROUP BY k.key`

const limitSQL = `
		WITH held AS (` + heldSQL + `
		)
		SELECT l.key, l.max_running, l.max_starts, l.period_s, l.spacing_s, l.jitter_s, l.windows, l.timezone,
			l.updated_at, l.updated_by,
			CASE WHEN l.key NOT LIKE '%:*' THEN coalesce(h.n, 0) END AS running
		FROM medianest.limits AS l
		LEFT JOIN held AS h ON h.key = l.key`

// ListLimits returns a page by key, and the cursor of the next one, or "" after the last.
func (s *Store) ListLimits(ctx context.Context, cursor string, limit int) (page []Limit, next string, err error) {
	if limit, err = pageSize(limit); err != nil {
		return nil, "", err
	}
	after, err := keyOfCursor(cursor)
	if err != nil {
		return nil, "", err
	}
	rows, err := s.pool.Query(ctx, limitSQL+`
		WHERE l.key > @after
		ORDER BY l.key
		LIMIT @limit`,
		pgx.StrictNamedArgs{"after": after, "limit": limit + 1})
	if err != nil {
		return nil, "", fmt.Errorf("list limits: %w", interpret(err))
	}
	page, err = pgx.CollectRows(rows, pgx.RowToStructByName[Limit])
	if err != nil {
		return nil, "", fmt.Errorf("list limits: %w", interpret(err))
	}
	if len(page) > limit {
		page = page[:limit]
		next = cursorOfKey(page[limit-1].Key)
	}
	return page, next, nil
}

// cursorOfKey is the cursor of the page after a key, and keyOfCursor the key.
func cursorOfKey(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

func keyOfCursor(cursor string) (string, error) {
	key, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || cursor != "" && checkText("cursor", string(key), maxKeyBytes) != nil {
		return "", &InvalidError{Field: "cursor", Reason: "is not one that a list of this kind gave"}
	}
	return string(key), nil
}

// FindLimit returns the limit of the key itself; one that it has by its form is ErrNotFound.
func (s *Store) FindLimit(ctx context.Context, key string) (Limit, error) {
	if err := checkKey(key); err != nil {
		return Limit{}, fmt.Errorf("load limit %q: %w", key, err)
	}
	l, err := findLimit(ctx, s.pool, key)
	if err != nil {
		return Limit{}, fmt.Errorf("load limit %q: %w", key, interpret(err))
	}
	return l, nil
}

func findLimit(ctx context.Context, db rowQuerier, key string) (Limit, error) {
	rows, err := db.Query(ctx, limitSQL+`
		WHERE l.key = @key`,
		pgx.StrictNamedArgs{"key": key})
	if err != nil {
		return Limit{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Limit])
}

// SetLimit sets the limit of its key, whether there was one or not, in the name of l.UpdatedBy, and returns it. It is in
// force when SetLimit returns: whatever is admitted from then on is within it. What runs goes on.
func (s *Store) SetLimit(ctx context.Context, l Limit) (Limit, error) {
	if err := l.validate(); err != nil {
		return Limit{}, fmt.Errorf("set limit %q: %w", l.Key, err)
	}
	err := s.changeLimits(ctx, func(tx pgx.Tx) error {
		if id, ok := strings.CutPrefix(l.Key, "user:"); ok && id != anyOfForm {
			var exists bool
			err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM medianest.users AS u WHERE u.id = @id::uuid)`,
				pgx.StrictNamedArgs{"id": id}).Scan(&exists)
			if err != nil {
				return err
			}
			if !exists {
				return &InvalidError{Field: "key", Reason: "names a user who does not exist"}
			}
		}
		if err := checkZone(ctx, tx, l.zone()); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			INSERT INTO medianest.limits (key, max_running, max_starts, period_s, spacing_s, jitter_s, windows, timezone, updated_by)
			VALUES (@key, @max_running, @max_starts, @period_s, @spacing_s, @jitter_s, @windows, @timezone, @updated_by)
			ON CONFLICT (key) DO UPDATE
			SET max_running = excluded.max_running,
				max_starts = excluded.max_starts,
				period_s = excluded.period_s,
				spacing_s = excluded.spacing_s,
				jitter_s = excluded.jitter_s,
				windows = excluded.windows,
				timezone = excluded.timezone,
				updated_at = now(),
				updated_by = excluded.updated_by`,
			pgx.StrictNamedArgs{
				"key": l.Key, "max_running": l.MaxRunning, "max_starts": l.MaxStarts, "period_s": l.PeriodS,
				"spacing_s": l.SpacingS, "jitter_s": l.JitterS, "windows": windowsOrNull(l.Windows), "timezone": l.zone(),
				"updated_by": l.UpdatedBy,
			})
		if err != nil {
			return err
		}
		l, err = findLimit(ctx, tx, l.Key)
		return err
	})
	if err != nil {
		return Limit{}, fmt.Errorf("set limit %q: %w", l.Key, err)
	}
	return l, nil
}

func windowsOrNull(windows []Window) any {
	if len(windows) == 0 {
		return nil
	}
	return windows
}

// checkZone refuses a zone that the database, which tells whether a window is open, does not know.
func checkZone(ctx context.Context, tx pgx.Tx, zone string) error {
	err := pgx.BeginFunc(ctx, tx, func(attempt pgx.Tx) error {
		_, err := attempt.Exec(ctx, `SELECT now() AT TIME ZONE @zone`, pgx.StrictNamedArgs{"zone": zone})
		return err
	})
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "22023" {
		return errNoZone
	}
	return err
}

// DeleteLimit takes the key's own limit away, at once; that of its form holds then, if there is one. ErrNotFound if it
// has none.
func (s *Store) DeleteLimit(ctx context.Context, key string) error {
	err := checkKey(key)
	if err == nil {
		err = s.changeLimits(ctx, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `DELETE FROM medianest.limits WHERE key = @key`, pgx.StrictNamedArgs{"key": key})
			if err == nil && tag.RowsAffected() == 0 {
				err = ErrNotFound
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("delete limit %q: %w", key, err)
	}
	return nil
}

// changeLimits runs fn while no round of admission decides: one that has read the limits before would admit by them
// after the change was answered. Rounds do not wait for the lock, and take milliseconds.
func (s *Store) changeLimits(ctx context.Context, fn func(tx pgx.Tx) error) error {
	return s.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(admissionLock)); err != nil {
			return fmt.Errorf("wait for admission: %w", err)
		}
		return fn(tx)
	})
}

// hostOf is the site behind an address, as limits name it: the name that was registered, in lower case and without what
// is before it, since www, m and the servers of one site are one site to whoever limits it; or the address itself where
// a URL has no name. "" if there is no host.
func hostOf(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().WithZone("").String()
	}
	if len(host) > maxHostBytes || strings.ContainsAny(host, anyOfForm+"\x00 ") {
		return ""
	}
	if site, err := publicsuffix.EffectiveTLDPlusOne(host); err == nil {
		return site
	}
	return strings.TrimPrefix(host, "www.") // localhost, or a name that is a public suffix itself
}

// bracketed is a host as it is written in a URL.
func bracketed(host string) string {
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() {
		return "[" + host + "]"
	}
	return host
}
