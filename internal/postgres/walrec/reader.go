package walrec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

const (
	recordHeader = 24 // SizeOfXLogRecord
	// maxRecord is XLogRecordMaxSize (16 and later); no older server makes longer ones in practice.
	maxRecord = 1020 << 20

	// KeepBytes is how much of a record is kept: a commit with a quarter of a
	// million subtransactions. The checksum covers all of a longer one even so.
	KeepBytes = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Config says which WAL is read.
type Config struct {
	SegSize int64
	Major   int
	// Timeline is the newest that a page may name, SystemID the cluster's; 0 accepts any.
	Timeline uint32
	SystemID uint64
	// Start is where the first byte lies: the start of a page, or else of a record.
	Start lsn.LSN
	// Padded says that the bytes may be cut off anywhere and filled with zeros, as
	// pg_receivewal's .partial files are: a record cut by zeros ends the log.
	Padded bool
}

// mode is what the next byte of a page's body belongs to.
type mode uint8

const (
	inRecords   mode = iota
	skipping         // the rest of a record whose start was not seen
	afterTail        // zeros after the last record
	afterSwitch      // the unused rest of a segment
)

// state is all that a Reader knows between two pieces: a [Carry]'s content.
type state struct {
	Pos      lsn.LSN `json:"pos"`
	Mode     mode    `json:"mode"`
	Skip     uint32  `json:"skip,omitempty"`     // bytes left to skip
	Header   []byte  `json:"header,omitempty"`   // of a page header cut by the piece's end
	Record   []byte  `json:"record,omitempty"`   // the first KeepBytes of a record so far
	Got      uint32  `json:"got,omitempty"`      // bytes of the record so far
	CRC      uint32  `json:"crc,omitempty"`      // of the record's data so far
	RecStart lsn.LSN `json:"recstart,omitempty"` // where it began
	Prev     lsn.LSN `json:"prev,omitempty"`     // start of the last whole record
	PrevEnd  lsn.LSN `json:"prevend,omitempty"`  // and its end
	Timeline uint32  `json:"timeline,omitempty"` // of the last page
	Begun    bool    `json:"begun,omitempty"`    // a page or record was seen
}

// Reader takes a stream of WAL in pieces and yields its whole records. After an
// error it is of no further use.
type Reader struct {
	cfg   Config
	magic uint16
	s     state
	torn  error
	rec   Record
}

// NewReader begins at cfg.Start. When a record continues there that began
// earlier, it is skipped.
func NewReader(cfg Config) (*Reader, error) {
	if err := checkSegSize(cfg.SegSize); err != nil {
		return nil, err
	}
	r := &Reader{cfg: cfg}
	for magic, major := range magics {
		if major == cfg.Major {
			r.magic = magic
		}
	}
	if r.magic == 0 {
		return nil, fmt.Errorf("reading WAL of PostgreSQL %d: only 14 to 18 are supported", cfg.Major)
	}
	off := cfg.Start % PageSize
	if off != 0 && (cfg.Start%8 != 0 || int(off) < headerSize(cfg.Start, cfg.SegSize)) {
		return nil, fmt.Errorf("reading WAL from %s: neither a page nor a record begins there", cfg.Start)
	}
	r.s.Pos = cfg.Start
	return r, nil
}

// Pos is the position after the last byte taken.
func (r *Reader) Pos() lsn.LSN { return r.s.Pos }

// LastRecordEnd is the end of the last whole record, where the next one would
// begin but for a page header; 0 before the first.
func (r *Reader) LastRecordEnd() lsn.LSN { return r.s.PrevEnd }

// Pending says whether the stream ends within a record so far.
func (r *Reader) Pending() bool { return r.s.Got > 0 || r.s.Mode == skipping }

// Ended says whether zeros have followed the last record.
func (r *Reader) Ended() bool { return r.s.Mode == afterTail }

// Feed takes the bytes that follow, of any number, and calls visit for each
// record that they complete. The record and its bytes are valid until visit returns.
func (r *Reader) Feed(b []byte, visit func(*Record) error) error {
	for len(b) > 0 {
		off := int(r.s.Pos % PageSize)
		size := headerSize(r.s.Pos, r.cfg.SegSize)
		if off < size {
			n := min(size-off, len(b))
			r.s.Header = append(r.s.Header, b[:n]...)
			r.s.Pos += lsn.LSN(n)
			b = b[n:]
			if off+n == size {
				if err := r.page(r.s.Header); err != nil {
					return err
				}
				r.s.Header = r.s.Header[:0]
			}
			continue
		}
		body := b[:min(PageSize-off, len(b))]
		n, err := r.body(body, visit)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (r *Reader) fail(format string, args ...any) error {
	return fmt.Errorf("WAL at %s: %w", r.s.Pos, fmt.Errorf(format, args...))
}

// page judges a page header (XLogReaderValidatePageHeader) and what it says of
// the record in progress. r.s.Pos is behind the header.
func (r *Reader) page(b []byte) error {
	if allZero(b) {
		if r.s.Mode == afterSwitch && len(b) == shortHeader {
			return nil
		}
		// The log ended, with or without a record cut off; no page follows that is not zero.
		r.s.Mode, r.s.Got, r.s.Record = afterTail, 0, r.s.Record[:0]
		return nil
	}
	p, at := parsePage(b), r.s.Pos-lsn.LSN(len(b))
	switch {
	case p.magic != r.magic:
		return r.fail("page begins with magic %04X, want %04X of PostgreSQL %d", p.magic, r.magic, r.cfg.Major)
	case p.info&^uint16(knownFlags) != 0:
		return r.fail("page has unknown flags %04X", p.info)
	case (p.info&flagLong != 0) != (len(b) == longHeader):
		return r.fail("page has a wrong kind of header (flags %04X)", p.info)
	case p.addr != at:
		return r.fail("page says it lies at %s, not at %s", p.addr, at)
	case p.timeline == 0 || r.cfg.Timeline != 0 && p.timeline > r.cfg.Timeline || p.timeline < r.s.Timeline:
		return r.fail("page is of timeline %d, after %d, reading timeline %d", p.timeline, r.s.Timeline, r.cfg.Timeline)
	}
	r.s.Timeline = p.timeline
	if len(b) == longHeader {
		want := Header{SystemID: r.cfg.SystemID, SegSize: r.cfg.SegSize, Major: r.cfg.Major}
		if err := CheckSegmentHeader(b, want); err != nil {
			return err
		}
	}
	return r.joint(p, len(b) == longHeader)
}

// joint decides how the body of page p goes on from the page before.
func (r *Reader) joint(p page, newSegment bool) error {
	continues := p.info&flagContinues != 0
	first := !r.s.Begun
	r.s.Begun = true
	switch {
	case r.s.Mode == afterSwitch && newSegment:
		r.s.Mode = inRecords
	case r.s.Mode == afterTail || r.s.Mode == afterSwitch:
		if continues {
			return r.fail("a record goes on after the end of the log")
		}
		return nil
	}
	if p.info&flagOverwrite != 0 {
		// The server crashed within a record and wrote over what was missing of it.
		r.s.Mode, r.s.Skip, r.s.Got, r.s.Record = inRecords, 0, 0, r.s.Record[:0]
		if continues {
			return r.fail("page both continues and overwrites a record")
		}
		return nil
	}
	var want uint32
	switch {
	case r.s.Mode == skipping:
		want = r.s.Skip
	case r.s.Got > 0:
		want = r.length() - r.s.Got
	case first && continues:
		r.s.Mode, r.s.Skip = skipping, p.remaining
		want = p.remaining
	}
	if continues != (want > 0) || continues && p.remaining != want {
		return r.fail("page continues a record with %d bytes, want %d", p.remaining, want)
	}
	if want > maxRecord {
		return r.fail("page continues a record of impossible length %d", want)
	}
	return nil
}

// body takes what it can of b, which lies within one page, and says how much.
func (r *Reader) body(b []byte, visit func(*Record) error) (int, error) {
	n := len(b)
	switch r.s.Mode {
	case afterTail:
		if !allZero(b) {
			return 0, errors.Join(r.torn, r.fail("bytes follow the zeros that end the log"))
		}
	case afterSwitch:
	case skipping:
		n = min(int(r.s.Skip), n)
		if r.s.Skip -= uint32(n); r.s.Skip == 0 {
			r.s.Mode = inRecords
		}
	default:
		if pad := int(-r.s.Pos & 7); r.s.Got == 0 && pad > 0 {
			n = min(pad, n)
			break
		}
		return r.records(b, visit)
	}
	r.s.Pos += lsn.LSN(n)
	return n, nil
}

// records takes whole records from b while there are any, without copying, and
// otherwise adds to the record in progress.
func (r *Reader) records(b []byte, visit func(*Record) error) (int, error) {
	n := 0
	for r.s.Got == 0 && len(b)-n >= recordHeader {
		length := binary.LittleEndian.Uint32(b[n:])
		if length < recordHeader || int64(length) > int64(len(b)-n) {
			break
		}
		data := b[n : n+int(length)]
		crc := crc32.Update(0, castagnoli, data[recordHeader:])
		start := r.s.Pos
		// What pads the record is taken with it, as far as it is there.
		step := min((int(length)+7)&^7, len(b)-n)
		r.s.Pos += lsn.LSN(step)
		n += step
		if err := r.finish(start, data, length, crc, visit); err != nil || r.s.Mode != inRecords {
			return n, err
		}
	}
	if n > 0 {
		return n, nil
	}
	return r.part(b, visit)
}

// part adds to the record in progress; b is not empty.
func (r *Reader) part(b []byte, visit func(*Record) error) (int, error) {
	if r.s.Got == 0 {
		r.s.RecStart, r.s.CRC, r.s.Record = r.s.Pos, 0, r.s.Record[:0]
	}
	if r.s.Got < 4 {
		return r.begin(b)
	}
	n := min(int(r.length()-r.s.Got), len(b))
	if at := int(r.s.Got); at+n > recordHeader {
		r.s.CRC = crc32.Update(r.s.CRC, castagnoli, b[max(0, recordHeader-at):n])
	}
	r.s.Record = append(r.s.Record, b[:min(n, KeepBytes-len(r.s.Record))]...)
	r.s.Got += uint32(n)
	r.s.Pos += lsn.LSN(n)
	if r.s.Got < r.length() {
		return n, nil
	}
	length := r.s.Got
	r.s.Got = 0
	return n, r.finish(r.s.RecStart, r.s.Record, length, r.s.CRC, visit)
}

// begin takes the length of the record in progress, which a piece's end may cut.
func (r *Reader) begin(b []byte) (int, error) {
	n := min(4-int(r.s.Got), len(b))
	r.s.Record = append(r.s.Record, b[:n]...)
	r.s.Got += uint32(n)
	r.s.Pos += lsn.LSN(n)
	if r.s.Got < 4 {
		return n, nil
	}
	switch length := r.length(); {
	case length == 0:
		r.s.Mode, r.s.Got, r.s.Record = afterTail, 0, r.s.Record[:0]
	case length < recordHeader || length > maxRecord:
		return n, fmt.Errorf("WAL record at %s has an impossible length, %d", r.s.RecStart, length)
	}
	return n, nil
}

// length is the record in progress's; four bytes of it must be there.
func (r *Reader) length() uint32 { return binary.LittleEndian.Uint32(r.s.Record) }

// finish checks a record of which all bytes were seen and shows it to visit.
func (r *Reader) finish(start lsn.LSN, data []byte, length, crc uint32, visit func(*Record) error) error {
	rec := &r.rec
	*rec = Record{
		Start: start, End: (r.s.Pos + 7) &^ 7, Timeline: r.s.Timeline, Length: length, Data: data, major: r.cfg.Major,
		Xid: binary.LittleEndian.Uint32(data[4:]), Prev: lsn.LSN(binary.LittleEndian.Uint64(data[8:])),
		Info: data[16], Rmgr: data[17],
	}
	if crc = crc32.Update(crc, castagnoli, data[:20]); crc != binary.LittleEndian.Uint32(data[20:]) {
		err := fmt.Errorf("WAL record at %s, %d bytes long: checksum %08X, computed %08X", start, length, binary.LittleEndian.Uint32(data[20:]), crc)
		if r.cfg.Padded && data[len(data)-1] == 0 {
			r.s.Mode, r.torn = afterTail, err
			return nil
		}
		return err
	}
	if rec.Prev >= start || r.s.Prev != 0 && rec.Prev != r.s.Prev {
		return fmt.Errorf("WAL record at %s says that the record before it is at %s, found %s", start, rec.Prev, r.s.Prev)
	}
	if rec.Rmgr > lastRmgr && rec.Rmgr < firstCustomRmgr {
		return fmt.Errorf("WAL record at %s is of an unknown resource manager, %d", start, rec.Rmgr)
	}
	if rec.is(rmgrXLOG, xlogSwitch) {
		r.s.Mode = afterSwitch
		if rec.End.Offset(r.cfg.SegSize) != 0 {
			rec.End = rec.End.SegmentStart(r.cfg.SegSize) + lsn.LSN(r.cfg.SegSize)
		}
	}
	r.s.Prev, r.s.PrevEnd, r.s.Begun = start, rec.End, true
	return visit(rec)
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
