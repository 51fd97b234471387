package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"path/filepath"
)

// connection is how the commands that are clients find the platform, and show who they are.
type connection struct{ server, token string }

func (c *connection) flags(set *flag.FlagSet) {
	set.StringVar(&c.server, "server", "", "`URL` of the platform (default MEDIANEST_SERVER, else http://"+defaultListen+")")
	set.StringVar(&c.token, "token", "", "API `token`; others on this machine can see it, MEDIANEST_TOKEN they cannot (default MEDIANEST_TOKEN, else the file "+adminTokenFile+" in MEDIANEST_DATA_DIR)")
}

// open returns the platform, which is the caller's to close. It connects when first used.
func (c *connection) open(p process) (*apiPlatform, Config, error) {
	config, err := loadConfig(p, modeTool)
	if err != nil {
		return nil, config, err
	}
	if c.server != "" {
		if err := parseHTTPURL(func(c *Config) *string { return &c.Server })(&config, c.server); err != nil {
			return nil, config, usageError("--server %v", err)
		}
	}
	token, origin, err := c.findToken(config)
	if err != nil {
		return nil, config, err
	}
	remote, err := newPlatform(config.Server, token, origin)
	return remote, config, err
}

// findToken returns the token and, in words, where it is from.
func (c *connection) findToken(config Config) (token, origin string, err error) {
	switch {
	case c.token != "":
		return c.token, "--token", nil
	case config.Token != "":
		return config.Token.reveal(), "MEDIANEST_TOKEN", nil
	}
	path := filepath.Join(config.DataDir, adminTokenFile)
	token, err = readToken(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", "", fmt.Errorf("no API token: there is no %s; set MEDIANEST_TOKEN, or MEDIANEST_DATA_DIR to the platform's data directory, where the first start of `medianest up` puts one", path)
	case errors.Is(err, fs.ErrPermission):
		return "", "", fmt.Errorf("no API token: this user may not read %s; set MEDIANEST_TOKEN to a token of yours", path)
	case err != nil:
		return "", "", fmt.Errorf("no API token: %w", err)
	}
	return token, path, nil
}
