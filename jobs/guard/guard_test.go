package guard

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// beWorker in the environment makes this test binary a worker: it runs its arguments as a program under a guard, beats
// without end, and writes the program's error into the file that beWorker names.
const beWorker = "TEST_BINARY_IS_WORKER"

const (
	testLifetime = time.Second
	guardName    = name // tests have names of their own
)

func TestMain(m *testing.M) {
	Main()
	if file := os.Getenv(beWorker); file != "" {
		keeper := New(Options{Lifetime: testLifetime})
		go func() {
			for range time.Tick(testLifetime / 10) {
				keeper.Beat()
			}
		}()
		_, err := keeper.Run(context.Background(), Command{
			Path: os.Args[1], Args: os.Args[2:], Dir: filepath.Dir(file), Env: []string{"HOME=" + filepath.Dir(file), "PATH=" + os.Getenv("PATH")},
			Grace: time.Second,
		})
		text := "none"
		if err != nil {
			text = err.Error()
		}
		_ = os.WriteFile(file+".new", []byte(text), 0o600)
		_ = os.Rename(file+".new", file)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

const patience = 30 * time.Second // the machine may be busy

// members are the processes that have dir as their home, by their first argument: those of one test.
func members(t *testing.T, dir string) map[int]string {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	out := map[int]string{}
	for _, path := range environments {
		content, err := os.ReadFile(path)
		if err != nil || !strings.Contains("\x00"+string(content), "\x00HOME="+dir+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		require.NoError(t, err)
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		first, _, _ := strings.Cut(string(line), "\x00")
		out[pid] = first
	}
	return out
}

func command(dir, script string) Command {
	return Command{
		Path: "/bin/sh", Args: []string{"-c", script}, Dir: dir, Env: []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")},
		Grace: 300 * time.Millisecond,
	}
}

func requireFile(t *testing.T, path string) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := os.Stat(path)
		return err == nil
	}, patience, time.Millisecond)
}

func TestExitIsTheProgramsOwn(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]Exit{
		"exit 0":                      {},
		"exit 7":                      {Code: 7},
		"kill -KILL $$":               {Code: -1, Signal: syscall.SIGKILL},
		"kill -TERM $$":               {Code: -1, Signal: syscall.SIGTERM},
		"sleep 100 & exit 3":          {Code: 3},
		"trap '' INT; exec sh -c ':'": {},
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			exit, err := New(Options{}).Run(t.Context(), command(dir, script))
			require.NoError(t, err)
			require.Equal(t, want, exit)
			require.Empty(t, members(t, dir))
		})
	}
}

func TestProgramGetsWhatItIsGiven(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	c := command(t.TempDir(), `pwd; env | sort | grep -v '^PWD=\|^SHLVL=\|^_='; cat; [ -e /proc/$$/fd/3 ] || [ -e /proc/$$/fd/4 ] || echo closed; echo no >&2`)
	c.Stdout, c.Stderr = &out, &errs
	_, err := New(Options{}).Run(t.Context(), c)
	require.NoError(t, err)
	require.Equal(t, c.Dir+"\nHOME="+c.Dir+"\nPATH="+os.Getenv("PATH")+"\nclosed\n", out.String())
	require.Equal(t, "no\n", errs.String())
}

func TestProgramThatIsNotThere(t *testing.T) {
	t.Parallel()
	c := command(t.TempDir(), "")
	c.Path = filepath.Join(c.Dir, "missing")
	_, err := New(Options{}).Run(t.Context(), c)
	require.ErrorContains(t, err, "no such file or directory")
}

func TestContextEndsTheGroup(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"Obedient":  `sleep 300 & touch ready; wait`,
		"Deaf":      `trap "" INT; sleep 300 & touch ready; while :; do wait; done`,
		"DeafChild": `(trap "" INT TERM; sleep 301 & touch ready; while :; do sleep 302; done) & wait`,
		"Left":      `sleep 300 </dev/null >/dev/null 2>&1 & touch ready; wait`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := New(Options{}).Run(ctx, command(dir, script))
				ended <- err
			}()
			requireFile(t, filepath.Join(dir, "ready"))
			cancel(os.ErrProcessDone)
			require.ErrorIs(t, <-ended, os.ErrProcessDone)
			require.Empty(t, members(t, dir))
		})
	}
}

// A program has time to put away what it has: the guard does not end before it.
func TestInterruptIsForTheProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	c := command(dir, `trap "sleep 0.2; touch put-away; exit 1" INT; touch ready; while :; do sleep 0.01; done`)
	c.Grace = patience
	go func() {
		_, err := New(Options{}).Run(ctx, c)
		ended <- err
	}()
	requireFile(t, filepath.Join(dir, "ready"))
	cancel(os.ErrProcessDone)
	require.ErrorIs(t, <-ended, os.ErrProcessDone)
	require.FileExists(t, filepath.Join(dir, "put-away"))
}

func TestMissedBeats(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keeper := New(Options{Lifetime: testLifetime})
	begun := now()
	ended := make(chan error, 1)
	go func() {
		_, err := keeper.Run(t.Context(), command(dir, `trap "" INT TERM; sleep 300 & touch ready; while :; do wait; done`))
		ended <- err
	}()
	requireFile(t, filepath.Join(dir, "ready"))
	for begun+3*testLifetime > now() {
		keeper.Beat()
		select {
		case err := <-ended:
			require.NoError(t, err, "it was killed although the worker beats")
		case <-time.After(testLifetime / 20):
		}
	}
	last := now()
	require.ErrorIs(t, <-ended, ErrMissedBeats)
	require.GreaterOrEqual(t, now()-last, testLifetime-testLifetime/10)
	require.Empty(t, members(t, dir))

	_, err := keeper.Run(t.Context(), command(dir, "touch started"))
	require.ErrorIs(t, err, ErrMissedBeats)
	require.NoFileExists(t, filepath.Join(dir, "started"))
	keeper.Beat()
	_, err = keeper.Run(t.Context(), command(dir, "exit 0"))
	require.NoError(t, err)
}

// worker starts this binary as a worker whose program has a child, and waits until both write.
func worker(t *testing.T, script string) (dir string, process *exec.Cmd) {
	t.Helper()
	dir = t.TempDir()
	process = exec.CommandContext(context.WithoutCancel(t.Context()), self(), "/bin/sh", "-c", script)
	process.Env = []string{beWorker + "=" + filepath.Join(dir, "error"), "PATH=" + os.Getenv("PATH")}
	process.Stderr = t.Output()
	process.WaitDelay = time.Second
	require.NoError(t, process.Start())
	t.Cleanup(func() {
		_ = process.Process.Signal(syscall.SIGCONT)
		_ = process.Process.Kill()
		_ = process.Wait()
		require.Eventually(t, func() bool { return len(members(t, dir)) == 0 }, patience, 5*time.Millisecond)
	})
	requireFile(t, filepath.Join(dir, "child"))
	requireFile(t, filepath.Join(dir, "parent"))
	return dir, process
}

// busy is a program that takes no notice of signals, with a child that does not either; both write all the time.
const busy = `trap "" INT TERM HUP; (while :; do echo x >>child; sleep 0.01; done) & while :; do echo x >>parent; sleep 0.01; done`

func sizes(t *testing.T, dir string) [2]int64 {
	t.Helper()
	var out [2]int64
	for i, name := range []string{"child", "parent"} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		out[i] = info.Size()
	}
	return out
}

func TestNobodyOutlivesAKilledWorker(t *testing.T) {
	t.Parallel()
	dir, process := worker(t, busy)
	require.NoError(t, process.Process.Kill())
	killed := time.Now()
	require.Eventually(t, func() bool { return len(members(t, dir)) == 0 }, patience, time.Millisecond)
	require.Less(t, time.Since(killed), testLifetime, "not the end of the pipe but the missing beats ended it")
}

func TestNobodyOutlivesAStoppedWorker(t *testing.T) {
	t.Parallel()
	dir, process := worker(t, busy)
	before := sizes(t, dir)
	require.Eventually(t, func() bool { return sizes(t, dir) != before }, patience, time.Millisecond)
	require.NoError(t, process.Process.Signal(syscall.SIGSTOP))
	stopped := time.Now()
	alive := func() bool { // the dead stay for the stopped worker to wait for
		for _, argument := range members(t, dir) {
			if argument != "" {
				return true
			}
		}
		return false
	}
	require.Eventually(t, func() bool { return !alive() }, patience, time.Millisecond)
	t.Logf("all dead %s after the stop, lifetime %s", time.Since(stopped), testLifetime)
	last := sizes(t, dir)
	require.NoFileExists(t, filepath.Join(dir, "error"))

	require.NoError(t, process.Process.Signal(syscall.SIGCONT))
	requireFile(t, filepath.Join(dir, "error"))
	text, err := os.ReadFile(filepath.Join(dir, "error"))
	require.NoError(t, err)
	require.Contains(t, string(text), ErrMissedBeats.Error())
	require.Equal(t, last, sizes(t, dir), "something was written after the end")
}

func TestGuardKilledAlone(t *testing.T) {
	t.Parallel()
	dir, keeper := t.TempDir(), New(Options{})
	type ending struct {
		exit Exit
		err  error
	}
	ended := make(chan ending, 1)
	go func() {
		exit, err := keeper.Run(t.Context(), command(dir, busy))
		ended <- ending{exit, err}
	}()
	requireFile(t, filepath.Join(dir, "child"))
	for pid, argument := range members(t, dir) {
		if argument == name {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	got := <-ended
	require.NoError(t, got.err)
	require.Equal(t, Exit{Code: -1, Signal: syscall.SIGKILL}, got.exit)
	require.Empty(t, members(t, dir))
}

// A guard that stood still with the worker, as in a frozen container, must not take the beats that wait for it for new.
func TestBeatsDoNotKeep(t *testing.T) {
	t.Parallel()
	dir, process := worker(t, busy)
	var guard int
	for pid, argument := range members(t, dir) {
		if argument == name {
			guard = pid
		}
	}
	require.NotZero(t, guard)
	require.NoError(t, syscall.Kill(guard, syscall.SIGSTOP))
	pause := time.NewTimer(testLifetime) // the worker goes on beating into the pipe
	<-pause.C
	require.NoError(t, process.Process.Signal(syscall.SIGSTOP))
	pause.Reset(testLifetime)
	<-pause.C
	require.NoError(t, syscall.Kill(guard, syscall.SIGCONT))
	continued := time.Now()
	require.Eventually(t, func() bool {
		for _, argument := range members(t, dir) {
			if argument != "" {
				return false
			}
		}
		return true
	}, patience, time.Millisecond)
	require.Less(t, time.Since(continued), testLifetime*3/4, "it was given another lifetime")
}

// Beats into a pipe that nobody reads must not hold up the worker.
func TestBeatNeverBlocks(t *testing.T) {
	t.Parallel()
	keeper := New(Options{Lifetime: time.Hour})
	read, write, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = read.Close(); _ = write.Close() })
	keeper.add(write)
	for range 100_000 {
		keeper.Beat()
	}
	require.NoError(t, read.Close())
	keeper.Beat()
}

// Where nobody waits for orphans, a group that was killed once looked alive for ever.
func TestGroupOfTheDeadIsGone(t *testing.T) {
	t.Parallel()
	// The leader ends at once, the child when its input does.
	leader := exec.CommandContext(t.Context(), "/bin/sh", "-c", "cat >/dev/null <&3 & exit")
	leader.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, out, err := os.Pipe()
	require.NoError(t, err)
	leader.ExtraFiles = []*os.File{in}
	require.NoError(t, leader.Start())
	pid := leader.Process.Pid
	t.Cleanup(func() {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		_ = leader.Wait()
	})
	require.NoError(t, in.Close())
	require.Eventually(t, func() bool { return zombie(t, pid) }, patience, time.Millisecond)
	require.False(t, gone(pid, 100*time.Millisecond), "a child is alive")
	require.NoError(t, out.Close())
	require.True(t, gone(pid, 10*time.Second), "the leader is dead, and nobody else is there")
	require.NoError(t, syscall.Kill(-pid, 0), "the group was to be there still")
}

func zombie(t *testing.T, pid int) bool {
	t.Helper()
	content, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	require.NoError(t, err)
	return bytes.HasPrefix(content[bytes.LastIndexByte(content, ')')+1:], []byte(" Z"))
}

// A service manager ends a service by a signal to each of its processes, the program and its guard among them.
func TestSignalToEverybody(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script  string
		signals []string // which of the two gets it, in this order
		exit    Exit
		err     error
	}{
		"GuardFirst":   {`touch ready; exec sleep 300`, []string{"guard", "program"}, Exit{Code: -1, Signal: syscall.SIGTERM}, ErrSignalled},
		"ProgramFirst": {`touch ready; exec sleep 300`, []string{"program", "guard"}, Exit{Code: -1, Signal: syscall.SIGTERM}, ErrSignalled},
		"Tidy":         {`trap "exit 3" TERM; touch ready; while :; do sleep 0.01; done`, []string{"guard", "program"}, Exit{Code: 3}, ErrSignalled},
		"ProgramAlone": {`touch ready; exec sleep 300`, []string{"program"}, Exit{Code: -1, Signal: syscall.SIGTERM}, nil},
		"Deaf":         {`trap "touch over; exit 0" TERM; touch ready; while :; do sleep 0.01; done`, []string{"guard", "program"}, Exit{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			type ending struct {
				exit Exit
				err  error
			}
			dir, ended := t.TempDir(), make(chan ending, 1)
			go func() {
				exit, err := New(Options{}).Run(t.Context(), command(dir, test.script))
				ended <- ending{exit, err}
			}()
			requireFile(t, filepath.Join(dir, "ready"))
			pids := map[string]int{}
			for pid, argument := range members(t, dir) {
				switch argument {
				case guardName:
					pids["guard"] = pid
				case "/bin/sh", "sleep":
					if argument == "sleep" && !strings.Contains(test.script, "exec") {
						continue
					}
					pids["program"] = pid
				}
			}
			for _, who := range test.signals {
				require.NotZero(t, pids[who])
				require.NoError(t, syscall.Kill(pids[who], syscall.SIGTERM))
			}
			got := <-ended
			require.Equal(t, test.exit, got.exit)
			if test.err == nil {
				require.NoError(t, got.err)
			} else {
				require.ErrorIs(t, got.err, test.err)
			}
			require.Empty(t, members(t, dir))
		})
	}
}

// A guard that is ended by the signal, since it came before the guard could catch it, says nothing at all.
func TestSignalBeforeTheGuardIsReady(t *testing.T) {
	t.Parallel()
	for signal, want := range map[syscall.Signal]error{syscall.SIGTERM: ErrSignalled, syscall.SIGKILL: nil} {
		process := exec.CommandContext(t.Context(), "/bin/sleep", "300")
		require.NoError(t, process.Start())
		require.NoError(t, process.Process.Signal(signal))
		exit, err := result(nil, process.Wait())
		require.Equal(t, Exit{Code: -1, Signal: signal}, exit)
		require.ErrorIs(t, err, want)
	}
}
