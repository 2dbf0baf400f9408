// Package page judges PostgreSQL data pages: their checksum, whether they were
// ever written, how recent they are. It blots out what lies in the hole of a page
// and belongs to nobody, and sums up what is left, so that an unchanged page can be
// told. It computes and counts; it opens no file and repairs nothing. A page that
// cannot be vouched for is counted as bad and named by its block, never passed over
// in silence.
package page

import (
	"encoding/binary"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// Size is the page size in bytes (BLCKSZ) and SegmentBlocks the number of pages
// in one segment file of a relation (RELSEG_SIZE). Every packaged server is built
// with these; a server that differs must be refused before its pages get here.
const (
	Size          = 8192
	SegmentBlocks = 131072
)

// Offsets in PageHeaderData (src/include/storage/bufpage.h).
const (
	offChecksum = 8
	offFlags    = 10
	offLower    = 12
	offUpper    = 14
	offSpecial  = 16
	offVersion  = 18
	headerSize  = 24
)

// Stored is the checksum written in the page's header.
func Stored(page []byte) uint16 { return binary.LittleEndian.Uint16(page[offChecksum:]) }

// LSN is the end of the last WAL record that touched the page.
func LSN(page []byte) lsn.LSN {
	return lsn.LSN(binary.LittleEndian.Uint32(page))<<32 | lsn.LSN(binary.LittleEndian.Uint32(page[4:]))
}

// Verdict is what one look at a page says.
type Verdict int

const (
	Good   Verdict = iota // the checksum matches
	New                   // all zeros: PostgreSQL extended the file and wrote nothing yet
	Recent                // does not match, but WAL from the backup's start on rewrites it
	Bad                   // does not match and no WAL will repair it
)

// Judge looks at one page once. start is the backup's start LSN: a page stamped
// at or after it carries a full-page image in the backup's WAL, so a torn read of
// it does no harm (verify_page_checksum in src/backend/backup/basebackup.c). A
// page that claims to be new (pd_upper is 0) and is not all zeros is bad, as
// PageIsVerified in src/backend/storage/page/bufpage.c has it.
func Judge(page []byte, block uint32, start lsn.LSN) Verdict {
	switch {
	case binary.LittleEndian.Uint16(page[offUpper:]) == 0 && IsZero(page):
		return New
	case binary.LittleEndian.Uint16(page[offUpper:]) != 0 && Stored(page) == Checksum(page, block):
		return Good
	case LSN(page) >= start:
		return Recent
	}
	return Bad
}

// IsZero says that b, of any length, holds nothing but zeros.
func IsZero(b []byte) bool {
	for ; len(b) >= 64; b = b[64:] {
		w := b[:64:64]
		if word(w)|word(w[8:])|word(w[16:])|word(w[24:])|word(w[32:])|word(w[40:])|word(w[48:])|word(w[56:]) != 0 {
			return false
		}
	}
	for ; len(b) >= 8; b = b[8:] {
		if word(b) != 0 {
			return false
		}
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func word(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
