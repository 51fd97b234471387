package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"
)

// listen binds an address; setting names it in the error.
func listen(ctx context.Context, setting, address string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, usageError("%s: %s is in use by another program; stop that one, or set %s to another address (port 0 chooses a free one)", setting, address, setting)
	case errors.Is(err, syscall.EACCES):
		return nil, usageError("%s: this user may not listen on %s; ports below 1024 need a privilege", setting, address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, usageError("%s: this machine has no address %s", setting, address)
	case err != nil:
		return nil, usageError("%s: %v", setting, err)
	}
	return l, nil
}

// httpUnit serves handler on l. Stopping closes the listener at once, calls drain so that endless responses end, and
// waits for the requests in progress.
//
// With a TLS configuration it speaks TLS, and HTTP/2 to who can.
func httpUnit(name string, l net.Listener, secure *tls.Config, handler http.Handler, log *slog.Logger, drain func()) unit {
	server := &http.Server{
		TLSConfig:         secure,
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	if drain != nil {
		server.RegisterOnShutdown(drain)
	}
	return unit{
		name: name,
		run: func(ctx context.Context) error {
			// Without this, a unit whose context ends before its stop was called would serve for ever.
			defer context.AfterFunc(ctx, func() { _ = server.Close() })()
			serve := server.Serve
			if secure != nil {
				serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
			}
			if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
			return nil // requests in progress are waited for by stop
		},
		stop: func(ctx context.Context) error {
			if err := server.Shutdown(ctx); err != nil {
				_ = server.Close()
				return fmt.Errorf("wait for requests in progress: %w", err)
			}
			return nil
		},
	}
}
