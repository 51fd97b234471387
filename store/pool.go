package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Roles that a pool can take. Each is a database role without login, medianest_<role>, which the connecting user is a
// member of; the empty role is the connecting user itself, the owner that migrations run as.
const (
	RoleAPI    = "api"
	RoleWorker = "worker"
	RoleRiver  = "river"
)

const (
	defaultMaxConns = 10

	// connectTimeout bounds each attempt to connect, so that a database that swallows packets is told apart from a
	// slow one soon.
	connectTimeout = 5 * time.Second

	maxConnIdleTime = 5 * time.Minute
)

// PoolOptions says how a process connects to Postgres.
type PoolOptions struct {
	// URL is a postgres:// URL or a keyword/value string. Run-time parameters and pool_* settings that it names win
	// over those set here, except the role. Required.
	URL string

	// Role is one of the Role constants; empty takes no role.
	Role string

	// MaxConns bounds the pool. Default: pool_max_conns of the URL, else 10.
	MaxConns int32

	// AppName is shown in pg_stat_activity. Default: medianest, with the role.
	AppName string

	// Tracer observes every query. Optional.
	Tracer pgx.QueryTracer

	// Fit is asked before each use of a connection whether this process may use the database now; its error is that of
	// the use. It must be quick. Optional.
	Fit func() error
}

// OpenPool returns a pool for the options. It connects when first used, not here: a process starts, and answers that it
// is not ready, while its database is still away. Every attempt to connect is bounded (5 s, or the URL's
// connect_timeout), every statement, wait for a lock and idle transaction by the server's time-outs, and a peer that
// vanished is noticed within half a minute on both sides. Times are read as UTC.
func OpenPool(ctx context.Context, o PoolOptions) (*pgxpool.Pool, error) {
	cfg, err := poolConfig(o)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open database pool: %w", interpret(err))
	}
	return pool, nil
}

func poolConfig(o PoolOptions) (*pgxpool.Config, error) {
	if o.URL == "" {
		return nil, errors.New("open database pool: no URL")
	}
	cfg, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		// The driver's text masks the password, and only that; a URL may carry other secrets, and is not repeated.
		return nil, errors.New("open database pool: the database URL is malformed")
	}
	// What a URL that says nothing gives is the driver's choice, and ours goes before it.
	silent, err := pgxpool.ParseConfig("postgres://")
	if err != nil {
		return nil, errors.New("open database pool: a PG* environment variable is malformed")
	}
	if cfg.MaxConns == silent.MaxConns {
		cfg.MaxConns = defaultMaxConns
	}
	cfg.MaxConns = cmp.Or(max(o.MaxConns, 0), cfg.MaxConns)
	if cfg.MaxConnIdleTime == silent.MaxConnIdleTime {
		cfg.MaxConnIdleTime = maxConnIdleTime
	}
	if cfg.ConnConfig.ConnectTimeout == silent.ConnConfig.ConnectTimeout {
		cfg.ConnConfig.ConnectTimeout = connectTimeout
	}
	cfg.ConnConfig.DialFunc = (&net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
	}).DialContext
	cfg.ConnConfig.Tracer = o.Tracer

	for name, value := range sessionParams(o) {
		if _, ok := cfg.ConnConfig.RuntimeParams[name]; !ok || name == "role" {
			cfg.ConnConfig.RuntimeParams[name] = value
		}
	}
	cfg.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
		if o.Fit != nil {
			if err := o.Fit(); err != nil {
				return true, err
			}
		}
		if o.Role != RoleAPI {
			return true, nil
		}
		err := actFor(ctx, conn)
		return err == nil, err
	}
	cfg.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		readTimesAsUTC(conn.TypeMap())
		return nil
	}
	return cfg, nil
}

// sessionParams are sent with the connection request: they hold from the first statement, for every statement, and
// cost no round trip. A server that has lost its client holds that client's locks until one of these ends it.
func sessionParams(o PoolOptions) map[string]string {
	params := map[string]string{
		"application_name":                    cmp.Or(o.AppName, appName(o.Role)),
		"timezone":                            "UTC",
		"statement_timeout":                   "30s",
		"lock_timeout":                        "10s",
		"idle_in_transaction_session_timeout": "30s",
		"tcp_keepalives_idle":                 "15",
		"tcp_keepalives_interval":             "5",
		"tcp_keepalives_count":                "3",
		"tcp_user_timeout":                    "30000",
	}
	if o.Role != "" {
		params["role"] = "medianest_" + o.Role
	}
	// Workers hold a transaction open while files are linked into the library, on storage that may be slow.
	if o.Role == RoleWorker {
		params["idle_in_transaction_session_timeout"] = "120s"
	}
	return params
}

func appName(role string) string {
	if role == "" {
		return "medianest"
	}
	return "medianest-" + role
}

func readTimesAsUTC(m *pgtype.Map) {
	t := &pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}}
	m.RegisterType(t)
	m.RegisterType(&pgtype.Type{Name: "_timestamptz", OID: pgtype.TimestamptzArrayOID, Codec: &pgtype.ArrayCodec{ElementType: t}})
}
