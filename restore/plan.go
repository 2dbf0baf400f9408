package restore

import (
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/tenancy"
)

// The kinds of target, as the command line's flags name them.
const (
	Latest    = "latest"
	AtTime    = "time"
	AtLSN     = "lsn"
	AtXID     = "xid"
	AtName    = "name"
	Immediate = "immediate"
)

// Target is the moment asked for: one kind with its value, and what narrows it.
type Target struct {
	Kind     string    `json:"kind"`
	Time     time.Time `json:"time,omitzero"`
	LSN      lsn.LSN   `json:"lsn,omitzero"`
	XID      uint32    `json:"xid,omitempty"`
	Name     string    `json:"name,omitempty"`     // a named restore point
	Snapshot string    `json:"snapshot,omitempty"` // this one, not the best
	Timeline uint32    `json:"timeline,omitempty"` // 0: the newest lineage's own
	Zone     string    `json:"zone,omitempty"`     // read from this zone alone
	Standby  *Standby  `json:"standby,omitempty"`  // to the end, and then behind live
}

// Plan is an immutable value: everything that a restore will do, before it does
// anything. Its Hash covers all other fields (approval.Hash of the plan without it).
type Plan struct {
	Hash     string    `json:"hash"`
	Cluster  string    `json:"cluster"`
	MadeAt   time.Time `json:"made_at"`
	Target   Target    `json:"target"`
	Snapshot string    `json:"snapshot"`
	Why      []string  `json:"why"` // why this snapshot, this timeline, this end
	Epoch    int       `json:"epoch"`
	SystemID string    `json:"system_id"`
	Major    int       `json:"major"`
	Timeline uint32    `json:"timeline"` // where recovery ends
	SegSize  int64     `json:"wal_segment_size"`
	WAL      WALRange  `json:"wal"`
	// Files are all files that recovery may ask for, in order; a name outside is
	// absent without asking anyone, a name inside never is.
	Files       []File      `json:"files"`
	Stop        Stop        `json:"stop,omitzero"`
	ExpectedEnd End         `json:"expected_end"`
	Bytes       int64       `json:"bytes"`       // to fetch
	DiskNeeded  int64       `json:"disk_needed"` // data and WAL, at the most
	Tombstones  []string    `json:"tombstones"`  // ids to replay
	TombstoneOK bool        `json:"tombstones_complete"`
	ETA         Range       `json:"eta_seconds"`
	RTO         *Objective  `json:"rto,omitempty"`
	Freshness   string      `json:"freshness"` // proven | not proven, and why
	Zones       []ZoneRange `json:"zones"`
	Commands    []string    `json:"commands"` // the same by hand
}

// WALRange is what recovery replays.
type WALRange struct {
	From lsn.LSN `json:"from_lsn"`
	To   lsn.LSN `json:"to_lsn"`
}

// File is one file that restore_command may be asked for, made of one object or,
// for a segment that was never archived full, of slices one after the other.
type File struct {
	Name  string  `json:"name"`
	Parts []Part  `json:"parts"`
	Size  int64   `json:"size"` // of the file; slices are followed by zeros up to it
	From  lsn.LSN `json:"from_lsn,omitzero"`
}

// Part is one stored object of a file: bytes [Off, Off+Len) of it.
type Part struct {
	Object catalog.Ref `json:"object"`
	Off    int64       `json:"off"`
	Len    int64       `json:"len"`
	// Raw and RawSize are the SHA-256 and size of the object's whole plaintext.
	Raw     string `json:"raw_sha256"`
	RawSize int64  `json:"raw_bytes"`
}

// Stop is what PostgreSQL is told where the boundary of the last record is not
// known beforehand: recovery_target_lsn, exclusive. Otherwise nothing: the WAL
// that it is given ends at the expected end.
type Stop struct {
	Setting string `json:"setting,omitempty"`
	Value   string `json:"value,omitempty"`
	// Upto is where the WAL ends that finds it: arriving there is as good.
	Upto lsn.LSN `json:"upto,omitzero"`
}

// End is where recovery must arrive. LSN: the end of the last record that must
// have been replayed. Time: that of the last commit before it, when known.
type End struct {
	LSN  lsn.LSN   `json:"lsn"`
	Time time.Time `json:"time,omitzero"`
}

// Range is an estimate in seconds.
type Range struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Objective is a promise and whether it will hold.
type Objective struct {
	Seconds  float64 `json:"objective"`
	WillHold bool    `json:"will_hold"`
}

// ZoneRange says how far one zone alone could restore.
type ZoneRange struct {
	Name     string  `json:"name"`
	Snapshot bool    `json:"snapshot"` // holds the whole snapshot
	WALTo    lsn.LSN `json:"wal_to_lsn,omitzero"`
	Err      string  `json:"error,omitempty"`
}

// Result is what a restore came to.
type Result struct {
	RestoredTo string             `json:"restored_to"`
	Plan       string             `json:"plan"`
	Reached    End                `json:"reached"`
	Expected   End                `json:"expected"`
	Complete   bool               `json:"complete"`
	Timeline   uint32             `json:"timeline"` // after promotion; a standby's own
	Tombstones []AppliedTombstone `json:"tombstones"`
	// Quarantined: deleted projects may be in it; superusers alone may enter.
	Quarantined bool `json:"quarantined,omitempty"`
	NoEgress    bool `json:"no_egress"`
	// SavedWAL is where the WAL of the directory that a delta went over was put.
	SavedWAL string `json:"saved_wal,omitempty"`
	// BySize: all files were there when it was gone on with, and were taken by their
	// sizes, not read.
	BySize bool `json:"files_by_size,omitempty"`
	// Unchecked says why the blocks were not held against the digests of the page maps;
	// their frames were, always.
	Unchecked string `json:"unchecked_blocks,omitempty"`
	// Warnings say what differs here from the host that the snapshot was taken on.
	Warnings []string `json:"warnings,omitempty"`
	// Standby is how a standby was left; it is not promoted, and has no tombstones
	// replayed in it.
	Standby *Following `json:"standby,omitempty"`
	Bytes   int64      `json:"bytes"`
	Seconds Seconds    `json:"seconds"`
}

// AppliedTombstone says what replaying one tombstone removed.
type AppliedTombstone struct {
	ID     string          `json:"id"`
	Found  bool            `json:"found"`
	Counts []catalog.Count `json:"counts,omitempty"`
	Tied   int             `json:"also_dropped,omitempty"` // what depended on a schema from outside it
	Gone   []tenancy.Gone  `json:"-"`                      // whole schemas and databases, by names that no record has
}

// Seconds are the phases of a restore.
type Seconds struct {
	Fetch  float64 `json:"fetch"`
	Replay float64 `json:"replay"`
	Verify float64 `json:"verify"`
	Total  float64 `json:"total"`
}
