package main

import (
	"context"
	"flag"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"medianest/api/client"
)

// userCommand manages users through the API.
type userCommand struct {
	connection
	role string
	yes  bool
}

func (c *userCommand) flags(set *flag.FlagSet) {
	c.connection.flags(set)
	set.StringVar(&c.role, "role", "", "`role` of who is invited or changed: admin, manager, member or viewer (default of invite: member)")
	set.BoolVar(&c.yes, "yes", false, "erase without asking whether that is meant")
}

func (c *userCommand) run(ctx context.Context, p process, args []string) error {
	do, name := "", ""
	switch len(args) {
	case 1:
		do = args[0]
	case 2:
		do, name = args[0], args[1]
	}
	if (name == "") != (do == "list") {
		return usageError("user takes: list, or invite, change, disable, enable or erase with a NAME; medianest user -h says more")
	}
	remote, _, err := c.open(p)
	if err != nil {
		return err
	}
	defer remote.close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	switch do {
	case "list":
		return c.list(ctx, p, remote)
	case "invite":
		return c.invite(ctx, p, remote, name)
	case "change":
		if c.role == "" {
			return usageError("user change needs --role")
		}
		role := client.UserRequestRole(c.role)
		return c.change(ctx, p, remote, name, client.UserRequest{Role: &role})
	case "disable", "enable":
		disabled := do == "disable"
		return c.change(ctx, p, remote, name, client.UserRequest{Disabled: &disabled})
	case "erase":
		return c.erase(ctx, p, remote, name)
	}
	return usageError("user has no %q; medianest user -h lists what it takes", do)
}

func (c *userCommand) list(ctx context.Context, p process, remote *apiPlatform) error {
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tROLE\tSIGNS IN\tCREATED")
	err := remote.users(ctx, func(u client.User) {
		in := "by token only"
		switch {
		case u.DisabledAt != nil:
			in = "disabled"
		case u.HasPassword:
			in = "by password"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", u.Name, u.Role, in, u.CreatedAt.Local().Format(time.DateTime))
	})
	if err != nil {
		return err
	}
	return table.Flush()
}

func (c *userCommand) invite(ctx context.Context, p process, remote *apiPlatform, name string) error {
	role := c.role
	if role == "" {
		role = "member"
	}
	var invitation *client.Invitation
	user, found, err := remote.user(ctx, name)
	switch {
	case err != nil:
		return err
	case found:
		answer, err := remote.client.InviteUserAgainWithResponse(ctx, user.ID)
		if err == nil {
			err = client.Fault(answer)
		}
		if err != nil {
			return remote.explain(err)
		}
		invitation = answer.JSON201
	default:
		answer, err := remote.client.InviteUserWithResponse(ctx, client.InviteRequest{Name: name, Role: client.InviteRequestRole(role)})
		if err == nil {
			err = client.Fault(answer)
		}
		if err != nil {
			return remote.explain(err)
		}
		invitation = answer.JSON201
	}
	if invitation == nil {
		return remote.explain(errNotMediaNest)
	}
	fmt.Fprintf(p.stdout, "%s (%s) sets a password, once and until %s, at\n%s\n", invitation.User.Name, invitation.User.Role,
		invitation.ExpiresAt.Local().Format(time.DateTime), invitation.Link)
	return nil
}

func (c *userCommand) change(ctx context.Context, p process, remote *apiPlatform, name string, change client.UserRequest) error {
	user, err := remote.mustUser(ctx, name)
	if err != nil {
		return err
	}
	answer, err := remote.client.UpdateUserWithResponse(ctx, user.ID, change)
	if err == nil {
		err = client.Fault(answer)
	}
	if err != nil {
		return remote.explain(err)
	}
	if answer.JSON200 == nil {
		return remote.explain(errNotMediaNest)
	}
	state := "is let in"
	if answer.JSON200.DisabledAt != nil {
		state = "is not let in"
	}
	fmt.Fprintf(p.stdout, "%s is a %s, and %s\n", name, answer.JSON200.Role, state)
	return nil
}

func (c *userCommand) erase(ctx context.Context, p process, remote *apiPlatform, name string) error {
	if !c.yes {
		return usageError("user erase %s removes the user with all downloads and files, for good; say so by --yes", name)
	}
	user, err := remote.mustUser(ctx, name)
	if err != nil {
		return err
	}
	answer, err := remote.client.EraseUserWithResponse(ctx, user.ID)
	if err == nil {
		err = client.Fault(answer)
	}
	if err != nil {
		return remote.explain(err)
	}
	fmt.Fprintf(p.stdout, "%s is erased; jobs remove the files\n", name)
	return nil
}

// users gives each user, by name.
func (p *apiPlatform) users(ctx context.Context, each func(client.User)) error {
	limit := int64(pageSize)
	params := &client.ListUsersParams{Limit: &limit}
	for {
		answer, err := p.client.ListUsersWithResponse(ctx, params)
		if err == nil {
			err = client.Fault(answer)
		}
		if err != nil {
			return p.explain(err)
		}
		if answer.JSON200 == nil {
			return p.explain(errNotMediaNest)
		}
		for _, u := range answer.JSON200.Items {
			each(u)
		}
		if params.Cursor = answer.JSON200.NextCursor; params.Cursor == nil || *params.Cursor == "" {
			return nil
		}
	}
}

// user finds a user by name, or by id.
func (p *apiPlatform) user(ctx context.Context, name string) (user client.User, found bool, err error) {
	id, _ := uuid.Parse(name) // a name is no id
	err = p.users(ctx, func(u client.User) {
		if u.Name == name || u.ID == id {
			user, found = u, true
		}
	})
	return user, found, err
}

func (p *apiPlatform) mustUser(ctx context.Context, name string) (client.User, error) {
	user, found, err := p.user(ctx, name)
	if err == nil && !found {
		err = fmt.Errorf("there is no user %s on %s; medianest user list lists them", name, p.server)
	}
	return user, err
}
