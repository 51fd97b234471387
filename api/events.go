package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"
	"github.com/google/uuid"

	"medianest/api/stream"
	"medianest/store"
)

var streamEvents = described{
	id: "stream-events", scope: ScopeEventsRead, tag: tagEvents, summary: "Follow what happens", streams: true,
	text: "A stream of server-sent events (`text/event-stream`): every change of state of every job and download that you may see, exactly once and in order, and the progress of running jobs. An admin sees everybody's, and which workers come and go.\n\n" +
		"`job.state`: a job changed its state; `subject` names your download that it is for. A job whose worker was lost goes from `running` back to `available`, under the same id.\n\n" +
		"    id: 5e1c9a3b7f20.90317.4\n" +
		"    event: job.state\n" +
		"    data: {\"job_id\":\"42\",\"kind\":\"download\",\"queue\":\"download\",\"state\":\"running\",\"previous_state\":\"available\",\"attempt\":1,\"subject\":{\"type\":\"download\",\"id\":\"0199aa3e-…\"},\"at\":\"2026-01-02T03:04:05.678Z\"}\n\n" +
		"`download.state`: a download changed its state, which tells of a cancel or a collection's end as well.\n\n" +
		"    event: download.state\n" +
		"    data: {\"download_id\":\"0199aa3e-…\",\"job_id\":\"42\",\"state\":\"running\",\"previous_state\":\"queued\",\"at\":\"2026-01-02T03:04:05.690Z\"}\n\n" +
		"`worker.joined`, `worker.left`, `worker.lost`: a process of the platform has begun, has stopped, or has not been heard of for too long.\n\n" +
		"    event: worker.lost\n" +
		"    data: {\"worker_id\":\"nas-7f3a\",\"mode\":\"work\",\"host\":\"nas\",\"at\":\"2026-01-02T03:04:05.678Z\"}\n\n" +
		"`job.progress`: how far a running job is, about once a second. It has no id and is not repeated.\n\n" +
		"    event: job.progress\n" +
		"    data: {\"job_id\":\"42\",\"phase\":\"downloading\",\"percent\":41.2,\"downloaded_bytes\":4321000,\"total_bytes\":10485760,\"speed_bytes_per_s\":1200000,\"eta_s\":5}\n\n" +
		"A reader that was cut off asks again with the id that it saw last, as the header `Last-Event-ID` (browsers do by themselves) or as `last_event_id`, and gets what it missed. If that is too long ago, or of another database, there comes a `reset` with the reason: load what is shown again, and go on from there.\n\n" +
		"    event: reset\n" +
		"    data: {\"reason\":\"cursor_expired\"}\n\n" +
		"The first event of a new stream is `open`: its id is the place where the stream begins. Comments keep quiet connections open. All filters must match; each may be given several times, or several values separated by commas.",
	problems: []Code{CodeForbidden, CodeValidationFailed, CodeTooManyStreams},
}

type eventsInput struct {
	Topic       []string `query:"topic,explode" nullable:"false" maxItems:"100" doc:"Only these kinds of events: job.state, download.state, job.progress; for admins also worker.joined, worker.left, worker.lost."`
	Kind        []string `query:"kind,explode" nullable:"false" maxItems:"100" doc:"Only jobs of these kinds." example:"download"`
	Queue       []string `query:"queue,explode" nullable:"false" maxItems:"100" doc:"Only jobs of these queues."`
	State       []string `query:"state,explode" nullable:"false" maxItems:"100" doc:"Only changes to these states, of jobs or downloads."`
	JobID       []string `query:"job_id,explode" nullable:"false" maxItems:"100" doc:"Only these jobs."`
	DownloadID  []string `query:"download_id,explode" nullable:"false" maxItems:"100" doc:"Only these downloads, the items of these collections, and their jobs."`
	Ticket      string   `query:"ticket" maxLength:"256" doc:"In place of a token: see POST /events/ticket. It is good once."`
	LastEventID string   `query:"last_event_id" maxLength:"256" doc:"Go on after this event; for those who cannot set the header."`
	Header      string   `header:"Last-Event-ID" maxLength:"256" hidden:"true"` // told in the text: generators trip over two of a name
}

type eventsOutput struct{ Body func(huma.Context) }

func (a *API) handleEvents(ctx context.Context, input *eventsInput) (*eventsOutput, error) {
	subscription, err := input.subscription()
	if err != nil {
		return nil, err
	}
	subscription.Viewer = viewerOf(ctx)
	if !subscription.Viewer.Admin && slices.ContainsFunc(subscription.Topics, isOfWorkers) {
		return nil, newProblem(CodeForbidden, "Workers come and go for administrators only.")
	}
	return &eventsOutput{func(hc huma.Context) {
		c := humagin.Unwrap(hc)
		who, r := scopeOf(ctx).identity, c.Request
		watched, stop := context.WithCancel(r.Context())
		defer stop()
		go a.watch(watched, who, stop)
		c.Request = r.WithContext(watched)
		if err := a.stream.Serve(c.Writer, c.Request, subscription); err != nil {
			a.writeProblem(c, streamProblem(ctx, err))
			return
		}
		scopeOf(ctx).streamed = true
	}}, nil
}

// watchEvery is how often it is looked whether the reader of a stream may still read it.
const watchEvery = 15 * time.Second

// watch ends a stream when its reader is not let in any more, or may see less or more than before.
func (a *API) watch(ctx context.Context, who *identity, end func()) {
	ticker := time.NewTicker(a.watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if !a.stillCounts(ctx, who, ScopeEventsRead) {
				end()
				return
			}
		}
	}
}

// streamRetry is when a user who has too many streams may try again.
const streamRetry = 30 * time.Second

func streamProblem(ctx context.Context, err error) *Problem {
	if errors.Is(err, stream.ErrTooManyStreams) {
		return newProblem(CodeTooManyStreams, "").because(err).retryAfter(streamRetry)
	}
	return problemOf(ctx, err)
}

// What filters may name: a misspelt one would wait in silence for what never comes.
var (
	eventTopics = []string{
		store.TopicDownloadState, stream.TopicJobProgress, store.TopicJobState,
		store.TopicWorkerJoined, store.TopicWorkerLeft, store.TopicWorkerLost,
	}
	eventStates = []string{
		"available", "cancelled", "completed", "deleted", "discarded", "failed", "paused", "pending", "queued",
		"retryable", "running", "scheduled", "waiting",
	}
)

// isOfWorkers reports whether a topic is of what happens to workers.
func isOfWorkers(topic string) bool { return strings.HasPrefix(topic, "worker.") }

// maxFilterValues bounds what each event is compared with.
const maxFilterValues = 200

func (in *eventsInput) subscription() (stream.Subscription, error) {
	s := stream.Subscription{LastEventID: in.Header}
	if s.LastEventID == "" {
		s.LastEventID = in.LastEventID
	}
	var faults []ProblemError
	values := func(name string, given []string) []string {
		var all []string
		for _, value := range given {
			for part := range strings.SplitSeq(value, ",") {
				if part = strings.TrimSpace(part); part != "" {
					all = append(all, part)
				}
			}
		}
		if len(all) > maxFilterValues {
			faults = append(faults, ProblemError{"query." + name, fmt.Sprintf("more than %d values", maxFilterValues)})
		}
		return all
	}
	known := func(name string, given, allowed []string) []string {
		all := values(name, given)
		for _, value := range all {
			if !slices.Contains(allowed, value) {
				faults = append(faults, ProblemError{"query." + name, "expected values to be of " + strings.Join(allowed, ", ")})
				break
			}
		}
		return all
	}
	s.Topics = known("topic", in.Topic, eventTopics)
	s.States = known("state", in.State, eventStates)
	s.Kinds = values("kind", in.Kind)
	s.Queues = values("queue", in.Queue)
	for _, text := range values("job_id", in.JobID) {
		id, err := parseJobID(text)
		if err != nil {
			faults = append(faults, ProblemError{"query.job_id", "expected a job id"})
			break
		}
		s.JobIDs = append(s.JobIDs, id)
	}
	for _, text := range values("download_id", in.DownloadID) {
		id, err := uuid.Parse(text)
		if err != nil {
			faults = append(faults, ProblemError{"query.download_id", "expected a UUID"})
			break
		}
		s.DownloadIDs = append(s.DownloadIDs, id)
	}
	if len(faults) > 0 {
		p := newProblem(CodeValidationFailed, "")
		p.Errors = faults
		return stream.Subscription{}, p
	}
	return s, nil
}

// describeStream says what huma cannot know of a handler that writes by itself.
func describeStream(document *huma.OpenAPI) {
	ok := document.Paths[eventsPath].Get.Responses["200"]
	ok.Description = http.StatusText(http.StatusOK) + ": the stream, until the client leaves or the server stops."
	ok.Content = map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}}
}
