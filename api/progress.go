package api

import (
	"context"
	"math"

	"medianest/store"
)

// lastProgress returns the progress of those of the jobs that have one. Redis may be away: then none has.
func (a *API) lastProgress(ctx context.Context, jobs []int64) map[int64]store.Progress {
	if a.progress == nil || len(jobs) == 0 {
		return nil
	}
	progress, err := a.progress.Last(ctx, jobs)
	if err != nil {
		return nil // /readyz tells that Redis is away, and its own client logs it
	}
	return progress
}

func mapProgress(p store.Progress) *Progress {
	return &Progress{
		Phase: p.Phase, Percent: percent(p.Percent), DownloadedBytes: p.DownloadedBytes, TotalBytes: p.TotalBytes,
		SpeedBytesPerS: p.SpeedBytesPerS, ETAS: p.ETAS, At: p.At,
	}
}

// percent rounds to a tenth, within 0 and 100.
func percent(p float64) float64 {
	if math.IsNaN(p) {
		return 0
	}
	return math.Round(min(100, max(0, p))*10) / 10
}
