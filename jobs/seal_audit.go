package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/riverqueue/river"

	"medianest/jobs/siem"
	"medianest/store"
)

// SealAuditArgs are the arguments of a job that seals what has been written into the audit, and sends it on to the collector
// of security events where there is one.
//
// Run twice, or cut off, it goes on from where it was; a collector may get the last entries again.
type SealAuditArgs struct{}

// Kind implements river.JobArgs.
func (SealAuditArgs) Kind() string { return "seal_audit" }

// InsertOpts implements river.JobArgsWithInsertOpts.
func (SealAuditArgs) InsertOpts() river.InsertOpts { return upkeepOpts() }

// Collector is where security events go.
type Collector interface {
	Address() string
	Send(ctx context.Context, records []siem.Record) error
}

// SealAuditWorker works jobs of kind seal_audit.
type SealAuditWorker struct {
	river.WorkerDefaults[SealAuditArgs]

	store     *store.Store
	collector Collector // nil: none
}

// Timeout implements river.Worker.
func (w *SealAuditWorker) Timeout(*river.Job[SealAuditArgs]) time.Duration { return upkeepTimeout }

// Work implements river.Worker.
func (w *SealAuditWorker) Work(ctx context.Context, job *river.Job[SealAuditArgs]) error {
	_, err := w.store.SealAudit(ctx)
	if err == nil && w.collector != nil {
		_, err = w.store.ForwardAudit(ctx, w.collector.Address(), w.send)
	}
	return classify(ctx, job.JobRow, err)
}

// badStatus is where answers begin that are refusals and failures.
const badStatus = 400

func (w *SealAuditWorker) send(ctx context.Context, entries []store.SealedEntry) error {
	records := make([]siem.Record, len(entries))
	for i, e := range entries {
		encoded, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode entry %d: %w", e.ID, err)
		}
		records[i] = siem.Record{At: e.At, ID: e.Action, Fail: e.Status == nil || *e.Status >= badStatus, JSON: encoded}
	}
	return w.collector.Send(ctx, records)
}
