package api

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"medianest/store"
)

// Scope is a right: each operation needs one, a role is a set of them, a token carries some of its user's.
type Scope string

// All scopes there are. What "others" says is about things of other users: without it, what is not one's own is not found.
const (
	ScopeProfile        Scope = "profile"         // one's own account, tokens and sessions
	ScopeDownloadsRead  Scope = "downloads:read"  // see downloads
	ScopeDownloadsWrite Scope = "downloads:write" // ask for, cancel, retry, delete downloads
	ScopeJobsRead       Scope = "jobs:read"       // see jobs
	ScopeJobsWrite      Scope = "jobs:write"      // cancel and retry jobs
	ScopeEventsRead     Scope = "events:read"     // follow what happens
	ScopeOthersRead     Scope = "others:read"     // see what belongs to other users
	ScopeOthersWrite    Scope = "others:write"    // act on what belongs to other users
	ScopeQueueRead      Scope = "queue:read"      // see queues, workers, limits, breakers, pauses
	ScopeQueueWrite     Scope = "queue:write"     // change them; change many jobs at once
	ScopeSchedulesRead  Scope = "schedules:read"  // see schedules
	ScopeSchedulesWrite Scope = "schedules:write" // change them
	ScopeUsersRead      Scope = "users:read"      // see users, quotas, access rules
	ScopeUsersWrite     Scope = "users:write"     // invite, change, remove users; change quotas and access rules
	ScopeAuditRead      Scope = "audit:read"      // see who did what
	ScopeSecretsWrite   Scope = "secrets:write"   // set and rotate secrets, which nobody sees
	ScopeRiver          Scope = "river"           // River UI, which shows and changes the jobs of all
)

// roleScopes are what users of each role may do.
var roleScopes = map[string][]Scope{
	store.UserAdmin: {
		ScopeProfile, ScopeDownloadsRead, ScopeDownloadsWrite, ScopeJobsRead, ScopeJobsWrite, ScopeEventsRead, ScopeOthersRead,
		ScopeOthersWrite, ScopeQueueRead, ScopeQueueWrite, ScopeSchedulesRead, ScopeSchedulesWrite, ScopeUsersRead, ScopeUsersWrite,
		ScopeAuditRead, ScopeSecretsWrite, ScopeRiver,
	},
	store.UserManager: {
		ScopeProfile, ScopeDownloadsRead, ScopeDownloadsWrite, ScopeJobsRead, ScopeJobsWrite, ScopeEventsRead, ScopeOthersRead,
		ScopeOthersWrite, ScopeQueueRead, ScopeQueueWrite, ScopeSchedulesRead, ScopeUsersRead,
	},
	store.UserMember: {ScopeProfile, ScopeDownloadsRead, ScopeDownloadsWrite, ScopeJobsRead, ScopeJobsWrite, ScopeEventsRead},
	store.UserViewer: {ScopeProfile, ScopeDownloadsRead, ScopeJobsRead, ScopeEventsRead},
}

// allScopes in the order of the table above.
var allScopes = roleScopes[store.UserAdmin]

// ownScopes let users act on what is theirs: what comes of them is written down where it touches what is there.
var ownScopes = map[Scope]bool{ScopeProfile: true, ScopeDownloadsWrite: true, ScopeJobsWrite: true}

// reads reports whether the scope is for looking only.
func (s Scope) reads() bool { return strings.HasSuffix(string(s), ":read") }

// identity is who sends a request, and how they showed it.
type identity struct {
	store.Identity

	scopes   []Scope    // of the role, and of the token if there is one
	from     netip.Addr // where the request comes from
	byCookie bool       // a browser sends it by itself: cross-site requests must be told apart
}

func newIdentity(i store.Identity, from netip.Addr) *identity {
	who := &identity{Identity: i, scopes: roleScopes[i.User.Role], from: from}
	if i.Token != nil && i.Token.Scopes != nil {
		who.scopes = slices.DeleteFunc(slices.Clone(who.scopes), func(s Scope) bool {
			return !slices.Contains(i.Token.Scopes, string(s))
		})
	}
	return who
}

// has reports whether the role and the token give the right, whatever its conditions.
func (who *identity) has(s Scope) bool { return slices.Contains(who.scopes, s) }

// permit decides whether who may do what needs the scope, now and from where they are: the one place where it is decided.
// The role and the token give the right; the token's networks and the access rules say from where and when. Whose the
// things are is the viewer's: see viewerOf.
func (who *identity) permit(need Scope) *Problem {
	if t := who.Token; t != nil && len(t.Networks) > 0 && !containsAddr(t.Networks, who.from) {
		return newProblem(CodeForbidden, "The token is not taken from this address.")
	}
	if !who.has(need) {
		of := "Your role, " + who.User.Role + ","
		if slices.Contains(roleScopes[who.User.Role], need) {
			of = "The token"
		}
		return newProblem(CodeForbidden, of+" does not have the scope "+string(need)+".")
	}
	for _, rule := range who.Rules {
		if !slices.Contains(rule.Scopes, string(need)) {
			continue
		}
		if len(rule.Networks) > 0 && !containsAddr(rule.Networks, who.from) {
			return newProblem(CodeForbidden, "The access rule "+rule.Rule+" does not allow this from your address.")
		}
		if rule.OpensAt != nil {
			return newProblem(CodeForbidden, "The access rule "+rule.Rule+" does not allow this before "+rule.OpensAt.UTC().Format(time.RFC3339)+".")
		}
	}
	return nil
}

func containsAddr(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// viewer is on whose behalf the store reads, or writes, for who: their own, or everybody's.
func (who *identity) viewer(need Scope) store.Viewer {
	of := ScopeOthersWrite
	if need.reads() {
		of = ScopeOthersRead
	}
	return store.Viewer{UserID: who.User.ID, Admin: who.permit(of) == nil}
}

// viewerOf is on whose behalf the store reads and writes in the request of ctx. Without an identity it sees nothing.
func viewerOf(ctx context.Context) store.Viewer {
	if s := scopeOf(ctx); s.identity != nil {
		return s.identity.viewer(s.need)
	}
	return store.Viewer{}
}

// mayDo is what a user may do, by role and token: conditions may say otherwise from elsewhere or at another time.
func (who *identity) mayDo() []string {
	names := make([]string, len(who.scopes))
	for i, s := range who.scopes {
		names[i] = string(s)
	}
	return names
}

// checkScopes refuses names of scopes that there are not.
func checkScopes(names []string) error {
	for _, name := range names {
		if !slices.Contains(allScopes, Scope(name)) {
			return &store.InvalidError{Field: "scopes", Reason: "has " + name + ", which is none"}
		}
	}
	return nil
}

// addressOf is where a request comes from, as far as trusted proxies tell.
func addressOf(clientIP string) netip.Addr {
	a, err := netip.ParseAddr(clientIP)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

// isSafe reports whether a method changes nothing by itself (RFC 9110, 9.2.1).
func isSafe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}
