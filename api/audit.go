package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"medianest/store"
)

// Audit is what administrators did.
type Audit interface {
	// BeginAudit writes down what is about to be done; EndAudit what came of it.
	BeginAudit(ctx context.Context, e store.AuditEntry) (id int64, err error)
	EndAudit(ctx context.Context, id int64, status int, detail map[string]any) error
	// AddAudit writes down what has been done already.
	AddAudit(ctx context.Context, e store.AuditEntry) error
	// ListAudit returns a page, newest first, and the cursor of the next one, or "".
	ListAudit(ctx context.Context, f store.AuditFilter) ([]store.AuditEntry, string, error)
	// VerifyAudit looks through the chain that entries are sealed into.
	VerifyAudit(ctx context.Context) (store.AuditProof, error)
	// SupersededRows are those of River's rows whose jobs go on as other rows.
	SupersededRows(ctx context.Context, ids []int64) ([]int64, error)
}

// auditTimeout bounds the writing of what came of an action.
const auditTimeout = 5 * time.Second

// audit has an action done, if it can be written down first, and writes down what came of it: the status that do returns.
// An action whose end cannot be written down has an entry without a status, and a line in the log.
func (a *API) audit(c *gin.Context, action, subject string, detail map[string]any, do func() (status int)) {
	ctx := c.Request.Context()
	who := scopeOf(ctx).identity.User.ID
	begin, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	id, err := a.store.BeginAudit(begin, store.AuditEntry{
		ActorID: &who, Action: action, Subject: subject, Detail: detail, RequestID: RequestID(ctx), Client: c.ClientIP(),
	})
	if err != nil {
		a.writeProblem(c, problemOf(ctx, err))
		return
	}
	status := http.StatusInternalServerError // of a panic
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
		defer cancel()
		if err := a.store.EndAudit(ctx, id, status, scopeOf(ctx).notes); err != nil {
			a.log.ErrorContext(ctx, "audit not completed", slog.Int64("audit_id", id), slog.String("action", action),
				slog.Int("status", status), slog.String("request_id", RequestID(ctx)), slog.Any("err", err))
		}
	}()
	status = do()
}

// note adds to what is written down of the action that ctx belongs to.
func note(ctx context.Context, name string, value any) {
	s := scopeOf(ctx)
	if s.notes == nil {
		s.notes = map[string]any{}
	}
	s.notes[name] = value
}

// noteEvent writes down what has been done, or refused, and is no secret to the one who did it: signing in and out, and
// the like. It does not fail what has happened; an entry that cannot be written is a line in the log.
func (a *API) noteEvent(ctx context.Context, c *gin.Context, e store.AuditEntry, status int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	e.RequestID, e.Client, e.Status = RequestID(ctx), c.ClientIP(), &status
	if err := a.store.AddAudit(ctx, e); err != nil {
		a.log.ErrorContext(ctx, "not written into the audit", slog.String("action", e.Action), slog.Int("status", status),
			slog.String("request_id", e.RequestID), slog.Any("err", err))
	}
}

// audited is the huma middleware, inside permitted, of operations that change things. What is done with a scope that goes
// beyond one's own things is written down, and what those who may act on others' do to what is there, also to their own: it
// need not be found out first whose it is.
func (a *API) audited(ctx huma.Context, next func(huma.Context)) {
	if s := scopeOf(ctx.Context()); ownScopes[s.need] && !s.identity.has(ScopeOthersWrite) {
		next(ctx)
		return
	}
	c := humagin.Unwrap(ctx)
	var subject []string
	for _, p := range c.Params {
		subject = append(subject, p.Key+"="+p.Value)
	}
	a.audit(c, ctx.Operation().OperationID, strings.Join(subject, " "), nil, func() int {
		next(ctx)
		return c.Writer.Status()
	})
}

// auditRiver has River UI do what changes things, if it may: what it asks for is written down as it is.
func (a *API) auditRiver(c *gin.Context) {
	ctx := c.Request.Context()
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, maxBodyBytes))
	if err != nil {
		a.writeProblem(c, newProblem(CodeBodyTooLarge, "").because(err))
		return
	}
	c.Request.Body = io.NopCloser(bytes.NewReader(body))
	action, subject := riverAction(c.Request.Method, c.Param("path"))
	a.audit(c, action, subject, map[string]any{"asked": string(body)}, func() int {
		if action == "river.jobs.retry" {
			if p := a.refuseSuperseded(ctx, body); p != nil {
				a.writeProblem(c, p)
				return p.Status
			}
		}
		a.riverUI.ServeHTTP(c.Writer, c.Request)
		return c.Writer.Status()
	})
}

// riverAction names what River UI is asked for: "river.jobs.retry", or "river.queues.pause" of "queue=download".
func riverAction(method, path string) (action, subject string) {
	parts := strings.Split(strings.TrimPrefix(strings.Trim(path, "/"), "api/"), "/")
	if parts[0] == "queues" && len(parts) > 1 {
		subject = "queue=" + parts[1]
		parts = append(parts[:1], parts[2:]...)
		if len(parts) == 1 {
			parts = append(parts, strings.ToLower(method))
		}
	}
	return "river." + strings.Join(parts, "."), subject
}

// refuseSuperseded tells who wants a row retried whose job goes on as another that this cannot be. The database keeps such
// rows as they are, whoever asks; River UI would say that it was done.
func (a *API) refuseSuperseded(ctx context.Context, body []byte) *Problem {
	var asked struct {
		IDs []json.RawMessage `json:"ids"`
	}
	if json.Unmarshal(body, &asked) != nil {
		return nil // River UI says what is wrong
	}
	var ids []int64
	for _, id := range asked.IDs {
		if n, err := strconv.ParseInt(strings.Trim(string(id), `"`), 10, 64); err == nil {
			ids = append(ids, n)
		}
	}
	superseded, err := a.store.SupersededRows(ctx, ids)
	if err != nil {
		return problemOf(ctx, err)
	}
	if len(superseded) == 0 {
		return nil
	}
	texts := make([]string, len(superseded))
	for i, id := range superseded {
		texts[i] = strconv.FormatInt(id, 10)
	}
	return newProblem(CodeConflict, "Jobs that lost their worker go on as other rows and are not retried by these: "+strings.Join(texts, ", ")+".")
}

// AuditEntry is something that an administrator did, or asked for.
type AuditEntry struct {
	ID        string         `json:"id" doc:"The entry's id; later ones are higher." example:"7"`
	At        time.Time      `json:"at" doc:"When it was asked for."`
	ActorID   *uuid.UUID     `json:"actor_id,omitempty" format:"uuid" doc:"Who."`
	Actor     string         `json:"actor,omitempty" doc:"The actor's name now; missing if there is no such user any more." example:"admin"`
	Action    string         `json:"action" doc:"What: an operation of this API, or river. and what was asked of River UI." example:"set-limit"`
	Subject   string         `json:"subject,omitempty" doc:"What it was done to." example:"key=host:youtube.com"`
	Detail    map[string]any `json:"detail,omitempty" doc:"More, depending on the action."`
	RequestID string         `json:"request_id,omitempty" doc:"Finds the request in the server's log." example:"0199aa3e-5b77-7000-8000-000000000000"`
	Client    string         `json:"client,omitempty" doc:"The address that it came from." example:"192.0.2.7"`
	Status    int            `json:"status,omitempty" doc:"The answer, as in HTTP. Missing: it is not known whether it was done." example:"200"`
}

// AuditList is a page of the audit.
type AuditList struct {
	Items      []AuditEntry `json:"items" nullable:"false" doc:"The page."`
	NextCursor string       `json:"next_cursor,omitempty" doc:"Asks for the next page; missing on the last one."`
}

var listAudit = described{
	id: "list-audit", scope: ScopeAuditRead, tag: tagUsers, summary: "List what administrators did",
	text:     "Newest first: everything that changed something, here and in River UI, also what was refused. Nothing is changed or removed for a year: see the chain.",
	problems: []Code{CodeValidationFailed},
}

type listAuditInput struct {
	ActorID uuid.UUID `query:"actor_id" format:"uuid" doc:"Only what this user did."`
	Action  string    `query:"action" maxLength:"100" doc:"Only this action." example:"set-limit"`
	Since   time.Time `query:"since" doc:"Only from then on."`
	Until   time.Time `query:"until" doc:"Only before then."`
	Paging
}

type listAuditOutput struct{ Body AuditList }

func (a *API) handleListAudit(ctx context.Context, input *listAuditInput) (*listAuditOutput, error) {
	entries, next, err := a.store.ListAudit(ctx, store.AuditFilter{
		ActorID: input.ActorID, Action: input.Action, Since: input.Since, Until: input.Until, Cursor: input.Cursor, Limit: input.Limit,
	})
	if err != nil {
		return nil, err
	}
	list := AuditList{Items: make([]AuditEntry, len(entries)), NextCursor: next}
	for i, e := range entries {
		list.Items[i] = presentEntry(e)
	}
	return &listAuditOutput{list}, nil
}

func presentEntry(e store.AuditEntry) AuditEntry {
	entry := AuditEntry{
		ID: strconv.FormatInt(e.ID, 10), At: e.At, ActorID: e.ActorID, Actor: e.Actor, Action: e.Action, Subject: e.Subject,
		Detail: e.Detail, RequestID: e.RequestID, Client: e.Client,
	}
	if e.Status != nil {
		entry.Status = *e.Status
	}
	return entry
}

// AuditChain is what a look through the chain found.
type AuditChain struct {
	Intact bool   `json:"intact" doc:"No entry that was sealed has been changed, removed or put in since."`
	Links  int64  `json:"links" doc:"How many were looked at." example:"1234"`
	Last   int64  `json:"last" doc:"Number of the last link, or of the first that is at fault." example:"1234"`
	Hash   string `json:"hash,omitempty" doc:"That link's hash (SHA-256, hex). Kept elsewhere, it shows later that the chain up to it was not replaced."`
	Fault  string `json:"fault,omitempty" enum:"entry changed,entry removed,link removed,link replaced" doc:"What is wrong with it."`
}

var verifyAudit = described{
	id: "verify-audit", scope: ScopeAuditRead, tag: tagUsers, summary: "Verify the audit",
	text: "Each entry is sealed within about a minute into a chain of hashes. This looks through all of it. What retention has removed was the beginning; addresses and details of erased people are in the chain by a digest.",
}

type verifyAuditOutput struct{ Body AuditChain }

func (a *API) handleVerifyAudit(ctx context.Context, _ *struct{}) (*verifyAuditOutput, error) {
	p, err := a.store.VerifyAudit(ctx)
	if err != nil {
		return nil, err
	}
	return &verifyAuditOutput{AuditChain{Intact: p.Fault == "", Links: p.Links, Last: p.Last, Hash: p.Hash, Fault: p.Fault}}, nil
}

var exportAudit = described{
	id: "export-audit", scope: ScopeAuditRead, tag: tagUsers, summary: "Export the audit", streams: true,
	text:     "All entries that fit, newest first, a JSON object a line (`application/x-ndjson`).",
	problems: []Code{CodeValidationFailed},
}

func (a *API) handleExportAudit(ctx context.Context, input *struct {
	ActorID uuid.UUID `query:"actor_id" format:"uuid" doc:"Only what this user did."`
	Action  string    `query:"action" maxLength:"100" doc:"Only this action." example:"set-limit"`
	Since   time.Time `query:"since" doc:"Only from then on."`
	Until   time.Time `query:"until" doc:"Only before then."`
}) (*streamOutput, error) {
	filter := store.AuditFilter{ActorID: input.ActorID, Action: input.Action, Since: input.Since, Until: input.Until, Limit: exportPage}
	entries, next, err := a.store.ListAudit(ctx, filter)
	if err != nil {
		return nil, err
	}
	c := scopeOf(ctx).gin
	return &streamOutput{func(huma.Context) {
		c.Header("Content-Type", ndjsonType)
		c.Header("Content-Disposition", `attachment; filename="medianest-audit.ndjson"`)
		encoder := json.NewEncoder(c.Writer)
		for {
			for _, e := range entries {
				if err := encoder.Encode(presentEntry(e)); err != nil {
					panic(err) // the client has left, or must not take what it has for the whole
				}
			}
			if filter.Cursor = next; next == "" {
				return
			}
			if entries, next, err = a.store.ListAudit(ctx, filter); err != nil {
				panic(err)
			}
		}
	}}, nil
}

// exportPage is how many entries are read at a time.
const exportPage = 200
