// Package stream sends every change of a job's or download's state to those who may see it, and the coming and going of
// workers to administrators, as Server-Sent Events.
//
// The hub follows the ticks of the outbox and hands each tick's events to the streams that are attached, as bytes that are
// encoded once and shared. A stream that begins with a cursor first replays from the database up to where the hub is, and
// is attached at that very place: nothing is missed and nothing told twice. A stream whose reader does not keep up loses
// its buffer, not its place: it replays what it lost from the database at its own pace, and is disconnected when a write
// does not end in time. No stream ever waits for another, and the hub for none.
//
// Progress of running jobs is mixed in. Of it only the latest of each job is kept: it is replaced, never queued, never
// replayed.
//
// On the wire:
//
//	retry: 3000
//
//	id: 6f0d1c2b3a49.90317.0
//	event: open
//	data: {"position":"6f0d1c2b3a49.90317.0"}
//
//	id: 6f0d1c2b3a49.90317.4
//	event: job.state
//	data: {"job_id":"42","kind":"download","queue":"download","state":"running","previous_state":"available",...}
//
//	id: 6f0d1c2b3a49.90318.9
//	event: worker.lost
//	data: {"worker_id":"nas-1","mode":"work","host":"nas",...}
//
//	event: job.progress
//	data: {"job_id":"42","phase":"downloading","percent":41.2,...}
//
//	id: 6f0d1c2b3a49.90320.0
//	: ping
//
// open comes first on a stream without a cursor. An id, which is opaque to clients, is where to go on after what came
// before it; one may come with a ping, so that a reader with nothing to read does not fall out of the retention window.
// reset says that the place of the cursor can not be gone on from: the client reads anew what it shows, and the stream
// goes on from now.
package stream
