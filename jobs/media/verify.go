package media

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"medianest/jobs/reason"
)

// Info is what Verify has found.
type Info struct {
	SizeBytes int64
	SHA256    []byte
	DurationS float64
}

const (
	// A file is looked through in verifyBase and a second for every verifyBytesPerS; it has hung otherwise.
	verifyBase      = 2 * time.Minute
	verifyBytesPerS = 8 << 20

	// The duration may differ from what it should be by toleranceS, or by toleranceShare of it where that is more.
	toleranceS     = 2
	toleranceShare = 0.02
)

// demuxers are what ffprobe may take a file for: media, and nothing that names other files (hls, concat) or takes
// text for pictures (tty). With a value of true the format states its duration; the others have it estimated.
var demuxers = map[string]bool{
	"mov": true, "matroska": true, "ogg": true, "flac": true, "avi": true, "asf": true,
	"aiff": true, "caf": true, "mxf": true,
	"aac": false, "ac3": false, "amr": false, "ape": false, "au": false, "dts": false, "dtshd": false, "dv": false, "eac3": false,
	"flv": false, "h264": false, "hevc": false, "ivf": false, "live_flv": false, "m4v": false, "mp3": false, "mpc": false, "mpc8": false,
	"mpeg": false, "mpegts": false, "mpegvideo": false, "nut": false, "rm": false, "truehd": false, "tta": false, "w64": false, "wav": false, "wv": false,
}

// Demuxers is the list of formats that ffmpeg and ffprobe may take a downloaded file for, as their option
// -format_whitelist wants it: none that names other files, as a playlist does.
var Demuxers = strings.Join(slices.Sorted(maps.Keys(demuxers)), ",")

// Verify tells whether a file, by its absolute path in the library, is a whole film or piece of music: it has video or
// audio, all of it can be read and it lasts as long as it says and, with wantDurationS above 0, as long as it should.
// What is not is a *reason.Error with Damaged. It reads the file twice, the second time for the sum.
func (l *Library) Verify(ctx context.Context, name string, wantDurationS float64) (Info, error) {
	rel, err := l.relOf(name)
	if err != nil {
		return Info{}, fmt.Errorf("verify: %w", err)
	}
	file, err := l.openFile(rel)
	if err != nil {
		return Info{}, fmt.Errorf("verify: %w", l.explain("open", rel, err))
	}
	defer func() { _ = file.Close() }()
	stat, err := file.Stat()
	if err != nil {
		return Info{}, fmt.Errorf("verify %s: %w", rel, err)
	}
	info := Info{SizeBytes: stat.Size()}
	if info.SizeBytes == 0 {
		return Info{}, damaged("The file is empty.", nil)
	}
	patience := verifyBase + time.Duration(info.SizeBytes/verifyBytesPerS)*time.Second
	limited, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done after %s", patience))
	defer cancel()
	if info.DurationS, err = l.lookThrough(limited, name, wantDurationS); err != nil {
		return Info{}, fmt.Errorf("verify %s: %w", rel, err)
	}
	if info.SHA256, err = hashFile(limited, file); err != nil {
		return Info{}, fmt.Errorf("verify: %w", l.explain("read", rel, err))
	}
	return info, nil
}

// lookThrough has ffprobe read the whole file and returns how long it lasts.
func (l *Library) lookThrough(ctx context.Context, name string, wantDurationS float64) (float64, error) {
	found, err := l.probe(ctx, name)
	if err != nil {
		return 0, err
	}
	if !found.playable() {
		return 0, damaged("There is neither video nor audio in it.", nil)
	}
	ends, err := l.readPackets(ctx, name, found)
	if err != nil {
		return 0, err
	}
	stated := found.duration()
	duration := stated
	if demuxer, _, _ := strings.Cut(found.Format.Name, ","); stated <= 0 || !demuxers[demuxer] {
		duration = ends.played - max(0, found.start())
	} else if ends.all < found.start()+stated-tolerance(stated) {
		return 0, damaged(fmt.Sprintf("It says that it lasts %s, but ends after %s.", seconds(stated), seconds(max(0, ends.all))), nil)
	}
	switch {
	case duration <= 0:
		return 0, damaged("It lasts no time at all.", nil)
	case wantDurationS > 0 && math.Abs(duration-wantDurationS) > tolerance(wantDurationS):
		return 0, damaged(fmt.Sprintf("It should last %s, but lasts %s.", seconds(wantDurationS), seconds(duration)), nil)
	}
	return duration, nil
}

func tolerance(durationS float64) float64 { return max(toleranceS, durationS*toleranceShare) }

// seconds is a duration as people are told it.
func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 1, 64) + " s" }

func damaged(detail string, err error) error {
	return &reason.Error{Reason: reason.Damaged, Detail: "What was downloaded is not a whole media file. " + detail, Err: err}
}

// probed is what ffprobe says of a file. Its numbers are strings, and missing where it does not know them.
type probed struct {
	Streams []struct {
		Index       int    `json:"index"`
		Type        string `json:"codec_type"`
		Disposition struct {
			AttachedPic int `json:"attached_pic"`
		} `json:"disposition"`
	} `json:"streams"`
	Format struct {
		Name     string `json:"format_name"`
		Start    string `json:"start_time"`
		Duration string `json:"duration"`
	} `json:"format"`
}

// plays reports whether a stream is video or audio, not a cover, subtitles or data.
func (p probed) plays(index int) bool {
	for _, s := range p.Streams {
		if s.Index == index {
			return s.Type == "audio" || (s.Type == "video" && s.Disposition.AttachedPic == 0)
		}
	}
	return false
}

func (p probed) playable() bool {
	for _, s := range p.Streams {
		if p.plays(s.Index) {
			return true
		}
	}
	return false
}

func (p probed) start() float64    { return number(p.Format.Start) }
func (p probed) duration() float64 { return number(p.Format.Duration) }

// number reads a number of ffprobe's; 0 if there is none.
func number(text string) float64 {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
		return 0
	}
	return n
}

func (l *Library) probe(ctx context.Context, name string) (probed, error) {
	var found probed
	_, err := l.runProbe(ctx, name, func(out io.Reader) error {
		const most = 8 << 20 // a file with thousands of streams is no film
		text, err := io.ReadAll(io.LimitReader(out, most))
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &found)
	}, "-show_format", "-show_streams", "-print_format", "json")
	return found, err
}

// ends is when the last packets are over, in seconds on the file's own clock.
type ends struct {
	all    float64 // of whatever stream
	played float64 // of video and audio
}

// readPackets reads the file to its end, as far as it has one.
func (l *Library) readPackets(ctx context.Context, name string, found probed) (ends, error) {
	e := ends{all: math.Inf(-1), played: math.Inf(-1)}
	said, err := l.runProbe(ctx, name, func(out io.Reader) error {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fields := strings.Split(lines.Text(), "|")
			if len(fields) < 4 {
				continue
			}
			end, err := strconv.ParseFloat(fields[1], 64)
			if err != nil { // no presentation time: then when it is decoded
				end = number(fields[2])
			}
			end += number(fields[3])
			e.all = max(e.all, end)
			if index, err := strconv.Atoi(fields[0]); err == nil && found.plays(index) {
				e.played = max(e.played, end)
			}
		}
		return lines.Err()
	}, "-show_entries", "packet=stream_index,pts_time,dts_time,duration_time", "-print_format", "compact=print_section=0:nokey=1")
	if err == nil && strings.Contains(said, "partial file") { // the MP4 index names bytes beyond the end
		err = damaged("Its end is missing.", nil)
	}
	return e, err
}

// runProbe runs ffprobe on a file, hands its output to read, and returns the end of what it complains about. It may
// open no other file and no address, whatever the file says. What it cannot read is Damaged.
func (l *Library) runProbe(ctx context.Context, name string, read func(io.Reader) error, args ...string) (said string, err error) {
	args = append([]string{
		"-hide_banner", "-loglevel", "error", "-protocol_whitelist", "file", "-format_whitelist", Demuxers,
	}, append(args, "-i", "file:"+name)...)
	command := exec.CommandContext(ctx, l.ffprobe, args...) //nolint:gosec // the program is configured, the name is ours
	command.Env = []string{"LC_ALL=C"}
	command.WaitDelay = 5 * time.Second
	complaints := &tail{most: 4 << 10}
	command.Stderr = complaints
	out, err := command.StdoutPipe()
	if err != nil {
		return "", fmt.Errorf("run ffprobe: %w", err)
	}
	if err := command.Start(); err != nil {
		return "", fmt.Errorf("run ffprobe: %w", err)
	}
	readErr := read(out)
	_, _ = io.Copy(io.Discard, out) // or it waits for its reader
	err = command.Wait()
	if ctx.Err() != nil {
		return "", fmt.Errorf("run ffprobe: %w", context.Cause(ctx))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return "", damaged("", fmt.Errorf("ffprobe: %s", complaints))
	}
	if err := errors.Join(err, readErr); err != nil {
		return "", fmt.Errorf("run ffprobe: %w", err)
	}
	return complaints.String(), nil
}

// tail keeps the last bytes written to it.
type tail struct {
	most int
	kept bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept.Write(p[max(0, len(p)-t.most):])
	if surplus := t.kept.Len() - t.most; surplus > 0 {
		t.kept.Next(surplus)
	}
	return len(p), nil
}

// String is what was kept, as one line of valid text.
func (t *tail) String() string {
	return strings.ToValidUTF8(strings.Join(strings.Fields(t.kept.String()), " "), "")
}

// hashFile returns the SHA-256 of a whole file, wherever its offset is.
func hashFile(ctx context.Context, file *os.File) ([]byte, error) {
	hash := sha256.New()
	if _, err := io.CopyBuffer(hash, newContextReader(ctx, io.NewSectionReader(file, 0, math.MaxInt64)), make([]byte, 1<<20)); err != nil {
		return nil, err
	}
	return hash.Sum(nil), nil
}

// newContextReader returns r until ctx ends, when reading fails with its cause.
func newContextReader(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return r.Read(p)
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
