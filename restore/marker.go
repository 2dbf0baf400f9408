package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/internal/durable"
	"github.com/holdfast-dr/holdfast/internal/postgres/sandbox"
)

// marker is the file in the data directory that says what it is.
const marker = "holdfast-restore.json"

// Marker is what the marker file says.
type Marker struct {
	Cluster  string `json:"cluster"`
	Plan     string `json:"plan"`
	Snapshot string `json:"snapshot"`
	SystemID string `json:"system_id"`
	// State is prepared while the room's server runs; from closed on, and
	// quarantined, the directory may be started.
	State  string    `json:"state"` // seizing | fetching | fetched | replaying | prepared | closed | open | quarantined | standby
	At     time.Time `json:"at"`
	Result *Result   `json:"result,omitempty"`
	// Tablespaces are the directories that were made or filled for it elsewhere.
	Tablespaces []string `json:"tablespaces,omitempty"`
	// Mapping is Options.Tablespaces, for who goes on with the restore.
	Mapping  map[string]string `json:"mapping,omitempty"`
	SavedWAL string            `json:"saved_wal,omitempty"` // where WAL of before was put aside
	// InPlace is whose place it is to take, or took.
	InPlace *InPlace `json:"in_place,omitempty"`
	// Process carries the restore out, and may be asked to end; absent where it does more.
	Process *Process `json:"process,omitempty"`
}

func (room *Room) mark(state string) error {
	m := Marker{Cluster: room.Plan.Cluster, Plan: room.Plan.Hash, Snapshot: room.Plan.Snapshot, SystemID: room.Plan.SystemID, State: state, At: time.Now().UTC(), Mapping: room.opt.Tablespaces, SavedWAL: room.Result.SavedWAL, Process: room.opt.Process, InPlace: room.opt.InPlace}
	if room.tree != nil {
		m.Tablespaces = values(room.tree.spaces)
	}
	if room.Result.Complete {
		m.Result = &room.Result
	}
	return m.write(room.opt.To, room.programs)
}

func (m Marker) write(dir string, p sandbox.Programs) error {
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, marker)
	return errors.Join(durable.WriteFile(path, append(data, '\n'), 0o600), p.Own(path))
}

// ReadMarker says what a directory is that a restore made.
func ReadMarker(dir string) (m Marker, err error) {
	data, err := os.ReadFile(filepath.Join(dir, marker))
	if err != nil {
		return m, fmt.Errorf("%s is no directory that a restore made: %w", dir, err)
	}
	return m, json.Unmarshal(data, &m)
}
