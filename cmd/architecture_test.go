// Package cmd holds the programs; this file holds the rules of who may import and call what.
package cmd

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// listed is what `go list -json` says of a package, as far as the rules need it.
type listed struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
}

// packages lists the module's packages.
func packages(t *testing.T) []listed {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "./...")
	command.Dir = ".."
	out, err := command.Output()
	require.NoError(t, err)
	var found []listed
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if len(p.GoFiles) > 0 { // not a package of tests alone
			found = append(found, p)
		}
	}
	require.NotEmpty(t, found)
	return found
}

// under says whether path is root or below it. Both are import paths.
func under(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

func TestImports(t *testing.T) {
	t.Parallel()
	const (
		gin    = "github.com/gin-gonic/gin"
		huma   = "github.com/danielgtaylor/huma/v2"
		pgx    = "github.com/jackc/pgx/v5"
		redis  = "github.com/redis/go-redis/v9"
		river  = "github.com/riverqueue/river"
		ytdlp  = "github.com/lrstanley/go-ytdlp"
		driver = "github.com/riverqueue/river/riverdriver"
	)
	product := func(path string) bool {
		return !strings.HasSuffix(path, "test") // storetest, ytdlptest
	}
	rules := []struct {
		name    string
		applies func(path string) bool
		not     []string
		because string
	}{
		{
			"api", func(p string) bool { return under(p, "medianest/api") },
			[]string{pgx, redis, driver, ytdlp, "os/exec"},
			"handlers stay thin: data through store, work through jobs",
		},
		{
			"jobs", func(p string) bool { return p == "medianest/jobs" },
			[]string{gin, huma, ytdlp, "os/exec", "net/http"},
			"a job says what; leaf packages say how",
		},
		{
			"jobs/queue", func(p string) bool { return under(p, "medianest/jobs/queue") },
			[]string{gin, huma, ytdlp, "medianest/jobs/ytdlp", "medianest/jobs/media", "medianest/jobs/egress"},
			"the queue knows no kind of job",
		},
		{
			"leaves of jobs", func(p string) bool {
				return under(p, "medianest/jobs") && p != "medianest/jobs" && !under(p, "medianest/jobs/queue")
			},
			[]string{gin, huma, river, pgx},
			"adapters are usable and testable alone",
		},
		{
			"jobs/egress", func(p string) bool { return p == "medianest/jobs/egress" },
			[]string{"medianest/store", "medianest/jobs/queue", "medianest/jobs/ytdlp", "medianest/jobs/media", "medianest/jobs/guard"},
			"whoever connects to others goes through it, the API's processes included, and takes in no job with it",
		},
		{
			"jobs/guard", func(p string) bool { return p == "medianest/jobs/guard" },
			[]string{"medianest"},
			"it is started for every download, and must be light and depend on nothing",
		},
		{
			"store", func(p string) bool { return under(p, "medianest/store") && product(p) },
			[]string{gin, huma, "medianest/jobs", "medianest/api"},
			"data access has no opinion on work or transport",
		},
		{
			"product packages", product,
			[]string{"medianest/store/storetest", "github.com/stretchr/testify", "go.uber.org/goleak"},
			"test helpers stay out of the binary",
		},
		{
			"everything but the demo", func(p string) bool { return product(p) && p != "medianest/cmd/medianest-demo" },
			[]string{"medianest/jobs/ytdlp/ytdlptest"},
			"the sample site is for tests and the demo",
		},
		{
			"everything but cmd", func(p string) bool { return !under(p, "medianest/cmd") },
			[]string{"medianest/cmd"},
			"only cmd knows everything",
		},
	}
	for _, p := range packages(t) {
		for _, rule := range rules {
			if !rule.applies(p.ImportPath) {
				continue
			}
			for _, imported := range p.Imports {
				for _, forbidden := range rule.not {
					if under(imported, forbidden) {
						t.Errorf("%s imports %s, which %s must not: %s", p.ImportPath, imported, rule.name, rule.because)
					}
				}
			}
		}
	}
}

// TestProcessState keeps what belongs to the process as a whole in cmd: the environment, signals, and the defaults
// that a second instance in the same process would share. A guard is a process of its own.
func TestProcessState(t *testing.T) {
	t.Parallel()
	forbidden := map[string]string{
		"os.Getenv": "settings come from cmd", "os.LookupEnv": "settings come from cmd", "os.Environ": "settings come from cmd",
		"os.Setenv": "settings come from cmd", "os.Exit": "only main ends the process",
		"slog.SetDefault": "loggers are injected", "signal.Notify": "main decides when to stop", "signal.NotifyContext": "main decides when to stop",
		"prometheus.DefaultRegisterer": "registries are passed in", "prometheus.MustRegister": "registries are passed in",
		"gin.Default": "it brings its own logger and recovery", "context.Background": "contexts come from the caller",
	}
	// Who is called by a library that hands over no context has to begin with one.
	allowed := map[string]bool{"medianest/jobs/queue/depth.go context.Background": true} // prometheus.Collector
	for _, p := range packages(t) {
		if under(p.ImportPath, "medianest/cmd") || p.ImportPath == "medianest/jobs/guard" || strings.HasSuffix(p.ImportPath, "test") {
			continue
		}
		for _, name := range p.GoFiles {
			fileSet := token.NewFileSet()
			file, err := parser.ParseFile(fileSet, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			if ast.IsGenerated(file) {
				continue
			}
			ast.Inspect(file, func(node ast.Node) bool {
				selector, ok := node.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := selector.X.(*ast.Ident); ok {
					called := x.Name + "." + selector.Sel.Name
					if why, ok := forbidden[called]; ok && !allowed[p.ImportPath+"/"+name+" "+called] {
						t.Errorf("%s: %s outside cmd: %s", fileSet.Position(node.Pos()), called, why)
					}
				}
				return true
			})
		}
	}
}

// TestTopLevel keeps the top level as the architecture names it.
func TestTopLevel(t *testing.T) {
	t.Parallel()
	allowed := map[string]bool{}
	for _, name := range strings.Fields("cmd jobs api store migrations deploy docs go.mod go.sum Makefile Dockerfile docker-compose.yml README.md LICENSE CHANGELOG.md") {
		allowed[name] = true
	}
	command := exec.CommandContext(t.Context(), "git", "ls-files")
	command.Dir = ".."
	out, err := command.Output()
	if err != nil {
		t.Log("not a git checkout: the top level is not checked")
		return
	}
	for _, path := range strings.Fields(string(out)) {
		top, _, _ := strings.Cut(path, "/")
		if !strings.HasPrefix(top, ".") && !allowed[top] {
			t.Errorf("%s is at the top level, which holds %v only", top, "cmd jobs api store migrations deploy docs and the named files")
			allowed[top] = true
		}
	}
}
