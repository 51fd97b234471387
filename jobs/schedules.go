package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"

	"medianest/store"
)

// schedulable is a kind that a schedule may be of. Its arguments are complete without anything that only a request has.
type schedulable struct {
	description string
	decode      func(raw json.RawMessage, strict bool) (river.JobArgs, error)
}

// schedulables are those kinds, by name. The order is that of the documentation.
var schedulables = []struct {
	kind string
	schedulable
}{
	{TrimEventsArgs{}.Kind(), schedulable{
		"Removes events past the retention of the event stream.", decodeArgs[TrimEventsArgs],
	}},
	{TrimDomainArgs{}.Kind(), schedulable{
		"Removes idempotency keys, traces of jobs that are gone, and contents that nobody needs.", decodeArgs[TrimDomainArgs],
	}},
	{SealAuditArgs{}.Kind(), schedulable{
		"Seals what has been written into the audit, and sends it to the collector of security events.", decodeArgs[SealAuditArgs],
	}},
	{RotateSecretsArgs{}.Kind(), schedulable{
		"Seals secrets that are under older secret keys under the active one.", decodeArgs[RotateSecretsArgs],
	}},
	{SweepStagingArgs{}.Kind(), schedulable{
		"Removes from the staging area what no download will need.", decodeArgs[SweepStagingArgs],
	}},
}

// OwnSchedules are the platform's own periodic work. Administrators may change and pause them.
func OwnSchedules() []store.SystemSchedule {
	own := func(args river.JobArgs, name string, every time.Duration) store.SystemSchedule {
		return store.SystemSchedule{Key: args.Kind(), Spec: store.ScheduleSpec{
			Name: name, Enabled: true, Kind: args.Kind(), Interval: every,
			Overlap: store.OverlapSkip, Misfire: store.MisfireRunOnce,
		}}
	}
	return []store.SystemSchedule{
		own(TrimEventsArgs{}, "Event retention", 5*time.Minute),
		own(TrimDomainArgs{}, "Record retention", time.Hour),
		own(SealAuditArgs{}, "Audit sealing", time.Minute),
		own(RotateSecretsArgs{}, "Rotation of secrets", 24*time.Hour),
		own(SweepStagingArgs{}, "Staging sweep", time.Hour),
	}
}

func decodeArgs[T river.JobArgs](raw json.RawMessage, strict bool) (river.JobArgs, error) {
	var args T
	decoder := json.NewDecoder(bytes.NewReader(raw))
	if strict {
		decoder.DisallowUnknownFields()
	}
	if err := decoder.Decode(&args); err != nil {
		return nil, err
	}
	return args, nil
}

var _ store.ScheduleQueue = (*Enqueuer)(nil)

// ScheduleKinds implements store.ScheduleQueue.
func (*Enqueuer) ScheduleKinds() []store.ScheduleKind {
	kinds := make([]store.ScheduleKind, len(schedulables))
	for i, s := range schedulables {
		kinds[i] = store.ScheduleKind{Kind: s.kind, Description: s.description, Args: json.RawMessage(`{}`)}
	}
	return kinds
}

// CheckScheduledArgs implements store.ScheduleQueue.
func (*Enqueuer) CheckScheduledArgs(kind string, args json.RawMessage) error {
	s, ok := findSchedulable(kind)
	if !ok {
		names := make([]string, len(schedulables))
		for i, known := range schedulables {
			names[i] = known.kind
		}
		return &store.InvalidError{Field: "kind", Reason: "is none of " + strings.Join(names, " ")}
	}
	if _, err := s.decode(args, true); err != nil {
		why := "is not what jobs of kind " + kind + " take: " + strings.TrimPrefix(err.Error(), "json: ")
		return &store.InvalidError{Field: "args", Reason: why}
	}
	return nil
}

func findSchedulable(kind string) (schedulable, bool) {
	for _, s := range schedulables {
		if s.kind == kind {
			return s.schedulable, true
		}
	}
	return schedulable{}, false
}

// EnqueueScheduledTx implements store.ScheduleQueue. The job's metadata names the schedule and the tick.
func (e *Enqueuer) EnqueueScheduledTx(ctx context.Context, tx pgx.Tx, job store.ScheduledJob) (int64, error) {
	s, ok := findSchedulable(job.Kind)
	if !ok {
		return 0, fmt.Errorf("no job of kind %q can be scheduled", job.Kind)
	}
	args, err := s.decode(job.Args, false)
	if err != nil {
		return 0, fmt.Errorf("arguments of kind %s: %w", job.Kind, err)
	}
	metadata := metadataOf(job.Kind, nil, map[string]string{
		"schedule_id": job.ScheduleID.String(), "schedule_tick": job.Tick.UTC().Format(time.RFC3339),
	})
	inserted, err := e.client.InsertTx(ctx, tx, args, &river.InsertOpts{ScheduledAt: job.RunAt, Metadata: metadata})
	if err != nil {
		return 0, fmt.Errorf("insert job of kind %s: %w", job.Kind, err)
	}
	return inserted.Job.ID, nil
}
