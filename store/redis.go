package store

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Time-outs of Redis where the URL names none. What is in Redis is a convenience: nothing waits long for it.
const (
	redisDialTimeout = 2 * time.Second
	redisTimeout     = time.Second
)

// OpenRedis returns a client for the URL, which connects when first used:
//
//	redis://[user:password@]host[:6379][/db]               one server; rediss:// with TLS; unix:///path/to.sock
//	redis://host1:6379,host2:6379,host3:6379               a cluster, found through any of these nodes
//	redis://host:6379?cluster=true                         a cluster, found through this node
//	redis+sentinel://host1:26379,host2:26379/name[/db]     the primary that these Sentinels know by this name;
//	                                                       rediss+sentinel:// with TLS
//
// Query parameters are go-redis's options in snake case (dial_timeout=3s, pool_size=20, read_timeout=1s); with Sentinels,
// user information in the URL is the Sentinels', and the servers' goes into the parameters username and password. An
// error never repeats the URL, which may hold a password.
func OpenRedis(rawURL string) (redis.UniversalClient, error) {
	scheme, hosts, u, err := splitRedisURL(rawURL)
	if err != nil {
		return nil, err
	}
	query := u.Query()
	cluster := len(hosts) > 1 || query.Get("cluster") == "true"
	query.Del("cluster")
	for _, host := range hosts[1:] {
		query.Add("addr", host)
	}

	if base, ok := strings.CutSuffix(scheme, "+sentinel"); ok {
		name, db, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
		if name == "" {
			return nil, errors.New("open redis: a Sentinel URL names the primary in its path")
		}
		query.Set("master_name", name)
		u.Scheme, u.Path, u.RawQuery = base, "/"+db, query.Encode()
		o, err := redis.ParseFailoverURL(u.String())
		if err != nil {
			return nil, errMalformedRedisURL
		}
		setDefault(&o.DialTimeout, redisDialTimeout)
		setDefault(&o.ReadTimeout, redisTimeout)
		setDefault(&o.WriteTimeout, redisTimeout)
		o.ContextTimeoutEnabled = true
		return redis.NewFailoverClient(o), nil
	}

	u.Scheme, u.RawQuery = scheme, query.Encode()
	if cluster {
		o, err := redis.ParseClusterURL(u.String())
		if err != nil {
			return nil, errMalformedRedisURL
		}
		setDefault(&o.DialTimeout, redisDialTimeout)
		setDefault(&o.ReadTimeout, redisTimeout)
		setDefault(&o.WriteTimeout, redisTimeout)
		o.ContextTimeoutEnabled = true
		return redis.NewClusterClient(o), nil
	}
	o, err := redis.ParseURL(u.String())
	if err != nil {
		return nil, errMalformedRedisURL
	}
	setDefault(&o.DialTimeout, redisDialTimeout)
	setDefault(&o.ReadTimeout, redisTimeout)
	setDefault(&o.WriteTimeout, redisTimeout)
	o.ContextTimeoutEnabled = true
	return redis.NewClient(o), nil
}

var errMalformedRedisURL = errors.New("open redis: the URL is malformed")

// splitRedisURL takes the list of hosts apart, which is no valid URL as it stands, and leaves the first in the URL.
func splitRedisURL(rawURL string) (scheme string, hosts []string, u *url.URL, err error) {
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok {
		return "", nil, nil, errMalformedRedisURL
	}
	switch scheme {
	case "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel":
	default:
		return "", nil, nil, fmt.Errorf("open redis: scheme %q is not one of redis, rediss, unix, redis+sentinel, rediss+sentinel", scheme)
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	user, list := "", authority
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		user, list = authority[:i+1], authority[i+1:]
	}
	hosts = strings.Split(list, ",")
	for _, host := range hosts {
		if host == "" && scheme != "unix" {
			return "", nil, nil, errMalformedRedisURL
		}
	}
	u, err = url.Parse("redis://" + user + hosts[0] + tail)
	if err != nil {
		return "", nil, nil, errMalformedRedisURL
	}
	return scheme, hosts, u, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}
