package restore

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Moment is a target resolved to a position before anything moves, so that no
// restore fails for want of a later commit (P24).
type Moment struct {
	// End is where recovery must arrive. The WAL that the room is given ends
	// there, zeros behind it, so that recovery cannot go further.
	End End
	// Stop, unless zero, is a position whose record boundary is not known before
	// the WAL is read: recovery_target_lsn, exclusive, finds it. The WAL then goes
	// on to Upto.
	Stop, Upto lsn.LSN
	Why        string
}

// mark is a commit, an abort or a named restore point in the WAL.
type mark struct {
	Start, End lsn.LSN
	XID        uint32
	Time       time.Time
	Name       string // of a restore point; "" for a transaction's end
}

// before resolves a time: recovery stops before the first transaction that ended
// after t, as recovery_target_time would (recoveryStopsBefore in
// xlogrecovery.c), at its start. ok is false where marks have none.
func before(marks []mark, t time.Time) (m Moment, ok bool) {
	var last time.Time
	for _, k := range marks {
		if k.Name != "" {
			continue
		}
		if k.Time.After(t) {
			return Moment{
				End: End{LSN: k.Start, Time: last},
				Why: fmt.Sprintf("the first transaction that ended after %s begins its last record at %s", stamp(t), k.Start),
			}, true
		}
		last = k.Time
	}
	return Moment{}, false
}

// ofXID resolves a transaction: recovery stops after its commit or abort.
func ofXID(marks []mark, xid uint32) (Moment, bool) {
	for _, k := range marks {
		if k.Name == "" && k.XID == xid {
			return after(k, fmt.Sprintf("transaction %d ended at %s", xid, stamp(k.Time))), true
		}
	}
	return Moment{}, false
}

// ofName resolves a named restore point: recovery stops after it.
func ofName(marks []mark, name string) (Moment, bool) {
	for _, k := range marks {
		if k.Name != "" && k.Name == name {
			return after(k, fmt.Sprintf("restore point %q was set at %s", name, stamp(k.Time))), true
		}
	}
	return Moment{}, false
}

func after(k mark, why string) Moment {
	return Moment{End: End{LSN: k.End, Time: k.Time}, Why: why}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// Page header sizes of the WAL (SizeOfXLogShortPHD, SizeOfXLogLongPHD in
// src/include/access/xlog_internal.h), and its page size.
const (
	walPage    = 8192
	shortPage  = 24
	longPage   = 40
	minSegSize = 1 << 20
)

// settle moves a position that is a page's first byte behind the page's header:
// the end of one record and the start of the next are then equal.
func settle(l lsn.LSN, segSize int64) lsn.LSN {
	switch {
	case segSize < minSegSize:
		return l
	case l.Offset(segSize) == 0:
		return l + longPage
	case uint64(l)%walPage == 0:
		return l + shortPage
	}
	return l
}

// Arrived says whether recovery that replayed up to reached has done all that it
// had to.
func Arrived(reached, expected lsn.LSN, segSize int64) bool {
	return settle(reached, segSize) >= settle(expected, segSize)
}
