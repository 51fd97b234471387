package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"medianest/api"
	"medianest/api/stream"
	"medianest/store"
	"medianest/store/storetest"
)

var update = flag.Bool("update", false, "write the golden files and the OpenAPI document anew")

// testKeys sign and seal in tests.
var testKeys = "test:" + strings.Repeat("A", 43) + "="

// bundle is an API over a database of the test's own, with three users.
type bundle struct {
	t        testing.TB
	pool     *pgxpool.Pool // as the owner, to look and to play River and the worker
	store    *store.Store
	queue    riverQueue
	api      *api.API
	log      *logBuffer
	progress *fakeProgress
	stream   *fakeStream
	registry *prometheus.Registry

	admin, anna, bert person
}

// person is a user with a token.
type person struct {
	store.User

	token string
}

// setup returns an API with the real store, in the role of API processes. change, if given, changes its options.
func setup(t testing.TB, change ...func(*bundle, *api.Options)) *bundle {
	t.Helper()
	b := newBundle(t)
	url := storetest.DB(t)
	b.pool = storetest.OpenPool(t, url, "")
	b.queue = newRiverQueue(t, storetest.OpenPool(t, url, store.RoleRiver))
	keys, err := store.ParseKeyring(testKeys)
	require.NoError(t, err)
	b.store = store.New(storetest.OpenPool(t, url, store.RoleAPI)).WithQueue(b.queue).WithKeys(keys)
	b.admin = b.person("admin", store.UserAdmin)
	b.anna = b.person("anna", store.UserMember)
	b.bert = b.person("bert", store.UserMember)
	b.build(b.store, change...)
	return b
}

// setupFake is setup without a database, on a store of the test's making.
func setupFake(t testing.TB, s api.Store, change ...func(*bundle, *api.Options)) *bundle {
	t.Helper()
	b := newBundle(t)
	b.build(s, change...)
	return b
}

func newBundle(t testing.TB) *bundle {
	t.Helper()
	return &bundle{
		t: t, log: &logBuffer{}, progress: &fakeProgress{}, stream: &fakeStream{}, registry: prometheus.NewPedanticRegistry(),
	}
}

func (b *bundle) build(s api.Store, change ...func(*bundle, *api.Options)) {
	b.t.Helper()
	keys, err := store.ParseKeyring(testKeys)
	require.NoError(b.t, err)
	options := api.Options{
		Keys: keys, Store: s, Progress: b.progress, Stream: b.stream, Version: "v0.0.0-test",
		Logger:     slog.New(slog.NewJSONHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: b.registry,
	}
	for _, c := range change {
		c(b, &options)
	}
	b.api, err = api.New(options)
	require.NoError(b.t, err)
}

func (b *bundle) person(name, role string) person {
	b.t.Helper()
	user, err := b.store.CreateUser(b.t.Context(), store.NewUser{Name: name, Role: role})
	require.NoError(b.t, err)
	token := "mn_test-" + name + "-" + rand()
	_, err = b.store.CreateToken(b.t.Context(), store.NewToken{UserID: user.ID, Name: "test", Hash: sha256.Sum256([]byte(token))})
	require.NoError(b.t, err)
	return person{User: user, token: token}
}

func rand() string { return strings.ReplaceAll(uuid.NewString(), "-", "") }

// answer is what came back.
type answer struct {
	t      testing.TB
	status int
	header http.Header
	body   []byte
}

// request is what is sent; the zero value of each field but the first two is usual.
type request struct {
	method, path string
	token        string
	body         any // a string is sent as it is, anything else as JSON
	header       map[string]string
}

func (b *bundle) do(r request) answer {
	b.t.Helper()
	return b.serve(r.http(b.t))
}

func (b *bundle) serve(r *http.Request) answer {
	b.t.Helper()
	recorder := httptest.NewRecorder()
	b.api.ServeHTTP(recorder, r)
	return answer{b.t, recorder.Code, recorder.Result().Header, recorder.Body.Bytes()} //nolint:bodyclose // a recorder's
}

func (r request) http(t testing.TB) *http.Request {
	t.Helper()
	var body io.Reader
	switch v := r.body.(type) {
	case nil:
	case string:
		body = strings.NewReader(v)
	default:
		encoded, err := json.Marshal(v)
		require.NoError(t, err)
		body = bytes.NewReader(encoded)
	}
	request := httptest.NewRequestWithContext(t.Context(), r.method, "http://media.example"+r.path, body)
	if r.token != "" {
		request.Header.Set("Authorization", "Bearer "+r.token)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	for name, value := range r.header {
		request.Header.Set(name, value)
		if value == "" {
			request.Header.Del(name)
		}
	}
	return request
}

// into decodes the body.
func (a answer) into(target any) {
	a.t.Helper()
	require.NoError(a.t, json.Unmarshal(a.body, target), "body: %s", a.body)
}

// problem requires that the answer is a well-formed problem of that status and code.
func (a answer) problem(status int, code api.Code) api.Problem {
	a.t.Helper()
	require.Equal(a.t, status, a.status, "body: %s", a.body)
	require.Equal(a.t, "application/problem+json", a.header.Get("Content-Type"), "body: %s", a.body)
	var p api.Problem
	a.into(&p)
	require.Equal(a.t, code, p.Code, "body: %s", a.body)
	require.Equal(a.t, status, p.Status)
	require.NotEmpty(a.t, p.Title)
	require.Contains(a.t, p.Type, "/docs#problem-"+string(code))
	require.Equal(a.t, a.header.Get("X-Request-ID"), p.RequestID)
	require.NotEmpty(a.t, p.RequestID)
	return p
}

func (a answer) download() api.Download {
	a.t.Helper()
	var d api.Download
	a.into(&d)
	return d
}

// wish posts a download and returns it.
func (b *bundle) wish(p person, url string) api.Download {
	b.t.Helper()
	a := b.do(request{method: "POST", path: "/api/v1/downloads", token: p.token, body: map[string]string{"url": url}})
	require.Equal(b.t, http.StatusAccepted, a.status, "body: %s", a.body)
	return a.download()
}

// exec changes the database as the owner.
func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	_, err := b.pool.Exec(b.t.Context(), sql, args...)
	require.NoError(b.t, err)
}

func (b *bundle) count(sql string, args ...any) (n int) {
	b.t.Helper()
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), sql, args...).Scan(&n))
	return n
}

// lines are the log's lines with that message.
func (b *bundle) lines(message string) []map[string]any {
	b.t.Helper()
	var found []map[string]any
	for line := range strings.Lines(b.log.String()) {
		var m map[string]any
		require.NoError(b.t, json.Unmarshal([]byte(line), &m), line)
		if m["msg"] == message {
			found = append(found, m)
		}
	}
	return found
}

// What differs from run to run in golden files.
var (
	times  = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	jobIDs = regexp.MustCompile(`("(?:job_id|id)": ")\d+"`)
)

var discard = slog.New(slog.DiscardHandler)

// golden compares with a file of testdata, after what differs from run to run has been replaced.
func (b *bundle) golden(name string, body []byte, replace ...string) {
	b.t.Helper()
	var indented bytes.Buffer
	require.NoError(b.t, json.Indent(&indented, body, "", "  "), "body: %s", body)
	got := strings.TrimSpace(strings.NewReplacer(replace...).Replace(indented.String())) + "\n"
	got = times.ReplaceAllString(got, "TIME")
	got = jobIDs.ReplaceAllString(got, "${1}JOB\"")
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(b.t, os.MkdirAll("testdata", 0o750))
		require.NoError(b.t, os.WriteFile(file, []byte(got), 0o600))
	}
	want, err := os.ReadFile(file)
	require.NoError(b.t, err, "run with -update to write it")
	require.Equal(b.t, string(want), got)
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// fakeProgress is a progress bus that knows what the test says.
type fakeProgress struct {
	mu   sync.Mutex
	last map[int64]store.Progress
	err  error
}

func (f *fakeProgress) set(p store.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == nil {
		f.last = map[int64]store.Progress{}
	}
	f.last[p.JobID] = p
}

func (f *fakeProgress) Last(_ context.Context, ids []int64) (map[int64]store.Progress, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	found := map[int64]store.Progress{}
	for _, id := range ids {
		if p, ok := f.last[id]; ok {
			found[id] = p
		}
	}
	return found, nil
}

// fakeStream keeps what it was asked for, and answers with one comment.
type fakeStream struct {
	mu   sync.Mutex
	last stream.Subscription
	err  error
	open chan struct{} // nil: streams end at once; else it is closed when one is open, which ends with its request
}

func (f *fakeStream) Serve(w http.ResponseWriter, r *http.Request, s stream.Subscription) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = s
	if f.open != nil {
		close(f.open)
		<-r.Context().Done()
		return nil
	}
	if f.err != nil {
		return f.err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	_, err := io.WriteString(w, ": ping\n\n")
	return err
}

func (f *fakeStream) subscription() stream.Subscription {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// jobOf is the id of a download's job, as the database has it.
func jobOf(t testing.TB, d api.Download) int64 {
	t.Helper()
	var id int64
	require.NoError(t, json.Unmarshal([]byte(d.JobID), &id))
	return id
}
