// Command medianest is the whole platform in one binary: `up` runs everything on one machine, `serve` and `work` are its
// halves for several, the others keep, inspect and use it. Only this package reads the environment, catches signals and
// knows every other package; README.md and docs/operations.md say how to run it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"

	"medianest/jobs/guard"
)

// Exit codes. A usage fault is also a wrong setting: starting again will not help.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitOverslept   = 75 // EX_TEMPFAIL: a worker that was not running for longer than its presence lasts; start it again
	exitInterrupted = 130
)

// process is what main is given by the operating system, so that a test can give something else.
type process struct {
	args    []string // without the program's name
	env     []string // NAME=value, as of os.Environ
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	signals <-chan os.Signal // requests to stop: the first politely, the second at once
}

// exitError ends the program with a code; text may be empty when everything was said already.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// usageError says that the command line or the settings are wrong.
func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, text: fmt.Sprintf(format, args...)}
}

func main() {
	guard.Main() // does not return in a process that is to watch over yt-dlp
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup asks for it to stay ignored
		signal.Notify(signals, syscall.SIGHUP)
	}
	os.Exit(run(context.Background(), process{
		args: os.Args[1:], env: os.Environ(),
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		signals: signals,
	}))
}

// run executes one command line and returns the exit code. Everything it started has ended when it returns.
func run(ctx context.Context, p process) int {
	err := dispatch(ctx, p)
	var exit *exitError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, &exit):
		if text := err.Error(); text != "" {
			fmt.Fprintf(p.stderr, "medianest: %s\n", text)
		}
		return exit.code
	default:
		fmt.Fprintf(p.stderr, "medianest: %v\n", err)
		return exitFailure
	}
}

// isTerminal says whether a reader or writer is a terminal a person sits at.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// environment makes a lookup of NAME=value pairs; the last of two wins, as in a shell.
func environment(pairs []string) map[string]string {
	env := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		if name, value, ok := strings.Cut(pair, "="); ok {
			env[name] = value
		}
	}
	return env
}
