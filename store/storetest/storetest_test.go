package storetest_test

import (
	"context"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"medianest/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

func TestDBIsMigratedForEveryRole(t *testing.T) {
	t.Parallel()
	url := storetest.DB(t)
	for _, role := range []string{"", "api", "worker", "river"} {
		pool := storetest.OpenPool(t, url, role)
		var n int
		require.NoError(t, pool.QueryRow(context.Background(), `SELECT count(*) FROM river.river_job`).Scan(&n))
	}
}

func TestDatabasesAreApart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	one, other := storetest.Pool(t, ""), storetest.Pool(t, "")
	_, err := one.Exec(ctx, `CREATE TABLE mine (n int)`)
	require.NoError(t, err)
	_, err = other.Exec(ctx, `SELECT n FROM mine`)
	require.ErrorContains(t, err, "does not exist")
	require.NoError(t, storetest.New(t).Ping(ctx))
}

func TestOwnServerComesBackWithItsData(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	own := storetest.OwnServer(t, false)
	pool := storetest.OpenPool(t, own.URL(), "")
	_, err := pool.Exec(ctx, `CREATE TABLE kept AS SELECT 42 AS n`)
	require.NoError(t, err)

	for _, end := range []func(){own.Kill, own.Stop} {
		end()
		require.Eventually(t, func() bool { return pool.Ping(ctx) != nil }, 10*time.Second, 10*time.Millisecond)
		own.Start()
		var n int
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			require.NoError(c, pool.QueryRow(ctx, `SELECT n FROM kept`).Scan(&n))
		}, 10*time.Second, 10*time.Millisecond)
		require.Equal(t, 42, n)
	}
}

func TestRedisExpires(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	client := redisClient(t, storetest.Redis(t))
	require.NoError(t, client.Set(ctx, "k", "v", 20*time.Millisecond).Err())
	require.Eventually(t, func() bool { return client.Exists(ctx, "k").Val() == 0 }, 5*time.Second, 5*time.Millisecond)
}

func TestRealRedisStopsAndComesBackOnItsPort(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := storetest.RealRedis(t)
	client := redisClient(t, server.URL())
	require.NoError(t, client.Set(ctx, "k", "v", 0).Err())

	pid := server.PID()
	server.Stop()
	require.Zero(t, server.PID())
	_, err := net.Dial("tcp", client.Options().Addr)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)

	server.Start()
	require.NotEqual(t, pid, server.PID())
	require.Equal(t, int64(0), client.Exists(ctx, "k").Val(), "an outage loses what was in memory")
}

func redisClient(t *testing.T, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}
