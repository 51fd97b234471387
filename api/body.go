package api

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/gin-gonic/gin"
)

const (
	// maxBodyBytes is the largest body of a request.
	maxBodyBytes = 1 << 20

	// bodyTimeout is how long a body may take to arrive, as a whole.
	bodyTimeout = 10 * time.Second

	// drainBytes and drainTimeout bound how much of a refused body is read and thrown away. Many clients read the
	// answer only when they have sent everything, and would see a broken connection instead of the problem.
	drainBytes   = 32 << 20
	drainTimeout = 5 * time.Second
)

func tooLarge() *Problem {
	return newProblem(CodeBodyTooLarge, fmt.Sprintf("The limit is %d bytes.", maxBodyBytes))
}

func unsupportedType() *Problem {
	return newProblem(CodeUnsupportedMediaType, "The body must be JSON, sent with the header Content-Type: application/json.")
}

// checkBody is the huma middleware of operations with a body: it refuses what is too large or no JSON before a byte is
// read, and bounds the reading of the rest in size (huma does the counting) and time.
func (a *API) checkBody(ctx huma.Context, next func(huma.Context)) {
	c := humagin.Unwrap(ctx)
	body := newTimedBody(c)
	c.Request.Body = body
	switch {
	case c.Request.ContentLength > maxBodyBytes:
		body.drain(c.Request)
		a.refuse(ctx, tooLarge())
	case c.Request.ContentLength != 0 && !isJSON(c.GetHeader("Content-Type")):
		body.drain(c.Request)
		a.refuse(ctx, unsupportedType())
	default:
		next(ctx)
		if c.Writer.Status() == http.StatusRequestEntityTooLarge {
			body.drain(c.Request) // the answer is still in the server's buffer, and is sent when this returns
		}
	}
}

// isJSON reports whether a content type is JSON in UTF-8. A form, or text, could be sent here by another site's page
// without asking; that is one reason to be strict.
func isJSON(contentType string) bool {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "application/json" {
		return false
	}
	charset := params["charset"]
	return charset == "" || strings.EqualFold(charset, "utf-8")
}

// timedBody gives a body a deadline as a whole, from its first read to its end. The deadline is the connection's, and
// must not outlive the body: the server would take it for the client's departure. Closing is left to the server.
type timedBody struct {
	io.ReadCloser

	control *http.ResponseController
	begun   bool
}

func newTimedBody(c *gin.Context) *timedBody {
	return &timedBody{ReadCloser: c.Request.Body, control: http.NewResponseController(c.Writer)}
}

// boundBody bounds the body of a request outside huma in size and time. Reading more is an error of the reader's.
func boundBody(c *gin.Context, maxBytes int64) {
	c.Request.Body = http.MaxBytesReader(c.Writer, newTimedBody(c), maxBytes)
}

func (b *timedBody) Read(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.setDeadline(time.Now().Add(bodyTimeout))
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.setDeadline(time.Time{})
	}
	return n, err
}

// setDeadline does nothing on connections that have none, as in tests without a server.
func (b *timedBody) setDeadline(t time.Time) {
	_ = b.control.SetReadDeadline(t) //nolint:errcheck // see above
}

func (b *timedBody) Close() error { return nil }

// drain reads what is left, within bounds. A client that asked first whether it may send has sent nothing yet.
func (b *timedBody) drain(r *http.Request) {
	if r.Header.Get("Expect") != "" || r.ContentLength > drainBytes {
		return
	}
	b.begun = true
	b.setDeadline(time.Now().Add(drainTimeout))
	_, err := io.Copy(io.Discard, io.LimitReader(b.ReadCloser, drainBytes))
	if err == nil {
		b.setDeadline(time.Time{})
	}
}
