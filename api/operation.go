package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"

	"medianest/store"
)

// requestTimeout is how long an operation may take. Streams are exempt.
const requestTimeout = 30 * time.Second

// described is what the OpenAPI document and /docs say of an operation, besides what its types say. It stands beside
// the handler; where the operation is found is in router.go.
type described struct {
	id       string
	tag      string
	summary  string
	text     string // more than the summary, in paragraphs
	status   int    // of success; default 200, or 204 without a body
	also     map[int]string
	problems []Code // besides those that every operation of its kind can have
	public   bool   // anybody may ask: it needs no token
	scope    Scope  // that it needs, unless it is public
	streams  bool   // ends when the client leaves
}

// operation registers a typed handler. It is the one place where requests are authenticated, bounded and decoded, and
// where errors become problems: a handler takes a valid request, calls one method, and returns what came of it.
func operation[I, O any](a *API, method, path string, d described, handler func(context.Context, *I) (*O, error)) {
	op := huma.Operation{
		OperationID:                  d.id,
		Method:                       method,
		Path:                         path,
		Tags:                         []string{d.tag},
		Summary:                      d.summary,
		Description:                  d.text,
		DefaultStatus:                d.status,
		MaxBodyBytes:                 maxBodyBytes,
		BodyReadTimeout:              -1, // checkBody's, which does not outlive the body
		RejectUnknownQueryParameters: !d.public,
		Responses:                    map[string]*huma.Response{},
	}
	if d.public == (d.scope != "") {
		panic("api: " + d.id + " must be public or say which scope it needs")
	}
	a.declared[method+" "+path] = d
	if d.public && !isSafe(method) {
		op.Middlewares = append(op.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
			if p := a.within(humagin.Unwrap(ctx), RateSignIn, nil); p != nil {
				a.refuse(ctx, p)
				return
			}
			next(ctx)
		})
	}
	codes, common := slices.Clone(d.problems), []Code{CodeInternal, CodeTimeout, CodeUnavailable}
	if !d.public {
		op.Description = strings.TrimSpace(d.text + "\n\nNeeds the scope `" + string(d.scope) + "`" + rolesWith(d.scope) + ".")
		op.Security = []map[string][]string{{"bearer": {}}, {"cookie": {}}}
		op.Middlewares = append(op.Middlewares, a.permitted(d.scope, rateClassOf(method, d)))
		codes = append(codes, CodeForbidden, CodeTooManyRequests)
		common = append(common, CodeUnauthenticated, CodeSessionEnded)
		if !isSafe(method) {
			common = append(common, CodeCrossSite, CodeCSRF)
			if !ownScopes[d.scope] || strings.Contains(path, "{id}") {
				op.Middlewares = append(op.Middlewares, a.audited)
			}
		}
	}
	if hasBody[I]() {
		op.Middlewares = append(op.Middlewares, a.checkBody)
		codes = append(codes, CodeInvalidBody, CodeBodyTooLarge, CodeUnsupportedMediaType, CodeValidationFailed)
	}
	a.describeProblems(&op, codes, common)
	huma.Register(a.huma, op, func(ctx context.Context, input *I) (*O, error) {
		if !d.streams {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, requestTimeout)
			defer cancel()
		}
		output, err := handler(ctx, input)
		if err != nil {
			return nil, problemOf(ctx, err)
		}
		return output, nil
	})
	for status, text := range d.also {
		response := *op.Responses[strconv.Itoa(d.status)]
		response.Description = text
		op.Responses[strconv.Itoa(status)] = &response
	}
}

func hasBody[I any]() bool {
	_, has := reflect.TypeFor[I]().FieldByName("Body")
	return has
}

// describeProblems adds a response for each status that the codes have, and the default one, for what can happen to
// nearly every operation.
func (a *API) describeProblems(op *huma.Operation, codes, common []Code) {
	lines := map[string][]string{}
	add := func(status string, code Code) {
		lines[status] = append(lines[status], problemKinds[code].title+" (`"+string(code)+"`).")
	}
	slices.Sort(codes)
	for _, code := range slices.Compact(codes) {
		add(strconv.Itoa(problemKinds[code].status), code)
	}
	slices.Sort(common)
	for _, code := range common {
		add("default", code)
	}
	schema := a.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Problem](), true, "")
	for status, sentences := range lines {
		op.Responses[status] = &huma.Response{
			Description: strings.Join(sentences, " "),
			Content:     map[string]*huma.MediaType{problemType: {Schema: schema}},
		}
	}
}

// permitted is the huma middleware of operations that need a scope.
func (a *API) permitted(need Scope, class RateClass) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		c := humagin.Unwrap(ctx)
		who, err := a.requireUser(c)
		p := a.tooMany(c, class, who, err)
		if p == nil && err != nil {
			p = problemOf(ctx.Context(), err)
		}
		if p != nil {
			a.refuse(ctx, p)
			return
		}
		scopeOf(ctx.Context()).need = need
		if p := who.permit(need); p != nil {
			a.refuse(ctx, p)
			return
		}
		next(ctx)
	}
}

// tooMany counts a request by who sent it. One that could not say who it is, or says it wrongly, is counted by its address: who
// tries tokens runs out of tries. One that nobody could judge is not counted.
func (a *API) tooMany(c *gin.Context, class RateClass, who *identity, err error) *Problem {
	if err == nil {
		return a.within(c, class, who)
	}
	if p, ok := errors.AsType[*Problem](err); errors.Is(err, errNoToken) || ok && p.Status == http.StatusUnauthorized {
		return a.within(c, RateAnonymous, nil)
	}
	return nil
}

// rolesWith names the roles that have a scope, for the documentation.
func rolesWith(need Scope) string {
	var with []string
	for _, role := range store.Roles {
		if slices.Contains(roleScopes[role], need) {
			with = append(with, role)
		}
	}
	if len(with) == len(store.Roles) {
		return ", which every role has"
	}
	return ", which " + strings.Join(with, ", ") + " have"
}

// refuse answers with a problem before huma has begun to.
func (a *API) refuse(ctx huma.Context, p *Problem) {
	a.writeProblem(humagin.Unwrap(ctx), p)
}

// finish is the huma transformer that every body passes on its way out: it turns huma's own errors into problems, and
// completes problems with what is known of the request.
func (a *API) finish(ctx huma.Context, _ string, body any) (any, error) {
	var p *Problem
	switch v := body.(type) {
	case *Problem:
		p = v
	case *huma.ErrorModel:
		p = ofHuma(v)
	default:
		return body, nil
	}
	a.complete(ctx.Context(), p)
	return p, nil
}
