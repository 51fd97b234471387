package stream

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"

	"medianest/store"
)

// BenchmarkDispatch measures handing an event to streams, without writing it: to the one of ten thousand users that it
// concerns, and to each of ten thousand admins.
func BenchmarkDispatch(b *testing.B) {
	const streams = 10_000
	for _, admins := range []bool{false, true} {
		b.Run(fmt.Sprintf("admins=%t", admins), func(b *testing.B) {
			h := New(Options{Logger: slog.New(slog.DiscardHandler)})
			h.head = store.Head{Epoch: "6f0d1c2b3a49"}
			subscribers := make([]*subscriber, streams)
			for i := range subscribers {
				subscribers[i] = &subscriber{
					Subscription: Subscription{Viewer: store.Viewer{UserID: uuid.Must(uuid.NewV7()), Admin: admins}},
					limit:        h.o.Buffer, wake: make(chan struct{}, 1),
				}
				h.attachNow(subscribers[i])
			}
			sent := 0
			b.ReportAllocs()
			for i := range b.N {
				s := subscribers[i%streams]
				e := store.Event{
					Cursor: store.Cursor{Tick: int64(i) + 1, ID: int64(i) + 1}, At: time.Unix(0, 0), Topic: store.TopicJobState,
					State: "running", PreviousState: "available", JobID: int64(i%streams) + 1, Kind: "download", Queue: "download", Attempt: 1,
					Viewers: []store.EventViewer{{UserID: s.Viewer.UserID, DownloadID: s.Viewer.UserID}},
				}
				h.dispatch([]store.Event{e}, e.Cursor)
				if admins {
					for _, s := range subscribers {
						events, _, _ := s.take()
						sent += len(events)
					}
					continue
				}
				events, _, _ := s.take()
				sent += len(events)
			}
			b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
