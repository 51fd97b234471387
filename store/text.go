package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Longest values that are kept, in bytes. Postgres itself refuses index entries above some 2,700 bytes.
const (
	maxURLBytes            = 8 << 10
	maxKeyBytes            = 1 << 10
	maxIdempotencyKeyBytes = 255
	maxTitleBytes          = 1 << 10
	maxDetailBytes         = 4 << 10
)

// InvalidError is an ErrInvalid that says which value is refused, and why, in words fit for whoever sent it.
type InvalidError struct {
	Field  string // as in the JSON of requests
	Reason string
}

func (e *InvalidError) Error() string { return e.Field + " " + e.Reason }

// Unwrap makes errors.Is(err, ErrInvalid) hold.
func (e *InvalidError) Unwrap() error { return ErrInvalid }

// checkText refuses what Postgres would refuse with a code that tells the sender nothing: NUL bytes, broken UTF-8.
func checkText(field, value string, maxBytes int) error {
	switch {
	case value == "":
		return &InvalidError{Field: field, Reason: "is empty"}
	case len(value) > maxBytes:
		return &InvalidError{Field: field, Reason: fmt.Sprintf("is longer than %d bytes", maxBytes)}
	case strings.IndexByte(value, 0) >= 0:
		return &InvalidError{Field: field, Reason: "contains a NUL byte"}
	case !utf8.ValidString(value):
		return &InvalidError{Field: field, Reason: "is not valid UTF-8"}
	}
	return nil
}

// cleanText makes text that a site sent storable: a hostile title must not fail the download.
func cleanText(s string, maxBytes int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	if len(s) <= maxBytes {
		return s
	}
	end := maxBytes
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

var errMalformedJSON = errors.New("malformed JSON")

// cleanJSON returns raw without what jsonb refuses although it is JSON: the escape \u0000, halves of surrogate pairs
// and broken UTF-8.
func cleanJSON(raw json.RawMessage) (json.RawMessage, error) {
	if !json.Valid(raw) {
		return nil, errMalformedJSON
	}
	if !utf8.Valid(raw) {
		raw = bytes.ToValidUTF8(raw, []byte("\uFFFD"))
	}
	if !bytes.Contains(raw, []byte(`\u`)) {
		return raw, nil
	}
	// A backslash occurs only inside strings, where the character after it is always there: raw is valid.
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			i++
			continue
		}
		if raw[i+1] != 'u' {
			out = append(out, raw[i], raw[i+1])
			i += 2
			continue
		}
		escape := raw[i : i+6]
		i += 6
		switch unit := hexUnit(escape); {
		case unit == 0:
		case unit >= 0xD800 && unit < 0xDC00 && followedByLowSurrogate(raw[i:]):
			out = append(out, escape...)
			out = append(out, raw[i:i+6]...)
			i += 6
		case unit >= 0xD800 && unit < 0xE000:
			out = append(out, `\ufffd`...)
		default:
			out = append(out, escape...)
		}
	}
	return out, nil
}

func followedByLowSurrogate(rest []byte) bool {
	if len(rest) < 6 || rest[0] != '\\' || rest[1] != 'u' {
		return false
	}
	unit := hexUnit(rest[:6])
	return unit >= 0xDC00 && unit < 0xE000
}

// hexUnit is the value of an escape of the form \uXXXX.
func hexUnit(escape []byte) rune {
	var unit rune
	for _, c := range escape[2:6] {
		unit <<= 4
		switch {
		case c <= '9':
			unit |= rune(c - '0')
		case c <= 'F':
			unit |= rune(c - 'A' + 10)
		default:
			unit |= rune(c - 'a' + 10)
		}
	}
	return unit
}
