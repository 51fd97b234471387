package stream

import (
	"errors"
	"strconv"
	"strings"

	"medianest/store"
)

// Position is a place in the stream of an epoch. As text it is an event's id on the wire, <epoch>.<tick>.<event>, and has
// one form only.
type Position struct {
	Epoch string
	store.Cursor
}

// String is the position's form on the wire.
func (p Position) String() string { return string(p.append(nil)) }

func (p Position) append(b []byte) []byte {
	b = append(b, p.Epoch...)
	b = append(b, '.')
	b = strconv.AppendInt(b, p.Tick, 10)
	b = append(b, '.')
	return strconv.AppendInt(b, p.ID, 10)
}

// maxEpochBytes is well above what an epoch has.
const maxEpochBytes = 32

var errMalformedPosition = errors.New("malformed position")

// ParsePosition reads what String gives, and nothing else.
func ParsePosition(s string) (Position, error) {
	epoch, rest, ok := strings.Cut(s, ".")
	if !ok || epoch == "" || len(epoch) > maxEpochBytes || strings.ContainsFunc(epoch, isNotEpoch) {
		return Position{}, errMalformedPosition
	}
	tick, id, ok := strings.Cut(rest, ".")
	if !ok {
		return Position{}, errMalformedPosition
	}
	p := Position{Epoch: epoch}
	if p.Tick, ok = parseNumber(tick); !ok || p.Tick == 0 {
		return Position{}, errMalformedPosition
	}
	if p.ID, ok = parseNumber(id); !ok {
		return Position{}, errMalformedPosition
	}
	return p, nil
}

func isNotEpoch(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') }

// parseNumber reads a decimal without sign or leading zeros.
func parseNumber(s string) (int64, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' || s[0] == '0' && s != "0" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
