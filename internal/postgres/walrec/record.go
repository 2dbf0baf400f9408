package walrec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Resource managers (src/include/access/rmgrlist.h); extensions' begin at 128.
const (
	rmgrXLOG        = 0
	rmgrXact        = 1
	lastRmgr        = 21
	firstCustomRmgr = 128
)

// Kinds of rmgrXLOG's records (src/include/catalog/pg_control.h).
const (
	xlogCheckpointShutdown = 0x00
	xlogCheckpointOnline   = 0x10
	xlogSwitch             = 0x40
	xlogBackupEnd          = 0x50
	xlogParameterChange    = 0x60
	xlogRestorePoint       = 0x70
	xlogFPWChange          = 0x80
	xlogEndOfRecovery      = 0x90
	xlogOverwrite          = 0xD0
)

// Record is one WAL record.
type Record struct {
	// Start is where the record begins, End where the next one may (PostgreSQL's
	// EndRecPtr): of a switch record, the end of the segment.
	Start, End lsn.LSN
	Timeline   uint32 // of the page it ends on; 0 before the first page header
	Prev       lsn.LSN
	Xid        uint32
	Rmgr, Info uint8
	Length     uint32
	Data       []byte // with its header, at most the first KeepBytes; valid while visited

	major int
}

// Kind is what a record means to recovery.
type Kind string

// The kinds that [Record.Decode] tells; all else is Other.
const (
	Other              Kind = ""
	CommitKind         Kind = "commit"
	AbortKind          Kind = "abort"
	RestorePointKind   Kind = "restore_point"
	CheckpointOnline   Kind = "checkpoint"
	CheckpointShutdown Kind = "checkpoint_shutdown"
	SwitchKind         Kind = "switch"
	BackupEnd          Kind = "backup_end"
	ParameterChange    Kind = "parameter_change"
	FullPageWrites     Kind = "full_page_writes"
	EndOfRecovery      Kind = "end_of_recovery"
	Overwrite          Kind = "overwrite_contrecord"
)

// Decoded is a record's meaning. Which fields are set depends on Kind.
type Decoded struct {
	Kind     Kind      `json:"kind"`
	Time     time.Time `json:"time,omitzero"`     // the server's clock, microseconds (seconds for checkpoints)
	Xid      uint32    `json:"xid,omitempty"`     // commit, abort: the top transaction, also of a prepared one
	Subxacts int       `json:"subs,omitempty"`    // commit, abort
	Prepared bool      `json:"twophase,omitzero"` // commit, abort: of a prepared transaction
	Database uint32    `json:"database,omitempty"`
	Name     string    `json:"name,omitempty"` // restore point
	// LSN is a checkpoint's redo position, a backup end's start position, an
	// overwritten record's position.
	LSN lsn.LSN `json:"lsn,omitempty"`
	// Timelines from checkpoints and ends of recovery.
	ThisTimeline uint32      `json:"timeline,omitempty"`
	PrevTimeline uint32      `json:"prev_timeline,omitempty"`
	On           bool        `json:"on,omitempty"` // full_page_writes
	Params       *Parameters `json:"params,omitempty"`
}

// Parameters are what a standby must match (xl_parameter_change; C-63).
type Parameters struct {
	MaxConnections    int32 `json:"max_connections"`
	MaxWorkers        int32 `json:"max_worker_processes"`
	MaxWALSenders     int32 `json:"max_wal_senders"`
	MaxPrepared       int32 `json:"max_prepared_transactions"`
	MaxLocks          int32 `json:"max_locks_per_transaction"`
	WALLevel          int32 `json:"wal_level"` // 0 minimal, 1 replica, 2 logical
	WALLogHints       bool  `json:"wal_log_hints"`
	TrackCommitTimeOn bool  `json:"track_commit_timestamp"`
}

func (r *Record) is(rmgr, info uint8) bool { return r.Rmgr == rmgr && r.Info&0xf0 == info }

// Decode tells what the record means; most are Other. A record that is one of
// the known kinds and does not hold what such a record holds is an error.
func (r *Record) Decode() (d Decoded, err error) {
	switch r.Rmgr {
	case rmgrXact:
		d, err = r.xact()
	case rmgrXLOG:
		d, err = r.xlog()
	}
	if err != nil {
		return Decoded{}, fmt.Errorf("WAL record at %s (resource manager %d, info %02X): %w", r.Start, r.Rmgr, r.Info, err)
	}
	return d, nil
}

var xlogKinds = map[uint8]Kind{
	xlogCheckpointShutdown: CheckpointShutdown, xlogCheckpointOnline: CheckpointOnline, xlogSwitch: SwitchKind,
	xlogBackupEnd: BackupEnd, xlogParameterChange: ParameterChange, xlogRestorePoint: RestorePointKind,
	xlogFPWChange: FullPageWrites, xlogEndOfRecovery: EndOfRecovery, xlogOverwrite: Overwrite,
}

func (r *Record) xlog() (Decoded, error) {
	d := Decoded{Kind: xlogKinds[r.Info&0xf0]}
	if d.Kind == Other || d.Kind == SwitchKind {
		return d, nil
	}
	data, err := r.mainData()
	if err != nil {
		return d, err
	}
	c := cursor{b: data}
	switch d.Kind {
	case CheckpointOnline, CheckpointShutdown: // CheckPoint; time is at 64 in 14 to 18
		d.LSN = lsn.LSN(c.u64())
		d.ThisTimeline, d.PrevTimeline = c.u32(), c.u32()
		c.skip(64 - 16)
		d.Time = time.Unix(int64(c.u64()), 0).UTC()
	case BackupEnd:
		d.LSN = lsn.LSN(c.u64())
	case RestorePointKind: // xl_restore_point
		d.Time = c.timestamp()
		name, _, _ := bytes.Cut(c.take(64), []byte{0})
		d.Name = string(name)
	case EndOfRecovery: // xl_end_of_recovery
		d.Time = c.timestamp()
		d.ThisTimeline, d.PrevTimeline = c.u32(), c.u32()
	case Overwrite: // xl_overwrite_contrecord
		d.LSN = lsn.LSN(c.u64())
		d.Time = c.timestamp()
	case FullPageWrites:
		d.On = c.bool()
	case ParameterChange:
		d.Params = &Parameters{
			MaxConnections: c.i32(), MaxWorkers: c.i32(), MaxWALSenders: c.i32(), MaxPrepared: c.i32(),
			MaxLocks: c.i32(), WALLevel: c.i32(), WALLogHints: c.bool(), TrackCommitTimeOn: c.bool(),
		}
	}
	return d, c.err()
}

// cursor reads little-endian fields; after running out it gives zeros and is bad.
type cursor struct {
	b   []byte
	bad bool
}

var zeros [64]byte

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.bad, c.b = true, nil
		return zeros[:min(n, len(zeros))]
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) skip(n int64) {
	if n < 0 || n > int64(len(c.b)) {
		c.bad, c.b = true, nil
		return
	}
	c.b = c.b[n:]
}

func (c *cursor) u8() uint8   { return c.take(1)[0] }
func (c *cursor) bool() bool  { return c.u8() != 0 }
func (c *cursor) u32() uint32 { return binary.LittleEndian.Uint32(c.take(4)) }
func (c *cursor) i32() int32  { return int32(c.u32()) }
func (c *cursor) u64() uint64 { return binary.LittleEndian.Uint64(c.take(8)) }

// epoch is PostgreSQL's: timestamps count microseconds from it.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

func (c *cursor) timestamp() time.Time { return time.UnixMicro(int64(c.u64()) + epoch).UTC() }

func (c *cursor) err() error {
	if c.bad {
		return fmt.Errorf("is too short for its kind")
	}
	return nil
}
