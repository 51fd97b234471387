package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"medianest/store"
)

// setting is one variable: the table below is the only list of them.
type setting struct {
	name   string
	secret bool   // has a _FILE twin
	doc    string // for people, plain sentences
	unset  string // what holds when it is not set, where show cannot tell
	parse  func(*Config, string) error
	show   func(Config) string // the effective value, secrets masked
}

const day = 24 * time.Hour

var settings = []setting{
	{
		name: prefix + "DATABASE_URL", secret: true, unset: "up: a private Postgres in the data directory",
		doc:   "Postgres, the only thing that must not be lost. The user needs CREATE on the database for migrations; serve and work take narrower roles by themselves.",
		parse: parseDatabaseURL, show: func(c Config) string { return c.DatabaseURL.String() },
	},
	{
		name: prefix + "REDIS_URL", secret: true, unset: "up: one inside the process",
		doc:   "Redis, for live progress. Nothing in it is remembered; without it downloads still run and progress pauses.",
		parse: parseRedisURL, show: func(c Config) string { return c.RedisURL.String() },
	},
	{
		name: prefix + "SECRET_KEYS", secret: true, unset: "the file keys/secret-keys in the data directory, which up and migrate up make",
		doc:   "Keys that sign sessions and seal secrets, the same for all processes: id:base64 of 32 random bytes, several separated by commas. The first one signs and seals; the others still open what they have.",
		parse: parseSecretKeys, show: func(c Config) string { return c.SecretKeys.String() },
	},
	{
		name:  prefix + "DATA_DIR",
		doc:   "Folder of the admin token, the set-up code, the secret keys, and of the private Postgres of up.",
		parse: parseText(func(c *Config) *string { return &c.DataDir }), show: func(c Config) string { return c.DataDir },
	},
	{
		name:  prefix + "MEDIA_DIR",
		doc:   "The library. Files appear in it whole; what is being downloaded is kept under .medianest in it.",
		parse: parseText(func(c *Config) *string { return &c.MediaDir }), show: func(c Config) string { return c.MediaDir },
	},
	{
		name:  prefix + "LISTEN",
		doc:   "Address of the API and the pages, host:port; port 0 chooses a free one.",
		parse: parseListen(func(c *Config) *string { return &c.Listen }, false), show: func(c Config) string { return c.Listen },
	},
	{
		name: prefix + "TLS_CERT", unset: "plain HTTP, for a reverse proxy in front",
		doc:   "File of the certificate of MEDIANEST_LISTEN, with its chain (PEM). It is read again when it changes; one that cannot be used leaves the one before in use.",
		parse: parseText(func(c *Config) *string { return &c.TLSCert }), show: func(c Config) string { return c.TLSCert },
	},
	{
		name: prefix + "TLS_KEY", unset: "none",
		doc:   "File of its key (PEM).",
		parse: parseText(func(c *Config) *string { return &c.TLSKey }), show: func(c Config) string { return c.TLSKey },
	},
	{
		name:  prefix + "TLS_MIN",
		doc:   "Oldest version of TLS that is spoken: 1.3 or 1.2.",
		parse: parseChoice(func(c *Config) *string { return &c.TLSMin }, "1.3", "1.2"), show: func(c Config) string { return c.TLSMin },
	},
	{
		name:  prefix + "ADMIN_LISTEN",
		doc:   "Address of /metrics, /livez and /readyz, for machines you trust only: nothing asks for a token there. off: none.",
		parse: parseListen(func(c *Config) *string { return &c.AdminListen }, true), show: func(c Config) string { return c.AdminListen },
	},
	{
		name: prefix + "BASE_PATH", unset: "everything is at the root",
		doc:   "Path below which everything on MEDIANEST_LISTEN is served, like /medianest, for a reverse proxy that shares its host.",
		parse: parseBasePath, show: func(c Config) string { return c.BasePath },
	},
	{
		name: prefix + "PUBLIC_URL", unset: "as each request says",
		doc:   "Where users reach the platform, base path included. Decides whether cookies are marked Secure and which origin may post forms.",
		parse: parseHTTPURL(func(c *Config) *string { return &c.PublicURL }), show: func(c Config) string { return c.PublicURL },
	},
	{
		name: prefix + "TRUSTED_PROXIES", unset: "loopback and private networks",
		doc:   "Addresses and networks of reverse proxies, separated by commas: what they say in X-Forwarded-For is believed. none: nobody. By the client's address tries to sign in are slowed down, and access rules and tokens are bound to networks.",
		parse: parseNetworks(func(c *Config) *[]string { return &c.TrustedProxy }), show: func(c Config) string {
			if c.TrustedProxy != nil && len(c.TrustedProxy) == 0 {
				return "none"
			}
			return strings.Join(c.TrustedProxy, ",")
		},
	},
	{
		name:  prefix + "RATE_LIMITS",
		doc:   "Requests a minute, up to half of them at once: of a user by class (a token gets two thirds of it), and of an address for tries to sign in and for who is not known. What is left out stays as it is; 0 does not count.",
		parse: parseRates, show: func(c Config) string { return c.Rates.String() },
	},
	{
		name: prefix + "CORS_ORIGINS", unset: "none",
		doc:   "Other origins whose scripts may use the API, with a token, separated by commas, like https://portal.example.",
		parse: parseOrigins, show: func(c Config) string { return strings.Join(c.CORSOrigins, ",") },
	},
	{
		name: prefix + "AUDIT_FORWARD", unset: "nobody",
		doc:   "Who gets the audit besides, in its order and at least once: syslog://host:514 (UDP), syslog+tcp://host:601 or syslog+tls://host:6514, RFC 5424 with JSON. Workers send it, within about a minute.",
		parse: parseAuditForward, show: func(c Config) string { return c.AuditForward },
	},
	{
		name: prefix + "PLEX_SERVER_ID", unset: "nobody signs in by Plex",
		doc:   "machineIdentifier of your Plex server (http://SERVER:32400/identity shows it): who plex.tv says may use it may sign in, and nobody else.",
		parse: parseText(func(c *Config) *string { return &c.PlexServerID }), show: func(c Config) string { return c.PlexServerID },
	},
	{
		name: prefix + "OIDC_ISSUER", unset: "no OpenID provider",
		doc:   "URL of an OpenID provider, such as https://id.example; one with a private address must be in MEDIANEST_EGRESS_ALLOW. Its redirect URI is PUBLIC_URL/login/oidc/done.",
		parse: parseHTTPURL(func(c *Config) *string { return &c.OIDCIssuer }), show: func(c Config) string { return c.OIDCIssuer },
	},
	{
		name: prefix + "OIDC_CLIENT_ID", unset: "none",
		doc:   "What the OpenID provider knows this platform by.",
		parse: parseText(func(c *Config) *string { return &c.OIDCClientID }), show: func(c Config) string { return c.OIDCClientID },
	},
	{
		name: prefix + "OIDC_CLIENT_SECRET", secret: true, unset: "none: a public client",
		doc:   "The secret that goes with it.",
		parse: func(c *Config, value string) error { c.OIDCSecret = secret(value); return nil }, show: func(c Config) string { return c.OIDCSecret.String() },
	},
	{
		name:  prefix + "OIDC_TITLE",
		doc:   "What people are offered to sign in with.",
		parse: parseText(func(c *Config) *string { return &c.OIDCTitle }), show: func(c Config) string { return c.OIDCTitle },
	},
	{
		name:  prefix + "SIGN_UP_ROLE",
		doc:   "Role of who signs in by Plex or OpenID for the first time: viewer, member or manager; none: only who was invited before, and has tied the two by signing in both ways.",
		parse: parseChoice(func(c *Config) *string { return &c.SignUpRole }, "none", store.UserViewer, store.UserMember, store.UserManager), show: func(c Config) string { return c.SignUpRole },
	},
	{
		name:  prefix + "WORKER_QUEUES",
		doc:   "Jobs worked at a time by one worker, per queue. A queue that is left out is left to other workers.",
		parse: parseQueues, show: func(c Config) string { return c.WorkerQueues.String() },
	},
	{
		name:  prefix + "WORKER_TTL",
		doc:   "After how long without a sign of life a process counts as lost, and its jobs go on elsewhere. A worker that cannot reach the database stops its jobs before that. The same for all processes of a platform.",
		parse: parseDuration(func(c *Config) *time.Duration { return &c.WorkerTTL }, time.Second, time.Hour),
		show:  func(c Config) string { return durationText(c.WorkerTTL) },
	},
	{
		name:  prefix + "WORKER_BEAT",
		doc:   "Time between two signs of life, at most a third of MEDIANEST_WORKER_TTL; a fifth of it where that is shorter than the default.",
		parse: parseDuration(func(c *Config) *time.Duration { return &c.WorkerBeat }, 100*time.Millisecond, 20*time.Minute),
		show:  func(c Config) string { return durationText(c.WorkerBeat) },
	},
	{
		name:  prefix + "MAX_LOSSES",
		doc:   "How many workers in a row one attempt of a job may lose before the job is taken for what killed them, and set aside as failed (poison_pill).",
		parse: parseMaxLosses, show: func(c Config) string { return strconv.Itoa(c.MaxLosses) },
	},
	{
		name:  prefix + "STAGING_WAIT",
		doc:   "How long a download that was cut off waits for a worker on the media volume where it was begun; after that it begins anew on another.",
		parse: parseDuration(func(c *Config) *time.Duration { return &c.StagingWait }, time.Second, 24*time.Hour),
		show:  func(c Config) string { return durationText(c.StagingWait) },
	},
	{
		name: prefix + "EGRESS_ALLOW", unset: "no private address",
		doc:   "Private hosts, addresses and networks that downloads may reach, comma separated, each with an optional port: nas.lan, 192.168.1.0/24, 10.0.0.5:8096. The platform's own addresses stay closed.",
		parse: parseEgressAllow, show: func(c Config) string { return c.EgressAllow },
	},
	{
		name:  prefix + "STOP_TIMEOUT",
		doc:   "Longest graceful stop; what still runs then is ended. Keep it some seconds below what your supervisor grants.",
		parse: parseDuration(func(c *Config) *time.Duration { return &c.StopTimeout }, time.Second, time.Hour),
		show:  func(c Config) string { return durationText(c.StopTimeout) },
	},
	{
		name:  prefix + "START_TIMEOUT",
		doc:   "How long a start waits for the database to answer.",
		parse: parseDuration(func(c *Config) *time.Duration { return &c.StartTimeout }, time.Second, time.Hour),
		show:  func(c Config) string { return durationText(c.StartTimeout) },
	},
	{
		name:  prefix + "EVENT_RETENTION",
		doc:   "How long a reader of the event stream may be away and still miss nothing; after that it is told to reload.",
		parse: parseDuration(func(c *Config) *time.Duration { return &c.Retention }, time.Minute, 90*day),
		show:  func(c Config) string { return durationText(c.Retention) },
	},
	{
		name:  prefix + "TICK_INTERVAL",
		doc:   "Time between two rounds of the event stream while there is news.",
		parse: parseDuration(func(c *Config) *time.Duration { return &c.TickInterval }, time.Millisecond, 10*time.Second),
		show:  func(c Config) string { return durationText(c.TickInterval) },
	},
	{
		name:  prefix + "RETRY_SCALE",
		doc:   "Multiplies the pauses (10 s, 30 s, 2 min, 10 min ... 6 h) before a failed download is tried again, and how long a site is left alone that refused (0, 1, 5, 15, 30 min, 1 h ... 24 h).",
		parse: parseRetryScale, show: func(c Config) string { return strconv.FormatFloat(c.RetryScale, 'g', -1, 64) },
	},
	{
		name:  prefix + "LOG_FORMAT",
		doc:   "text or json. Default: text on a terminal, else json.",
		parse: parseChoice(func(c *Config) *string { return &c.LogFormat }, "text", "json"), show: func(c Config) string { return c.LogFormat },
	},
	{
		name:  prefix + "LOG_LEVEL",
		doc:   "debug, info, warn or error.",
		parse: parseLogLevel, show: func(c Config) string { return strings.ToLower(c.LogLevel.String()) },
	},
	{
		name: prefix + "YTDLP", unset: "found in PATH",
		doc:   "The yt-dlp program.",
		parse: parseText(func(c *Config) *string { return &c.YTDLP }), show: func(c Config) string { return c.YTDLP },
	},
	{
		name: prefix + "FFMPEG", unset: "found in PATH",
		doc:   "The ffmpeg program; ffprobe is looked for beside it first.",
		parse: parseText(func(c *Config) *string { return &c.FFmpeg }), show: func(c Config) string { return c.FFmpeg },
	},
	{
		name: prefix + "POSTGRES_BIN", unset: "found in PATH and the usual places",
		doc:   "Folder of initdb and postgres, for the private Postgres of up.",
		parse: parseText(func(c *Config) *string { return &c.PostgresBin }), show: func(c Config) string { return c.PostgresBin },
	},
	{
		name:  prefix + "SERVER",
		doc:   "The platform that the download command talks to.",
		parse: parseHTTPURL(func(c *Config) *string { return &c.Server }), show: func(c Config) string { return c.Server },
	},
	{
		name: prefix + "TOKEN", secret: true, unset: "admin-token in the data directory",
		doc:   "The API token of the download command.",
		parse: func(c *Config, value string) error { c.Token = secret(value); return nil }, show: func(c Config) string { return c.Token.String() },
	},
	{
		name: "OTEL_EXPORTER_OTLP_ENDPOINT", unset: "no traces are sent",
		doc:   "Where traces go, by OTLP over HTTP, e.g. http://127.0.0.1:4318. The other OTEL_* variables mean what OpenTelemetry says.",
		parse: parseText(func(c *Config) *string { return &c.OTLPEndpoint }), show: func(c Config) string { return c.OTLPEndpoint },
	},
	{
		name: "OTEL_SDK_DISABLED", unset: "false",
		doc: "true: no traces, whatever else is set.",
		parse: func(c *Config, value string) error {
			c.traceDisabled = strings.EqualFold(value, "true")
			return nil
		},
		show: func(c Config) string {
			if c.traceDisabled {
				return "true"
			}
			return ""
		},
	},
}

// configCommand prints the effective settings in a form that a shell or an env file can read back, secrets apart.
type configCommand struct{ markdown bool }

func (c *configCommand) flags(set *flag.FlagSet) {
	set.BoolVar(&c.markdown, "markdown", false, "print the table of all settings and their defaults instead, for the documentation")
}

func (c *configCommand) run(_ context.Context, p process, _ []string) error {
	if c.markdown {
		printSettingsTable(p.stdout)
		return nil
	}
	config, err := loadConfig(p, modeTool)
	printSettings(p.stdout, config, environment(p.env))
	return err
}

func printSettings(w io.Writer, c Config, env map[string]string) {
	for i, s := range settings {
		if i > 0 {
			fmt.Fprintln(w)
		}
		for _, line := range wrap(s.doc, 100) {
			fmt.Fprintf(w, "# %s\n", line)
		}
		value, source := s.show(c), "default"
		switch {
		case env[s.name] != "":
			source = "environment"
		case s.secret && env[s.name+fileSuffix] != "":
			source = "file " + env[s.name+fileSuffix]
		case value == "" && s.unset != "":
			source = "not set: " + s.unset
		}
		fmt.Fprintf(w, "# (%s)\n%s=%s\n", source, s.name, value)
	}
}

func printSettingsTable(w io.Writer) {
	defaults := Config{}.withDefaults(false)
	fmt.Fprint(w, "| variable | default | meaning |\n|---|---|---|\n")
	for _, s := range settings {
		value := "`" + s.show(defaults) + "`"
		switch {
		case s.unset != "":
			value = s.unset
		case s.name == prefix+"LOG_FORMAT":
			value = "text on a terminal, else json"
		}
		name := "`" + s.name + "`"
		if s.secret {
			name += ", `" + s.name + fileSuffix + "`"
		}
		fmt.Fprintf(w, "| %s | %s | %s |\n", name, value, s.doc)
	}
}

// durationText is a duration without the zeros that its String has.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// wrap breaks a text into lines of at most width bytes, at spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
