// Package ytdlp runs yt-dlp: Probe finds out what is behind an address, Fetch brings it into a directory.
//
// Options are typed, from a short list, and built by go-ytdlp; a person's input reaches yt-dlp as the address behind
// `--` and nowhere else. The process is ours, though: under a guard (package guard), in a process group of its own,
// which is asked to stop (SIGINT) and then killed as a whole, also after yt-dlp's own end, so that no ffmpeg outlives
// its download; what is kept of its output is bounded; its environment is made from nothing. All failures that yt-dlp reports come back as
// *reason.Error.
package ytdlp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"medianest/jobs/guard"
)

// MinVersion is the oldest yt-dlp that knows every option used here.
const MinVersion = "2025.04.30"

const (
	defaultSearchPath    = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultStopGrace     = 2 * time.Second
	defaultSocketTimeout = 20 * time.Second
	defaultProbeTimeout  = 3 * time.Minute
	defaultRetries       = 5

	// MaxEntries is how many entries of a collection are seen; Probe.Truncated says that there were more.
	MaxEntries = 5000
	// MaxInfoBytes is how large yt-dlp's description of what is behind an address may be.
	MaxInfoBytes = 32 << 20
)

// Options say how yt-dlp is run. Zero values mean the defaults.
type Options struct {
	// Path is the yt-dlp program. Required.
	Path string
	// FFmpeg is the ffmpeg program, with ffprobe beside it. Default: the ones that yt-dlp finds in SearchPath.
	FFmpeg string
	// SearchPath is the PATH that yt-dlp gets. Default: the usual system directories.
	SearchPath string
	// StopGrace is how long yt-dlp may take to stop by itself after SIGINT. Default 2 s.
	StopGrace time.Duration
	// SocketTimeout is how long a server may be silent. Default 20 s.
	SocketTimeout time.Duration
	// ProbeTimeout bounds a Probe as a whole: a server that sends a byte now and then is never silent. Default 3 min.
	ProbeTimeout time.Duration
	// Retries is how often one HTTP request or fragment is tried again. Default 5.
	Retries int
	// Guard keeps yt-dlp from outliving this process and its right to work. Default: one that needs no beats. guard.Main
	// must have been called.
	Guard *guard.Keeper
	// Logger is for debug messages: starts, ends, yt-dlp's warnings. Required.
	Logger *slog.Logger
}

// Network is how yt-dlp reaches the outside.
type Network struct {
	// ProxyURL is the HTTP proxy for everything, with its credentials. It reaches yt-dlp by the environment, where,
	// unlike in arguments, other users of the machine cannot see it. Empty means direct.
	ProxyURL string
}

// Runner runs yt-dlp. Its methods may be called from several goroutines; each call is one process or two.
type Runner struct {
	opts Options
	log  *slog.Logger
}

// New checks the options. It does not run yt-dlp: see Version.
func New(opts Options) (*Runner, error) {
	if opts.Logger == nil {
		return nil, errors.New("ytdlp: Options.Logger is required")
	}
	for name, path := range map[string]string{"Path": opts.Path, "FFmpeg": opts.FFmpeg} {
		if path == "" && name == "FFmpeg" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("ytdlp: Options.%s: %w", name, err)
		}
		if info.IsDir() || info.Mode()&0o111 == 0 {
			return nil, fmt.Errorf("ytdlp: Options.%s: %s is not a program", name, path)
		}
	}
	opts.SearchPath = cmp.Or(opts.SearchPath, defaultSearchPath)
	opts.StopGrace = cmp.Or(opts.StopGrace, defaultStopGrace)
	opts.SocketTimeout = cmp.Or(opts.SocketTimeout, defaultSocketTimeout)
	opts.ProbeTimeout = cmp.Or(opts.ProbeTimeout, defaultProbeTimeout)
	opts.Retries = cmp.Or(opts.Retries, defaultRetries)
	if opts.Guard == nil {
		opts.Guard = guard.New(guard.Options{})
	}
	return &Runner{opts: opts, log: opts.Logger}, nil
}

// Version runs yt-dlp once and returns its version, with an error if it is older than MinVersion.
func (r *Runner) Version(ctx context.Context) (string, error) {
	// It says so before it does anything else, and leaves nothing anywhere.
	dir := os.TempDir()
	var version string
	ended, err := r.run(ctx, invocation{
		args: []string{"--ignore-config", "--version"},
		dir:  dir,
		env:  environment(r.opts, dir, Network{}),
		stdout: newLines(func(line string) {
			version = cmp.Or(version, strings.TrimSpace(line))
		}),
	})
	if err != nil {
		return "", fmt.Errorf("ask yt-dlp for its version: %w", err)
	}
	if ended.code != 0 {
		return "", fmt.Errorf("ask yt-dlp for its version: exit status %d: %s", ended.code, ended.stderr)
	}
	if older(version, MinVersion) {
		return version, fmt.Errorf("yt-dlp %q is older than %s", version, MinVersion)
	}
	return version, nil
}

// older compares versions such as 2025.04.30 or 2025.04.30.123456 by their date. What is no version is old.
func older(version, than string) bool {
	return versionDate(version) < versionDate(than)
}

func versionDate(version string) int {
	date := 0
	parts := strings.Split(version, ".")
	if len(parts) < 3 {
		return 0
	}
	for _, part := range parts[:3] {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 || n > 9999 {
			return 0
		}
		date = date*100 + n
	}
	return date
}
