package storetest_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"medianest/store/storetest"
)

// victim says how this test binary, started by TestNothingIsLeftBehind, meets its end.
var victim = flag.String("victim", "", "killed or panic")

// TestVictim is the other process's part of TestNothingIsLeftBehind, and nothing in this one.
func TestVictim(t *testing.T) {
	t.Parallel()
	if *victim == "" {
		return
	}
	storetest.DB(t)
	own := storetest.OwnServer(t, true)
	fmt.Println("ready", storetest.Server(t).PID(), own.Server().PID(), storetest.RealRedis(t).PID())
	if *victim == "panic" {
		panic("as told")
	}
	select {}
}

func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"killed", "panic"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			exe, err := os.Executable()
			require.NoError(t, err)
			cmd := exec.Command(exe, "-test.run=^TestVictim$", "-victim="+end)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
			var pids [3]int
			_, err = fmt.Fscanf(out, "ready %d %d %d\n", &pids[0], &pids[1], &pids[2])
			require.NoError(t, err)

			// A process works in a directory of the victim's, which goes with it.
			var dirs []string
			for _, pid := range pids {
				if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
					dirs = append(dirs, strings.TrimSuffix(dir, "/pg"))
				} else {
					require.Equal(t, "panic", end, "it has ended already")
				}
			}
			if end == "killed" {
				require.Len(t, dirs, len(pids))
				require.NoError(t, cmd.Process.Kill())
			}
			require.Error(t, cmd.Wait())
			require.Eventually(t, func() bool {
				for _, pid := range pids {
					if _, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
						return false
					}
				}
				for _, dir := range dirs {
					if _, err := os.Stat(dir); err == nil {
						return false
					}
				}
				return true
			}, 20*time.Second, 10*time.Millisecond)
		})
	}
}
