package api

import (
	"context"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// AccessRules bind scopes to conditions.
type AccessRules interface {
	ListAccessRules(ctx context.Context) ([]store.AccessRule, error)
	// SetAccessRule refuses, by ErrConflict, a rule that would refuse the user who sets it.
	SetAccessRule(ctx context.Context, r store.AccessRule, by store.RuleSetter) (store.AccessRule, error)
	DeleteAccessRule(ctx context.Context, name string) error
}

// AccessRule binds the use of scopes to conditions.
type AccessRule struct {
	AccessRuleRequest

	Name      string     `json:"name" doc:"The rule's name." example:"river-at-home"`
	UpdatedAt time.Time  `json:"updated_at" doc:"When it was set."`
	UpdatedBy *uuid.UUID `json:"updated_by,omitempty" format:"uuid" doc:"By whom."`
}

// AccessRuleRequest is a rule that is to be.
type AccessRuleRequest struct {
	Roles    []string    `json:"roles,omitempty" maxItems:"4" doc:"Whom it is for: users of these roles." example:"[\"admin\"]"`
	UserIDs  []uuid.UUID `json:"user_ids,omitempty" maxItems:"100" doc:"And these users."`
	Scopes   []string    `json:"scopes" minItems:"1" maxItems:"50" nullable:"false" doc:"What they may do on these conditions only. See GET /roles." example:"[\"river\",\"users:write\"]"`
	Networks []string    `json:"networks,omitempty" maxItems:"50" doc:"From which addresses and networks. Missing: from anywhere." example:"[\"192.168.1.0/24\"]"`
	Windows  []Window    `json:"windows,omitempty" maxItems:"20" doc:"When. Missing: at any time."`
	Timezone string      `json:"timezone,omitempty" maxLength:"100" doc:"Of the windows, by its IANA name. Missing: UTC." example:"Europe/Berlin"`
}

// AccessRuleList is all rules.
type AccessRuleList struct {
	Items []AccessRule `json:"items" nullable:"false" doc:"The rules, by name."`
}

func presentRule(r store.AccessRule) AccessRule {
	rule := AccessRule{
		Name: r.Name, UpdatedAt: r.UpdatedAt, UpdatedBy: r.UpdatedBy,
		AccessRuleRequest: AccessRuleRequest{
			Roles: r.Roles, UserIDs: r.UserIDs, Scopes: r.Scopes, Networks: networkNames(r.Networks), Timezone: r.Timezone,
		},
	}
	for _, w := range r.Windows {
		rule.Windows = append(rule.Windows, Window(w))
	}
	return rule
}

var listAccessRules = described{
	id: "list-access-rules", scope: ScopeUsersRead, tag: tagUsers, summary: "List access rules",
	text: "On which conditions scopes may be used, besides those that roles and tokens set.",
}

type accessRulesOutput struct{ Body AccessRuleList }

func (a *API) handleListAccessRules(ctx context.Context, _ *struct{}) (*accessRulesOutput, error) {
	rules, err := a.store.ListAccessRules(ctx)
	if err != nil {
		return nil, err
	}
	list := AccessRuleList{Items: make([]AccessRule, len(rules))}
	for i, r := range rules {
		list.Items[i] = presentRule(r)
	}
	return &accessRulesOutput{list}, nil
}

var setAccessRule = described{
	id: "set-access-rule", scope: ScopeUsersWrite, tag: tagUsers, summary: "Set an access rule",
	text:     "Whom it names may use its scopes only from its networks and within its windows, from their next request on, at every replica. All rules must allow what is asked for. A rule that would refuse you, here and now, is refused.",
	problems: []Code{CodeConflict, CodeValidationFailed},
}

type accessRuleOutput struct{ Body AccessRule }

func (a *API) handleSetAccessRule(ctx context.Context, input *struct {
	Name string `path:"name" maxLength:"63" pattern:"^[a-z0-9][a-z0-9-]*$" doc:"The rule's name." example:"river-at-home"`
	Body AccessRuleRequest
}) (*accessRuleOutput, error) {
	note(ctx, "asked", input.Body)
	who := scopeOf(ctx).identity
	if err := checkScopes(input.Body.Scopes); err != nil {
		return nil, err
	}
	networks, err := parseNetworks(input.Body.Networks)
	if err != nil {
		return nil, err
	}
	rule := store.AccessRule{
		Name: input.Name, Roles: input.Body.Roles, UserIDs: input.Body.UserIDs, Scopes: input.Body.Scopes, Networks: networks,
		Timezone: input.Body.Timezone,
	}
	for _, w := range input.Body.Windows {
		rule.Windows = append(rule.Windows, store.Window(w))
	}
	rule, err = a.store.SetAccessRule(ctx, rule, store.RuleSetter{UserID: who.User.ID, From: who.from})
	if err != nil {
		return nil, conflict(err, "The rule would refuse you, here and now; or there are too many.")
	}
	return &accessRuleOutput{presentRule(rule)}, nil
}

var deleteAccessRule = described{
	id: "delete-access-rule", scope: ScopeUsersWrite, tag: tagUsers, summary: "Delete an access rule",
	problems: []Code{CodeNotFound},
}

func (a *API) handleDeleteAccessRule(ctx context.Context, input *struct {
	Name string `path:"name" maxLength:"63" doc:"The rule's name."`
}) (*struct{}, error) {
	if err := a.store.DeleteAccessRule(ctx, input.Name); err != nil {
		return nil, notFound(err, "rule")
	}
	return nil, nil //nolint:nilnil // huma's answer without a body
}
