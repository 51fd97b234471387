package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/api/client"
	"medianest/store/storetest"
)

// The whole platform from nothing: it starts, takes a URL, shows every step on the event stream, leaves a whole file,
// stops, goes on with what it had, and survives being killed.
func TestUp(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	site, siteURL, allow := sampleSite(t)
	h := newHome(t)
	up := startUp(t, h, allow)
	c := up.client()

	// The token is in a file for its owner, and nowhere else.
	info, err := os.Stat(filepath.Join(h.data(), adminTokenFile))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	require.Contains(t, up.stdout.String(), filepath.Join(h.data(), adminTokenFile))

	t.Run("PeopleSignIn", func(t *testing.T) { //nolint:paralleltest // the test goes on with what is there
		keys, err := os.Stat(filepath.Join(h.data(), secretKeysFile))
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), keys.Mode().Perm())
		code, err := readToken(filepath.Join(h.data(), setupCodeFile))
		require.NoError(t, err)
		require.NotContains(t, up.stdout.String()+up.stderr.String(), code)
		require.Contains(t, up.stdout.String(), "/invitation, with the code in ")
		answer, err := c.RedeemInvitationWithResponse(t.Context(), client.InvitationRequest{Code: code, Password: "correct horse battery"})
		require.NoError(t, err)
		require.NotNil(t, answer.JSON200, "%s", answer.Body)

		tool := []string{"MEDIANEST_SERVER=" + up.url, "MEDIANEST_TOKEN=" + h.token(t)}
		exit, stdout, stderr := invoke(t, tool, "user", "invite", "anna", "--role", "viewer")
		require.Zero(t, exit, stderr)
		require.Contains(t, stdout, up.url+"/invitation?code=mni_")
		exit, stdout, stderr = invoke(t, tool, "user", "list")
		require.Zero(t, exit, stderr)
		require.Regexp(t, `(?m)^admin +admin +by password`, stdout)
		require.Regexp(t, `(?m)^anna +viewer +by token only`, stdout)
		exit, stdout, stderr = invoke(t, tool, "token", "create", "hers", "--user", "anna", "--expires", "1h")
		require.Zero(t, exit, stderr)
		annas := []string{"MEDIANEST_SERVER=" + up.url, "MEDIANEST_TOKEN=" + strings.TrimSpace(stdout)}
		exit, _, stderr = invoke(t, annas, "user", "list")
		require.Equal(t, exitFailure, exit)
		require.Contains(t, stderr, "does not have the scope users:read")
		exit, stdout, _ = invoke(t, annas, "token", "list")
		require.Zero(t, exit)
		id := regexp.MustCompile(`[0-9a-f-]{36}`).FindString(stdout)
		exit, stdout, stderr = invoke(t, annas, "token", "rotate", id)
		require.Zero(t, exit, stderr)
		require.Contains(t, stderr, id+" is revoked")
		require.True(t, strings.HasPrefix(stdout, "mn_"))
		exit, _, stderr = invoke(t, annas, "token", "list")
		require.Equal(t, exitFailure, exit)
		require.Contains(t, stderr, "does not accept the token")
		for _, wrong := range [][]string{{"user"}, {"user", "erase", "anna"}, {"user", "dance", "anna"}, {"user", "change", "anna"}, {"token", "create"}, {"token", "revoke", "x"}} {
			exit, _, _ = invoke(t, tool, wrong...)
			require.Equal(t, exitUsage, exit, wrong)
		}
		exit, _, stderr = invoke(t, tool, "user", "disable", "admin")
		require.Equal(t, exitFailure, exit)
		require.Contains(t, stderr, "no admin")
		exit, stdout, stderr = invoke(t, tool, "user", "erase", "anna", "--yes")
		require.Zero(t, exit, stderr)
		require.Contains(t, stdout, "anna is erased")
	})

	events := follow(t, c)
	d := ask(t, c, siteURL+"/plain.mp4")
	d = awaitState(t, c, d, stateCompleted)
	require.Equal(t, []string{">queued", "queued>running", "running>completed"}, events.ofDownload(d.ID.String(), stateCompleted))
	require.Equal(t, []string{">pending", "pending>available", "available>running", "running>completed"}, events.ofJob(*d.JobID, stateCompleted))
	want, err := site.SHA256("plain.mp4")
	require.NoError(t, err)
	requireFile(t, h, d, want)

	t.Run("SecondOnTheSameData", func(t *testing.T) { //nolint:paralleltest // it needs the first one running
		second := startChild(t, h.env(), "up")
		require.Equal(t, exitUsage, second.exit())
		require.Contains(t, second.stderr.String(), "process "+strconv.Itoa(up.command.Process.Pid)+") is running on the data directory")
	})
	t.Run("HealthcheckOverTheAdminListener", func(t *testing.T) { //nolint:paralleltest // the same
		_, port, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimSuffix(up.await(up.stdout, "metrics"), "/metrics"), "http://"))
		require.NoError(t, err)
		code, _, stderr := invoke(t, []string{"MEDIANEST_ADMIN_LISTEN=127.0.0.1:" + port}, "healthcheck")
		require.Zero(t, code, stderr)
		for path, text := range map[string]string{"/metrics": "medianest_build_info{", "/livez": `"ok"`, "/readyz": `"yt-dlp"`} {
			require.Contains(t, get(t, "http://127.0.0.1:"+port+path), text)
		}
		require.Contains(t, get(t, "http://127.0.0.1:"+port+"/metrics"), `medianest_jobs_total{kind="download",outcome="completed",reason=""} 1`)
	})

	t.Run("DownloadCommand", func(t *testing.T) { //nolint:paralleltest // the same
		ok := up.download(siteURL + "/gallery")
		require.Equal(t, exitOK, ok.exit(), ok.stderr)
		require.Equal(t, 6, strings.Count(ok.stdout.String(), "completed  "), "five films and the page:\n%s", ok.stdout)
		require.Contains(t, ok.stdout.String(), "5 completed\n")
		require.Empty(t, ok.stderr.String())

		bad := up.download("--json", siteURL+"/404", siteURL+"/items/1.mp4", "file:///etc/passwd", "--", "-rf")
		require.Equal(t, exitFailure, bad.exit())
		require.Contains(t, bad.stdout.String(), `"failure":{"reason":"not_found"`)
		require.Contains(t, bad.stdout.String(), `"state":"completed"`)
		require.Contains(t, bad.stderr.String(), "file:///etc/passwd: ")
		require.Contains(t, bad.stderr.String(), "-rf: ")
		require.True(t, strings.HasSuffix(bad.stdout.String(), `{"event":"summary","completed":1,"failed":3,"cancelled":0,"running":0}`+"\n"), bad.stdout)
		for line := range strings.Lines(bad.stdout.String()) {
			require.True(t, json.Valid([]byte(line)), line)
		}

		detached := up.download("--detach", "--idempotency-key", "k", siteURL+"/items/2.mp4")
		require.Equal(t, exitOK, detached.exit())
		require.Contains(t, detached.stdout.String(), "accepted as ")
		interrupted := up.download(siteURL + "/slow.mp4?rate=10000")
		interrupted.await(interrupted.stdout, "running    ")
		interrupted.signal(syscall.SIGINT)
		require.Equal(t, exitInterrupted, interrupted.exit())
		require.Contains(t, interrupted.stderr.String(), "1 download goes on")
		slow := ask(t, c, siteURL+"/slow.mp4?rate=10000") // the same one
		require.Equal(t, stateRunning, string(slow.State))
		cancelDownload(t, c, slow)
	})
	t.Run("DownloadCommandSaysWhatIsWrong", func(t *testing.T) { //nolint:paralleltest // the same
		for name, test := range map[string]struct{ server, token, want string }{
			"NobodyThere": {"http://127.0.0.1:1", "x", "no platform answers at http://127.0.0.1:1"},
			"WrongToken":  {up.url, "x", "does not accept the token from MEDIANEST_TOKEN"},
			"NotUs":       {siteURL, "x", "is not MediaNest"},
		} {
			code, _, stderr := invoke(t, []string{"MEDIANEST_SERVER=" + test.server, "MEDIANEST_TOKEN=" + test.token}, "download", siteURL)
			require.Equal(t, exitFailure, code, name)
			require.Contains(t, stderr, test.want, name)
		}
	})
	t.Run("RiverUIForAdmins", func(t *testing.T) { //nolint:paralleltest // the same
		require.Contains(t, get(t, up.url+"/river/api/jobs?limit=1", "Authorization", "Bearer "+h.token(t)), `"kind":"download"`)
		require.Contains(t, get(t, up.url+"/river/api/states", "Authorization", "Bearer "+h.token(t)), `"completed"`)
		require.Contains(t, get(t, up.url+"/river/api/jobs"), "unauthenticated")
	})
	t.Run("LimitsThatItBeginsWith", func(t *testing.T) { //nolint:paralleltest // the same
		answer, err := c.ListLimitsWithResponse(t.Context(), &client.ListLimitsParams{})
		require.NoError(t, err)
		var keys []string
		for _, l := range answer.JSON200.Items {
			keys = append(keys, l.Key)
		}
		require.Equal(t, []string{"host:youtube.com", "kind:download", "user:*"}, keys)

		// None may begin: what is asked for waits and says why, until one may.
		none, some := int64(0), int64(2)
		set := func(n *int64) {
			answer, err := c.SetLimitWithResponse(t.Context(), "user:*", client.LimitRequest{MaxRunning: n})
			require.NoError(t, err)
			require.NotNil(t, answer.JSON200, "%s", answer.Body)
		}
		set(&none)
		waits := ask(t, c, siteURL+"/items/3.mp4")
		waits = awaitState(t, c, waits, stateWaiting)
		require.Equal(t, client.WaitingReason("limit"), waits.Waiting.Reason)
		require.True(t, strings.HasPrefix(*waits.Waiting.Key, "user:"))
		set(&some)
		awaitState(t, c, waits, stateCompleted)
	})

	t.Logf("resident memory after all that: %d KiB", residentKiB(t, up.command.Process.Pid))
	up.stop()
	require.NotContains(t, up.stdout.String()+up.stderr.String(), h.token(t))
	require.Empty(t, processesBelow(t, h.dir), "nothing is left running")
	for entry := range strings.Lines(up.stderr.String()) {
		require.NotContains(t, entry, "level=ERROR")
	}

	// What was there is there again, and the cluster is not made anew.
	begin := time.Now()
	again := startUp(t, h, allow)
	t.Logf("second start took %s, resident memory %d KiB", time.Since(begin).Round(time.Millisecond), residentKiB(t, again.command.Process.Pid))
	c = again.client()
	answer, err := c.ListDownloadsWithResponse(t.Context(), &client.ListDownloadsParams{})
	require.NoError(t, err)
	items := answer.JSON200.Items
	require.Equal(t, d.ID, items[len(items)-1].ID, "newest first")

	// Killed in the middle of a download, it takes it up again at the next start.
	running := ask(t, c, siteURL+"/slow.mp4?rate=20000")
	awaitState(t, c, running, stateRunning)
	again.kill()
	require.Eventually(t, func() bool { return len(processesBelow(t, h.dir)) == 0 }, patience, 50*time.Millisecond,
		"the children of a killed process end: %v", processesBelow(t, h.dir))
	third := startUp(t, h, allow)
	c = third.client()
	third.await(third.stderr, `msg="worker lost"`)
	third.await(third.stderr, `msg="job started" job_id=`+*running.JobID+" kind=download queue=download attempt=1 row_id=")
	cancelDownload(t, c, running)
	d = awaitState(t, c, ask(t, c, siteURL+"/items/1.mp4"), stateCompleted)
	want, err = site.SHA256("item-1.mp4")
	require.NoError(t, err)
	requireFile(t, h, d, want)
	third.stop()
}

// When the embedded Postgres dies it is started again, and work goes on.
func TestUpSurvivesItsPostgres(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	_, siteURL, allow := sampleSite(t)
	h := newHome(t)
	up := startUp(t, h, allow)
	c := up.client()
	running := ask(t, c, siteURL+"/slow.mp4?rate=120000")
	awaitState(t, c, running, stateRunning)

	content, err := os.ReadFile(filepath.Join(h.data(), "postgres", "postmaster.pid"))
	require.NoError(t, err)
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(first)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	up.await(up.stderr, "postgres started again")

	awaitState(t, c, running, stateCompleted)
	awaitState(t, c, ask(t, c, siteURL+"/items/2.mp4"), stateCompleted)
	up.stop()
}

// Behind a reverse proxy that shares its host, everything is below one path; without an admin listener the probe asks
// the API. Here the database is somebody's server, which starts empty.
func TestUpBelowABasePath(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	up := startUp(t, newHome(t), "MEDIANEST_BASE_PATH=/media", "MEDIANEST_ADMIN_LISTEN=off", "MEDIANEST_DATABASE_URL="+storetest.EmptyDB(t))
	require.True(t, strings.HasSuffix(up.url, "/media"), up.url)
	code, _, stderr := invoke(t, []string{"MEDIANEST_ADMIN_LISTEN=off", "MEDIANEST_BASE_PATH=/media", "MEDIANEST_LISTEN=" + strings.TrimSuffix(strings.TrimPrefix(up.url, "http://"), "/media")}, "healthcheck")
	require.Zero(t, code, stderr)
	answer, err := up.client().ListDownloadsWithResponse(t.Context(), &client.ListDownloadsParams{})
	require.NoError(t, err)
	require.Empty(t, answer.JSON200.Items)
	require.Contains(t, get(t, up.url+"/river/api/jobs?limit=1", "Authorization", "Bearer "+up.home.token(t)), `"data"`)
	up.stop()
	code, _, stderr = invoke(t, []string{"MEDIANEST_ADMIN_LISTEN=127.0.0.1:1"}, "healthcheck")
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr, "not answering")
}

// A start that cannot succeed says why, names the setting, and leaves nothing behind.
func TestUpRefusesToStart(t *testing.T) {
	t.Parallel()
	takeTurn(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = taken.Close() })
	address := taken.Addr().String()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, test := range map[string]struct{ env, want string }{
		"PortInUse":      {"MEDIANEST_LISTEN=" + address, "MEDIANEST_LISTEN: " + address + " is in use by another program"},
		"AdminPortInUse": {"MEDIANEST_ADMIN_LISTEN=" + address, "MEDIANEST_ADMIN_LISTEN: " + address + " is in use by another program"},
		"DataIsAFile":    {"MEDIANEST_DATA_DIR=" + file, "MEDIANEST_DATA_DIR: "},
		"MediaIsAFile":   {"MEDIANEST_MEDIA_DIR=" + file, "MEDIANEST_MEDIA_DIR: "},
		"NoYTDLP":        {"MEDIANEST_YTDLP=/nowhere/yt-dlp", "MEDIANEST_YTDLP"},
		"NoPostgres":     {"MEDIANEST_POSTGRES_BIN=/nowhere", "MEDIANEST_POSTGRES_BIN"},
		"Typo":           {"MEDIANEST_EGRES_ALLOW=10.0.0.0/8", "did you mean MEDIANEST_EGRESS_ALLOW?"},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // they share the turn
			h := newHome(t)
			up := startChild(t, h.env(test.env), "up")
			require.NotEqual(t, exitOK, up.exit())
			require.Contains(t, up.stderr.String(), test.want)
			require.Empty(t, processesBelow(t, h.dir))
		})
	}
}

// requireFile checks that what was downloaded is in the library, whole, and nothing half-written beside it.
func requireFile(t *testing.T, h home, d client.Download, sum string) {
	t.Helper()
	require.Len(t, d.Files, 1)
	content, err := os.ReadFile(filepath.Join(h.media(), filepath.FromSlash(d.Files[0].Path)))
	require.NoError(t, err)
	actual := sha256.Sum256(content)
	require.Equal(t, sum, hex.EncodeToString(actual[:]))
	require.Equal(t, sum, d.Files[0].Sha256)
	require.EqualValues(t, len(content), d.Files[0].SizeBytes)
}

// get returns what is at a URL, whatever the status; header is a name and a value.
func get(t testing.TB, url string, header ...string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	if len(header) == 2 {
		request.Header.Set(header[0], header[1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close() //nolint:errcheck // read only
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(content)
}

func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	require.NoError(t, err)
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	require.NoError(t, err)
	return kib
}

// stream is what was heard on an event stream.
type heard struct {
	t      *testing.T
	output *output // one line a change, so that it can be waited for
}

// follow listens to everything until the test ends.
func follow(t *testing.T, c *client.ClientWithResponses) *heard {
	t.Helper()
	h := &heard{t: t, output: newOutput()}
	ctx, cancel := context.WithCancel(t.Context())
	connected, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for event, err := range client.Events(ctx, c, client.EventsOptions{}) {
			if err != nil {
				return
			}
			switch event.Type {
			case client.EventOpen: // what happens from here on is told
				close(connected)
			case client.EventDownloadState:
				var data client.DownloadStateEvent
				if event.Decode(&data) == nil {
					_, _ = h.output.Write([]byte("download " + data.DownloadID.String() + " " + data.PreviousState + ">" + data.State + "\n"))
				}
			case client.EventJobState:
				var data client.JobStateEvent
				if event.Decode(&data) == nil {
					_, _ = h.output.Write([]byte("job " + data.JobID + " " + data.PreviousState + ">" + data.State + "\n"))
				}
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	<-connected
	return h
}

func (h *heard) ofDownload(id string, until ...string) []string {
	return h.of("download "+id+" ", until)
}
func (h *heard) ofJob(id string, until ...string) []string { return h.of("job "+id+" ", until) }

// handedBack are the changes by which a job leaves its worker and waits for another: by the time that it is told, it may have
// been admitted again.
const handedBack = "running>pending|running>available"

// of returns the changes of one thing, in order, once it has been heard to go through some changes, or to some states, one
// after the other. Alternatives are separated by "|".
func (h *heard) of(prefix string, until []string) (changes []string) {
	h.t.Helper()
	require.Eventually(h.t, func() bool {
		changes = nil
		for line := range strings.Lines(h.output.String()) {
			if change, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
				changes = append(changes, change)
			}
		}
		at := 0
		for _, change := range changes {
			if at < len(until) && slices.ContainsFunc(strings.Split(until[at], "|"), func(is string) bool {
				return change == is || strings.HasSuffix(change, ">"+is)
			}) {
				at++
			}
		}
		return at == len(until)
	}, patience, 20*time.Millisecond, "%s never was heard to be %s", prefix, until)
	return changes
}
