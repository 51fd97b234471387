//go:build !linux

package queue

import "time"

var begun = time.Now()

// sinceBoot is a monotonic clock. Whether it runs while the machine is suspended is up to the system.
func sinceBoot() time.Duration { return time.Since(begun) }
