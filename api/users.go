package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"medianest/store"
)

// People are the users, as those who manage them see them.
type People interface {
	FindUser(ctx context.Context, id uuid.UUID) (store.User, error)
	// ListUsers returns a page by name, and the cursor of the next one, or "".
	ListUsers(ctx context.Context, cursor string, limit int) ([]store.User, string, error)
	// CreateUser adds one: ErrConflict if the name is taken.
	CreateUser(ctx context.Context, n store.NewUser) (store.User, error)
	// UpdateUser and EraseUser refuse to leave no admin, by ErrConflict.
	UpdateUser(ctx context.Context, id uuid.UUID, c store.UserChange) (store.User, error)
	EraseUser(ctx context.Context, id uuid.UUID) error
	// ExportUser gives each record that is kept of the person.
	ExportUser(ctx context.Context, id uuid.UUID, each func(json.RawMessage) error) error
	// FindUsage returns what a user has and may have.
	FindUsage(ctx context.Context, id uuid.UUID) (store.Usage, store.Quota, error)
	RoleQuotas(ctx context.Context) (map[string]store.Quota, error)
	SetRoleQuota(ctx context.Context, role string, q store.Quota) error
}

// User is who uses the platform.
type User struct {
	ID          uuid.UUID  `json:"id" format:"uuid" doc:"Identifies the user."`
	Name        string     `json:"name" doc:"Unique, and part of the paths of the user's files." example:"anna"`
	Role        string     `json:"role" enum:"admin,manager,member,viewer" doc:"What the user may do: see GET /roles."`
	HasPassword bool       `json:"has_password" doc:"Whether the user can sign in by a password."`
	Quota       Quota      `json:"quota" doc:"The user's own quota; what it does not say is the role's."`
	CreatedAt   time.Time  `json:"created_at" doc:"When the user was created."`
	DisabledAt  *time.Time `json:"disabled_at,omitempty" doc:"Since when the user is not let in. Missing: is let in."`
}

// Me is the user who asks.
type Me struct {
	User

	Scopes  []string `json:"scopes" nullable:"false" doc:"What this request's token or session may do." example:"[\"downloads:read\"]"`
	Usage   Usage    `json:"usage" doc:"What the user has of what the quota bounds."`
	Allowed Quota    `json:"allowed" doc:"What the user may have: the own quota, else the role's."`
}

// Quota is how much a user may have.
type Quota struct {
	SizeBytes *int64 `json:"size_bytes,omitempty" minimum:"0" doc:"Of files in the library. Missing: any amount, or as the role says." example:"107374182400"`
	Downloads *int   `json:"downloads,omitempty" minimum:"0" doc:"Asked for within 24 hours. Missing: any number, or as the role says." example:"50"`
}

// Usage is what a user has of what a quota bounds.
type Usage struct {
	SizeBytes int64 `json:"size_bytes" doc:"Of files in the library." example:"52428800"`
	Downloads int   `json:"downloads" doc:"Asked for within the last 24 hours." example:"3"`
}

func quotaOf(q store.Quota) Quota   { return Quota{SizeBytes: q.Bytes, Downloads: q.Downloads} }
func (q Quota) stored() store.Quota { return store.Quota{Bytes: q.SizeBytes, Downloads: q.Downloads} }

func presentUser(u store.User) *User {
	return &User{
		ID: u.ID, Name: u.Name, Role: u.Role, HasPassword: u.HasPassword, Quota: quotaOf(u.Quota), CreatedAt: u.CreatedAt, DisabledAt: u.DisabledAt,
	}
}

var findMe = described{
	id: "find-me", scope: ScopeProfile, tag: tagUsers, summary: "Who am I?",
	text: "The user that the request's token or session belongs to, what they may do, and how much they have.",
}

type findMeOutput struct{ Body Me }

func (a *API) handleFindMe(ctx context.Context, _ *struct{}) (*findMeOutput, error) {
	who := scopeOf(ctx).identity
	usage, quota, err := a.store.FindUsage(ctx, who.User.ID)
	if err != nil {
		return nil, err
	}
	return &findMeOutput{Me{
		User: *presentUser(who.User), Scopes: who.mayDo(), Usage: Usage{SizeBytes: usage.Bytes, Downloads: usage.Downloads}, Allowed: quotaOf(quota),
	}}, nil
}

// UserList is a page of users.
type UserList struct {
	Items      []User `json:"items" nullable:"false" doc:"The page."`
	NextCursor string `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

var listUsers = described{
	id: "list-users", scope: ScopeUsersRead, tag: tagUsers, summary: "List users",
	text: "By name.", problems: []Code{CodeValidationFailed},
}

type listUsersOutput struct{ Body UserList }

func (a *API) handleListUsers(ctx context.Context, input *struct{ Paging }) (*listUsersOutput, error) {
	users, next, err := a.store.ListUsers(ctx, input.Cursor, input.Limit)
	if err != nil {
		return nil, err
	}
	list := UserList{Items: make([]User, len(users)), NextCursor: next}
	for i, u := range users {
		list.Items[i] = *presentUser(u)
	}
	return &listUsersOutput{list}, nil
}

type userInput struct {
	ID uuid.UUID `path:"id" format:"uuid" doc:"The user."`
}

type userOutput struct{ Body User }

var findUser = described{
	id: "find-user", scope: ScopeUsersRead, tag: tagUsers, summary: "Show a user", problems: []Code{CodeNotFound},
}

func (a *API) handleFindUser(ctx context.Context, input *userInput) (*userOutput, error) {
	user, err := a.store.FindUser(ctx, input.ID)
	if err != nil {
		return nil, notFound(err, "user")
	}
	return &userOutput{*presentUser(user)}, nil
}

// InviteRequest is a user who is to be.
type InviteRequest struct {
	Name string `json:"name" minLength:"1" maxLength:"63" pattern:"^[a-z0-9][a-z0-9._-]*$" doc:"Unique, and part of the paths of the user's files, for good." example:"anna"`
	Role string `json:"role" enum:"admin,manager,member,viewer" doc:"What the user may do." example:"member"`
}

// Invitation is a code that lets somebody in as a user, once.
type Invitation struct {
	User      User      `json:"user" doc:"Who is invited."`
	Code      string    `json:"code" doc:"Lets the person set the user's password, once. It is shown here and kept by nobody." example:"mni_…"`
	Link      string    `json:"link" doc:"A page that asks for the new password." example:"https://media.example/invitation#mni_…"`
	ExpiresAt time.Time `json:"expires_at" doc:"Until when the code is good."`
}

// invitationAge is how long a person has to take an invitation.
const invitationAge = 7 * 24 * time.Hour

var inviteUser = described{
	id: "invite-user", scope: ScopeUsersWrite, tag: tagUsers, status: http.StatusCreated, summary: "Invite somebody",
	text:     "Makes a user, and a code by which the person sets the password. Send them the link.",
	problems: []Code{CodeConflict, CodeValidationFailed},
}

type invitationOutput struct{ Body Invitation }

func (a *API) handleInviteUser(ctx context.Context, input *struct{ Body InviteRequest }) (*invitationOutput, error) {
	note(ctx, "asked", input.Body)
	user, err := a.store.CreateUser(ctx, store.NewUser{Name: input.Body.Name, Role: input.Body.Role})
	if err != nil {
		return nil, conflict(err, "There is a user of that name.")
	}
	return a.invite(ctx, user)
}

// invite makes an invitation in place of those that the user had.
func (a *API) invite(ctx context.Context, user store.User) (*invitationOutput, error) {
	code, hash := newSecret("mni_")
	o := store.OneTime{Purpose: store.CodeInvitation, UserID: &user.ID, ExpiresAt: a.now().Add(invitationAge)}
	if err := a.store.ReplaceOneTime(ctx, hash, o); err != nil {
		return nil, err
	}
	link := a.server(scopeOf(ctx).gin.Request) + invitationPath + "?code=" + code
	return &invitationOutput{Invitation{User: *presentUser(user), Code: code, Link: link, ExpiresAt: o.ExpiresAt}}, nil
}

var inviteAgain = described{
	id: "invite-user-again", scope: ScopeUsersWrite, tag: tagUsers, status: http.StatusCreated, summary: "Invite a user again",
	text:     "For who has lost the invitation or forgotten the password: a new code, in place of those before. The password holds until it is taken.",
	problems: []Code{CodeConflict, CodeNotFound},
}

func (a *API) handleInviteAgain(ctx context.Context, input *userInput) (*invitationOutput, error) {
	user, err := a.store.FindUser(ctx, input.ID)
	if err != nil {
		return nil, notFound(err, "user")
	}
	if user.DisabledAt != nil {
		return nil, newProblem(CodeConflict, "The user is disabled.")
	}
	return a.invite(ctx, user)
}

// UserRequest changes a user. What is missing stays.
type UserRequest struct {
	Role     *string `json:"role,omitempty" enum:"admin,manager,member,viewer" doc:"What the user may do."`
	Disabled *bool   `json:"disabled,omitempty" doc:"true: the user is signed out everywhere, and refused until it is false again."`
	Quota    *Quota  `json:"quota,omitempty" doc:"The user's own quota, whole: what it does not say is the role's."`
}

var updateUser = described{
	id: "update-user", scope: ScopeUsersWrite, tag: tagUsers, summary: "Change a user",
	text:     "Role, quota, and whether the user is let in: in force with the user's next request, at every replica. How many jobs of a user run at a time is the limit of the key `user:<id>`: see PUT /limits/{key}. The last admin stays one.",
	problems: []Code{CodeConflict, CodeNotFound, CodeValidationFailed},
}

func (a *API) handleUpdateUser(ctx context.Context, input *struct {
	ID   uuid.UUID `path:"id" format:"uuid" doc:"The user."`
	Body UserRequest
}) (*userOutput, error) {
	note(ctx, "asked", input.Body)
	change := store.UserChange{Role: input.Body.Role, Disabled: input.Body.Disabled}
	if q := input.Body.Quota; q != nil {
		quota := q.stored()
		change.Quota = &quota
	}
	user, err := a.store.UpdateUser(ctx, input.ID, change)
	if err != nil {
		return nil, conflict(notFound(err, "user"), "There would be no admin who is let in.")
	}
	return &userOutput{*presentUser(user)}, nil
}

var eraseUser = described{
	id: "erase-user", scope: ScopeUsersWrite, tag: tagUsers, summary: "Remove a user and all that is kept of them",
	text:     "Name, password, tokens, sessions and identities are gone when the answer comes, and for good. Downloads and files follow: jobs remove them. What others wish for as well stays theirs. The audit keeps what was done, under an id that names nobody. Export first what is to be kept.",
	problems: []Code{CodeConflict, CodeNotFound},
}

func (a *API) handleEraseUser(ctx context.Context, input *userInput) (*struct{}, error) {
	if err := a.store.EraseUser(ctx, input.ID); err != nil {
		return nil, conflict(notFound(err, "user"), "There would be no admin who is let in.")
	}
	return nil, nil //nolint:nilnil // huma's answer without a body
}

var exportMe = described{
	id: "export-me", scope: ScopeProfile, tag: tagUsers, summary: "Export what is kept of you", streams: true,
	text: exportText,
}

var exportUser = described{
	id: "export-user", scope: ScopeUsersWrite, tag: tagUsers, summary: "Export what is kept of a user", streams: true,
	text: exportText, problems: []Code{CodeNotFound},
}

const exportText = "A JSON object a line (`application/x-ndjson`), each with its kind as `record`: user, identity, token, session, download, file, action. No secrets."

type streamOutput struct{ Body func(huma.Context) }

func (a *API) handleExportMe(ctx context.Context, _ *struct{}) (*streamOutput, error) {
	return a.export(ctx, scopeOf(ctx).identity.User.ID)
}

func (a *API) handleExportUser(ctx context.Context, input *userInput) (*streamOutput, error) {
	if _, err := a.store.FindUser(ctx, input.ID); err != nil {
		return nil, notFound(err, "user")
	}
	return a.export(ctx, input.ID)
}

// ndjsonType is JSON, an object a line.
const ndjsonType = "application/x-ndjson"

func (a *API) export(ctx context.Context, id uuid.UUID) (*streamOutput, error) {
	c := scopeOf(ctx).gin
	return &streamOutput{func(huma.Context) {
		c.Header("Content-Type", ndjsonType)
		c.Header("Content-Disposition", `attachment; filename="medianest-`+id.String()+`.ndjson"`)
		err := a.store.ExportUser(ctx, id, func(record json.RawMessage) error {
			_, err := c.Writer.Write(append(record, '\n'))
			return err
		})
		if err != nil {
			panic(err) // what has been sent must not look whole
		}
	}}, nil
}

// Role is a set of scopes.
type Role struct {
	Name   string   `json:"name" enum:"admin,manager,member,viewer" doc:"The role."`
	Scopes []string `json:"scopes" nullable:"false" doc:"What users of the role may do."`
	Quota  Quota    `json:"quota" doc:"How much each of them may have, unless it is said of the user."`
}

// RoleList is all roles.
type RoleList struct {
	Items []Role `json:"items" nullable:"false" doc:"The roles, from the one that may all to the one that may least."`
}

var listRoles = described{
	id: "list-roles", scope: ScopeProfile, tag: tagUsers, summary: "List roles",
	text: "What users of each role may do, by scopes, and how much they may have.",
}

type rolesOutput struct{ Body RoleList }

func (a *API) handleListRoles(ctx context.Context, _ *struct{}) (*rolesOutput, error) {
	quotas, err := a.store.RoleQuotas(ctx)
	if err != nil {
		return nil, err
	}
	var list RoleList
	for _, name := range store.Roles {
		list.Items = append(list.Items, presentRole(name, quotas[name]))
	}
	return &rolesOutput{list}, nil
}

func presentRole(name string, q store.Quota) Role {
	return Role{Name: name, Scopes: (&identity{scopes: roleScopes[name]}).mayDo(), Quota: quotaOf(q)}
}

var setRoleQuota = described{
	id: "set-role-quota", scope: ScopeUsersWrite, tag: tagUsers, summary: "Set a role's quota",
	text:     "For all users of the role of whom nothing else is said. It is asked for when something new is wished for: what is there or under way stays.",
	problems: []Code{CodeValidationFailed},
}

type roleOutput struct{ Body Role }

func (a *API) handleSetRoleQuota(ctx context.Context, input *struct {
	Name string `path:"name" enum:"admin,manager,member,viewer" doc:"The role."`
	Body Quota
}) (*roleOutput, error) {
	note(ctx, "asked", input.Body)
	if err := a.store.SetRoleQuota(ctx, input.Name, input.Body.stored()); err != nil {
		return nil, err
	}
	return &roleOutput{presentRole(input.Name, input.Body.stored())}, nil
}

// quotaProblem says which bound is reached.
func quotaProblem(e *store.QuotaError) *Problem {
	detail := "You have asked for as many downloads as you may in 24 hours."
	if e.What == "bytes" {
		detail = "Your files take as much space as they may. Delete some."
	}
	return newProblem(CodeQuotaReached, detail).because(e)
}

// canonicalName is a user's name made of what somebody is called elsewhere, or "".
func canonicalName(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && (r == '.' || r == '_' || r == '-' || r == ' '):
			b.WriteRune('-')
		}
		if b.Len() >= 40 {
			break
		}
	}
	return strings.TrimRight(b.String(), "-")
}
