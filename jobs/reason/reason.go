// Package reason is the closed list of why a job failed. A reason is stored with the job, streamed with its state,
// used as a metric label and as a filter, and shown to people: the strings are an interface and never change meaning.
package reason

import (
	"maps"
	"slices"
)

// Reason says why a job's attempt ended as it did. The empty Reason means that nothing went wrong.
type Reason string

const (
	// What the site says of the thing itself.

	AuthRequired      Reason = "auth_required"      // private, members only, age-restricted
	DRM               Reason = "drm"                // protected by DRM
	FormatUnavailable Reason = "format_unavailable" // not offered in the quality asked for
	GeoBlocked        Reason = "geo_blocked"        // refused to the country of this server
	Gone              Reason = "gone"               // removed, or its account was closed
	NoMedia           Reason = "no_media"           // a page without video or audio
	NotFound          Reason = "not_found"          // HTTP 404 or 410
	Unsupported       Reason = "unsupported_url"    // no way to fetch from such an address
	Upcoming          Reason = "upcoming"           // a premiere or live event that has not begun

	// What the site says of us.

	BotCheck    Reason = "bot_check"    // wants proof of being human
	RateLimited Reason = "rate_limited" // HTTP 429 and its like

	// What went wrong on the way.

	Damaged      Reason = "damaged"       // fetched, but not a whole media file
	DiskFull     Reason = "disk_full"     // no space left on the media volume
	EgressDenied Reason = "egress_denied" // the address, or one it leads to, is in a network that jobs may not reach
	ExtractorBug Reason = "extractor_bug" // yt-dlp does not understand the site any more
	Network      Reason = "network"       // DNS, connection refused or reset, server error
	Postprocess  Reason = "postprocess"   // ffmpeg failed
	Timeout      Reason = "timeout"       // the host, or the job as a whole, took too long

	// What happened to the job.

	Cancelled          Reason = "cancelled"            // somebody asked for it
	ChildrenFailed     Reason = "children_failed"      // none of a collection's items completed
	Expired            Reason = "expired"              // it had not begun by the time until which it was wanted
	Internal           Reason = "internal"             // a fault of this platform
	JobDeleted         Reason = "job_deleted"          // its row was deleted before it ended
	PoisonPill         Reason = "poison_pill"          // took its worker down again and again
	SomeChildrenFailed Reason = "some_children_failed" // a collection completed without all of its items
	Unknown            Reason = "unknown"              // a failure that nothing here recognises
)

// Policy says what becomes of a job that failed for a reason.
type Policy int

const (
	// Permanent failures end the job at once: the next attempt would fail likewise.
	Permanent Policy = iota
	// Retry failures are tried again with growing pauses until the attempts are used up.
	Retry
	// ParkHost failures concern all jobs of the host, which leave it alone for a while: they trip its breaker.
	ParkHost
	// ParkUntil failures wait for a point in time, such as the start of a live event.
	ParkUntil
	// ParkSpace failures wait until there is space on the media volume.
	ParkSpace
)

// String is the policy's name in documents and logs.
func (p Policy) String() string {
	switch p {
	case Permanent:
		return "permanent"
	case Retry:
		return "retry"
	case ParkHost:
		return "park_host"
	case ParkUntil:
		return "park_until"
	case ParkSpace:
		return "park_space"
	}
	return "invalid"
}

type entry struct {
	policy    Policy
	retryable bool
	sentence  string
}

var entries = map[Reason]entry{
	AuthRequired:       {Permanent, false, "The site shows this only to people who are signed in or allowed to see it."},
	BotCheck:           {ParkHost, true, "The site asks for proof that no robot is asking; it will be tried again later."},
	Cancelled:          {Permanent, true, "It was cancelled."},
	ChildrenFailed:     {Permanent, true, "None of its items could be downloaded."},
	DRM:                {Permanent, false, "It is protected by DRM and cannot be downloaded."},
	Damaged:            {Retry, true, "What was downloaded is not a whole media file."},
	DiskFull:           {ParkSpace, true, "There is no space left for media; it goes on when there is."},
	EgressDenied:       {Permanent, false, "The address leads to a network that downloads may not reach."},
	Expired:            {Permanent, true, "It had not begun by the time until which it was wanted."},
	ExtractorBug:       {Retry, true, "The downloader does not understand this site any more; an update may help."},
	FormatUnavailable:  {Permanent, false, "The site does not offer it in the quality asked for."},
	GeoBlocked:         {Permanent, false, "The site does not offer it in the country of this server."},
	Gone:               {Permanent, false, "The site says that it has been removed."},
	Internal:           {Retry, true, "Something went wrong on our side."},
	JobDeleted:         {Permanent, true, "Its job was deleted before it ended."},
	Network:            {Retry, true, "The site could not be reached, or the connection broke."},
	NoMedia:            {Permanent, false, "There is no video or audio at this address."},
	NotFound:           {Permanent, false, "The site says that there is nothing at this address."},
	PoisonPill:         {Permanent, true, "Its worker died each time it was tried, so it was set aside."},
	Postprocess:        {Retry, true, "The downloaded media could not be converted or merged."},
	RateLimited:        {ParkHost, true, "The site says that we ask too often; it will be tried again later."},
	SomeChildrenFailed: {Permanent, true, "Some of its items could not be downloaded."},
	Timeout:            {Retry, true, "The site took too long to answer."},
	Unknown:            {Retry, true, "It failed in a way that we do not recognise."},
	Unsupported:        {Permanent, false, "This kind of address cannot be downloaded from."},
	Upcoming:           {ParkUntil, true, "It has not begun yet."},
}

// lookup treats a string that is not on the list, as an older or newer build may have stored it, as Unknown.
func (r Reason) lookup() entry {
	if e, ok := entries[r]; ok {
		return e
	}
	return entries[Unknown]
}

// Valid reports whether r is on the list. The empty reason is not.
func (r Reason) Valid() bool {
	_, ok := entries[r]
	return ok
}

// Policy says what becomes of a job that failed for this reason.
func (r Reason) Policy() Policy { return r.lookup().policy }

// Retryable reports whether asking again, unchanged, may have another result. It is advice for people and programs
// who see a failed job; what the queue itself does is Policy.
func (r Reason) Retryable() bool { return r.lookup().retryable }

// Doubts reports whether the reason speaks against keeping what has been fetched so far: it may be what is wrong, or
// what fills the disk.
func (r Reason) Doubts() bool {
	switch r {
	case Damaged, DiskFull, Postprocess, Unknown:
		return true
	default:
		return !r.Valid()
	}
}

// Site is what a failure tells of the site that was asked.
type Site int

const (
	// SiteUnknown failures are of this platform's making, and tell nothing of the site.
	SiteUnknown Site = iota
	// SiteAnswers failures are about the thing that was asked for: the site answers who asks.
	SiteAnswers
	// SiteFails failures mean that the site is away, refuses to answer, or answers what cannot be used.
	SiteFails
)

// Site says what the failure tells of the site. A site that sends away whom it has had enough of may do so by a page
// without media or by asking for a sign-in, so only what it would not say by mistake counts as an answer.
func (r Reason) Site() Site {
	switch r {
	case DRM, FormatUnavailable, Gone, NotFound, Upcoming:
		return SiteAnswers
	case AuthRequired, BotCheck, Damaged, ExtractorBug, GeoBlocked, Network, NoMedia, RateLimited, Timeout, Unknown:
		return SiteFails
	default:
		return SiteUnknown
	}
}

// Sentence says the reason in plain words, for people who know nothing of jobs.
func (r Reason) Sentence() string { return r.lookup().sentence }

// All returns every reason, sorted by name.
func All() []Reason {
	return slices.Sorted(maps.Keys(entries))
}
