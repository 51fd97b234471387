package pgserver

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int{
		"postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n": 15,
		"postgres (PostgreSQL) 17beta1\n":                        17,
		"postgres (PostgreSQL) 18\n":                             18,
		"postgres (PostgreSQL) 9.6.24\n":                         9,
	} {
		got, err := parseVersion(in)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, in := range []string{"", "mysqld 8.0", "postgres (PostgreSQL) devel"} {
		_, err := parseVersion(in)
		require.ErrorContains(t, err, "not a version of PostgreSQL")
	}
}

func TestFindBinDir(t *testing.T) {
	t.Parallel()
	dir, err := FindBinDir("")
	require.NoError(t, err)
	again, err := FindBinDir(dir)
	require.NoError(t, err)
	require.Equal(t, dir, again)

	_, err = FindBinDir(t.TempDir())
	require.ErrorContains(t, err, "does not hold postgres and initdb")
	_, err = findBinDir("", 99)
	require.ErrorContains(t, err, "apt-get install postgresql-99")
}

func TestParseLine(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]struct {
		line  logLine
		level slog.Level
	}{
		"00000 [] LOG:  listening on Unix socket": {logLine{"00000", "", "LOG", "listening on Unix socket"}, slog.LevelDebug},
		"00000 [] LOG:  server process (PID 7) was terminated by signal 9: Killed": {
			logLine{"00000", "", "LOG", "server process (PID 7) was terminated by signal 9: Killed"}, slog.LevelWarn,
		},
		"42P01 [medianest-api] ERROR:  relation \"x\" does not exist at character 8": {
			logLine{"42P01", "medianest-api", "ERROR", "relation \"x\" does not exist at character 8"}, slog.LevelInfo,
		},
		"57P03 [[unknown]] FATAL:  the database system is starting up": {
			logLine{"57P03", "[unknown]", "FATAL", "the database system is starting up"}, slog.LevelDebug,
		},
		"53300 [app] FATAL:  sorry, too many clients already": {
			logLine{"53300", "app", "FATAL", "sorry, too many clients already"}, slog.LevelWarn,
		},
		"XX000 [] PANIC:  could not write":               {logLine{"XX000", "", "PANIC", "could not write"}, slog.LevelError},
		"postgres: error while loading shared libraries": {logLine{text: "postgres: error while loading shared libraries"}, slog.LevelInfo},
		"\tcontinued": {logLine{text: "continued"}, slog.LevelInfo},
	} {
		got := parseLine(in)
		require.Equal(t, want.line, got, in)
		require.Equal(t, want.level, got.level(), in)
	}
}

func TestLogWriterSplitsLines(t *testing.T) {
	t.Parallel()
	var log recorder
	w := &logWriter{log: log.logger()}
	for _, part := range []string{"00000 [] LOG:  one\n53100 [] FAT", "AL:  no space left\n57P03 [] FATAL:  starting\n00000 [] LOG:  bye\n", "cut off"} {
		n, err := w.Write([]byte(part))
		require.NoError(t, err)
		require.Equal(t, len(part), n)
	}
	long := make([]byte, 3*maxLine)
	for i := range long {
		long[i] = 'x'
	}
	n, err := w.Write(long)
	require.NoError(t, err)
	require.Equal(t, len(long), n)
	require.LessOrEqual(t, len(w.buf), maxLine)
	require.Equal(t, "one; no space left; bye", w.lastLines())
	require.Contains(t, log.String(), `text="no space left" sqlstate=53100`)
	require.Contains(t, log.String(), `text=bye`)
}

func TestReadPIDFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "postmaster.pid")
	_, _, err := readPIDFile(file)
	require.ErrorIs(t, err, os.ErrNotExist)
	for content, want := range map[string]struct {
		pid int
		dir string
	}{
		"42\n/data\n170\n": {42, "/data"},
		"-42\n/data\n":     {42, "/data"}, // single-user mode
		"42":               {0, ""},       // cut off
		"":                 {0, ""},
	} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		pid, dir, err := readPIDFile(file)
		require.NoError(t, err)
		require.Equal(t, want.pid, pid)
		require.Equal(t, want.dir, dir)
	}
	require.NoError(t, os.WriteFile(file, []byte("x\n/data\n"), 0o600))
	_, _, err = readPIDFile(file)
	require.Error(t, err)
}
