package pgserver

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// logPrefix makes the server's lines parseable: SQLSTATE, application name, then the severity that Postgres adds.
const logPrefix = "%e [%a] "

const (
	// maxLine bounds what is kept of a line without end.
	maxLine = 8 << 10

	// tailLines is how many lines are kept: the last is often the least telling, as in "configuration file contains
	// errors".
	tailLines = 3
)

// logWriter turns the server's stderr into records. Statements and values never come by here: the settings keep them
// out of the server's log, since they may hold secrets.
type logWriter struct {
	log *slog.Logger

	mu   sync.Mutex
	buf  []byte
	tail []string // of what may explain an end, the newest last
}

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(b)
	for {
		line, rest, found := bytes.Cut(b, []byte("\n"))
		if room := maxLine - len(w.buf); len(line) > room {
			line = line[:max(room, 0)]
		}
		w.buf = append(w.buf, line...)
		if !found {
			return n, nil
		}
		w.emit(string(w.buf))
		w.buf = w.buf[:0]
		b = rest
	}
}

func (w *logWriter) emit(line string) {
	if strings.TrimSpace(line) == "" {
		return
	}
	l := parseLine(line)
	// Refusals of clients explain nothing.
	if !strings.HasPrefix(l.code, "57P") {
		w.tail = append(w.tail, l.text)
		w.tail = w.tail[max(0, len(w.tail)-tailLines):]
	}
	attrs := []any{slog.String("text", l.text)}
	if l.code != "" && l.code != "00000" {
		attrs = append(attrs, slog.String("sqlstate", l.code))
	}
	if l.app != "" {
		attrs = append(attrs, slog.String("app", l.app))
	}
	const message = "postgres says"
	switch l.level() {
	case slog.LevelError:
		w.log.Error(message, attrs...)
	case slog.LevelWarn:
		w.log.Warn(message, attrs...)
	case slog.LevelInfo:
		w.log.Info(message, attrs...)
	default:
		w.log.Debug(message, attrs...)
	}
}

// lastLines returns what the server said last: of one that does not start, why.
func (w *logWriter) lastLines() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.tail, "; ")
}

// logLine is a line of the server's log, split.
type logLine struct {
	code, app, severity, text string
}

func parseLine(line string) logLine {
	code, rest, ok := strings.Cut(line, " [")
	if !ok || len(code) != 5 {
		return splitSeverity(logLine{text: strings.TrimSpace(line)})
	}
	app, text, ok := strings.Cut(rest, "] ")
	if !ok {
		return splitSeverity(logLine{text: strings.TrimSpace(line)})
	}
	return splitSeverity(logLine{code: code, app: app, text: text})
}

func splitSeverity(l logLine) logLine {
	severity, text, ok := strings.Cut(l.text, ":  ")
	if ok && strings.ToUpper(severity) == severity && !strings.Contains(severity, " ") {
		l.severity, l.text = severity, text
	}
	return l
}

// level maps the server's severities to ours. ERROR is a statement's, which its client is told and deals with. LOG is
// the server's diary; what in it tells of a crash must not drown.
func (l logLine) level() slog.Level {
	switch l.severity {
	case "PANIC":
		return slog.LevelError
	case "FATAL":
		// Refusals of clients while the server starts or stops are every start's and stop's noise.
		if strings.HasPrefix(l.code, "57P") {
			return slog.LevelDebug
		}
		return slog.LevelWarn
	case "WARNING":
		return slog.LevelWarn
	case "ERROR", "":
		return slog.LevelInfo
	}
	if strings.HasPrefix(l.code, "08") { // a client that went away
		return slog.LevelDebug
	}
	for _, alarm := range []string{"server process", "terminating any other", "all server processes", "database system was not properly", "could not"} {
		if strings.HasPrefix(l.text, alarm) {
			return slog.LevelWarn
		}
	}
	return slog.LevelDebug
}
