package main

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
)

// toolState is what a program said when it was asked for its version. Until then it is taken to be well.
type toolState struct {
	mu  sync.Mutex
	err error
}

func (s *toolState) ask(ctx context.Context, name string, version func(context.Context) (string, error), log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	said, err := version(ctx)
	if ctx.Err() != nil && err != nil {
		return // the process stops, or the machine is too busy to say
	}
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	if err != nil {
		log.ErrorContext(ctx, "a program that downloads need does not work", slog.String("program", name), slog.Any("err", err))
		return
	}
	log.InfoContext(ctx, "program found", slog.String("program", name), slog.String("version", said))
}

func (s *toolState) get(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// askTool runs a program and returns the first line that it prints.
func askTool(ctx context.Context, path, flag string) (string, error) {
	command := exec.CommandContext(ctx, path, flag)
	command.Env = []string{} // it needs none of ours, which holds secrets
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("run %s %s: %w", path, flag, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}
