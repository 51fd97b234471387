package ytdlptest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// recipe is the version of the sample media. Raise it when makeMedia changes: older ones in a cache are left alone.
const recipe = "2"

// galleryVideos is how many videos the gallery, the feeds and the item pages have.
const galleryVideos = 5

// clip is one ffmpeg call for a short film with a tone.
type clip struct {
	name    string
	seconds int
	height  int
	tone    int
}

// makeMedia fills dir, if it is not there yet, with sample media and returns the directory they are in. Several
// processes may do so at once: each works in a directory of its own, and the first to finish is believed.
func makeMedia(ctx context.Context, dir, ffmpeg string) (string, error) {
	ready := filepath.Join(dir, "v"+recipe)
	if _, err := os.Stat(ready); err == nil {
		return ready, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make sample media: %w", err)
	}
	work, err := os.MkdirTemp(dir, "new-")
	if err != nil {
		return "", fmt.Errorf("make sample media: %w", err)
	}
	defer os.RemoveAll(work)

	clips := []clip{{"plain.mp4", 5, 240, 440}, {"low.mp4", 6, 180, 330}, {"high.mp4", 6, 360, 330}}
	for i := range galleryVideos {
		clips = append(clips, clip{"item-" + strconv.Itoa(i+1) + ".mp4", 2, 120 + 8*i, 220 + 110*i})
	}
	for _, c := range clips {
		if err := run(ctx, work, ffmpeg,
			"-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=%dx%d:rate=15:duration=%d", c.height*16/9/2*2, c.height, c.seconds),
			"-f", "lavfi", "-i", fmt.Sprintf("sine=frequency=%d:duration=%d", c.tone, c.seconds),
			"-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "30", "-c:a", "aac", "-b:a", "64k",
			"-movflags", "+faststart", c.name,
		); err != nil {
			return "", err
		}
	}
	for _, variant := range []string{"low", "high"} {
		if err := os.MkdirAll(filepath.Join(work, "hls", variant), 0o755); err != nil {
			return "", fmt.Errorf("make sample media: %w", err)
		}
		if err := run(ctx, work, ffmpeg, "-i", variant+".mp4", "-c", "copy", "-f", "hls", "-hls_time", "2", "-hls_playlist_type", "vod",
			"-hls_segment_filename", "hls/"+variant+"/%d.ts", "hls/"+variant+"/index.m3u8"); err != nil {
			return "", err
		}
	}
	if err := makeLong(ctx, work, ffmpeg); err != nil {
		return "", err
	}
	master := "#EXTM3U\n#EXT-X-VERSION:3\n" +
		"#EXT-X-STREAM-INF:BANDWIDTH=400000,RESOLUTION=320x180,CODECS=\"avc1.42c00c,mp4a.40.2\"\nlow/index.m3u8\n" +
		"#EXT-X-STREAM-INF:BANDWIDTH=900000,RESOLUTION=640x360,CODECS=\"avc1.42c01e,mp4a.40.2\"\nhigh/index.m3u8\n"
	if err := os.WriteFile(filepath.Join(work, "hls", "master.m3u8"), []byte(master), 0o644); err != nil {
		return "", fmt.Errorf("make sample media: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(work, "dash"), 0o755); err != nil {
		return "", fmt.Errorf("make sample media: %w", err)
	}
	if err := run(ctx, filepath.Join(work, "dash"), ffmpeg, "-i", "../low.mp4", "-i", "../high.mp4", "-map", "0:v", "-map", "1:v", "-map", "1:a", "-c", "copy",
		"-f", "dash", "-seg_duration", "2", "-adaptation_sets", "id=0,streams=v id=1,streams=a", "manifest.mpd"); err != nil {
		return "", err
	}
	if err := protect(filepath.Join(work, "dash", "manifest.mpd"), filepath.Join(work, "dash", "protected.mpd")); err != nil {
		return "", fmt.Errorf("make sample media: %w", err)
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", fmt.Errorf("make sample media: %w", err)
	}
	if err := os.Rename(work, ready); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, statErr := os.Stat(ready); statErr != nil {
			return "", fmt.Errorf("make sample media: %w", err)
		}
	}
	return ready, nil
}

// longFragments is how many fragments each stream of the long film has, of half a second.
const longFragments = 60

// makeLong makes a film in many small fragments: hls/long and dash/long.
func makeLong(ctx context.Context, work, ffmpeg string) error {
	seconds := longFragments / 2
	for _, dir := range []string{"hls/long", "dash/long"} {
		if err := os.MkdirAll(filepath.Join(work, filepath.FromSlash(dir)), 0o755); err != nil {
			return fmt.Errorf("make sample media: %w", err)
		}
	}
	if err := run(ctx, work, ffmpeg,
		"-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=256x144:rate=12:duration=%d", seconds),
		"-f", "lavfi", "-i", fmt.Sprintf("sine=frequency=550:duration=%d", seconds),
		"-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "6", "-sc_threshold", "0", "-c:a", "aac", "-b:a", "64k", "long.mp4",
	); err != nil {
		return err
	}
	if err := run(ctx, work, ffmpeg, "-i", "long.mp4", "-c", "copy", "-f", "hls", "-hls_time", "0.5", "-hls_playlist_type", "vod",
		"-hls_segment_filename", "hls/long/%d.ts", "hls/long/index.m3u8"); err != nil {
		return err
	}
	return run(ctx, filepath.Join(work, "dash", "long"), ffmpeg, "-i", "../../long.mp4", "-c", "copy",
		"-f", "dash", "-seg_duration", "0.5", "-adaptation_sets", "id=0,streams=v id=1,streams=a", "manifest.mpd")
}

// protect writes the manifest again with every stream marked as protected by DRM.
func protect(from, to string) error {
	manifest, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	start := bytes.Index(manifest, []byte("<Representation"))
	if start < 0 {
		return errors.New("no representation in the DASH manifest")
	}
	mark := []byte(`<ContentProtection schemeIdUri="urn:uuid:edef8ba9-79d6-4ace-a3c8-27dcd51d21ed"/>` + "\n\t\t\t<Representation")
	return os.WriteFile(to, bytes.ReplaceAll(manifest, []byte("<Representation"), mark), 0o644)
}

func run(ctx context.Context, dir, ffmpeg string, args ...string) error {
	command := exec.CommandContext(ctx, ffmpeg, append([]string{"-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-fflags", "+bitexact"}, args...)...)
	command.Dir = dir
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("make sample media: %s: %w: %s", args[len(args)-1], err, bytes.TrimSpace(out))
	}
	return nil
}

// padded is a film of a wanted size: an MP4 and, behind it, a `free` box, which players skip.
type padded struct {
	film   []byte
	header [16]byte
	size   int64 // of all
	at     int64
}

// newPadded returns the film brought to size bytes, or as it is where that is too little for a box to fit.
func newPadded(film []byte, size int64) *padded {
	p := &padded{film: film, size: max(size, int64(len(film))+16)}
	binary.BigEndian.PutUint32(p.header[:4], 1) // the size is in the 64 bits behind the type
	copy(p.header[4:8], "free")
	binary.BigEndian.PutUint64(p.header[8:], uint64(p.size-int64(len(film))))
	return p
}

// Read implements io.Reader.
func (p *padded) Read(to []byte) (int, error) {
	if p.at >= p.size {
		return 0, io.EOF
	}
	film, header := int64(len(p.film)), int64(len(p.header))
	var n int
	switch {
	case p.at < film:
		n = copy(to, p.film[p.at:])
	case p.at < film+header:
		n = copy(to, p.header[p.at-film:])
	default:
		n = int(min(int64(len(to)), p.size-p.at))
		clear(to[:n])
	}
	p.at += int64(n)
	return n, nil
}

// Seek implements io.Seeker.
func (p *padded) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += p.at
	case io.SeekEnd:
		offset += p.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	p.at = offset
	return offset, nil
}
