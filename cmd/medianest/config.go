package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"medianest/api"
	"medianest/jobs/egress"
	"medianest/jobs/siem"
	"medianest/store"
)

// mode is the part of the platform that a Config is for: what is required differs.
type mode string

const (
	modeUp      mode = "up"
	modeServe   mode = "serve"
	modeWork    mode = "work"
	modeMigrate mode = "migrate"
	modeTool    mode = "" // config, version, healthcheck, download: nothing is required
)

// Config is every setting. A zero value means "not set"; withDefaults gives those that have a default their value.
type Config struct {
	DatabaseURL   secretURL // postgres URL or keyword/value string; empty: `up` runs its own cluster, others refuse
	RedisURL      secretURL // redis URL; empty: `up` runs its own, others refuse
	SecretKeys    secret    // "id:base64 of 32 bytes", several; empty: the file secret-keys of DataDir
	TrustedProxy  []string  // addresses and networks whose X-Forwarded-For is believed; nil: loopback and private ones
	Rates         rates     // requests a minute by class; default api.DefaultRates
	CORSOrigins   []string  // other origins whose scripts may use the API
	AuditForward  string    // syslog URL of a collector of security events; empty: none
	PlexServerID  string    // machineIdentifier of the server whose users may sign in by plex.tv; empty: none
	OIDCIssuer    string    // of an OpenID provider; empty: none
	OIDCClientID  string
	OIDCSecret    secret
	OIDCTitle     string        // on the button; default "single sign-on"
	SignUpRole    string        // of who comes by one of these for the first time; default member; "none": nobody does
	TLSCert       string        // certificate of the API's listener, with its chain; empty: plain HTTP
	TLSKey        string        // its key
	TLSMin        string        // "1.3" or "1.2"; default 1.3
	DataDir       string        // admin token, secret keys, lock file, embedded Postgres; default ./data
	MediaDir      string        // library root with the staging area; default ./media
	Listen        string        // host:port of the API; default 127.0.0.1:8080
	AdminListen   string        // host:port of metrics and health; default 127.0.0.1:9090; "off": none
	BasePath      string        // path prefix of everything on Listen, "/x" or ""; default ""
	PublicURL     string        // where users reach the platform, with the base path; empty: what each request says
	WorkerQueues  queueSizes    // jobs at a time per queue and worker; default defaultQueues
	WorkerTTL     time.Duration // after which a process that does not renew its presence is lost; default 25s
	WorkerBeat    time.Duration // between renewals, at most a third of WorkerTTL; default 5s, or a fifth of a shorter TTL
	MaxLosses     int           // workers that one attempt may lose; default 5
	StagingWait   time.Duration // for a worker on the volume where a download was begun; default 2m
	EgressAllow   string        // private hosts, addresses, CIDRs jobs may reach, comma separated; default none
	StopTimeout   time.Duration // for a graceful stop; default 25s, below the 30 s after which supervisors kill
	StartTimeout  time.Duration // for the database to be reachable at start; default 60s
	Retention     time.Duration // how long the event stream can be resumed; default 24h
	TickInterval  time.Duration // of the outbox while there is news; default 25ms
	RetryScale    float64       // multiplies the pauses before retries and the waits of breakers; default 1
	LogFormat     string        // "text" or "json"; default text on a terminal, else json
	LogLevel      slog.Level    // default info, which is its zero value
	YTDLP         string        // program; default found
	FFmpeg        string        // program; ffprobe is looked for beside it; default found
	PostgresBin   string        // folder with initdb and postgres; default found
	Server        string        // of the download command; default http://127.0.0.1:8080
	Token         secret        // of the download command; default read from DataDir
	OTLPEndpoint  string        // where traces go, by OTLP over HTTP; empty: nowhere
	traceDisabled bool          // OTEL_SDK_DISABLED=true
}

// beatsPerTTL is the fewest renewals of a presence that must fit into its time to live.
const beatsPerTTL = 3

const (
	defaultDataDir      = "data"
	defaultMediaDir     = "media"
	defaultListen       = "127.0.0.1:8080"
	defaultAdminListen  = "127.0.0.1:9090"
	defaultStopTimeout  = 25 * time.Second
	defaultStartTimeout = time.Minute
	defaultWorkerTTL    = 25 * time.Second
	defaultWorkerBeat   = 5 * time.Second
	defaultMaxLosses    = 5
	defaultStagingWait  = 2 * time.Minute
	defaultRetention    = 24 * time.Hour
	defaultTickInterval = 25 * time.Millisecond
	off                 = "off"
)

// secret prints as stars, whatever prints it.
type secret string

func (s secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}
func (s secret) GoString() string             { return s.String() }
func (s secret) LogValue() slog.Value         { return slog.StringValue(s.String()) }
func (s secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
func (s secret) reveal() string               { return string(s) }

// secretURL is a connection string: it prints without its password and parameters.
type secretURL string

func (s secretURL) String() string {
	if s == "" {
		return ""
	}
	u, err := url.Parse(string(s))
	if err != nil || u.Host == "" && u.Path == "" || u.Scheme == "" {
		return "***" // a keyword/value string; any part of it may be the password
	}
	if u.User != nil {
		u.User = url.UserPassword(u.User.Username(), "***")
		if u.User.Username() == "" {
			u.User = url.UserPassword("", "***")
		}
	}
	u.RawQuery, u.Fragment = maskQuery(u.Query()), ""
	return strings.ReplaceAll(u.String(), "%2A%2A%2A", "***")
}
func (s secretURL) GoString() string             { return s.String() }
func (s secretURL) LogValue() slog.Value         { return slog.StringValue(s.String()) }
func (s secretURL) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
func (s secretURL) reveal() string               { return string(s) }

// shownParameters of a connection string hold no secret; any other one is masked.
var shownParameters = []string{
	"sslmode", "host", "port", "dbname", "user", "application_name", "connect_timeout", "target_session_attrs", "db", "cluster", "addr",
}

func maskQuery(query url.Values) string {
	for name := range query {
		if !slices.Contains(shownParameters, name) {
			query[name] = []string{"***"}
		}
	}
	return strings.ReplaceAll(query.Encode(), "%2A%2A%2A", "***")
}

// queueSizes says how many jobs of each queue one worker process works at a time.
type queueSizes map[string]int

func (q queueSizes) String() string {
	parts := make([]string, 0, len(q))
	for _, name := range slices.Sorted(maps.Keys(q)) {
		parts = append(parts, name+"="+strconv.Itoa(q[name]))
	}
	return strings.Join(parts, ",")
}

// fault is one thing wrong with the settings; variable names it as the user wrote it.
type fault struct{ variable, problem string }

// faultsError is all faults together, one a line.
type faultsError []fault

func (f faultsError) Error() string {
	var b strings.Builder
	b.WriteString("the settings are wrong:")
	for _, fault := range f {
		fmt.Fprintf(&b, "\n  %s: %s", fault.variable, fault.problem)
	}
	return b.String()
}

// loadConfig parses, defaults and validates, and reports everything that is wrong at once.
func loadConfig(p process, m mode) (Config, error) {
	c, faults := parseConfig(environment(p.env), os.ReadFile)
	c = c.withDefaults(isTerminal(p.stderr))
	faults = append(faults, c.validate(m)...)
	if len(faults) == 0 {
		return c, nil
	}
	// One fault a variable: what cannot be parsed may not be blamed for being missing as well.
	seen := map[string]bool{}
	faults = slices.DeleteFunc(faults, func(f fault) bool {
		name := strings.TrimSuffix(f.variable, fileSuffix)
		defer func() { seen[name] = true }()
		return seen[name]
	})
	return c, &exitError{code: exitUsage, text: faultsError(faults).Error()}
}

const (
	prefix     = "MEDIANEST_"
	fileSuffix = "_FILE"
)

// parseConfig reads the variables that are set. A variable set to nothing counts as not set, as container files
// cannot leave one out conditionally.
func parseConfig(env map[string]string, readFile func(string) ([]byte, error)) (Config, []fault) {
	var c Config
	var faults []fault
	for _, s := range settings {
		name, value := s.name, env[s.name]
		if file := env[s.name+fileSuffix]; s.secret && file != "" {
			if value != "" {
				faults = append(faults, fault{s.name, "set " + s.name + " or " + s.name + fileSuffix + ", not both"})
				continue
			}
			name = s.name + fileSuffix
			content, err := readFile(file)
			if err != nil {
				faults = append(faults, fault{name, err.Error()})
				continue
			}
			if value = strings.TrimRight(string(content), "\r\n"); value == "" {
				faults = append(faults, fault{name, "the file " + file + " is empty"})
				continue
			}
		}
		if value == "" {
			continue
		}
		if err := s.parse(&c, value); err != nil {
			faults = append(faults, fault{name, err.Error()})
		}
	}
	return c, append(faults, unknownVariables(env)...)
}

// serviceLinks are what Kubernetes puts into the environment of every pod beside a service called medianest.
var serviceLinks = regexp.MustCompile(`^MEDIANEST_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP)(_(ADDR|PORT|PROTO))?)?)$`)

// unknownVariables finds misspelt settings: one that is silently ignored is found out only when it is missed.
func unknownVariables(env map[string]string) []fault {
	var names, known []string
	for _, s := range settings {
		known = append(known, s.name)
		if s.secret {
			known = append(known, s.name+fileSuffix)
		}
	}
	for name := range env {
		if strings.HasPrefix(name, prefix) && !slices.Contains(known, name) && !serviceLinks.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var faults []fault
	for _, name := range names {
		problem := "there is no such setting; medianest config lists them"
		if near := nearest(strings.TrimPrefix(name, prefix), trimPrefixes(known)); near != "" {
			problem = "there is no such setting; did you mean " + prefix + near + "?"
		}
		faults = append(faults, fault{name, problem})
	}
	return faults
}

func trimPrefixes(names []string) []string {
	short := make([]string, 0, len(names))
	for _, name := range names {
		if s, ok := strings.CutPrefix(name, prefix); ok {
			short = append(short, s)
		}
	}
	return short
}

// withDefaults returns a copy in which everything that has a default is set. onTerminal says whether a person reads
// the log as it is written.
func (c Config) withDefaults(onTerminal bool) Config {
	c.DataDir = cmp.Or(c.DataDir, defaultDataDir)
	c.MediaDir = cmp.Or(c.MediaDir, defaultMediaDir)
	c.Listen = cmp.Or(c.Listen, defaultListen)
	c.AdminListen = cmp.Or(c.AdminListen, defaultAdminListen)
	c.StopTimeout = cmp.Or(c.StopTimeout, defaultStopTimeout)
	c.StartTimeout = cmp.Or(c.StartTimeout, defaultStartTimeout)
	c.WorkerTTL = cmp.Or(c.WorkerTTL, defaultWorkerTTL)
	c.WorkerBeat = cmp.Or(c.WorkerBeat, min(defaultWorkerBeat, c.WorkerTTL/5))
	c.MaxLosses = cmp.Or(c.MaxLosses, defaultMaxLosses)
	c.StagingWait = cmp.Or(c.StagingWait, defaultStagingWait)
	c.Retention = cmp.Or(c.Retention, defaultRetention)
	c.TickInterval = cmp.Or(c.TickInterval, defaultTickInterval)
	c.RetryScale = cmp.Or(c.RetryScale, 1)
	c.Server = cmp.Or(c.Server, "http://"+defaultListen)
	c.TLSMin = cmp.Or(c.TLSMin, "1.3")
	c.OIDCTitle = cmp.Or(c.OIDCTitle, "single sign-on")
	c.SignUpRole = cmp.Or(c.SignUpRole, store.UserMember)
	if c.Rates == nil {
		c.Rates = maps.Clone(rates(api.DefaultRates))
	}
	if c.WorkerQueues == nil {
		c.WorkerQueues = maps.Clone(defaultQueues)
	}
	if c.LogFormat == "" {
		c.LogFormat = "json"
		if onTerminal {
			c.LogFormat = "text"
		}
	}
	return c
}

// validate checks what a single value cannot show: what the mode requires and how values stand to each other.
func (c Config) validate(m mode) []fault {
	var faults []fault
	add := func(variable, format string, args ...any) {
		faults = append(faults, fault{prefix + variable, fmt.Sprintf(format, args...)})
	}
	if c.DatabaseURL == "" && (m == modeServe || m == modeWork || m == modeMigrate) {
		add("DATABASE_URL", "%s needs a Postgres, e.g. postgres://medianest@127.0.0.1/medianest; `medianest up` brings its own", m)
	}
	if c.RedisURL == "" && (m == modeServe || m == modeWork) {
		add("REDIS_URL", "%s needs a Redis for live progress, e.g. redis://127.0.0.1:6379/0; `medianest up` brings its own", m)
	}
	if c.AdminListen != off && c.AdminListen == c.Listen && !strings.HasSuffix(c.Listen, ":0") && m != modeWork {
		add("ADMIN_LISTEN", "is the same address as MEDIANEST_LISTEN, %s; metrics need one of their own, or off", c.Listen)
	}
	if u, err := url.Parse(c.PublicURL); err == nil && c.PublicURL != "" && c.BasePath != "" && strings.TrimSuffix(u.Path, "/") != c.BasePath {
		add("PUBLIC_URL", "must end with MEDIANEST_BASE_PATH, %s, since everything is served below it", c.BasePath)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		add("TLS_KEY", "goes with MEDIANEST_TLS_CERT: set both or neither")
	}
	if (c.OIDCIssuer == "") != (c.OIDCClientID == "") {
		add("OIDC_CLIENT_ID", "goes with MEDIANEST_OIDC_ISSUER: set both or neither")
	}
	if c.TickInterval > c.Retention {
		add("TICK_INTERVAL", "%s is longer than MEDIANEST_EVENT_RETENTION, %s", c.TickInterval, c.Retention)
	}
	if c.WorkerTTL < beatsPerTTL*c.WorkerBeat {
		add("WORKER_TTL", "%s is less than %d times MEDIANEST_WORKER_BEAT, %s: one late beat would cost all jobs", c.WorkerTTL, beatsPerTTL, c.WorkerBeat)
	}
	if data, media := absolute(c.DataDir), absolute(c.MediaDir); data == media {
		add("MEDIA_DIR", "is the same folder as MEDIANEST_DATA_DIR, %s; the library is yours, the data is the platform's", media)
	}
	return faults
}

// absolute is filepath.Abs without its error, which only a deleted working directory can cause.
func absolute(name string) string {
	if full, err := filepath.Abs(name); err == nil {
		return full
	}
	return filepath.Clean(name)
}

// localURL is how a program on this machine reaches a listen address.
func localURL(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return ""
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// scheme is a URL of our own API, by what it speaks.
func (c Config) scheme(plain string) string {
	if c.TLSCert != "" {
		return "https" + strings.TrimPrefix(plain, "http")
	}
	return plain
}

// The parsers of single values follow. Their errors are read after "VARIABLE: ".

func parseText(target func(*Config) *string) func(*Config, string) error {
	return func(c *Config, value string) error {
		*target(c) = value
		return nil
	}
}

func parseListen(target func(*Config) *string, mayBeOff bool) func(*Config, string) error {
	return func(c *Config, value string) error {
		if mayBeOff && value == off {
			*target(c) = off
			return nil
		}
		_, port, err := net.SplitHostPort(value)
		if n, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || n > math.MaxUint16 {
			return fmt.Errorf("%q is not an address like %s or :8080", value, defaultListen)
		}
		*target(c) = value
		return nil
	}
}

func parseDuration(target func(*Config) *time.Duration, low, high time.Duration) func(*Config, string) error {
	return func(c *Config, value string) error {
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("%q is not a duration like 500ms, 30s or 24h", value)
		}
		if d < low || d > high {
			return fmt.Errorf("%s is not between %s and %s", d, low, high)
		}
		*target(c) = d
		return nil
	}
}

func parseSecretKeys(c *Config, value string) error {
	if _, err := store.ParseKeyring(value); err != nil {
		return err
	}
	c.SecretKeys = secret(value)
	return nil
}

// parseNetworks takes addresses and networks, or "none".
func parseNetworks(target func(*Config) *[]string) func(*Config, string) error {
	return func(c *Config, value string) error {
		*target(c) = []string{}
		if value == "none" {
			return nil
		}
		for part := range strings.SplitSeq(value, ",") {
			part = strings.TrimSpace(part)
			_, addrErr := netip.ParseAddr(part)
			if _, err := netip.ParsePrefix(part); err != nil && addrErr != nil {
				return fmt.Errorf("%q is no address and no network like 10.0.0.0/8", part)
			}
			*target(c) = append(*target(c), part)
		}
		return nil
	}
}

// rates are requests a minute, by class; 0: not counted.
type rates map[api.RateClass]int

func (r rates) String() string {
	parts := make([]string, 0, len(r))
	for _, class := range slices.Sorted(maps.Keys(r)) {
		parts = append(parts, string(class)+"="+strconv.Itoa(r[class]))
	}
	return strings.Join(parts, ",")
}

// parseRates takes those that are to differ from the default.
func parseRates(c *Config, value string) error {
	c.Rates = maps.Clone(rates(api.DefaultRates))
	for part := range strings.SplitSeq(value, ",") {
		name, number, _ := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.Atoi(number)
		if _, known := api.DefaultRates[api.RateClass(name)]; !known || err != nil || n < 0 || n > 1_000_000 {
			return fmt.Errorf("%q is not one of read, write, stream, sign_in, anonymous with a number, like read=600", part)
		}
		c.Rates[api.RateClass(name)] = n
	}
	return nil
}

func parseOrigins(c *Config, value string) error {
	for part := range strings.SplitSeq(value, ",") {
		part = strings.TrimSpace(part)
		u, err := url.Parse(part)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || part != u.Scheme+"://"+u.Host {
			return fmt.Errorf("%q is not an origin like https://portal.example", part)
		}
		c.CORSOrigins = append(c.CORSOrigins, part)
	}
	return nil
}

func parseAuditForward(c *Config, value string) error {
	if _, err := siem.Parse(value); err != nil {
		return err
	}
	c.AuditForward = value
	return nil
}

func parseMaxLosses(c *Config, value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > 1_000_000 {
		return fmt.Errorf("%q is not a number from 1 to 1000000", value)
	}
	c.MaxLosses = n
	return nil
}

func parseRetryScale(c *Config, value string) error {
	scale, err := strconv.ParseFloat(value, 64)
	if err != nil || !(scale >= 0.001 && scale <= 100) {
		return fmt.Errorf("%q is not a number from 0.001 to 100", value)
	}
	c.RetryScale = scale
	return nil
}

func parseDatabaseURL(c *Config, value string) error {
	if strings.Contains(value, "://") {
		u, err := url.Parse(value)
		if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
			return errors.New("is not a Postgres URL like postgres://user:password@host:5432/database")
		}
	} else if !strings.Contains(value, "=") {
		return errors.New("is neither a Postgres URL like postgres://user:password@host:5432/database nor host=... dbname=...")
	}
	c.DatabaseURL = secretURL(value)
	return nil
}

func parseRedisURL(c *Config, value string) error {
	scheme, _, found := strings.Cut(value, "://")
	if !found || !slices.Contains([]string{"redis", "rediss", "redis+sentinel", "rediss+sentinel", "unix"}, scheme) {
		return errors.New("is not a Redis URL like redis://:password@host:6379/0")
	}
	c.RedisURL = secretURL(value)
	return nil
}

func parseBasePath(c *Config, value string) error {
	if value == "/" {
		return nil
	}
	if !strings.HasPrefix(value, "/") || strings.ContainsAny(value, "?#% ") || path.Clean(value) != value {
		return fmt.Errorf("%q is not a path like /medianest", value)
	}
	c.BasePath = value
	return nil
}

func parseHTTPURL(target func(*Config) *string) func(*Config, string) error {
	return func(c *Config, value string) error {
		u, err := url.Parse(value)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
			return errors.New("is not a URL like https://media.example.org")
		}
		*target(c) = strings.TrimSuffix(value, "/")
		return nil
	}
}

func parseQueues(c *Config, value string) error {
	sizes := queueSizes{}
	for part := range strings.SplitSeq(value, ",") {
		name, count, found := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.Atoi(count)
		if !found || err != nil || n < 0 || n > 1000 {
			return fmt.Errorf("%q is not a queue and a number up to 1000, like download=2", part)
		}
		if _, known := defaultQueues[name]; !known {
			return fmt.Errorf("there is no queue %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(defaultQueues)), ", "))
		}
		if n > 0 { // 0: this worker leaves the queue to others
			sizes[name] = n
		}
	}
	if len(sizes) == 0 {
		return errors.New("names no queue to work")
	}
	c.WorkerQueues = sizes
	return nil
}

func parseEgressAllow(c *Config, value string) error {
	if _, err := egress.ParseAllow(value); err != nil {
		return err
	}
	c.EgressAllow = value
	return nil
}

func parseChoice(target func(*Config) *string, choices ...string) func(*Config, string) error {
	return func(c *Config, value string) error {
		if !slices.Contains(choices, value) {
			return fmt.Errorf("%q is none of %s", value, strings.Join(choices, ", "))
		}
		*target(c) = value
		return nil
	}
}

func parseLogLevel(c *Config, value string) error {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, strings.ToLower(value)) {
		return fmt.Errorf("%q is none of debug, info, warn, error", value)
	}
	return c.LogLevel.UnmarshalText([]byte(value))
}
