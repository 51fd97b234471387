package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"medianest/api/client"
)

// tokenCommand manages API tokens through the API.
type tokenCommand struct {
	connection
	user, scopes, networks string
	expires                time.Duration
}

func (c *tokenCommand) flags(set *flag.FlagSet) {
	c.connection.flags(set)
	set.StringVar(&c.user, "user", "", "`name` of the user whose tokens are meant (default: your own)")
	set.StringVar(&c.scopes, "scopes", "", "`scopes` of a new token, separated by commas (default: all that the user's role has)")
	set.StringVar(&c.networks, "networks", "", "`addresses` and networks that it is taken from, separated by commas (default: anywhere)")
	set.DurationVar(&c.expires, "expires", 0, "after how long it ends, such as 720h (default: when it is revoked)")
}

func (c *tokenCommand) run(ctx context.Context, p process, args []string) error {
	do, what := "", ""
	switch len(args) {
	case 1:
		do = args[0]
	case 2:
		do, what = args[0], args[1]
	}
	if (what == "") != (do == "list") {
		return usageError("token takes: list, create NAME, rotate ID or revoke ID; medianest token -h says more")
	}
	remote, _, err := c.open(p)
	if err != nil {
		return err
	}
	defer remote.close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var owner *uuid.UUID
	if c.user != "" {
		user, err := remote.mustUser(ctx, c.user)
		if err != nil {
			return err
		}
		owner = &user.ID
	}
	switch do {
	case "list":
		return c.list(ctx, p, remote, owner)
	case "create":
		return c.create(ctx, p, remote, client.TokenRequest{
			Name: what, UserID: owner, Scopes: commaList(c.scopes), Networks: commaList(c.networks), ExpiresAt: c.end(),
		})
	case "rotate", "revoke":
		id, err := uuid.Parse(what)
		if err != nil {
			return usageError("token %s takes the id of a token, which medianest token list shows", do)
		}
		if do == "rotate" {
			return c.rotate(ctx, p, remote, owner, id)
		}
		return c.revoke(ctx, p, remote, id)
	}
	return usageError("token has no %q; medianest token -h lists what it takes", do)
}

func (c *tokenCommand) end() *time.Time {
	if c.expires == 0 {
		return nil
	}
	at := time.Now().Add(c.expires)
	return &at
}

func commaList(text string) *[]string {
	if text == "" {
		return nil
	}
	parts := strings.Split(text, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return &parts
}

func (c *tokenCommand) tokens(ctx context.Context, remote *apiPlatform, owner *uuid.UUID) ([]client.Token, error) {
	answer, err := remote.client.ListTokensWithResponse(ctx, &client.ListTokensParams{UserID: owner})
	if err == nil {
		err = client.Fault(answer)
	}
	if err != nil {
		return nil, remote.explain(err)
	}
	if answer.JSON200 == nil {
		return nil, remote.explain(errNotMediaNest)
	}
	return answer.JSON200.Items, nil
}

func (c *tokenCommand) list(ctx context.Context, p process, remote *apiPlatform, owner *uuid.UUID) error {
	tokens, err := c.tokens(ctx, remote, owner)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tNAME\tLAST USED\tENDS\tSCOPES\tNETWORKS")
	for _, t := range tokens {
		ends := when(t.ExpiresAt, "when revoked")
		if t.RevokedAt != nil {
			ends = "revoked"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, t.Name, when(t.LastUsedAt, "never"), ends, orAll(t.Scopes), orAll(t.Networks))
	}
	return table.Flush()
}

func when(at *time.Time, never string) string {
	if at == nil {
		return never
	}
	return at.Local().Format(time.DateTime)
}

func orAll(list *[]string) string {
	if list == nil || len(*list) == 0 {
		return "all"
	}
	return strings.Join(*list, ",")
}

// create prints the secret, and nothing else, on stdout, for a script to take.
func (c *tokenCommand) create(ctx context.Context, p process, remote *apiPlatform, request client.TokenRequest) error {
	answer, err := remote.client.CreateTokenWithResponse(ctx, request)
	if err == nil {
		err = client.Fault(answer)
	}
	if err != nil {
		return remote.explain(err)
	}
	if answer.JSON201 == nil {
		return remote.explain(errNotMediaNest)
	}
	fmt.Fprintf(p.stderr, "token %s, %s: it is shown this once\n", answer.JSON201.ID, answer.JSON201.Name)
	fmt.Fprintln(p.stdout, answer.JSON201.Secret)
	return nil
}

// rotate puts a new token of the same kind in an old one's place, which goes on until the new one is there.
func (c *tokenCommand) rotate(ctx context.Context, p process, remote *apiPlatform, owner *uuid.UUID, id uuid.UUID) error {
	tokens, err := c.tokens(ctx, remote, owner)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.ID != id {
			continue
		}
		if err := c.create(ctx, p, remote, client.TokenRequest{
			Name: t.Name, UserID: owner, Scopes: t.Scopes, Networks: t.Networks, ExpiresAt: c.end(),
		}); err != nil {
			return err
		}
		return c.revoke(ctx, p, remote, id)
	}
	return fmt.Errorf("there is no token %s; medianest token list lists them", id)
}

func (c *tokenCommand) revoke(ctx context.Context, p process, remote *apiPlatform, id uuid.UUID) error {
	answer, err := remote.client.RevokeTokenWithResponse(ctx, id)
	if err == nil {
		err = client.Fault(answer)
	}
	if err != nil {
		return remote.explain(err)
	}
	fmt.Fprintf(p.stderr, "token %s is revoked\n", id)
	return nil
}
