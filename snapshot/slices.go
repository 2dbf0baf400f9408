package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// ErrDiverged means that the server sends other bytes for a stretch of WAL than
// it sent before: it is not the server that was archived.
var ErrDiverged = errors.New("the server's WAL differs from what it sent before")

// assembler turns a stream of WAL into segments and, of a segment that is not
// yet full, slices. It holds one segment, and never sends: it is a value that
// the archiver asks what is due.
type assembler struct {
	cfg   walrec.Config // Start is set for each index
	start lsn.LSN       // of the segment
	buf   []byte        // its bytes so far
	cut   lsn.LSN       // all before was handed on, as segments or slices
	since time.Time     // when the first byte after cut came; zero with none
	known bool          // the segment may have been archived by an earlier process
	// What the index of the segment, and that of the next slice, begin with; the
	// latter at done. After a fault nothing of the segment is indexed.
	atStart, atDone walrec.Carry
	done            lsn.LSN
	faulty          bool
	fault           func(error) // told of WAL that cannot be indexed
	commits         *commits    // nil: nobody waits for them
}

// newAssembler begins with the segment that holds at, of which all before at was
// handed on already; reach is what is known of a record that reaches into it.
func newAssembler(cfg walrec.Config, at lsn.LSN, reach walrec.Carry, fault func(error)) *assembler {
	a := &assembler{cfg: cfg, cut: at, fault: fault}
	a.begin(at.SegmentStart(cfg.SegSize), reach)
	a.known = true
	return a
}

func (a *assembler) begin(start lsn.LSN, c walrec.Carry) {
	a.start, a.done, a.known, a.faulty = start, start, false, false
	a.cut = max(a.cut, start)
	a.atStart, a.atDone = c, c
	a.buf = make([]byte, 0, min(a.cfg.SegSize, 16<<20))
	a.since = time.Time{}
}

// pos is where the next byte is expected.
func (a *assembler) pos() lsn.LSN { return a.start + lsn.LSN(len(a.buf)) }

func (a *assembler) name() string {
	return lsn.SegmentName(a.cfg.Timeline, a.start.Segment(a.cfg.SegSize), a.cfg.SegSize)
}

// accept takes bytes that the server sent and returns the segments that they
// filled. Bytes that came before, on an earlier connection, must be the same.
func (a *assembler) accept(at lsn.LSN, data []byte, now time.Time) ([]part, error) {
	if at < a.start {
		n := min(uint64(a.start-at), uint64(len(data))) // of a segment that is handed on
		at, data = at+lsn.LSN(n), data[n:]
	}
	if at > a.pos() {
		return nil, fmt.Errorf("receiving WAL: the server sent %s where %s was due: a stretch is missing", at, a.pos())
	}
	if old := a.buf[min(uint64(at-a.start), uint64(len(a.buf))):]; len(old) > 0 {
		n := min(len(old), len(data))
		if !bytes.Equal(old[:n], data[:n]) {
			return nil, fmt.Errorf("receiving WAL at %s: %w", at, ErrDiverged)
		}
		data = data[n:]
	}
	var full []part
	for len(data) > 0 {
		n := min(len(data), int(a.cfg.SegSize)-len(a.buf))
		a.buf = append(a.buf, data[:n]...)
		a.commits.take(data[:n])
		data = data[n:]
		if a.pos() > a.cut && a.since.IsZero() {
			a.since = now
		}
		if int64(len(a.buf)) == a.cfg.SegSize {
			full = append(full, a.segment())
		}
	}
	return full, nil
}

// segment hands on the full segment and begins the next.
func (a *assembler) segment() part {
	p := part{
		file: a.name(), timeline: a.cfg.Timeline, from: a.start, to: a.pos(), segSize: a.cfg.SegSize, data: a.buf, known: a.known,
	}
	var next walrec.Carry
	p.marks, next = a.index(a.start, a.atStart, a.buf)
	a.begin(a.pos(), next)
	return p
}

// slice hands on what was not yet; false when there is nothing.
func (a *assembler) slice() (part, bool) {
	if a.pos() <= a.cut {
		return part{}, false
	}
	from := a.buf[a.cut-a.start:]
	p := part{
		file: a.name(), timeline: a.cfg.Timeline, from: a.cut, to: a.pos(), slice: true, segSize: a.cfg.SegSize,
		data: from, known: a.known,
	}
	if a.done < a.cut { // bytes that an earlier process sent: what a record that they cut began with
		_, a.atDone = a.index(a.done, a.atDone, a.buf[a.done-a.start:a.cut-a.start])
	}
	p.marks, a.atDone = a.index(a.cut, a.atDone, from)
	a.cut, a.done, a.since = a.pos(), a.pos(), time.Time{}
	return p, true
}

// due is when the next slice must go out; the zero time when nothing waits.
func (a *assembler) due(maxLag time.Duration) time.Time {
	if a.since.IsZero() {
		return time.Time{}
	}
	return a.since.Add(maxLag)
}

// index reads what lies in a stretch. WAL that cannot be read is archived all
// the same, without an index: keeping it comes first.
func (a *assembler) index(at lsn.LSN, c walrec.Carry, data []byte) (marks, walrec.Carry) {
	if a.faulty {
		return marks{}, walrec.Carry{}
	}
	cfg := a.cfg
	cfg.Start = at
	m, next, err := indexOf(cfg, c, data)
	if err != nil {
		a.faulty = true
		a.fault(err)
	}
	return m, next
}

func indexOf(cfg walrec.Config, c walrec.Carry, data []byte) (marks, walrec.Carry, error) {
	ix, next, err := walrec.BuildIndex(cfg, c, data)
	if err != nil {
		return marks{}, walrec.Carry{}, err
	}
	text, err := json.Marshal(ix)
	if err != nil {
		return marks{}, walrec.Carry{}, fmt.Errorf("encoding the index of WAL at %s: %w", cfg.Start, err)
	}
	return marks{index: text, first: ix.FirstTime, last: ix.LastTime, recordEnd: ix.LastRecordEnd}, next, nil
}

// turn ends the timeline at the place that the server named, and goes on with
// next from the start of the same segment, as the server does with its own
// files (C-50). It returns what is left of the old one: a last slice, and the
// segment as a .partial file, padded as PostgreSQL pads it.
func (a *assembler) turn(at lsn.LSN, next uint32) ([]part, error) {
	if at != a.pos() {
		return nil, fmt.Errorf("the server ended timeline %d at %s, its WAL came up to %s", a.cfg.Timeline, at, a.pos())
	}
	var out []part
	if p, ok := a.slice(); ok {
		out = append(out, p)
	}
	if len(a.buf) > 0 {
		padded := make([]byte, a.cfg.SegSize)
		copy(padded, a.buf)
		out = append(out, part{file: a.name() + ".partial", timeline: a.cfg.Timeline, from: at, to: at, segSize: a.cfg.SegSize, data: padded, known: true})
	}
	carry := a.atStart
	a.cfg.Timeline = next
	a.cut = a.start
	a.begin(a.start, carry)
	a.known, a.commits = true, nil
	return out, nil
}
