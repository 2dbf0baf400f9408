package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// System is what IDENTIFY_SYSTEM says: compare SystemID every time (C-47).
type System struct {
	SystemID string // decimal
	Timeline uint32
	Flushed  lsn.LSN // end of the WAL that the server has on disk
}

// IdentifySystem asks a replication connection which cluster it is connected to.
func IdentifySystem(ctx context.Context, c *Conn) (System, error) {
	rows, err := c.simple(ctx, "IDENTIFY_SYSTEM")
	if err != nil {
		return System{}, fmt.Errorf("identify the server: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) < 3 {
		return System{}, errors.New("identify the server: it gave no row of three columns")
	}
	t, err1 := strconv.ParseUint(string(rows[0][1]), 10, 32)
	at, err2 := lsn.Parse(string(rows[0][2]))
	if err := errors.Join(err1, err2); err != nil {
		return System{}, fmt.Errorf("identify the server: %w", err)
	}
	return System{SystemID: string(rows[0][0]), Timeline: uint32(t), Flushed: at}, nil
}

// slotName is what ReplicationSlotValidateName in src/backend/replication/slot.c takes.
var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

func checkSlotName(name string) error {
	if !slotName.MatchString(name) {
		return fmt.Errorf("replication slot %q: want lower-case letters, digits and underscores, 63 at most", name)
	}
	return nil
}

// createSlotSQL reserves WAL from the moment that the slot exists (C-47).
func createSlotSQL(num int, name string) string {
	if num < 150000 {
		return `CREATE_REPLICATION_SLOT "` + name + `" PHYSICAL RESERVE_WAL`
	}
	return `CREATE_REPLICATION_SLOT "` + name + `" PHYSICAL (RESERVE_WAL true)`
}

// EnsureSlot makes a physical slot unless it exists; created says which.
func EnsureSlot(ctx context.Context, c *Conn, name string) (created bool, err error) {
	if err := checkSlotName(name); err != nil {
		return false, err
	}
	_, err = c.simple(ctx, createSlotSQL(c.num, name))
	switch {
	case err == nil:
		return true, nil
	case code(err) == "42710":
		return false, nil
	case code(err) == "53400":
		return false, fmt.Errorf("create the replication slot %q: raise max_replication_slots on the server: %w", name, err)
	}
	return false, fmt.Errorf("create the replication slot %q: %w", name, err)
}

// Slot is what a replication connection says of a slot.
type Slot struct {
	Restart  lsn.LSN // the oldest WAL that it holds; 0 when it never held any
	Timeline uint32  // of Restart; 0 with it
}

// ErrNoSlot means that the slot does not exist, or is not a physical one.
var ErrNoSlot = errors.New("the server has no such physical replication slot")

// ReadSlot asks a replication connection for a slot. A server before 15 answers
// [errors.ErrUnsupported]: use [GetSlotState].
func ReadSlot(ctx context.Context, c *Conn, name string) (Slot, error) {
	if err := checkSlotName(name); err != nil {
		return Slot{}, err
	}
	if c.num < 150000 {
		return Slot{}, fmt.Errorf("READ_REPLICATION_SLOT on PostgreSQL %d, it is there since 15: %w", c.Major(), errors.ErrUnsupported)
	}
	rows, err := c.simple(ctx, `READ_REPLICATION_SLOT "`+name+`"`)
	if err != nil {
		return Slot{}, fmt.Errorf("read the replication slot %q: %w", name, err)
	}
	if len(rows) != 1 || len(rows[0]) != 3 || string(rows[0][0]) != "physical" {
		return Slot{}, fmt.Errorf("read the replication slot %q: %w", name, ErrNoSlot)
	}
	if rows[0][1] == nil {
		return Slot{}, nil
	}
	at, err1 := lsn.Parse(string(rows[0][1]))
	t, err2 := strconv.ParseUint(string(rows[0][2]), 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return Slot{}, fmt.Errorf("read the replication slot %q: %w", name, err)
	}
	return Slot{Restart: at, Timeline: uint32(t)}, nil
}

// SlotState is a slot's row of pg_replication_slots (C-51).
type SlotState struct {
	Restart   lsn.LSN // 0 when it holds none
	Active    bool
	ActivePID int
	// WALStatus is reserved, extended, unreserved or lost; "" when it holds none.
	WALStatus string
	// SafeBytes is how much more WAL may be written before the slot is in
	// danger of being lost; nil when nothing limits it: then it can fill the disk.
	SafeBytes *int64
	// Behind is how many bytes of WAL the server keeps for it.
	Behind int64
	// Synchronous says that commits wait for whoever streams from it.
	Synchronous bool
	// Invalidated says why, since 17; "" for a slot that is well.
	Invalidated string
}

// Lost says that the WAL the slot was for is gone: a gap.
func (s SlotState) Lost() bool { return s.WALStatus == "lost" || s.Invalidated != "" }

const slotStateSQL = `SELECT coalesce(restart_lsn, '0/0')::text, active, coalesce(active_pid, 0), coalesce(wal_status, ''), safe_wal_size,
	coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::int8,
	coalesce((SELECT sync_state IN ('sync', 'quorum') FROM pg_stat_replication WHERE pid = active_pid), false), `

// GetSlotState asks an ordinary connection for the state of a slot.
func GetSlotState(ctx context.Context, c *Conn, name string) (SlotState, error) {
	reason := "''"
	if c.num >= 170000 {
		reason = "coalesce(invalidation_reason, '')"
	}
	var s SlotState
	err := c.pgx.QueryRow(ctx, slotStateSQL+reason+" FROM pg_replication_slots WHERE slot_name = $1 AND slot_type = 'physical'", name).
		Scan((*lsnText)(&s.Restart), &s.Active, &s.ActivePID, &s.WALStatus, &s.SafeBytes, &s.Behind, &s.Synchronous, &s.Invalidated)
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNoSlot
	}
	if err != nil {
		return SlotState{}, fmt.Errorf("read the replication slot %q: %w", name, err)
	}
	return s, nil
}

// AdvanceSlot moves a slot that nobody uses forward to at, or to where the server
// has come: WAL before may go. It never moves one back.
func AdvanceSlot(ctx context.Context, c *Conn, name string, at lsn.LSN) error {
	_, err := c.pgx.Exec(ctx, `SELECT pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_replication_slots
WHERE slot_name = $1 AND slot_type = 'physical' AND NOT active AND restart_lsn < least($2::text::pg_lsn,
	CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)`, name, at.String())
	if err != nil {
		return fmt.Errorf("move the replication slot %q forward to %s: %w", name, at, err)
	}
	return nil
}

// DropSlot removes a slot, so that the server keeps no WAL for it any more. One
// that does not exist is no error.
func DropSlot(ctx context.Context, c *Conn, name string) error {
	if err := checkSlotName(name); err != nil {
		return err
	}
	_, err := c.simple(ctx, `DROP_REPLICATION_SLOT "`+name+`"`)
	if err != nil && code(err) != "42704" {
		return fmt.Errorf("drop the replication slot %q: %w", name, err)
	}
	return nil
}

// Gap is WAL that the server may no longer have: From is the first position that
// is missed, To the first that the slot still holds.
type Gap struct{ From, To lsn.LSN }

// Resume decides where to stream on from: always our own durable position, or,
// where there is none yet, the beginning of the segment where the slot begins.
// Where the slot begins after it, gap says what may be lost: fetch it from
// elsewhere or record it, never pass over it (C-48). segSize is in bytes.
func Resume(durable lsn.LSN, slot Slot, segSize int64) (start lsn.LSN, gap *Gap) {
	if durable == 0 {
		return slot.Restart.SegmentStart(segSize), nil
	}
	if slot.Restart > durable {
		return durable, &Gap{From: durable, To: slot.Restart}
	}
	return durable, nil
}
