// Command medianest-demo shows the platform at work, from nothing to files in a library: it serves a sample media site on
// this machine, starts `medianest up` beside it, lets `medianest download` fetch a film, a stream and a page of films
// through the API, checks the files and stops everything. `make demo` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"medianest/jobs/ytdlp/ytdlptest"
)

// total bounds the demo: the first one on a small machine makes its sample films and its database.
const total = 5 * time.Minute

func main() {
	binary := flag.String("medianest", "bin/medianest", "the medianest `program`")
	dir := flag.String("dir", ".demo", "`folder` for the demo's data and media; both are begun anew each time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, total, fmt.Errorf("the demo took longer than %s", total))
	defer cancel()
	d := &demo{binary: *binary, dir: *dir, out: os.Stdout}
	if err := d.run(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// demo is one walk through the platform.
type demo struct {
	binary, dir string
	out         io.Writer
}

func (d *demo) run(ctx context.Context) (err error) {
	begin := time.Now()
	if d.binary, err = filepath.Abs(d.binary); err != nil {
		return err
	}
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return err
	}
	if err := d.begin(); err != nil {
		return err
	}
	d.say("Sample site", "made by ffmpeg, served on this machine only")
	site, err := startSite(ctx)
	if err != nil {
		return err
	}
	defer site.close()
	fmt.Fprintf(d.out, "  %s\n", site.url("/"))

	d.say("Platform", "medianest up: API, worker, Postgres and Redis in one go")
	up, err := startPlatform(ctx, d, site.address())
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := up.stop(); stopErr != nil {
			err = errors.Join(err, stopErr)
		}
	}()
	fmt.Fprintf(d.out, "  %s, ready after %.1f s\n", up.url, time.Since(up.begun).Seconds())

	d.say("Downloads", "a film, an HLS stream and a page with five films, through the API")
	if err := d.download(ctx, up, site); err != nil {
		return err
	}
	files, err := d.verify(ctx)
	if err != nil {
		return err
	}
	d.say("Library", d.shown(d.media()))
	printTree(d.out, files)

	stopping := time.Now()
	if err := up.stop(); err != nil {
		return err
	}
	d.say("Stopped", fmt.Sprintf("cleanly, in %.1f s; all of it took %.0f s", time.Since(stopping).Seconds(), time.Since(begin).Seconds()))
	d.farewell()
	return nil
}

func (d *demo) say(what, more string) { fmt.Fprintf(d.out, "\n%s: %s\n", what, more) }

func (d *demo) data() string  { return filepath.Join(d.dir, "data") }
func (d *demo) media() string { return filepath.Join(d.dir, "media") }

// shown is a path as a person in this directory would type it.
func (d *demo) shown(path string) string {
	if here, err := os.Getwd(); err == nil {
		if relative, err := filepath.Rel(here, path); err == nil && !strings.HasPrefix(relative, "..") {
			return relative
		}
	}
	return path
}

// mark is a file that says that a folder is the demo's, to be emptied by it.
const mark = ".medianest-demo"

// begin makes an empty folder. One that holds something that is not the demo's is left alone.
func (d *demo) begin() error {
	if _, err := os.Stat(d.binary); err != nil {
		return fmt.Errorf("there is no %s; `make demo` builds it first", d.binary)
	}
	if entries, err := os.ReadDir(d.dir); err == nil && len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(d.dir, mark)); err != nil {
			return fmt.Errorf("%s is not empty and not a demo's; name another folder with -dir", d.dir)
		}
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(d.dir, mark), []byte("Made by medianest-demo, which empties this folder when it starts.\n"), 0o644),
		os.RemoveAll(d.data()), os.RemoveAll(d.media()),
	)
}

// download runs the command that a person would.
func (d *demo) download(ctx context.Context, up *platform, site *site) error {
	command := exec.CommandContext(ctx, d.binary, "download",
		site.url("/big.mp4?mb=32&rate=12000000"), site.url("/hls/master.m3u8?rate=250000"), site.url("/gallery"))
	command.Env = append(environment(), "MEDIANEST_SERVER="+up.url, "MEDIANEST_DATA_DIR="+d.data())
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, d.out, os.Stderr
	// Ctrl-C reaches the command by the terminal, and it has its own way with it.
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = 15 * time.Second
	if err := command.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 130 {
			return errors.New("interrupted")
		}
		return fmt.Errorf("medianest download: %w; the platform's log is %s", err, up.logPath)
	}
	return nil
}

func (d *demo) farewell() {
	fmt.Fprintf(d.out, `
How to go on:
  make run                                   the platform to stay, on http://127.0.0.1:8080
  bin/medianest download URL...              from another terminal
  curl -H "Authorization: Bearer $(cat data/admin-token)" -H 'Content-Type: application/json' \
    -d '{"url": "https://..."}' http://127.0.0.1:8080/api/v1/downloads
  curl -N -H "Authorization: Bearer $(cat data/admin-token)" http://127.0.0.1:8080/api/v1/events
  http://127.0.0.1:8080/docs                 the API; sign in with what is in data/admin-token

The demo's files stay in %s until it runs again.
`, d.shown(d.dir))
}

// environment is ours without the platform's settings: the demo's must not meet a real installation's.
func environment() []string {
	var env []string
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, "MEDIANEST_") && !strings.HasPrefix(pair, "OTEL_") {
			env = append(env, pair)
		}
	}
	return env
}

// tool finds a program as the sample site does: in the checkout's .tools first.
func tool(name string) (string, error) { return ytdlptest.Tool(name) }
