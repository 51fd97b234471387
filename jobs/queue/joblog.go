package queue

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivertype"
)

// Level is how grave a line of a job's log is.
type Level string

// The levels.
const (
	Info    Level = "info"
	Warning Level = "warning"
	Error   Level = "error" // how an attempt ended that did not succeed
)

const (
	// maxLog is how many lines are kept of a job: the newest.
	maxLog = 200
	// maxSaid is how many lines of one attempt are taken: a site that has a program complain without end must not keep the
	// database busy. How the attempt ended is told all the same.
	maxSaid = 1000
	// maxSaidBytes is how long a line may be, in bytes.
	maxSaidBytes = 1000
	// logInterval is how long a line may wait for others before it is written.
	logInterval = time.Second
)

// Say adds a line to the job's log, for those who may see the job: plain words, no secret, no path of this machine. It does
// not wait for the database, and where that is away the line is lost, not the job. Outside an attempt it does nothing. A
// job that says nothing costs nothing.
func Say(ctx context.Context, level Level, format string, args ...any) {
	if at := attemptOf(ctx); at != nil {
		at.log.say(level, fmt.Sprintf(format, args...))
	}
}

// line is one of a job's log.
type line struct {
	at    time.Time
	level Level
	text  string
}

// jobLog is what an attempt says: lines wait here for up to logInterval, to be written together.
type jobLog struct {
	write func([]line)

	mu      sync.Mutex
	lines   []line
	said    int
	timer   *time.Timer // runs while lines wait for it
	writing sync.WaitGroup
	ended   bool
}

func (l *jobLog) say(level Level, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.said++; {
	case l.ended || l.said > maxSaid:
		return
	case l.said == maxSaid:
		level, text = Warning, "More was said than is kept of one attempt."
	}
	l.add(level, text)
	if l.timer == nil {
		l.writing.Add(1)
		l.timer = time.AfterFunc(logInterval, l.flush)
	}
}

// add adds a line. The oldest of those that nobody has come to write give way.
func (l *jobLog) add(level Level, text string) {
	l.lines = append(l.lines, line{time.Now(), level, plainLine(text)})
	if len(l.lines) > maxLog {
		l.lines = l.lines[len(l.lines)-maxLog:]
	}
}

// flush writes what waits.
func (l *jobLog) flush() {
	defer l.writing.Done()
	l.mu.Lock()
	lines := l.lines
	l.lines = nil
	l.mu.Unlock()
	l.write(lines)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = nil
	if len(l.lines) > 0 && !l.ended {
		l.writing.Add(1)
		l.timer = time.AfterFunc(logInterval, l.flush)
	}
}

// end takes no more lines, and returns those that wait, for whoever writes how the attempt ended.
func (l *jobLog) end() []line {
	l.mu.Lock()
	l.ended = true
	if l.timer != nil && l.timer.Stop() {
		l.writing.Done()
	}
	l.mu.Unlock()
	l.writing.Wait() // for older ones: lines have their order by when they are written
	lines := l.lines
	l.lines = nil
	return lines
}

// plainLine makes text that others have sent fit for a line.
func plainLine(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsControl(r), unicode.In(r, unicode.Cf):
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
	if len(text) > maxSaidBytes {
		text = strings.ToValidUTF8(text[:maxSaidBytes], "") + "…"
	}
	return text
}

// queueLog adds to the batch what writes lines of a job's log.
func queueLog(batch *pgx.Batch, job *rivertype.JobRow, lines []line) {
	if len(lines) == 0 {
		return
	}
	at, level, text := make([]time.Time, len(lines)), make([]string, len(lines)), make([]string, len(lines))
	for i, l := range lines {
		at[i], level[i], text[i] = l.at, string(l.level), l.text
	}
	batch.Queue(`
		INSERT INTO medianest.job_log (job_id, attempt, at, level, text)
		SELECT $1, $2, l.at, l.level, l.text
		FROM unnest($3::timestamptz[], $4::text[], $5::text[]) WITH ORDINALITY AS l (at, level, text, n)
		ORDER BY l.n`, PublicID(job), job.Attempt, at, level, text)
	batch.Queue(`
		DELETE FROM medianest.job_log
		WHERE job_id = $1 AND id <= (
			SELECT l.id
			FROM medianest.job_log AS l
			WHERE l.job_id = $1
			ORDER BY l.id DESC
			OFFSET $2
			LIMIT 1
		)`, PublicID(job), maxLog)
}

// endLine is the line that says how an attempt ended that did not complete, if there is something to say.
func endLine(e end, detail string) (line, bool) {
	now := time.Now()
	switch e.outcome {
	case retried:
		return line{now, Error, plainLine("Failed, and is tried again: " + detail)}, true
	case failed:
		return line{now, Error, plainLine("Failed: " + detail)}, true
	case snoozed:
		return line{now, Warning, plainLine("Put off: " + detail)}, detail != ""
	case interrupted:
		return line{now, Warning, "Handed back: its worker stops. Another one goes on with it."}, true
	case cancelled:
		return line{now, Warning, "Cancelled."}, true
	case completed, lost:
	}
	return line{}, false
}

// writeLog writes lines of a job's log while its attempt runs.
func (a *attempts) writeLog(ctx context.Context, job *rivertype.JobRow, lines []line) {
	ctx, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), noteTimeout, errTooLong)
	defer stop()
	batch := &pgx.Batch{}
	queueLog(batch, job, lines)
	a.send(ctx, job, batch, len(lines), "job's log not written")
}
