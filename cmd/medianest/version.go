package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"medianest/store/pgserver"
)

// toolTimeout bounds one look at a tool; yt-dlp takes a second of processor time to say its version.
const toolTimeout = 20 * time.Second

// versionCommand prints what this program is and what it would run.
type versionCommand struct{}

func (*versionCommand) flags(*flag.FlagSet) {}

func (*versionCommand) run(ctx context.Context, p process, _ []string) error {
	config, err := loadConfig(p, modeTool)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "medianest %s (%s, %s/%s)\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	tools := findTools(config)
	fmt.Fprintf(p.stdout, "yt-dlp    %s\n", toolVersion(ctx, tools.ytdlp, "--version"))
	fmt.Fprintf(p.stdout, "ffmpeg    %s\n", toolVersion(ctx, tools.ffmpeg, "-version"))
	fmt.Fprintf(p.stdout, "ffprobe   %s\n", toolVersion(ctx, tools.ffprobe, "-version"))
	postgres := ""
	if dir, err := pgserver.FindBinDir(config.PostgresBin); err == nil {
		postgres = filepath.Join(dir, "postgres")
	}
	fmt.Fprintf(p.stdout, "postgres  %s\n", toolVersion(ctx, postgres, "--version"))
	return nil
}

// toolVersion runs a tool and returns the first line it prints, with where it is.
func toolVersion(ctx context.Context, path, flag string) string {
	if path == "" {
		return "not found"
	}
	line, err := askTool(ctx, path, flag)
	if err != nil {
		return "does not work: " + err.Error()
	}
	return fmt.Sprintf("%s (%s)", line, path)
}

// tools is where the programs are; "" where one was not found.
type tools struct{ ytdlp, ffmpeg, ffprobe string }

// findTools looks where the settings say, else in PATH, else where `make tools` puts programs into the checkout that
// this program was built in. ffprobe is looked for beside ffmpeg first, of which it is a part.
func findTools(c Config) tools {
	checkout := ""
	if self, err := os.Executable(); err == nil {
		checkout = filepath.Join(filepath.Dir(self), "..", ".tools", "bin")
	}
	find := func(set, name string) string {
		candidates := []string{set}
		if set == "" {
			candidates = []string{name, filepath.Join(checkout, name)}
		}
		for _, candidate := range candidates {
			if path, err := exec.LookPath(candidate); err == nil {
				return absolute(path)
			}
		}
		return ""
	}
	t := tools{ytdlp: find(c.YTDLP, "yt-dlp"), ffmpeg: find(c.FFmpeg, "ffmpeg")}
	if t.ffmpeg != "" {
		if t.ffprobe = find(filepath.Join(filepath.Dir(t.ffmpeg), "ffprobe"), ""); t.ffprobe == "" {
			t.ffprobe = find("", "ffprobe")
		}
	}
	return t
}
