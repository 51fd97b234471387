package ytdlp

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func track(lines ...string) []Progress {
	tracker := &tracker{}
	var out []Progress
	for _, line := range lines {
		if _, changed := tracker.line(line); changed {
			out = append(out, tracker.last)
		}
	}
	return out
}

func TestProgressOfOneFile(t *testing.T) {
	t.Parallel()
	got := track(
		`medianest:plan {"formats":[],"rates":[]}`,
		`medianest:download {"status":"downloading","format":"mp4","bytes":1024,"total":4096,"estimate":null,"speed":null,"eta":null,"fragment":null,"fragments":null}`,
		`[download] 50% of something`,
		`medianest:download {"status":"downloading","format":"mp4","bytes":2048,"total":4096,"estimate":null,"speed":512.5,"eta":4,"fragment":null,"fragments":null}`,
		`medianest:download {"status":"finished","format":"mp4","bytes":4096,"total":4096,"estimate":null,"speed":600,"eta":null,"fragment":null,"fragments":null}`,
		`medianest:postprocess {"step":"MoveFiles","status":"started"}`,
		`medianest:postprocess {"step":"MoveFiles","status":"finished"}`,
	)
	require.Empty(t, cmp.Diff([]Progress{
		{Phase: PhaseDownloading, DownloadedBytes: 1024, TotalBytes: 4096, Percent: 25},
		{Phase: PhaseDownloading, DownloadedBytes: 2048, TotalBytes: 4096, SpeedBytesPerS: 512.5, ETAS: 4, Percent: 50},
		{Phase: PhaseDownloading, DownloadedBytes: 4096, TotalBytes: 4096, SpeedBytesPerS: 600, Percent: 100},
	}, got))
}

// A picture and a sound that are fetched one after the other are one film: it is not done, and does not begin again,
// between them.
func TestProgressOfMergedStreams(t *testing.T) {
	t.Parallel()
	got := track(
		`medianest:plan {"formats":["137","140"],"rates":[900,100]}`,
		`medianest:download {"status":"downloading","format":"137","bytes":450,"total":null,"estimate":900,"speed":50,"eta":9,"fragment":1,"fragments":2}`,
		`medianest:download {"status":"finished","format":"137","bytes":900,"total":900,"estimate":null,"speed":50,"eta":null,"fragment":null,"fragments":null}`,
		`medianest:download {"status":"downloading","format":"140","bytes":10,"total":100,"estimate":null,"speed":30,"eta":3,"fragment":null,"fragments":null}`,
		`medianest:download {"status":"finished","format":"140","bytes":100,"total":100,"estimate":null,"speed":30,"eta":null,"fragment":null,"fragments":null}`,
		`medianest:postprocess {"step":"Merger","status":"started"}`,
		`medianest:postprocess {"step":"Merger","status":"finished"}`,
	)
	require.Empty(t, cmp.Diff([]Progress{
		{Phase: PhaseDownloading, DownloadedBytes: 450, TotalBytes: 1000, SpeedBytesPerS: 50, ETAS: 11, Percent: 45, Fragment: 1, Fragments: 2},
		{Phase: PhaseDownloading, DownloadedBytes: 900, TotalBytes: 1000, SpeedBytesPerS: 50, ETAS: 2, Percent: 90},
		{Phase: PhaseDownloading, DownloadedBytes: 910, TotalBytes: 1000, SpeedBytesPerS: 30, ETAS: 3, Percent: 91},
		{Phase: PhaseDownloading, DownloadedBytes: 1000, TotalBytes: 1000, SpeedBytesPerS: 30, Percent: 100},
		{Phase: PhasePostprocessing, DownloadedBytes: 1000, TotalBytes: 1000, Percent: 100},
	}, got))
}

func TestProgressOfUnknownSize(t *testing.T) {
	t.Parallel()
	got := track(`medianest:download {"status":"downloading","format":null,"bytes":450,"total":null,"estimate":null,"speed":50,"eta":null,"fragment":null,"fragments":null}`)
	require.Equal(t, []Progress{{Phase: PhaseDownloading, DownloadedBytes: 450, SpeedBytesPerS: 50}}, got)
}

func FuzzProgress(f *testing.F) {
	f.Add(`medianest:plan {"formats":["137","140"],"rates":[900,null]}`, "137", 1.0, 2.0, 3.0)
	f.Add(`medianest:plan {"formats":["1","1"],"rates":[0,-1]}`, "1", math.MaxFloat64, -5.0, math.SmallestNonzeroFloat64)
	f.Add(`medianest:postprocess {"step":"Merger","status":"started"}`, "", 0.0, 0.0, 0.0)
	f.Add(`medianest:download {"bytes":1e400}`, "x", 1e300, 1e300, 1.0)
	f.Fuzz(func(t *testing.T, line, format string, bytes, total, speed float64) {
		tracker := &tracker{}
		previous := tracker.last
		step := func(line string) {
			known, changed := tracker.line(line)
			require.True(t, known || !changed)
			require.Equal(t, known, strings.HasPrefix(line, planMark) || strings.HasPrefix(line, downloadMark) || strings.HasPrefix(line, postprocessMark))
			p := tracker.last
			for _, v := range []float64{p.Percent, p.SpeedBytesPerS, p.ETAS, float64(p.DownloadedBytes), float64(p.TotalBytes)} {
				require.False(t, math.IsNaN(v) || math.IsInf(v, 0) || v < 0, "%+v", p)
			}
			require.GreaterOrEqual(t, p.Percent, previous.Percent)
			require.LessOrEqual(t, p.Percent, 100.0)
			previous = p
		}
		step(line)
		for i := range 3 {
			d := downloadLine{Status: "downloading", Format: format, Bytes: bytes * float64(i), Total: total, Estimate: total / 2, Speed: speed}
			if i == 2 {
				d.Format += "x"
			}
			if encoded, err := json.Marshal(d); err == nil {
				step(downloadMark + string(encoded))
			}
		}
		step(line)
	})
}
