package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"medianest/api"
)

// healthcheckTimeout is below what container engines give a check by default.
const healthcheckTimeout = 4 * time.Second

// healthcheckCommand asks the process that runs with the same environment.
type healthcheckCommand struct{ live bool }

func (c *healthcheckCommand) flags(set *flag.FlagSet) {
	set.BoolVar(&c.live, "live", false, "ask only whether the process answers, not whether its dependencies do")
}

func (c *healthcheckCommand) run(ctx context.Context, p process, _ []string) error {
	config, err := loadConfig(p, modeTool)
	if err != nil {
		return err
	}
	// The admin listener is there in every mode; without one only the API can be asked.
	base := localURL(config.AdminListen)
	if config.AdminListen == off {
		base = config.scheme(localURL(config.Listen)) + config.BasePath
	}
	path := "/readyz"
	if c.live {
		path = "/livez"
	}
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	return askHealth(ctx, base+path)
}

// askHealth returns nil when the URL answers 200, and else what it says is wrong.
func askHealth(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// No proxy from the environment, no connection left behind.
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		// It asks a process of this machine how it is, by an address that its certificate does not name, and tells it nothing.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, // #nosec G402 -- see above
	}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("not answering: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // read only
	if response.StatusCode == http.StatusOK {
		return nil
	}
	var said api.Health
	body, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	_ = json.Unmarshal(body, &said) // a stranger's answer has no checks
	var wrong []string
	for _, c := range said.Checks {
		if c.State != api.HealthOK {
			wrong = append(wrong, fmt.Sprintf("%s is %s: %s", c.Name, c.State, c.Detail))
		}
	}
	if len(wrong) == 0 {
		return fmt.Errorf("not ready: %s answers %s", url, response.Status)
	}
	return fmt.Errorf("not ready: %s", strings.Join(wrong, "; "))
}
