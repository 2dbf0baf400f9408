// Package walrec reads the framing of PostgreSQL's write-ahead log, majors 14 to
// 18: page headers, records, the few kinds of record that recovery targets and
// timelines depend on, and which blocks records change. It works on a stream that
// comes in pieces of any size, holds at most [KeepBytes] of a record, and never
// looks into pages.
//
// What is not WAL is an error that says where; it is never a panic and never
// taken for the end of the log. The one clean end is zeros.
package walrec

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// PageSize is XLOG_BLCKSZ of every common build; a segment header that says
// otherwise is refused.
const PageSize = 8192

const (
	shortHeader = 24 // SizeOfXLogShortPHD
	longHeader  = 40 // SizeOfXLogLongPHD

	flagContinues = 0x01 // XLP_FIRST_IS_CONTRECORD
	flagLong      = 0x02 // XLP_LONG_HEADER
	flagOverwrite = 0x08 // XLP_FIRST_IS_OVERWRITE_CONTRECORD
	knownFlags    = 0x0f // XLP_ALL_FLAGS
)

// magics are XLOG_PAGE_MAGIC of src/include/access/xlog_internal.h.
var magics = map[uint16]int{0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}

// ErrForeign says that WAL belongs to another cluster.
var ErrForeign = errors.New("WAL of another cluster (system identifier differs)")

// Header is the header of a segment's first page.
type Header struct {
	Major    int
	Timeline uint32 // of the page: in a timeline's first segment still the parent's
	Page     lsn.LSN
	SystemID uint64
	SegSize  int64
}

// ParseHeader reads the long header at the start of a segment (C-41).
func ParseHeader(data []byte) (Header, error) {
	if len(data) < longHeader {
		return Header{}, fmt.Errorf("WAL segment of %d bytes: too short for a header", len(data))
	}
	p := parsePage(data)
	major, ok := magics[p.magic]
	if !ok {
		return Header{}, fmt.Errorf("WAL segment begins with magic %04X: not WAL of PostgreSQL 14 to 18", p.magic)
	}
	h := Header{
		Major: major, Timeline: p.timeline, Page: p.addr,
		SystemID: binary.LittleEndian.Uint64(data[24:]),
		SegSize:  int64(binary.LittleEndian.Uint32(data[32:])),
	}
	if p.info&flagLong == 0 {
		return Header{}, fmt.Errorf("WAL page at %s has no segment header: not the start of a segment", p.addr)
	}
	if bs := binary.LittleEndian.Uint32(data[36:]); bs != PageSize {
		return Header{}, fmt.Errorf("WAL segment at %s has blocks of %d bytes: only builds with %d are supported", p.addr, bs, PageSize)
	}
	return h, checkSegSize(h.SegSize)
}

// CheckSegmentHeader says why data is not the start of the segment want (C-41). A
// zero field of want is not compared; the timeline may be an ancestor's, so only
// a later one is wrong.
func CheckSegmentHeader(data []byte, want Header) error {
	h, err := ParseHeader(data)
	switch {
	case err != nil:
		return err
	case want.SystemID != 0 && h.SystemID != want.SystemID:
		return fmt.Errorf("%w: segment at %s has %d, the cluster %d", ErrForeign, h.Page, h.SystemID, want.SystemID)
	case want.Major != 0 && h.Major != want.Major:
		return fmt.Errorf("WAL segment at %s is of PostgreSQL %d, the cluster of %d", h.Page, h.Major, want.Major)
	case want.SegSize != 0 && h.SegSize != want.SegSize:
		return fmt.Errorf("WAL segment at %s is of a cluster with %d-byte segments, want %d", h.Page, h.SegSize, want.SegSize)
	case h.Page != want.Page && want.Page != 0:
		return fmt.Errorf("WAL segment says it begins at %s, want %s", h.Page, want.Page)
	case h.Page.Offset(h.SegSize) != 0:
		return fmt.Errorf("WAL segment says it begins at %s, within a segment", h.Page)
	case want.Timeline != 0 && h.Timeline > want.Timeline:
		return fmt.Errorf("WAL segment at %s is of timeline %d, want %d or an ancestor", h.Page, h.Timeline, want.Timeline)
	}
	return nil
}

func checkSegSize(n int64) error {
	if n < 1<<20 || n > 1<<30 || n&(n-1) != 0 {
		return fmt.Errorf("WAL segment size %d: want a power of two from 1 MiB to 1 GiB", n)
	}
	return nil
}

// page is XLogPageHeaderData.
type page struct {
	magic, info uint16
	timeline    uint32
	addr        lsn.LSN
	remaining   uint32 // of the record that continues on this page
}

func parsePage(b []byte) page {
	return page{
		magic:     binary.LittleEndian.Uint16(b),
		info:      binary.LittleEndian.Uint16(b[2:]),
		timeline:  binary.LittleEndian.Uint32(b[4:]),
		addr:      lsn.LSN(binary.LittleEndian.Uint64(b[8:])),
		remaining: binary.LittleEndian.Uint32(b[16:]),
	}
}

// headerSize is the size of the header of the page that holds l.
func headerSize(l lsn.LSN, segSize int64) int {
	if l.Offset(segSize) < PageSize {
		return longHeader
	}
	return shortHeader
}
