package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file in testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), text)
}

// invoke runs one command line in this process.
func invoke(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), process{args: args, env: env, stdin: strings.NewReader(""), stdout: &out, stderr: &errs})
	return code, out.String(), errs.String()
}

func TestConfigReportsAllFaultsTogether(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := invoke(t, []string{
		"MEDIANEST_DATABASE_URL=mysql://root:canary@db/x",
		"MEDIANEST_REDIS_URL=redis:6379",
		"MEDIANEST_LISTEN=8080",
		"MEDIANEST_ADMIN_LISTEN=127.0.0.1:99999",
		"MEDIANEST_BASE_PATH=media/",
		"MEDIANEST_PUBLIC_URL=media.example.org",
		"MEDIANEST_WORKER_QUEUES=download=two",
		"MEDIANEST_EGRESS_ALLOW=10.0.0.0/99",
		"MEDIANEST_STOP_TIMEOUT=25",
		"MEDIANEST_EVENT_RETENTION=10s",
		"MEDIANEST_TICK_INTERVAL=1ns",
		"MEDIANEST_LOG_FORMAT=yaml",
		"MEDIANEST_LOG_LEVEL=loud",
		"MEDIANEST_TOKEN=canary", "MEDIANEST_TOKEN_FILE=/nowhere",
		"MEDIANEST_DATABASE=x",
		"MEDIANEST_LISTENN=x",
		"MEDIANEST_COLOUR_OF_THE_SKY=blue",
		"MEDIANEST_PORT=tcp://10.0.0.1:8080", "MEDIANEST_SERVICE_HOST=10.0.0.1", "MEDIANEST_PORT_8080_TCP_ADDR=10.0.0.1", // Kubernetes
	}, "serve")
	require.Equal(t, exitUsage, code)
	require.Empty(t, stdout)
	golden(t, "config_faults.txt", stderr)
}

func TestConfigRequiresWhatTheModeNeeds(t *testing.T) {
	t.Parallel()
	for m, want := range map[mode][]string{
		modeUp:      nil,
		modeTool:    nil,
		modeServe:   {"MEDIANEST_DATABASE_URL", "MEDIANEST_REDIS_URL"},
		modeWork:    {"MEDIANEST_DATABASE_URL", "MEDIANEST_REDIS_URL"},
		modeMigrate: {"MEDIANEST_DATABASE_URL"},
	} {
		var names []string
		for _, f := range (Config{}).withDefaults(false).validate(m) {
			names = append(names, f.variable)
		}
		require.Equal(t, want, names, "mode %q", m)
	}
}

func TestConfigComparesSettingsWithEachOther(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		env  []string
		want string // "" for none
	}{
		"SameAddress":        {[]string{"MEDIANEST_LISTEN=:80", "MEDIANEST_ADMIN_LISTEN=:80"}, "MEDIANEST_ADMIN_LISTEN"},
		"TwoFreePorts":       {[]string{"MEDIANEST_LISTEN=127.0.0.1:0", "MEDIANEST_ADMIN_LISTEN=127.0.0.1:0"}, ""},
		"PublicWithoutBase":  {[]string{"MEDIANEST_BASE_PATH=/media", "MEDIANEST_PUBLIC_URL=https://example.org"}, "MEDIANEST_PUBLIC_URL"},
		"PublicWithBase":     {[]string{"MEDIANEST_BASE_PATH=/media", "MEDIANEST_PUBLIC_URL=https://example.org/media/"}, ""},
		"RootBase":           {[]string{"MEDIANEST_BASE_PATH=/", "MEDIANEST_PUBLIC_URL=https://example.org"}, ""},
		"SameFolder":         {[]string{"MEDIANEST_DATA_DIR=/srv/x", "MEDIANEST_MEDIA_DIR=/srv/x/"}, "MEDIANEST_MEDIA_DIR"},
		"EmptyCountsAsUnset": {[]string{"MEDIANEST_LISTEN=", "MEDIANEST_EGRESS_ALLOW="}, ""},
		"TooFewBeats":        {[]string{"MEDIANEST_WORKER_TTL=10s", "MEDIANEST_WORKER_BEAT=4s"}, "MEDIANEST_WORKER_TTL: 10s is less than 3 times"},
		"ShortTTL":           {[]string{"MEDIANEST_WORKER_TTL=2s"}, ""},
		"LongBeat":           {[]string{"MEDIANEST_WORKER_BEAT=10s"}, "MEDIANEST_WORKER_TTL"},
		"NoLosses":           {[]string{"MEDIANEST_MAX_LOSSES=0"}, "MEDIANEST_MAX_LOSSES"},
		"UnknownQueue":       {[]string{"MEDIANEST_WORKER_QUEUES=downloads=2"}, "MEDIANEST_WORKER_QUEUES"},
		"NoQueue":            {[]string{"MEDIANEST_WORKER_QUEUES=download=0"}, "MEDIANEST_WORKER_QUEUES"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := loadConfig(process{env: test.env}, modeUp)
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestConfigReadsSecretsFromFiles(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "url")
	require.NoError(t, os.WriteFile(file, []byte("postgres://u:canary@db/x\n"), 0o600))
	c, err := loadConfig(process{env: []string{"MEDIANEST_DATABASE_URL_FILE=" + file}}, modeMigrate)
	require.NoError(t, err)
	require.Equal(t, "postgres://u:canary@db/x", c.DatabaseURL.reveal())

	_, err = loadConfig(process{env: []string{"MEDIANEST_DATABASE_URL_FILE=" + file + ".missing"}}, modeMigrate)
	require.ErrorContains(t, err, "MEDIANEST_DATABASE_URL_FILE")
	require.NotContains(t, err.Error(), "MEDIANEST_DATABASE_URL:", "one fault, not two")
}

// Whatever prints a Config, on purpose or by accident, prints no secret.
func TestSecretsDoNotPrint(t *testing.T) {
	t.Parallel()
	const canary = "canary"
	env := []string{
		"MEDIANEST_DATABASE_URL=postgres://u:" + canary + "@db/x?sslmode=require&password=" + canary + "&sslpassword=" + canary,
		"MEDIANEST_REDIS_URL=redis://:" + canary + "@cache:6379/0",
		"MEDIANEST_TOKEN=" + canary,
	}
	c, err := loadConfig(process{env: env}, modeServe)
	require.NoError(t, err)
	require.Contains(t, c.DatabaseURL.reveal(), canary)

	var printed bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&printed, verb+"\n", c)
	}
	encoded, err := json.Marshal(c)
	require.NoError(t, err)
	printed.Write(encoded)
	for _, format := range []string{"text", "json"} {
		c.LogFormat = format
		newLogger(&printed, c).Info("x", slog.Any("config", c), slog.Any("url", c.DatabaseURL), slog.Any("token", c.Token))
	}
	c.DatabaseURL = secretURL("host=db user=u password=" + canary)
	fmt.Fprintf(&printed, "%v %+v %#v", c, c, c)
	_, stdout, stderr := invoke(t, env, "config")
	printed.WriteString(stdout + stderr)

	require.NotContains(t, printed.String(), canary)
	require.Contains(t, stdout, "MEDIANEST_DATABASE_URL=postgres://u:***@db/x?password=***&sslmode=require&sslpassword=***\n")
	require.Contains(t, stdout, "MEDIANEST_REDIS_URL=redis://:***@cache:6379/0\n")
	require.Contains(t, stdout, "MEDIANEST_TOKEN=***\n")
}

func TestConfigCommand(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := invoke(t, []string{"MEDIANEST_LISTEN=:8088", "MEDIANEST_WORKER_QUEUES=download=7,library=1", "LANG=C"}, "config")
	require.Zero(t, code)
	require.Empty(t, stderr)
	golden(t, "config.txt", stdout)

	code, stdout, _ = invoke(t, nil, "config", "-markdown")
	require.Zero(t, code)
	for _, s := range settings {
		require.Contains(t, stdout, "`"+s.name+"`")
		require.NotEmpty(t, s.doc)
	}
}

// The table in the documentation is what the program says of itself.
func TestSettingsAreDocumented(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	require.NoError(t, err)
	_, table, _ := invoke(t, nil, "config", "-markdown")
	require.Contains(t, string(document), table, "put the output of `medianest config -markdown` into docs/operations.md")
}

func TestHelpAndUsage(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := invoke(t, nil, "help")
	require.Zero(t, code)
	require.Empty(t, stderr)
	for _, e := range entries() {
		require.Contains(t, stdout, e.name)
		code, help, stderr := invoke(t, nil, e.name, "-h")
		require.Zero(t, code, e.name)
		require.Empty(t, stderr)
		require.Contains(t, help, "usage: medianest "+e.name)
		_, same, _ := invoke(t, nil, "help", e.name)
		require.Equal(t, help, same)
	}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"Nothing":         {nil, "usage: medianest COMMAND"},
		"UnknownCommand":  {[]string{"serv"}, `there is no command "serv"; did you mean serve?`},
		"UnknownFlag":     {[]string{"version", "-x"}, "flag provided but not defined: -x"},
		"ExtraArgument":   {[]string{"config", "x"}, `config takes no arguments, but was given "x"`},
		"MissingArgument": {[]string{"download"}, "download needs at least one URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := invoke(t, nil, test.args...)
			require.Equal(t, exitUsage, code)
			require.Empty(t, stdout)
			require.Contains(t, stderr, test.want)
		})
	}
}

func TestFlagsMayFollowArguments(t *testing.T) {
	t.Parallel()
	set := flag.NewFlagSet("x", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "")
	server := set.String("server", "", "")
	args, err := parseInterspersed(set, []string{"a", "--json", "b", "--server", "s", "--", "-rf", "--json=false"})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "-rf", "--json=false"}, args)
	require.True(t, *asJSON)
	require.Equal(t, "s", *server)
}

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"DATABASE_URL", "DATA_DIR", "LISTEN", "LOG_LEVEL"}
	for word, want := range map[string]string{"DATABSE_URL": "DATABASE_URL", "DATADIR": "DATA_DIR", "LISTNE": "LISTEN", "COLOUR": "", "LOGLEVEL": "LOG_LEVEL"} {
		require.Equal(t, want, nearest(word, names), word)
	}
}
