package queue

// What the tests and benchmarks compare with.
const (
	DepthSQL      = depthSQL
	ReclaimSQL    = reclaimSQL
	PlanSQL       = planSQL
	LookSQL       = lookSQL
	GiveBackSQL   = giveBackSQL
	NotifyWindow  = notifyWindow
	FetchCooldown = fetchCooldown
	FetchPoll     = fetchPoll
)
