package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river/rivertype"

	"medianest/jobs/reason"
)

// breakerLadder is how long nothing starts under a key after its breaker tripped, by how often a probe has tripped it
// again: the host that answers "too many requests" is asked ever more seldom.
var breakerLadder = []time.Duration{
	0, time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour,
}

// maxRetryAfter bounds how long a host may ask to be left alone.
const maxRetryAfter = 24 * time.Hour

// breaker is what a round knows of a key that tripped: nothing starts before OpenUntil, and then one job at a time.
type breaker struct {
	Key       string
	OpenUntil time.Time
	Probing   bool // a probe is admitted

	probe   int64 // row of the probe that this round admits
	changed bool
}

// breakersSQL looks for the probe under the row that stands for it now.
const breakersSQL = `
	SELECT b.key, b.open_until, b.probe_job IS NOT NULL AND EXISTS (
			SELECT
			FROM medianest.admission AS a
			WHERE a.row_id = coalesce((SELECT m.row_id FROM medianest.job_map AS m WHERE m.public_id = b.probe_job), b.probe_job)
				AND a.admitted_at IS NOT NULL
		) AS probing
	FROM medianest.breaker AS b`

// probeSQL notes the probe by its job's public id. A breaker that tripped meanwhile stays as it is.
const probeSQL = `
	UPDATE medianest.breaker
	SET probe_job = coalesce((SELECT m.public_id FROM medianest.job_map AS m WHERE m.row_id = $2), $2)
	WHERE key = $1 AND open_until <= clock_timestamp()`

const (
	// tripSQL trips a breaker. The first trip puts it at the ladder's foot. After that only the probe leads it up: jobs
	// that were running when it tripped find out what is known already, and can but make the wait longer, where the host
	// says so.
	tripSQL = `
		INSERT INTO medianest.breaker AS b (key, step, open_until, reason)
		VALUES (@key, 0, now() + make_interval(secs => greatest((@ladder::float8[])[1], @retry_after)), @reason)
		ON CONFLICT (key) DO UPDATE
		SET (step, open_until, probe_job, tripped_at, trips, reason) = (
			SELECT u.step, greatest(b.open_until, now() + make_interval(secs => greatest((@ladder)[u.step + 1], @retry_after))),
				NULL::bigint, now(), b.trips + 1, excluded.reason
			FROM (SELECT least(b.step + 1, cardinality(@ladder) - 1) AS step) AS u
			WHERE b.probe_job = @job
			UNION ALL
			SELECT b.step, greatest(b.open_until, now() + make_interval(secs => @retry_after)),
				b.probe_job, b.tripped_at, b.trips, b.reason
			WHERE b.probe_job IS DISTINCT FROM @job
		)
		RETURNING b.step, b.open_until, b.tripped_at = now() AS tripped`

	// againSQL has the wait of its step begin again, without a step up.
	againSQL = `
		UPDATE medianest.breaker AS b
		SET open_until = greatest(b.open_until, now() + make_interval(secs => (@ladder::float8[])[least(b.step + 1, cardinality(@ladder))])),
			probe_job = NULL
		WHERE b.probe_job = @job`

	closeSQL = `DELETE FROM medianest.breaker WHERE probe_job = ANY ($1) RETURNING key, probe_job`
)

// breakers is this process's part in the breakers of the fleet: it trips and closes them by how attempts end here.
// Rounds of admission honour them.
//
// A breaker that has tripped closes when its probe is answered: by success, or by a failure that is about the thing
// itself. It trips again, a step up, when the probe is refused as well. Where the site fails the probe in another way,
// the wait of the step begins again. An end that tells nothing of the site, whatever it is (a cancel, a lost worker, a
// deleted row, a fault of ours), leaves the breaker as it was, and the next job is the probe: a probe is one for as long
// as its job is admitted, and what is written here only makes the next step sooner or later.
type breakers struct {
	pool   *pgxpool.Pool
	log    *slog.Logger
	ladder []float64 // in seconds
	trips  *prometheus.CounterVec
}

func newBreakers(pool *pgxpool.Pool, log *slog.Logger, scale float64, trips *prometheus.CounterVec) *breakers {
	b := &breakers{pool: pool, log: log, ladder: make([]float64, len(breakerLadder)), trips: trips}
	for i, wait := range breakerLadder {
		b.ladder[i] = wait.Seconds() * scale
	}
	return b
}

// Trip has nothing more start under the key for a while: what stands behind it asked for less. It says how long itself
// by the failure's RetryAt, of which a day at most is believed; the wait is that of the breaker's ladder or longer. When
// it is over, one job at a time is admitted under the key, the probe, until one is answered, which closes the breaker. A
// probe that trips it again leads it up the ladder. ctx must be an attempt's, whose job then snoozes: it waits for its
// turn, and no attempt is spent.
func Trip(ctx context.Context, key string, failure *reason.Error) error {
	at := attemptOf(ctx)
	if at == nil {
		return fmt.Errorf("trip the breaker of %s: the context is not an attempt's", key)
	}
	return at.breakers.trip(ctx, key, PublicID(at.job), failure)
}

func (b *breakers) trip(ctx context.Context, key string, job int64, failure *reason.Error) error {
	var retryAfter time.Duration
	if !failure.RetryAt.IsZero() {
		retryAfter = min(max(time.Until(failure.RetryAt), 0), maxRetryAfter)
	}
	var (
		step      int
		openUntil time.Time
		tripped   bool
	)
	err := b.pool.QueryRow(ctx, tripSQL, pgx.StrictNamedArgs{
		"key": key, "job": job, "reason": string(failure.Reason), "retry_after": retryAfter.Seconds(), "ladder": b.ladder,
	}).Scan(&step, &openUntil, &tripped)
	if err != nil {
		return fmt.Errorf("trip the breaker of %s: %w", key, err)
	}
	if tripped {
		b.trips.WithLabelValues(string(failure.Reason)).Inc()
		b.log.LogAttrs(ctx, slog.LevelWarn, "breaker tripped", slog.String("key", key), slog.String("reason", string(failure.Reason)),
			slog.Int("step", step), slog.Time("open_until", openUntil.UTC()), slog.Int64("job_id", job))
	}
	return nil
}

// settle draws the consequences of an attempt's failure for the breakers that its job is the probe of. What fails here
// is as if nothing were known: the next job is the probe.
func (b *breakers) settle(ctx context.Context, job *rivertype.JobRow, why reason.Reason) {
	site := why.Site()
	if site == reason.SiteUnknown || !hasKeys(job.Metadata) {
		return
	}
	ctx, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), noteTimeout, errTooLong)
	defer stop()
	var err error
	if site == reason.SiteAnswers {
		batch := &pgx.Batch{}
		b.close(ctx, batch, PublicID(job))
		err = b.pool.SendBatch(ctx, batch).Close()
	} else {
		_, err = b.pool.Exec(ctx, againSQL, pgx.StrictNamedArgs{"job": PublicID(job), "ladder": b.ladder})
	}
	if err != nil {
		b.log.LogAttrs(ctx, slog.LevelDebug, "probe's end not noted", append(logAttrs(job), slog.Any("err", err))...)
	}
}

// close queues what closes the breakers that one of the jobs is the probe of.
func (b *breakers) close(ctx context.Context, batch *pgx.Batch, jobs ...int64) {
	batch.Queue(closeSQL, jobs).Query(func(rows pgx.Rows) error {
		var (
			key string
			job int64
		)
		_, err := pgx.ForEachRow(rows, []any{&key, &job}, func() error {
			b.log.LogAttrs(ctx, slog.LevelInfo, "breaker closed", slog.String("key", key), slog.Int64("job_id", job))
			return nil
		})
		return err
	})
}

// hasKeys reports whether the job may name keys. It is cheap, and no where it is sure.
func hasKeys(metadata []byte) bool { return bytes.Contains(metadata, []byte(`"`+metadataKeys+`"`)) }

// KeyOf is the first of the job's keys of that form ("host"), or "".
func KeyOf(job *rivertype.JobRow, form string) string {
	if !hasKeys(job.Metadata) {
		return ""
	}
	var kept struct {
		Keys []string `json:"keys"`
	}
	if err := json.Unmarshal(job.Metadata, &kept); err != nil {
		return ""
	}
	for _, key := range kept.Keys {
		if strings.HasPrefix(key, form+":") {
			return key
		}
	}
	return ""
}
