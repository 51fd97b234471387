package media

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

const (
	maxNameBytes = 255 // of a name on the usual file systems
	maxIDBytes   = 64
	untitled     = "untitled"
)

// extensions are what a file of the library may be called. Whatever else a site claims, nobody's player or shell is
// to run it.
var extensions = strings.Fields(`
	3g2 3gp aac ac3 aif aiff amr ape asf avi caf dts eac3 f4v flac flv m2ts m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg mpg mts mxf
	oga ogg ogv opus rm rmvb ts tta wav weba webm wma wmv wv`)

// FileName is the name of a film's file: "title [id].ext", or "title.ext" without an id. It is valid and means the same on
// every usual system: at most 255 bytes, no separators or reserved characters, no name that hides a file, looks like an
// option or is a device. The title is cut where that is too long, between characters; the id stays whole up to 64
// bytes, and keeps a hash of itself beyond; an extension that is not one of media becomes bin.
func FileName(title, id, ext string) string {
	ext = strings.ToLower(strings.TrimPrefix(ext, "."))
	if !slices.Contains(extensions, ext) {
		ext = "bin"
	}
	end := "." + ext
	if id = cleanID(id); id != "" {
		end = " [" + id + "]" + end
	}
	stem := trimEnds(cut(clean(title), maxNameBytes-len(end)))
	if stem == "" {
		stem = untitled
	}
	if isDevice(stem + end) {
		stem = "_" + cut(stem, maxNameBytes-len(end)-1)
	}
	return stem + end
}

// numbered is the n-th name for files of the same name: "title [id] (2).ext". The title gives way for the number.
func numbered(fileName string, n int) string {
	if n == 1 {
		return fileName
	}
	ext := path.Ext(fileName)
	stem := strings.TrimSuffix(fileName, ext)
	id := ""
	if i := strings.LastIndex(stem, " ["); i > 0 && strings.HasSuffix(stem, "]") && len(stem)-i <= maxIDBytes+len(" []") {
		stem, id = stem[:i], stem[i:]
	}
	end := id + " (" + strconv.Itoa(n) + ")" + ext
	if whole := stem + end; len(whole) <= maxNameBytes {
		return whole
	}
	return strings.TrimRight(cut(stem, maxNameBytes-len(end)), " .") + end
}

// replacements stand for characters that some system reserves, so that the title still reads well.
var replacements = map[rune]string{
	'/': "-", '\\': "-", '|': "-", ':': "-", '<': "(", '>': ")", '"': "'", '?': "", '*': "",
}

// clean brings text to one line of ordinary characters, in the composed form (NFC), without blanks at its ends.
func clean(text string) string {
	const enough = 4 * maxNameBytes // before what is dropped is dropped
	if len(text) > enough {
		text = text[:enough]
	}
	var b strings.Builder
	for _, r := range norm.NFC.String(strings.ToValidUTF8(text, "")) {
		switch replacement, ok := replacements[r]; {
		case ok:
			b.WriteString(replacement)
		case unicode.IsSpace(r), unicode.IsControl(r):
			b.WriteByte(' ')
		case r == utf8.RuneError, unicode.Is(unicode.Co, r), unicode.Is(unicode.Noncharacter_Code_Point, r):
		case unicode.Is(unicode.Cf, r) && r != zeroWidthJoiner && r != zeroWidthNonJoiner: // such as those that turn the direction of the rest
		default:
			b.WriteRune(r)
		}
	}
	return norm.NFC.String(strings.Join(strings.Fields(b.String()), " ")) // again: what was dropped may have kept two apart
}

// Emoji are made, and some scripts written, with these.
const (
	zeroWidthJoiner    = '\u200d'
	zeroWidthNonJoiner = '\u200c'
)

// trimEnds takes off what would hide a file or make it look like an option at the begin, and what Windows drops at the
// end.
func trimEnds(text string) string {
	return strings.TrimRight(strings.TrimLeft(text, ".- \u200c\u200d"), ". \u200c\u200d")
}

// cleanID brings an id to what can stand in the brackets.
func cleanID(id string) string {
	if len(id) > maxIDBytes {
		hash := sha256.Sum256([]byte(id))
		suffix := "-" + hex.EncodeToString(hash[:4])
		id = cut(clean(id), maxIDBytes-len(suffix)) + suffix
	}
	return cut(strings.NewReplacer("[", "(", "]", ")").Replace(clean(id)), maxIDBytes)
}

// cut shortens text to so many bytes, between characters as people see them where those are made of several runes.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	end := max(0, most)
	for end > 0 && !isBoundary(text, end) {
		end--
	}
	return strings.TrimRight(text[:end], " ")
}

// isBoundary reports whether a character begins at a place within the text.
func isBoundary(text string, at int) bool {
	if !utf8.RuneStart(text[at]) {
		return false
	}
	next, _ := utf8.DecodeRuneInString(text[at:])
	last, _ := utf8.DecodeLastRuneInString(text[:at])
	return !unicode.Is(unicode.M, next) && next != zeroWidthJoiner && last != zeroWidthJoiner
}

// devices are names that old Windows programs take for devices, whatever follows a dot.
var devices = strings.Fields("CON PRN AUX NUL CLOCK$ CONIN$ CONOUT$")

func isDevice(name string) bool {
	first, _, _ := strings.Cut(name, ".")
	first = strings.ToUpper(strings.TrimRight(first, " "))
	if slices.Contains(devices, first) {
		return true
	}
	port, ok := strings.CutPrefix(first, "COM")
	if !ok {
		port, ok = strings.CutPrefix(first, "LPT")
	}
	return ok && utf8.RuneCountInString(port) == 1 && strings.Contains("0123456789¹²³", port)
}
