//go:build !linux

package pgserver

// canScanProcesses is off: Postgres's own check of its pid file has to do.
const canScanProcesses = false

// serverProcesses finds none where there is no /proc to look at.
func serverProcesses(string) ([]int, error) {
	return nil, nil
}
