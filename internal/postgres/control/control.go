// Package control reads PostgreSQL's pg_control and poisons copies of it. It never
// writes a file. A file whose checksum or version it does not know is an error: a
// control file that was guessed at starts the wrong database.
package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// FileSize is the size of the file on disk (PG_CONTROL_FILE_SIZE).
const FileSize = 8192

// PoisonLSN is where a poisoned control file says the last checkpoint is: a
// position that never holds a checkpoint record.
const PoisonLSN lsn.LSN = 0xDEAD

// ErrChecksum means that the bytes were not written as one piece: a torn read, or
// damage.
var ErrChecksum = errors.New("pg_control: its checksum is wrong")

// State is DBState of src/include/catalog/pg_control.h.
type State uint32

const (
	Startup State = iota
	ShutDown
	ShutDownInRecovery
	ShuttingDown
	CrashRecovery
	ArchiveRecovery
	InProduction
)

// Control is what Holdfast needs of ControlFileData. LSNs are 0 where PostgreSQL
// has none. Times have a resolution of a second.
type Control struct {
	SystemID          uint64
	Version           uint32 // pg_control_version: 1300 (13-16), 1700, 1800
	CatalogVersion    uint32
	State             State
	Time              time.Time
	Checkpoint        lsn.LSN
	Redo              lsn.LSN
	Timeline          uint32
	PrevTimeline      uint32
	FullPageWrites    bool
	NextXID           uint64 // with its epoch in the high half
	NextOID           uint32
	CheckpointTime    time.Time
	MinRecovery       lsn.LSN
	MinRecoveryTLI    uint32
	BackupStart       lsn.LSN
	BackupEnd         lsn.LSN
	BackupEndRequired bool
	WALLevel          int32 // 0 minimal, 1 replica, 2 logical
	WALLogHints       bool
	MaxConnections    int32
	MaxWorkers        int32
	MaxWALSenders     int32
	MaxPrepared       int32
	MaxLocksPerXact   int32
	BlockSize         uint32
	SegmentBlocks     uint32 // RELSEG_SIZE
	WALBlockSize      uint32
	SegSize           uint32 // bytes in a WAL segment
	ChecksumVersion   uint32 // 0 off, 1 on
}

// crcAt is where the checksum stands, by pg_control_version. Nothing before it
// moved from 13 to 18 but for 18's default_char_signedness, a byte before the nonce.
func crcAt(version uint32) (int, bool) {
	switch version {
	case 1300, 1700:
		return 288, true
	case 1800:
		return 292, true
	}
	return 0, false
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Parse reads the bytes of a pg_control, at least the first 296. An error is
// [ErrChecksum] when reading again may help.
func Parse(data []byte) (Control, error) {
	at, err := check(data)
	if err != nil {
		return Control{}, err
	}
	if got := crc32.Checksum(data[:at], castagnoli); got != binary.LittleEndian.Uint32(data[at:]) {
		return Control{}, fmt.Errorf("%w: computed %08X, stored %08X", ErrChecksum, got, binary.LittleEndian.Uint32(data[at:]))
	}
	return decode(data)
}

// check finds the checksum and refuses what this package has no layout for.
func check(data []byte) (int, error) {
	if len(data) < 16 {
		return 0, fmt.Errorf("pg_control: %d bytes, want %d", len(data), FileSize)
	}
	version := binary.LittleEndian.Uint32(data[8:])
	at, ok := crcAt(version)
	if !ok {
		return 0, fmt.Errorf("pg_control: version %d is not known, want 1300 (PostgreSQL 13 to 16), 1700 or 1800; a newer server needs a newer Holdfast, and a byte-swapped number means another machine's file", version)
	}
	if len(data) < at+4 {
		return 0, fmt.Errorf("pg_control: %d bytes, want %d", len(data), FileSize)
	}
	return at, nil
}

// decode reads the fields at their offsets in ControlFileData
// (src/include/catalog/pg_control.h) as every 64-bit compiler lays them out.
func decode(d []byte) (Control, error) {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(d[at:]) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(d[at:]) }
	i32 := func(at int) int32 { return int32(u32(at)) }
	at := func(off int) time.Time { return time.Unix(int64(u64(off)), 0).UTC() }
	if f := math.Float64frombits(u64(208)); f != 1234567.0 {
		return Control{}, fmt.Errorf("pg_control: its floating point mark reads %v, want 1234567: it was written by a machine of another make", f)
	}
	return Control{
		SystemID: u64(0), Version: u32(8), CatalogVersion: u32(12), State: State(u32(16)), Time: at(24),
		Checkpoint: lsn.LSN(u64(32)), Redo: lsn.LSN(u64(40)), Timeline: u32(48), PrevTimeline: u32(52),
		FullPageWrites: d[56] != 0, NextXID: u64(64), NextOID: u32(72), CheckpointTime: at(104),
		MinRecovery: lsn.LSN(u64(136)), MinRecoveryTLI: u32(144),
		BackupStart: lsn.LSN(u64(152)), BackupEnd: lsn.LSN(u64(160)), BackupEndRequired: d[168] != 0,
		WALLevel: i32(172), WALLogHints: d[176] != 0,
		MaxConnections: i32(180), MaxWorkers: i32(184), MaxWALSenders: i32(188), MaxPrepared: i32(192), MaxLocksPerXact: i32(196),
		BlockSize: u32(216), SegmentBlocks: u32(220), WALBlockSize: u32(224), SegSize: u32(228),
		ChecksumVersion: u32(252),
	}, nil
}

// Poison returns a copy of a valid pg_control that says its checkpoint is at
// [PoisonLSN], with the checksum redone. PostgreSQL with a backup_label takes its
// start from there and never looks; without one it cannot start, where the real
// file would start it silently corrupt (C-4).
func Poison(data []byte) ([]byte, error) {
	if _, err := Parse(data); err != nil {
		return nil, fmt.Errorf("poison pg_control: %w", err)
	}
	out := append([]byte(nil), data...)
	at, _ := crcAt(binary.LittleEndian.Uint32(out[8:]))
	binary.LittleEndian.PutUint64(out[32:], uint64(PoisonLSN))
	binary.LittleEndian.PutUint32(out[at:], crc32.Checksum(out[:at], castagnoli))
	return out, nil
}

// reads and pause bound how long a torn pg_control is read again: the server
// rewrites it in one write, so a second look nearly always sees it whole.
const (
	reads = 20
	pause = 10 * time.Millisecond
)

// ReadFile reads the pg_control at path while a server may be writing it, again
// when its checksum is wrong (C-18), and returns the very bytes that parsed.
func ReadFile(path string) (Control, []byte, error) {
	for n := 1; ; n++ {
		data, err := os.ReadFile(path)
		if err != nil {
			return Control{}, nil, fmt.Errorf("read pg_control: %w", err)
		}
		c, err := Parse(data)
		if err == nil {
			return c, data, nil
		}
		if !errors.Is(err, ErrChecksum) || n == reads {
			return Control{}, nil, fmt.Errorf("%s, read %d times: %w", path, n, err)
		}
		time.Sleep(pause)
	}
}
