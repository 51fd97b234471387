package stream_test

import (
	"os"
	"testing"

	"medianest/store/storetest"
)

func TestMain(m *testing.M) {
	if isReaders() { // of a benchmark, in a process of its own
		os.Exit(runReaders())
	}
	os.Exit(storetest.Main(m))
}
