package queue

import (
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot is a clock that also runs while the machine is suspended, unlike the one in time.Time.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // the kernel has had this clock since 2.6.39
	}
	return time.Duration(t.Nano())
}
