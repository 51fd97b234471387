package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"

	"medianest/jobs/reason"
)

// docs is the OpenAPI document as the page at /docs shows it. It is made once, when the API is.
type docs struct {
	Title, Description string
	Tags               []docsTag
	Schemas            []docsSchema
	Problems           []docsProblem
	Reasons            []docsReason
}

type docsTag struct {
	Name, Description string
	Operations        []docsOperation
}

type docsOperation struct {
	ID, Method, Path, Summary, Description string
	NeedsToken                             bool
	Parameters                             []docsField
	Body                                   *docsBody
	Responses                              []docsResponse
}

// docsBody is what is sent or answered.
type docsBody struct {
	ContentType string
	Schema      string // its name, where it has one
	Example     string
}

type docsResponse struct {
	Status      string
	Description string
	Headers     []docsField
	Body        *docsBody
}

type docsSchema struct {
	Name   string
	Fields []docsField
}

type docsField struct {
	Name, In, Type, Description string
	Schema                      string // the name of the schema that it is of, or a list of
	Required                    bool
	Limits                      []string
}

type docsProblem struct {
	Code        Code
	Status      int
	Title, Help string
}

type docsReason struct {
	Reason    reason.Reason
	Sentence  string
	Retryable bool
}

// docsPage is what the page is given.
type docsPage struct {
	*docs
	Server string
}

func (a *API) handleDocs(c *gin.Context) {
	a.recognise(c)
	a.renderPage(c, http.StatusOK, "docs.html", docsPage{a.pages.docs, a.server(c.Request)})
}

// Curl is how the operation is called from a shell.
func (o docsOperation) Curl(server string) string {
	lines := []string{"curl"}
	if o.Method != http.MethodGet && o.Body == nil { // -d is a POST
		lines[0] += " -X " + o.Method
	}
	if o.NeedsToken {
		lines = append(lines, `-H "Authorization: Bearer $MEDIANEST_TOKEN"`)
	}
	if o.Body != nil {
		lines = append(lines, "-H 'Content-Type: "+o.Body.ContentType+"'", "-d '"+strings.Join(strings.Fields(o.Body.Example), " ")+"'")
	}
	for _, response := range o.Responses {
		if response.Body != nil && response.Body.ContentType == "text/event-stream" {
			lines[0] += " -N"
		}
	}
	path := o.Path
	for _, p := range o.Parameters {
		if p.In == "path" {
			path = strings.ReplaceAll(path, "{"+p.Name+"}", "$"+strings.ToUpper(p.Name))
		}
	}
	return strings.Join(append(lines, `"`+server+path+`"`), " \\\n  ")
}

// describeAPI describes the operations in their order.
func describeAPI(document *huma.OpenAPI, operations []*huma.Operation) (*docs, error) {
	d := &docs{Title: document.Info.Title, Description: document.Info.Description}
	schemas := document.Components.Schemas
	for _, tag := range document.Tags {
		d.Tags = append(d.Tags, docsTag{Name: tag.Name, Description: tag.Description})
	}
	for _, op := range operations {
		described, err := describeOperation(schemas, op)
		if err != nil {
			return nil, fmt.Errorf("describe %s %s: %w", op.Method, op.Path, err)
		}
		i := slices.IndexFunc(d.Tags, func(t docsTag) bool { return t.Name == op.Tags[0] })
		d.Tags[i].Operations = append(d.Tags[i].Operations, described)
	}
	for _, name := range slices.Sorted(maps.Keys(schemas.Map())) {
		d.Schemas = append(d.Schemas, docsSchema{Name: name, Fields: describeFields(schemas.Map()[name])})
	}
	for _, code := range slices.Sorted(maps.Keys(problemKinds)) {
		kind := problemKinds[code]
		d.Problems = append(d.Problems, docsProblem{Code: code, Status: kind.status, Title: kind.title, Help: kind.help})
	}
	for _, r := range reason.All() {
		d.Reasons = append(d.Reasons, docsReason{Reason: r, Sentence: r.Sentence(), Retryable: r.Retryable()})
	}
	return d, nil
}

func describeOperation(schemas huma.Registry, op *huma.Operation) (docsOperation, error) {
	described := docsOperation{
		ID: op.OperationID, Method: op.Method, Path: op.Path, Summary: op.Summary, Description: op.Description,
		NeedsToken: len(op.Security) > 0,
	}
	for _, p := range op.Parameters {
		field := describeField(p.Name, p.Schema)
		field.In, field.Required = p.In, p.Required
		field.Description = cmp.Or(p.Description, field.Description)
		described.Parameters = append(described.Parameters, field)
	}
	var err error
	if op.RequestBody != nil {
		if described.Body, err = describeBody(schemas, op.RequestBody.Content); err != nil {
			return docsOperation{}, err
		}
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		response := op.Responses[status]
		r := docsResponse{Status: status, Description: response.Description}
		for _, name := range slices.Sorted(maps.Keys(response.Headers)) {
			r.Headers = append(r.Headers, describeField(name, response.Headers[name].Schema))
		}
		if r.Body, err = describeBody(schemas, response.Content); err != nil {
			return docsOperation{}, err
		}
		described.Responses = append(described.Responses, r)
	}
	return described, nil
}

func describeBody(schemas huma.Registry, content map[string]*huma.MediaType) (*docsBody, error) {
	for contentType, media := range content {
		body := &docsBody{ContentType: contentType, Schema: schemaName(media.Schema)}
		if strings.HasSuffix(contentType, "json") {
			example, err := json.MarshalIndent(exampleOf(schemas, media.Schema, 0), "", "  ")
			if err != nil {
				return nil, fmt.Errorf("example of %s: %w", body.Schema, err)
			}
			body.Example = string(example)
		}
		return body, nil
	}
	return nil, nil //nolint:nilnil // there is no body
}

func describeFields(schema *huma.Schema) []docsField {
	var fields []docsField
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		field := describeField(name, schema.Properties[name])
		field.Required = slices.Contains(schema.Required, name)
		fields = append(fields, field)
	}
	slices.SortStableFunc(fields, func(a, b docsField) int {
		if a.Required != b.Required {
			return cmp.Compare(fmt.Sprint(b.Required), fmt.Sprint(a.Required)) // "true" first
		}
		return 0
	})
	return fields
}

func describeField(name string, schema *huma.Schema) docsField {
	field := docsField{Name: name, Type: typeOf(schema), Description: schema.Description, Schema: schemaName(schema)}
	element := schema
	if schema.Items != nil {
		element = schema.Items
	}
	if len(element.Enum) > 0 {
		values := make([]string, len(element.Enum))
		for i, v := range element.Enum {
			values[i] = fmt.Sprint(v)
		}
		field.Limits = append(field.Limits, "one of "+strings.Join(values, ", "))
	}
	switch {
	case element.MinLength != nil && element.MaxLength != nil:
		field.Limits = append(field.Limits, fmt.Sprintf("%d to %d characters", *element.MinLength, *element.MaxLength))
	case element.MaxLength != nil:
		field.Limits = append(field.Limits, fmt.Sprintf("at most %d characters", *element.MaxLength))
	}
	if schema.MaxItems != nil {
		field.Limits = append(field.Limits, fmt.Sprintf("at most %d values", *schema.MaxItems))
	}
	if element.Minimum != nil && element.Maximum != nil {
		field.Limits = append(field.Limits, fmt.Sprintf("%v to %v", *element.Minimum, *element.Maximum))
	}
	if schema.Default != nil {
		field.Limits = append(field.Limits, fmt.Sprintf("default %v", schema.Default))
	}
	return field
}

// typeOf says in words what a schema is.
func typeOf(schema *huma.Schema) string {
	switch {
	case schema.Ref != "":
		return ""
	case schema.Type == huma.TypeArray && schema.Items.Ref != "":
		return "list of"
	case schema.Type == huma.TypeArray:
		return "list of " + typeOf(schema.Items)
	case schema.Format == "date-time":
		return "time"
	case schema.Format == "uuid":
		return "UUID"
	}
	return schema.Type
}

func schemaName(schema *huma.Schema) string {
	if schema == nil {
		return ""
	}
	if schema.Items != nil {
		schema = schema.Items
	}
	return schema.Ref[strings.LastIndex(schema.Ref, "/")+1:]
}

// exampleOf makes an example of a schema from its fields' examples. Fields that are not always there and have no example,
// or a default, are left out.
func exampleOf(schemas huma.Registry, schema *huma.Schema, depth int) any {
	if schema.Ref != "" {
		schema = schemas.SchemaFromRef(schema.Ref)
	}
	if len(schema.Examples) > 0 {
		return schema.Examples[0]
	}
	switch schema.Type {
	case huma.TypeObject:
		object := map[string]any{}
		for name, property := range schema.Properties {
			always := slices.Contains(schema.Required, name)
			if always || property.Default == nil && (len(property.Examples) > 0 || property.Ref != "" && depth < 2) {
				object[name] = exampleOf(schemas, property, depth+1)
			}
		}
		return object
	case huma.TypeArray:
		if schema.Items.Ref == "" && len(schema.Items.Examples) == 0 {
			return []any{}
		}
		return []any{exampleOf(schemas, schema.Items, depth+1)}
	case huma.TypeInteger, huma.TypeNumber:
		return 0
	case huma.TypeBoolean:
		return false
	}
	switch {
	case schema.Format == "date-time":
		return "2026-01-02T03:04:05.678Z"
	case schema.Format == "uuid":
		return "0199aa3e-5b77-7000-8000-000000000000"
	case len(schema.Enum) > 0:
		return schema.Enum[0]
	}
	return ""
}

var inlineCode = regexp.MustCompile("`([^`]*)`")

// prose is the text of a description as HTML: paragraphs, `code`, and blocks that are indented by four spaces.
func prose(text string) template.HTML {
	var out strings.Builder
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		if strings.HasPrefix(paragraph, "    ") {
			block := strings.ReplaceAll(strings.TrimPrefix(paragraph, "    "), "\n    ", "\n")
			out.WriteString("<pre>" + template.HTMLEscapeString(block) + "</pre>")
			continue
		}
		escaped := template.HTMLEscapeString(paragraph)
		out.WriteString("<p>" + inlineCode.ReplaceAllString(escaped, "<code>$1</code>") + "</p>")
	}
	return template.HTML(out.String()) // #nosec G203 -- all text in it has been escaped
}
