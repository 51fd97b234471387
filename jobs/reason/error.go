package reason

import (
	"errors"
	"time"
)

// Error is a failure with its reason. Adapters return it where they know why something failed.
type Error struct {
	Reason Reason
	// Detail says more than the reason's sentence, in words fit for the person who asked: no query strings, no
	// credentials, no paths of this machine. Empty means that the sentence says it all.
	Detail string
	// Err is the cause, for logs and operators. It may be technical, but must be as free of secrets as Detail.
	Err error
	// RetryAt is when a next try makes sense, where that is known: the start of a live event, a Retry-After.
	RetryAt time.Time
}

// Error joins what is known, the reason first.
func (e *Error) Error() string {
	text := string(e.Reason)
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Describe is what people are told: the detail, or else the reason's sentence.
func (e *Error) Describe() string {
	if e.Detail != "" {
		return e.Detail
	}
	return e.Reason.Sentence()
}

// Find returns the outermost Error in err's chain, or nil.
func Find(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}
