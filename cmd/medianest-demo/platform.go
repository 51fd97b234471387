package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyEvery  = 50 * time.Millisecond
	readyAtMost = time.Minute
	stopAtMost  = 40 * time.Second
)

// platform is a running `medianest up`.
type platform struct {
	command *exec.Cmd
	url     string
	logPath string
	log     *os.File
	begun   time.Time

	exited  chan struct{} // closed when the process has ended
	err     error         // how; read after exited
	stopped sync.Once
	stopErr error
}

// startPlatform starts the platform on free ports, allowed to reach the sample site and nothing else that is private,
// and returns when it is ready.
func startPlatform(ctx context.Context, d *demo, siteAddress string) (*platform, error) {
	p := &platform{logPath: filepath.Join(d.dir, "medianest.log"), begun: time.Now(), exited: make(chan struct{})}
	var err error
	if p.log, err = os.Create(p.logPath); err != nil {
		return nil, err
	}
	p.command = exec.Command(d.binary, "up") //nolint:noctx // it is stopped by its own way, by stop
	p.command.Env = append(environment(),
		"MEDIANEST_DATA_DIR="+d.data(), "MEDIANEST_MEDIA_DIR="+d.media(),
		"MEDIANEST_LISTEN=127.0.0.1:0", "MEDIANEST_ADMIN_LISTEN=off",
		"MEDIANEST_EGRESS_ALLOW="+siteAddress, "MEDIANEST_LOG_FORMAT=text",
	)
	if err := p.findTools(); err != nil {
		return nil, err
	}
	p.command.Stderr = p.log
	// Ctrl-C at the terminal is for the demo, which then stops the platform.
	p.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("start the platform: %w", err)
	}
	found := make(chan string, 1)
	go func() {
		defer close(p.exited)
		banner := bufio.NewScanner(stdout)
		for banner.Scan() {
			if _, url, ok := strings.Cut(banner.Text(), "MediaNest is running at "); ok {
				found <- strings.TrimSpace(url)
			}
		}
		p.err = p.command.Wait()
	}()
	if err := p.waitReady(ctx, found); err != nil {
		return nil, errors.Join(err, p.stop(), p.tail())
	}
	return p, nil
}

// findTools names the checkout's programs, so that the demo also runs without make's PATH.
func (p *platform) findTools() error {
	for name, variable := range map[string]string{"yt-dlp": "MEDIANEST_YTDLP", "ffmpeg": "MEDIANEST_FFMPEG"} {
		path, err := tool(name)
		if err != nil {
			return err
		}
		p.command.Env = append(p.command.Env, variable+"="+path)
	}
	return nil
}

// waitReady waits for the address, which the platform prints when it has one, and then for it to say that it is ready.
func (p *platform) waitReady(ctx context.Context, found <-chan string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyAtMost, fmt.Errorf("the platform was not ready within %s", readyAtMost))
	defer cancel()
	select {
	case p.url = <-found:
	case <-p.exited:
		return fmt.Errorf("the platform ended at once: %w", p.err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ticker := time.NewTicker(readyEvery)
	defer ticker.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/readyz", nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ticker.C:
		case <-p.exited:
			return fmt.Errorf("the platform ended: %w", p.err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// stop stops the platform as an operator would, and says what it said if that went wrong. Any call but the first
// returns what the first did.
func (p *platform) stop() error {
	p.stopped.Do(func() {
		defer p.log.Close() //nolint:errcheck // the platform wrote it, not we
		_ = p.command.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(stopAtMost):
			_ = p.command.Process.Kill()
			<-p.exited
			p.stopErr = fmt.Errorf("the platform did not stop within %s and was killed; its log is %s", stopAtMost, p.logPath)
			return
		}
		if p.err != nil {
			p.stopErr = fmt.Errorf("the platform ended badly: %w; its log is %s", p.err, p.logPath)
		}
	})
	return p.stopErr
}

// tail is the end of the platform's log, as an error to join to another.
func (p *platform) tail() error {
	content, err := os.ReadFile(p.logPath)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return errors.New("it said:\n  " + strings.Join(lines[max(0, len(lines)-8):], "\n  "))
}
