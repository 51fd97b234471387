package queue

// What the tests and benchmarks compare with.
const (
	DepthSQL      = depthSQL
	NotifyWindow  = notifyWindow
	FetchCooldown = fetchCooldown
	FetchPoll     = fetchPoll
)
