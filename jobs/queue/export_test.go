package queue

// What the tests and benchmarks compare with.
const (
	DepthSQL      = depthSQL
	ReclaimSQL    = reclaimSQL
	LookSQL       = lookSQL
	GiveBackSQL   = giveBackSQL
	NotifyWindow  = notifyWindow
	FetchCooldown = fetchCooldown
	FetchPoll     = fetchPoll
)
