package api

import (
	"context"
	"net/http"
	"time"

	"medianest/store"
)

// Workers is the processes of the platform, for administrators.
type Workers interface {
	// ListWorkers returns those that have not left, oldest first.
	ListWorkers(ctx context.Context) ([]store.Worker, error)
	// AskDrain asks a worker to hand its jobs over and take no more. Asking again changes nothing. ErrConflict if it
	// works no jobs.
	AskDrain(ctx context.Context, id string) (store.Worker, error)
}

// Worker is a process of the platform, as the store has it.
type Worker struct {
	ID        string         `json:"id" doc:"Identifies the process until it ends; jobs name it in attempted_by." example:"nas-7f3a"`
	Mode      string         `json:"mode" enum:"up,serve,work" doc:"What it does. up: everything. serve: this API. work: jobs." example:"work"`
	Host      string         `json:"host" doc:"The machine that it runs on." example:"nas"`
	Version   string         `json:"version" doc:"Its build." example:"v1.2.3"`
	Volume    string         `json:"volume,omitempty" doc:"Identifies the media volume that it writes to: workers with the same one take over from each other what has been fetched so far."`
	Queues    map[string]int `json:"queues" nullable:"false" doc:"The queues that it works, and how many jobs of each at a time."`
	Running   int            `json:"running" doc:"How many jobs it had when it renewed its presence." example:"2"`
	StartedAt time.Time      `json:"started_at" doc:"When it began."`
	RenewedAt time.Time      `json:"renewed_at" doc:"When it renewed its presence last."`
	ExpiresAt time.Time      `json:"expires_at" doc:"When it counts as lost, unless it renews its presence before."`
	State     string         `json:"state" enum:"running,draining,drained,lost" doc:"draining: it hands its jobs over and takes no more. drained: it has none and takes none, until it is started again. lost: it did not renew its presence in time; others go on with its jobs." example:"running"`
}

// WorkerList is all workers there are.
type WorkerList struct {
	Items []Worker `json:"items" nullable:"false" doc:"The processes, oldest first."`
}

var listWorkers = described{
	id: "list-workers", scope: ScopeQueueRead, tag: tagWorkers, summary: "List the platform's processes",
	text: "Those that serve this API and those that work. One that has stopped is not listed; one that was lost is until another worker has taken its jobs over. The event stream tells of both.",
}

type listWorkersOutput struct{ Body WorkerList }

func (a *API) handleListWorkers(ctx context.Context, _ *struct{}) (*listWorkersOutput, error) {
	workers, err := a.store.ListWorkers(ctx)
	if err != nil {
		return nil, err
	}
	list := WorkerList{Items: make([]Worker, len(workers))}
	for i, w := range workers {
		list.Items[i] = Worker(w)
	}
	return &listWorkersOutput{list}, nil
}

var drainWorker = described{
	id: "drain-worker", scope: ScopeQueueWrite, tag: tagWorkers, summary: "Drain a worker", status: http.StatusAccepted,
	text:     "Has it take no more jobs and hand over those that it has, for others to go on with what has been fetched so far: no job spends an attempt. It begins when it renews its presence, within seconds. The process stays, and so does the API of one of mode up; to have it work again, start it again.",
	problems: []Code{CodeNotFound, CodeConflict, CodeValidationFailed},
}

type workerInput struct {
	ID string `path:"id" maxLength:"100" doc:"The process' id." example:"nas-7f3a"`
}

type workerOutput struct{ Body Worker }

func (a *API) handleDrainWorker(ctx context.Context, input *workerInput) (*workerOutput, error) {
	worker, err := a.store.AskDrain(ctx, input.ID)
	if err != nil {
		return nil, conflict(notFound(err, "worker"), "It works no jobs.")
	}
	return &workerOutput{Worker(worker)}, nil
}
