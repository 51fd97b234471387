// Package jobs is what the platform can do: one file a kind, with its arguments, its insert options and its worker.
//
//	kind          queue     timeout  attempts  unique by                          on failure
//	download      download  12 h     8         content row's lock (package store) by reason, see below
//	remove_files  library   10 min   10        nothing: running twice is harmless tried again, the files stay meanwhile
//	trim_events   library   10 min   3         its schedule                       tried again, else at the next tick
//	trim_domain   library   10 min   3         its schedule                       likewise
//	seal_audit    library   10 min   3         its schedule                       likewise
//	rotate_secrets library  10 min   3         its schedule                       likewise
//	sweep_staging library   10 min   3         its schedule                       likewise
//
// Every job names the keys of its limits: its kind's, and a download its user's and its host's (package queue).
//
// Arguments hold ids only: URLs may carry secrets, and arguments are shown to operators.
//
// What a failure does is decided once, in failure.go, by the policy of its reason (package reason): permanent ones end
// the job at once, a full disk or a host that wants to be left alone waits without spending an attempt, and the others are
// tried again by the kind's own schedule. A worker that stops hands its jobs back without spending one either, and a
// worker that is lost costs none: its jobs go on elsewhere under the ids that they have (package queue).
package jobs

// Queues that the kinds of this package are in. A worker process works those that it is told to.
const (
	QueueDownload = "download"
	QueueLibrary  = "library"
)
