package stream_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"medianest/api/stream"
	"medianest/store"
)

// The readers of a benchmark run in a process of their own, the test binary again, so that what is measured of this one is
// the server's: memory, and descriptors.
const readersArgument = "readers"

func isReaders() bool { return len(os.Args) == 5 && os.Args[1] == readersArgument }

// latencies is what the readers report, in milliseconds from the moment the change was made, a little before its commit,
// to its arrival.
type latencies struct {
	Messages                 int
	P50, P90, P99, P999, Max float64
}

// runReaders opens streams to os.Args[2], one for each line of standard input, which is its query. It prints a line when
// all are open, and another when os.Args[3] messages have come in all, or as many seconds as os.Args[4] are over.
func runReaders() int {
	if err := readAll(os.Args[2], os.Args[3], os.Args[4], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func readAll(server, wanted, seconds string, in io.Reader, out io.Writer) error {
	u, err := url.Parse(server)
	if err != nil {
		return err
	}
	want, err := strconv.Atoi(wanted)
	if err != nil {
		return err
	}
	patience, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(patience)*time.Second)
	defer cancel()

	arrivals := make(chan time.Duration, 1<<16)
	var opened, ended sync.WaitGroup
	slots := make(chan struct{}, 64) // connections being opened at a time
	queries := bufio.NewScanner(in)
	for queries.Scan() {
		query := queries.Text()
		opened.Add(1)
		ended.Go(func() {
			slots <- struct{}{}
			err := readRaw(ctx, u.Host, query, func() { <-slots; opened.Done() }, arrivals)
			if err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, err)
			}
		})
	}
	opened.Wait()
	fmt.Fprintln(out, "open")
	var all []time.Duration
	for len(all) < want && ctx.Err() == nil {
		select {
		case d := <-arrivals:
			all = append(all, d)
		case <-ctx.Done():
		}
	}
	cancel()
	go func() {
		ended.Wait()
		close(arrivals)
	}()
	for range arrivals {
	}
	slices.Sort(all)
	at := func(q float64) float64 {
		if len(all) == 0 {
			return math.NaN()
		}
		return float64(all[min(len(all)-1, int(q*float64(len(all))))].Microseconds()) / 1000
	}
	return json.NewEncoder(out).Encode(latencies{
		Messages: len(all), P50: at(.5), P90: at(.9), P99: at(.99), P999: at(.999), Max: at(1),
	})
}

// readRaw reads a stream with as little as possible in the way.
func readRaw(ctx context.Context, host, query string, opened func(), arrivals chan<- time.Duration) error {
	opened = sync.OnceFunc(opened)
	defer opened()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", host)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\nUser-Agent: bench\r\nAuthorization: Bearer %s\r\n\r\n",
		query, host, strings.Repeat("x", 43)); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(conn, 2<<10)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, "event: open") {
			opened()
		}
		_, rest, ok := strings.Cut(line, `"at":"`)
		if !ok {
			continue
		}
		text, _, _ := strings.Cut(rest, `"`)
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return err
		}
		arrivals <- time.Since(at)
	}
}

// BenchmarkReaders measures what a stream costs and how long a change takes to its readers, with the intervals of
// production. "own": each reader is a user with a download, and changes go to one reader each, 200 a second. "replica"
// is the same on a process that no bell rings for. "all": every change goes to every reader, one a second.
func BenchmarkReaders(b *testing.B) {
	for _, mode := range []string{"own", "replica", "all"} {
		for _, n := range []int{1000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", mode, n), func(b *testing.B) { benchmarkReaders(b, mode, n) })
		}
	}
}

func benchmarkReaders(b *testing.B, mode string, readers int) {
	const (
		seconds = 5
		perOwn  = 200 // changes a second
		perAll  = 1
	)
	for range b.N {
		p := setup(b)
		h := p.hub(func(o *stream.Options) { o.PollInterval, o.ProgressInterval = 0, 0 })
		outbox := store.OutboxOptions{Store: p.store(store.RoleWorker), Logger: quiet(), Holder: "bench", OnTick: h.Ring}
		if mode == "replica" {
			outbox.OnTick = nil
		}
		p.background(store.NewOutbox(outbox).Run)

		users, queries := make([]uuid.UUID, readers), new(strings.Builder)
		for i := range users {
			users[i] = uuid.Must(uuid.NewV7())
			query := "?topic=job.state"
			if mode != "all" {
				query += "&user=" + users[i].String()
			}
			fmt.Fprintln(queries, query)
		}
		jobs := p.jobs(readers)
		p.exec(`INSERT INTO medianest.users (id, name, role) SELECT u, u::text, 'member' FROM unnest($1::uuid[]) AS u`, users)
		p.exec(`
			INSERT INTO medianest.job_viewer (job_id, user_id, download_id)
			SELECT j, u, gen_random_uuid() FROM unnest($1::bigint[], $2::uuid[]) AS n (j, u)`, jobs, users)
		p.exec(`ANALYZE`)
		p.settle()

		messages := seconds * perOwn
		if mode == "all" {
			messages = seconds * perAll * readers
		}
		before := memory()
		command := exec.Command(os.Args[0], readersArgument, h.server.URL, strconv.Itoa(messages), "120")
		command.Stdin, command.Stderr = strings.NewReader(queries.String()), os.Stderr
		output, err := command.StdoutPipe()
		require.NoError(b, err)
		require.NoError(b, command.Start())
		lines := bufio.NewReader(output)
		line, err := lines.ReadString('\n')
		require.NoError(b, err)
		require.Equal(b, "open\n", line)
		require.InDelta(b, readers, h.metric("medianest_stream_subscribers"), 0)
		after := memory()

		every := time.Second / perOwn
		changes := seconds * perOwn
		if mode == "all" {
			every, changes = time.Second/perAll, seconds*perAll
		}
		pace := time.NewTicker(every)
		for i := range changes {
			<-pace.C
			p.exec(`UPDATE river.river_job SET state = CASE state WHEN 'available' THEN 'running' ELSE 'available' END::river.river_job_state WHERE id = $1`,
				jobs[(i*7919)%len(jobs)])
		}
		pace.Stop()
		var result latencies
		require.NoError(b, json.NewDecoder(lines).Decode(&result))
		require.NoError(b, command.Wait())
		require.Equal(b, messages, result.Messages)

		per := func(after, before uint64) float64 { return (float64(after) - float64(before)) / float64(readers) }
		b.ReportMetric(per(after.inUse, before.inUse), "go-B/conn")
		b.ReportMetric(per(after.resident, before.resident), "rss-B/conn")
		b.ReportMetric(result.P50, "p50-ms")
		b.ReportMetric(result.P90, "p90-ms")
		b.ReportMetric(result.P99, "p99-ms")
		b.ReportMetric(result.P999, "p999-ms")
		b.ReportMetric(result.Max, "max-ms")
		b.ReportMetric(h.metric("medianest_stream_lagging_total"), "lagged")
	}
}

// used is what this process uses of memory, in bytes.
type used struct {
	inUse    uint64 // by Go: heap and stacks
	resident uint64 // by the kernel's account
}

func memory() used {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	resident, err := residentBytes()
	if err != nil {
		resident = 0
	}
	return used{inUse: m.HeapAlloc + m.StackInuse, resident: resident}
}

var errNoResident = errors.New("no VmRSS")

func residentBytes() (uint64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(status), "VmRSS:")
	if !ok {
		return 0, errNoResident
	}
	kilobytes, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.ParseUint(kilobytes, 10, 64)
	return n << 10, err
}
