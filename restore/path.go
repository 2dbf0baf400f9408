package restore

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// endless ends the stretch of a timeline that was never left.
const endless = lsn.LSN(math.MaxUint64)

// leg is a stretch of a path through the timelines: To is where the next began.
type leg struct {
	Timeline uint32
	From, To lsn.LSN
}

// path is the way from timeline 1's beginning to the end of target, by target's
// history file (nil for a timeline without ancestors).
func path(target uint32, history []lsn.Switch) []leg {
	var legs []leg
	from := lsn.LSN(0)
	for _, s := range history {
		legs = append(legs, leg{s.Timeline, from, s.LSN})
		from = s.LSN
	}
	return append(legs, leg{target, from, endless})
}

// passes says whether the path goes through position at of timeline: so a
// snapshot that stopped there can be rolled forward along it (C-61).
func passes(legs []leg, timeline uint32, at lsn.LSN) bool {
	i := slices.IndexFunc(legs, func(l leg) bool { return l.Timeline == timeline })
	return i >= 0 && at >= legs[i].From && at <= legs[i].To
}

// upTo is the way from a snapshot's timeline as far as the leg on which end lies,
// and where that leg was left. A copy that stops before a switch is of the parent:
// PostgreSQL, told to follow the child, would write a history in which LSNs fall.
func upTo(legs []leg, timeline uint32, end lsn.LSN) ([]leg, lsn.LSN) {
	from := max(0, slices.IndexFunc(legs, func(l leg) bool { return l.Timeline == timeline }))
	for i := from; i < len(legs); i++ {
		if end <= legs[i].To {
			out := slices.Clone(legs[:i+1])
			out[i].To = endless
			return out, legs[i].To
		}
	}
	return legs, endless
}

// piece is an object that holds bytes [From, To) of a timeline's WAL.
type piece struct {
	catalog.WAL
}

// stretch is the part of a piece that a way through the WAL takes: [Lo, Hi).
type stretch struct {
	piece
	Lo, Hi lsn.LSN
}

// whole says that nothing behind the stretch is left out of its piece, as it is
// where the way turned to another timeline.
func (s stretch) whole() bool { return s.Hi == s.To }

// pieces sorts the WAL (not histories and the like) among notes for cover: by
// timeline and position, of one position the longest first, then the newest
// epoch. A timeline's first segment begins with its parent's bytes, copied by the
// promotion (XLogFileCopy in xlog.c): they stand for the parent's.
func pieces(legs []leg, notes []catalog.Noted[catalog.WAL]) map[uint32][]piece {
	out := map[uint32][]piece{}
	for _, n := range notes {
		if n.Body.To > n.Body.From {
			out[n.Body.Timeline] = append(out[n.Body.Timeline], piece{n.Body})
		}
	}
	for i := len(legs) - 1; i > 0; i-- {
		for _, p := range out[legs[i].Timeline] {
			if p.From < legs[i].From {
				out[legs[i-1].Timeline] = append(out[legs[i-1].Timeline], p)
			}
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b piece) int {
			return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(b.To, a.To), cmp.Compare(b.Epoch, a.Epoch))
		})
	}
	return out
}

// next is the piece that reaches furthest from position at, below limit; of two
// that reach as far, the one that begins earlier, so that whole segments win over
// slices.
func next(list []piece, at, limit lsn.LSN) (piece, bool) {
	var best piece
	for _, p := range list {
		if p.From > at {
			break
		}
		far, have := min(p.To, limit), min(best.To, limit)
		if p.To > at && (far > have || far == have && p.Epoch > best.Epoch) {
			best = p
		}
	}
	return best, best.To > at
}

// cover takes pieces from position from on, without a gap, up to to at the most;
// it says how far it came.
func cover(list []piece, from, to lsn.LSN) (parts []Part, used []stretch, reached lsn.LSN) {
	for reached = from; reached < to; {
		p, ok := next(list, reached, to)
		if !ok {
			break
		}
		end := min(p.To, to)
		parts = append(parts, Part{Object: p.Object, Off: int64(reached - p.From), Len: int64(end - reached), Raw: p.Raw, RawSize: p.RawSize})
		used = append(used, stretch{p, reached, end})
		reached = end
	}
	return parts, used, reached
}

// walk follows the path from position from of timeline as far as the pieces go.
// It gives each stretch it used, in order, where it came to and on which leg.
func walk(legs []leg, by map[uint32][]piece, timeline uint32, from lsn.LSN) (used []stretch, end lsn.LSN, on int) {
	i := max(0, slices.IndexFunc(legs, func(l leg) bool { return l.Timeline == timeline }))
	end, on = from, i
	for ; i < len(legs); i++ {
		_, u, reached := cover(by[legs[i].Timeline], end, legs[i].To)
		used = append(used, u...)
		end, on = reached, i
		if reached < legs[i].To {
			break
		}
	}
	return used, end, on
}

// more is an entry that shows WAL of the path behind position end of leg on: what
// cannot be reached because something before it is missing.
func more(legs []leg, entries []catalog.WALEntry, end lsn.LSN, on int) (catalog.WALEntry, bool) {
	for i := on; i < len(legs); i++ {
		for _, e := range entries {
			if e.Timeline == legs[i].Timeline && e.From < legs[i].To && min(e.To, legs[i].To) > end {
				return e, true
			}
		}
	}
	return catalog.WALEntry{}, false
}

// files lists what restore_command may be asked for between from and end: for
// each segment the file of the newest timeline that begins in it or before, as
// PostgreSQL asks (XLogFileReadAnyTLI in xlogrecovery.c). Bytes of such a file
// before its timeline's beginning are its parent's.
func files(legs []leg, by map[uint32][]piece, segSize int64, from, end lsn.LSN) ([]File, error) {
	var out []File
	for at := from.SegmentStart(segSize); at < end; at += lsn.LSN(segSize) {
		segEnd := min(at+lsn.LSN(segSize), end)
		top := newest(legs, segEnd)
		f := File{Name: lsn.SegmentName(legs[top].Timeline, at.Segment(segSize), segSize), Size: segSize, From: at}
		reached := at
		for i := range legs[:top+1] {
			to := min(legs[i].To, segEnd)
			if i == top {
				to = segEnd
			}
			if to <= reached {
				continue
			}
			parts, _, r := cover(by[legs[i].Timeline], reached, to)
			if r < to {
				return nil, fmt.Errorf("WAL of timeline %d is missing from %s to %s", legs[i].Timeline, r, to)
			}
			f.Parts = append(f.Parts, parts...)
			reached = r
		}
		out = append(out, f)
	}
	return out, nil
}

// newest is the last leg that begins before end.
func newest(legs []leg, end lsn.LSN) int {
	for i := len(legs) - 1; i > 0; i-- {
		if legs[i].From < end {
			return i
		}
	}
	return 0
}
