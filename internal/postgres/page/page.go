// Package page judges PostgreSQL data pages: their checksum, whether they were
// ever written, how recent they are. It computes and counts; it opens no file
// and repairs nothing. A page that cannot be vouched for is counted as bad and
// named by its block, never passed over in silence.
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
	offUpper    = 14
)

const (
	lanes = 32
	prime = 16777619
)

// seeds are checksumBaseOffsets of src/include/storage/checksum_impl.h.
var seeds = [lanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// Checksum is pg_checksum_page of src/include/storage/checksum_impl.h over one
// page of [Size] bytes; block is counted over the whole relation, so that segment
// n of a relation begins at n*[SegmentBlocks]. The checksum stored in the page is
// taken as zero. It panics on a slice of another length.
func Checksum(page []byte, block uint32) uint16 {
	_ = page[Size-1]
	page = page[:Size:Size]
	sums := seeds
	for row := 0; row < Size; row += 4 * lanes {
		words := page[row : row+4*lanes : row+4*lanes]
		if row == 0 {
			var head [4 * lanes]byte
			copy(head[:], words)
			head[offChecksum], head[offChecksum+1] = 0, 0
			words = head[:]
		}
		for i := range sums {
			mixed := sums[i] ^ binary.LittleEndian.Uint32(words[4*i:])
			sums[i] = mixed*prime ^ mixed>>17
		}
	}
	return fold(&sums, block)
}

// fold ends the sum: two rounds of zeros, so that the last words reach every bit.
func fold(sums *[lanes]uint32, block uint32) uint16 {
	var all uint32
	for _, s := range sums {
		for range 2 {
			s = s*prime ^ s>>17
		}
		all ^= s
	}
	return uint16((all^block)%65535 + 1)
}

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
	case binary.LittleEndian.Uint16(page[offUpper:]) == 0 && zero(page):
		return New
	case binary.LittleEndian.Uint16(page[offUpper:]) != 0 && Stored(page) == Checksum(page, block):
		return Good
	case LSN(page) >= start:
		return Recent
	}
	return Bad
}

func zero(page []byte) bool {
	var or uint64
	for i := 0; i < Size; i += 8 {
		or |= binary.LittleEndian.Uint64(page[i:])
	}
	return or == 0
}
