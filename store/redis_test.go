package store_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"medianest/store"
	"medianest/store/internal/deathwatch"
	"medianest/store/storetest"
)

func TestRedisURL(t *testing.T) {
	t.Parallel()
	open := func(url string) redis.UniversalClient {
		t.Helper()
		client, err := store.OpenRedis(url)
		require.NoError(t, err, url)
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		return client
	}

	one := open("redis://ada:s3cret@redis.example:6380/2?pool_size=7").(*redis.Client).Options()
	require.Equal(t, "redis.example:6380", one.Addr)
	require.Equal(t, "ada", one.Username)
	require.Equal(t, "s3cret", one.Password)
	require.Equal(t, 2, one.DB)
	require.Equal(t, 7, one.PoolSize)
	require.Nil(t, one.TLSConfig)
	require.Equal(t, time.Second, one.ReadTimeout)

	require.Equal(t, "localhost:6379", open("redis://localhost").(*redis.Client).Options().Addr)
	require.NotNil(t, open("rediss://redis.example").(*redis.Client).Options().TLSConfig)
	require.Equal(t, "/run/redis.sock", open("unix:///run/redis.sock").(*redis.Client).Options().Addr)
	require.Equal(t, 3*time.Second, open("redis://localhost?read_timeout=3s").(*redis.Client).Options().ReadTimeout)

	cluster := open("redis://:s3cret@a:7000,b:7001,[::1]:7002?read_timeout=2s").(*redis.ClusterClient).Options()
	require.Equal(t, []string{"a:7000", "b:7001", "[::1]:7002"}, cluster.Addrs)
	require.Equal(t, "s3cret", cluster.Password)
	require.Equal(t, 2*time.Second, cluster.ReadTimeout)
	require.Equal(t, []string{"a:7000"}, open("redis://a:7000?cluster=true").(*redis.ClusterClient).Options().Addrs)
	require.IsType(t, &redis.Client{}, open("redis://a:7000?cluster=false"))

	sentinel := open("redis+sentinel://ada:s3cret@a:26379,b:26380/primary/3?password=pw&username=eve").(*redis.Client).Options()
	require.Equal(t, "FailoverClient", sentinel.Addr)
	require.Equal(t, 3, sentinel.DB)
	require.Equal(t, "pw", sentinel.Password)
	require.Equal(t, "eve", sentinel.Username)
	require.NotNil(t, open("rediss+sentinel://a/primary").(*redis.Client).Options().TLSConfig)

	for _, url := range []string{
		"", "localhost:6379", "http://s3cret@localhost", "redis://", "redis://a:s3cret@", "redis://s3cret@a:port", "redis://a,,b", "redis://,a",
		"redis+sentinel://a:26379", "redis+sentinel://a/primary/s3cret", "redis://a/s3cret", "redis://s3cret@a?unknown=1", "redis://s3cret@a b",
	} {
		_, err := store.OpenRedis(url)
		require.Error(t, err, "%q", url)
		require.NotContains(t, err.Error(), "s3cret")
	}
}

// redisServer starts redis-server with the arguments on a port of its own.
func redisServer(t *testing.T, arguments ...string) (address string) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	require.NoError(t, err, "Debian, Ubuntu: apt-get install redis-server")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address = listener.Addr().String()
	require.NoError(t, listener.Close())
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(context.Background())
	command := exec.CommandContext(ctx, path, append(arguments, "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--daemonize", "no", "--loglevel", "warning")...)
	require.NoError(t, command.Start())
	watch, err := deathwatch.Start(`kill -s KILL "$1"`, strconv.Itoa(command.Process.Pid)) // if the test binary dies first
	t.Cleanup(func() {
		cancel()
		_ = command.Wait() // killed
		if watch != nil {
			require.NoError(t, watch.Cancel())
		}
	})
	require.NoError(t, err)
	client := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1})
	defer client.Close() //nolint:errcheck // of a client for a moment
	require.Eventually(t, func() bool { return client.Ping(t.Context()).Err() == nil }, 20*time.Second, 10*time.Millisecond)
	return address
}

func TestProgressOverACluster(t *testing.T) {
	t.Parallel()
	// Three nodes that share the slots, so that two jobs' keys are on different ones.
	var addresses []string
	for i := range 3 {
		addresses = append(addresses, redisServer(t, "--save", "", "--cluster-enabled", "yes", "--cluster-config-file", fmt.Sprintf("nodes-%d.conf", i)))
	}
	node := func(i int) *redis.Client {
		client := redis.NewClient(&redis.Options{Addr: addresses[i]})
		t.Cleanup(func() { require.NoError(t, client.Close()) })
		return client
	}
	ctx := t.Context()
	for i, slots := range [][2]int{{0, 5460}, {5461, 10922}, {10923, 16383}} {
		require.NoError(t, node(i).ClusterAddSlotsRange(ctx, slots[0], slots[1]).Err())
		host, port, err := net.SplitHostPort(addresses[i])
		require.NoError(t, err)
		require.NoError(t, node(0).ClusterMeet(ctx, host, port).Err())
	}
	for i := range addresses {
		client := node(i)
		require.Eventually(t, func() bool {
			info, err := client.ClusterInfo(ctx).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		}, 30*time.Second, 20*time.Millisecond)
	}
	checkProgress(t, "redis://"+strings.Join(addresses, ","))
}

func TestProgressThroughSentinel(t *testing.T) {
	t.Parallel()
	primary := redisServer(t, "--save", "")
	host, port, err := net.SplitHostPort(primary)
	require.NoError(t, err)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	require.NoError(t, os.WriteFile(conf, []byte("sentinel monitor primary "+host+" "+port+" 1\n"), 0o600))
	checkProgress(t, "redis+sentinel://"+redisServer(t, conf, "--sentinel")+"/primary")
}

func TestProgressOverMiniredis(t *testing.T) {
	t.Parallel()
	checkProgress(t, storetest.Redis(t))
}

func checkProgress(t *testing.T, url string) {
	t.Helper()
	client, err := store.OpenRedis(url)
	require.NoError(t, err)
	defer client.Close() //nolint:errcheck // nothing is under way
	bus := store.NewProgressBus(client, discard())
	received := subscribe(t, bus)
	report := func(id int64) store.Progress {
		return store.Progress{JobID: id, Phase: "downloading", Percent: float64(id), DownloadedBytes: 1 << 40, TotalBytes: 1 << 41, SpeedBytesPerS: 5, ETAS: 7, At: time.Now().UTC().Truncate(time.Millisecond)}
	}
	// The subscription takes its time; reports of before are nobody's.
	await(t, received, func() error { return bus.Publish(t.Context(), report(99)) })

	want := make(map[int64]store.Progress)
	var ids []int64
	for id := int64(1); id <= 5; id++ {
		want[id] = report(id)
		ids = append(ids, id)
		require.NoError(t, bus.Publish(t.Context(), want[id]))
		for got := range received {
			if got.JobID == id {
				require.Equal(t, want[id], got)
				break
			}
		}
	}
	last, err := bus.Last(t.Context(), append(ids, 1000))
	require.NoError(t, err)
	require.Equal(t, want, last)

	require.NoError(t, bus.Clear(t.Context(), 3))
	last, err = bus.Last(t.Context(), []int64{3, 4})
	require.NoError(t, err)
	require.Equal(t, map[int64]store.Progress{4: want[4]}, last)
	last, err = bus.Last(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, last)
	ttl, err := client.TTL(t.Context(), "medianest:progress:4").Result()
	require.NoError(t, err)
	require.Greater(t, ttl, 50*time.Minute)
	require.LessOrEqual(t, ttl, time.Hour)
}
