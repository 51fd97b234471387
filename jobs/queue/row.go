package queue

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/riverqueue/river/rivertype"
)

// Keys of river_job.metadata by which a job goes on after its worker was lost, as another row. The triggers and the
// store read them too.
const (
	metadataPublicID     = "public_id"     // of a successor: the id of the job's first row, as a string
	metadataSupersededBy = "superseded_by" // of a row that has a successor: the successor's id, as a string
)

// PublicID is the id that the row's job is known by: that of its first row. It stays when the job loses its worker and
// goes on as another row.
func PublicID(job *rivertype.JobRow) int64 {
	if !bytes.Contains(job.Metadata, []byte(`"`+metadataPublicID+`"`)) {
		return job.ID
	}
	var kept struct {
		PublicID string `json:"public_id"`
	}
	if err := json.Unmarshal(job.Metadata, &kept); err != nil {
		return job.ID
	}
	id, err := strconv.ParseInt(kept.PublicID, 10, 64)
	if err != nil || id <= 0 {
		return job.ID
	}
	return id
}

// superseded reports whether the job went on as another row: this one stands for it no more.
func superseded(job *rivertype.JobRow) bool {
	if !bytes.Contains(job.Metadata, []byte(`"`+metadataSupersededBy+`"`)) {
		return false
	}
	var kept map[string]json.RawMessage
	if err := json.Unmarshal(job.Metadata, &kept); err != nil {
		return false
	}
	_, ok := kept[metadataSupersededBy]
	return ok
}
