package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"medianest/jobs/ytdlp/ytdlptest"
)

// site is the sample media site on a free port of loopback.
type site struct {
	listener net.Listener
	server   *http.Server
	done     chan struct{}
}

func startSite(ctx context.Context) (*site, error) {
	ffmpeg, err := tool("ffmpeg")
	if err != nil {
		return nil, err
	}
	handler, err := ytdlptest.New(ctx, "", ffmpeg)
	if err != nil {
		return nil, err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the sample site: %w", err)
	}
	s := &site{listener: listener, server: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_ = s.server.Serve(listener) // ends by close alone
	}()
	return s, nil
}

func (s *site) address() string        { return s.listener.Addr().String() }
func (s *site) url(path string) string { return "http://" + s.address() + path }

func (s *site) close() {
	_ = s.server.Close()
	<-s.done
}
