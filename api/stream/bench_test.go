package stream_test

func isReaders() bool { return false }
func runReaders() int { return 0 }
