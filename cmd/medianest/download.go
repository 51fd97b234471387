package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/term"
)

// cancelTimeout bounds what the command does for downloads after it was interrupted.
const cancelTimeout = 10 * time.Second

// downloadCommand asks the platform for URLs and follows them.
type downloadCommand struct {
	connection
	key            string
	asJSON, detach bool
}

func (c *downloadCommand) flags(set *flag.FlagSet) {
	c.connection.flags(set)
	set.BoolVar(&c.asJSON, "json", false, "print one JSON object for every change")
	set.BoolVar(&c.detach, "detach", false, "do not follow: exit when the downloads are accepted")
	set.StringVar(&c.key, "idempotency-key", "", "`key` of this request: repeating it with the same key asks for nothing twice")
}

func (c *downloadCommand) run(ctx context.Context, p process, urls []string) error {
	if len(urls) == 0 {
		return usageError("download needs at least one URL: medianest download https://example.org/video")
	}
	remote, config, err := c.open(p)
	if err != nil {
		return err
	}
	defer remote.close()
	session := &downloadSession{process: p, platform: remote, config: config, view: c.view(p)}
	defer session.view.clear()
	return session.run(ctx, urls, c.key, c.detach)
}

func (c *downloadCommand) view(p process) view {
	switch {
	case c.asJSON:
		return newJSONView(p.stdout, p.stderr)
	case isTerminal(p.stdout) && environment(p.env)["TERM"] != "dumb":
		return newLiveView(p.stdout, func() screen { return terminalScreen(p) })
	default:
		return newPlainView(p.stdout)
	}
}

// terminalScreen measures the terminal that stdout is.
func terminalScreen(p process) screen {
	env := environment(p.env)
	s := screen{columns: 80, rows: 24, unicode: speaksUnicode(env)}
	if f, ok := p.stdout.(*os.File); ok {
		if columns, rows, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 && rows > 0 {
			s.columns, s.rows = columns, rows
		}
	}
	return s
}

// speaksUnicode follows the locale as the C library does.
func speaksUnicode(env map[string]string) bool {
	locale := strings.ToUpper(cmp.Or(env["LC_ALL"], env["LC_CTYPE"], env["LANG"]))
	return strings.Contains(locale, "UTF-8") || strings.Contains(locale, "UTF8")
}

// downloadSession is one run of the command against a platform.
type downloadSession struct {
	process
	platform remotePlatform
	config   Config
	view     view
}

func (s *downloadSession) run(ctx context.Context, urls []string, key string, detach bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	interrupted := make(chan struct{}, 4)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.signals:
				select {
				case interrupted <- struct{}{}:
				default: // it was told often enough
				}
			}
		}
	}()
	f := newFollower(s.platform, s.view)
	refused, err := s.create(ctx, f, urls, key, interrupted)
	if err != nil {
		return err
	}
	if detach {
		for _, root := range f.tracker.roots {
			s.view.accepted(root)
		}
	} else if err := s.follow(ctx, f, interrupted); err != nil {
		return err
	}
	c := f.tracker.count()
	c.Failed += refused
	s.view.summary(c)
	if refused > 0 || !detach && !f.tracker.allCompleted() {
		return &exitError{code: exitFailure} // what failed, and why, was shown
	}
	return nil
}

// create asks for every URL. One that the platform refuses does not keep the others from being asked for.
func (s *downloadSession) create(ctx context.Context, f *follower, urls []string, key string, interrupted <-chan struct{}) (refused int, err error) {
	for n, url := range urls {
		select {
		case <-interrupted:
			return refused, s.leave(f)
		default:
		}
		// A key of its own lets a request be repeated when its answer was lost.
		own := cmp.Or(key, uuid.Must(uuid.NewV7()).String())
		if key != "" && len(urls) > 1 {
			own = key + "-" + strconv.Itoa(n+1)
		}
		d, created, err := s.platform.create(ctx, url, own)
		switch {
		case errors.Is(err, errBadRequest):
			s.view.note(fmt.Sprintf("%s: %v", printable(url), err))
			refused++
			continue
		case err != nil:
			return refused, err
		case !created && !isFinal(d.State):
			s.view.note(printable(url) + ": is being downloaded already")
		}
		s.view.stateChanged(f.tracker.want(d))
	}
	return refused, nil
}

func isFinal(state string) bool { return (&item{remoteDownload: remoteDownload{State: state}}).final() }

// follow watches until the end, and asks what to do when interrupted.
func (s *downloadSession) follow(ctx context.Context, f *follower, interrupted <-chan struct{}) error {
	done, err := f.run(ctx, interrupted)
	if err != nil || done {
		return err
	}
	s.view.clear()
	if !isTerminal(s.stdin) || !isTerminal(s.stdout) {
		return s.leave(f)
	}
	answer := make(chan string, 1)
	fmt.Fprintf(s.stderr, "\rCancel the unfinished downloads? [y/N] ")
	go func() { // ends with the process when nobody answers
		line, _ := bufio.NewReader(io.LimitReader(s.stdin, 256)).ReadString('\n')
		answer <- line
	}()
	select {
	case <-interrupted:
		fmt.Fprintln(s.stderr)
		return s.leave(f)
	case line := <-answer:
		if line = strings.ToLower(strings.TrimSpace(line)); line != "y" && line != "yes" {
			return s.leave(f)
		}
	}
	return s.cancel(ctx, f, interrupted)
}

// leave ends the command while downloads go on.
func (s *downloadSession) leave(f *follower) error {
	left := f.tracker.count().Running
	text := "interrupted; nothing was left unfinished"
	if left > 0 {
		text = fmt.Sprintf("interrupted; %d %s on the platform and can be followed again with the same command", left, plural(left, "download goes on", "downloads go on"))
	}
	return &exitError{code: exitInterrupted, text: text}
}

// cancel cancels what has not ended and waits, for a moment, until it has.
func (s *downloadSession) cancel(ctx context.Context, f *follower, interrupted <-chan struct{}) error {
	ctx, stop := context.WithTimeout(ctx, cancelTimeout)
	defer stop()
	var errs []error
	for _, root := range f.tracker.roots {
		if !root.final() {
			if err := s.platform.cancel(ctx, root.ID); err != nil && !errors.Is(err, errNoDownload) {
				errs = append(errs, fmt.Errorf("cancel %s: %w", printable(root.label()), err))
			}
		}
	}
	if len(errs) == 0 {
		if _, err := f.run(ctx, interrupted); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, err)
		}
	}
	s.view.summary(f.tracker.count())
	if err := errors.Join(errs...); err != nil {
		return &exitError{code: exitInterrupted, text: err.Error()}
	}
	return &exitError{code: exitInterrupted}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
