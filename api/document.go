package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"
)

// Tags group operations in the document.
const (
	tagDownloads = "Downloads"
	tagJobs      = "Jobs"
	tagEvents    = "Events"
	tagWorkers   = "Workers"
	tagLimits    = "Limits"
	tagSchedules = "Schedules"
	tagUsers     = "Users"
	tagAuth      = "Sessions"
	tagSecrets   = "Secrets"
	tagHealth    = "Health"
)

// apiVersion is the version of the interface, not of the program: the document changes when the interface does.
const apiVersion = "1"

// document is huma's configuration: what the OpenAPI document says of the whole, and none of huma's own routes, whose
// pages load from other hosts.
func (a *API) document() huma.Config {
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:   "MediaNest",
				Version: apiVersion,
				Description: "Downloads media for a household or a community, as jobs that are never lost.\n\n" +
					"Requests carry a token: `Authorization: Bearer mn_…`; browsers may sign in instead. Each operation needs a scope; a role is a set of them, and a token may carry less. Bodies are JSON in `snake_case`; times are RFC 3339 in UTC; sizes are in bytes and durations in seconds, and are named so. Clients should ignore fields that they do not know.\n\n" +
					"Lists come in pages: `next_cursor` asks for the next one. Errors are problem documents (RFC 9457): `code` says what kind of problem it is and never changes meaning; `request_id` finds the request in the server's log.",
				License: &huma.License{Name: "MIT", URL: "https://opensource.org/license/mit"},
			},
			Servers: []*huma.Server{{URL: cmp.Or(a.basePath, "/")}},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", Description: "An API token, in the header Authorization: Bearer."},
					"cookie": {Type: "apiKey", In: "cookie", Name: sessionCookie, Description: "Set by signing in, for browsers. What changes something needs the header X-CSRF-Token besides."},
				},
			},
			OnAddOperation: []huma.AddOpFunc{func(_ *huma.OpenAPI, op *huma.Operation) { a.operations = append(a.operations, op) }},
			Tags: []*huma.Tag{
				{Name: tagDownloads, Description: "What users wish for, and what has become of it."},
				{Name: tagJobs, Description: "The work in the queue, as it is done."},
				{Name: tagEvents, Description: "What happens, as it happens."},
				{Name: tagWorkers, Description: "The processes that do it."},
				{Name: tagLimits, Description: "How much of it is done at a time, and how fast."},
				{Name: tagSchedules, Description: "What is done again and again."},
				{Name: tagUsers, Description: "Who uses the platform, and what they may do."},
				{Name: tagAuth, Description: "Sessions of browsers. Programs need none: they send a token with each request."},
				{Name: tagSecrets, Description: "What is kept and shown to nobody."},
				{Name: tagHealth, Description: "For probes and load balancers. These need no token."},
			},
		},
		Formats:       map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{a.finish},
	}
	return config
}

// finishDocument settles what only the whole document shows.
func (a *API) finishDocument() {
	document := a.huma.OpenAPI()
	describeStream(document)
	schemas := document.Components.Schemas.Map()
	// huma's own error types: every error is a Problem (finish).
	delete(schemas, "ErrorModel")
	delete(schemas, "ErrorDetail")
	for name, schema := range schemas {
		if !strings.HasSuffix(name, "Request") {
			schema.AdditionalProperties = nil // answers may gain fields
		}
	}
	health := *document.Paths["/readyz"].Get.Responses["200"]
	health.Description = http.StatusText(http.StatusServiceUnavailable) + ": the checks say what is down."
	document.Paths["/readyz"].Get.Responses["503"] = &health
}

// Document30 is the OpenAPI document in version 3.0, which code generators understand best.
func (a *API) Document30() ([]byte, error) {
	downgraded, err := a.huma.OpenAPI().Downgrade()
	if err != nil {
		return nil, fmt.Errorf("downgrade the OpenAPI document: %w", err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, downgraded, "", "  "); err != nil {
		return nil, fmt.Errorf("indent the OpenAPI document: %w", err)
	}
	indented.WriteByte('\n')
	return indented.Bytes(), nil
}

func (a *API) handleOpenAPI(c *gin.Context) {
	document, err := json.Marshal(a.huma.OpenAPI())
	if err != nil {
		a.writeProblem(c, problemOf(c.Request.Context(), fmt.Errorf("marshal the OpenAPI document: %w", err)))
		return
	}
	c.Data(http.StatusOK, "application/openapi+json", document)
}
