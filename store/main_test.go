package store_test

import (
	"os"
	"testing"

	"medianest/store/storetest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == beScheduler {
		os.Exit(scheduleAsChild(os.Args[2:]))
	}
	os.Exit(storetest.Main(m))
}
