package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// embeddedRedis is the Redis of `up` where none is set: the same protocol, inside the process, without a port that
// anybody else could reach.
type embeddedRedis struct{ server *miniredis.Miniredis }

func startEmbeddedRedis() (*embeddedRedis, error) {
	server := miniredis.NewMiniRedis()
	server.ClockTTL(true) // or nothing ever expires
	// The first Dial is what starts a server without a listener.
	conn, err := server.Dial()
	if err != nil {
		return nil, fmt.Errorf("start the embedded redis: %w", err)
	}
	_ = conn.Close()
	return &embeddedRedis{server: server}, nil
}

// client returns a client whose connections are socket pairs: unlike net.Pipe they buffer, so a pipeline longer than
// the server's read buffer does not lock up.
func (r *embeddedRedis) client() redis.UniversalClient {
	return redis.NewClient(&redis.Options{
		Addr: "embedded",
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs, err := connPair()
			if err != nil {
				return nil, err
			}
			r.server.Server().ServeConn(theirs)
			return ours, nil
		},
	})
}

func (r *embeddedRedis) close() { r.server.Close() }

// connPair returns the two ends of a connection that exists in this process only.
func connPair() (net.Conn, net.Conn, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "embedded-redis")
		var connErr error
		conns[i], connErr = net.FileConn(file) // a duplicate: the file is closed either way
		err = errors.Join(err, connErr, file.Close())
	}
	if err != nil {
		for _, conn := range conns {
			if conn != nil {
				_ = conn.Close()
			}
		}
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return conns[0], conns[1], nil
}
