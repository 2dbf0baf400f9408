package page

import "encoding/binary"

// Normalise zeroes the hole of a standard page of a relation's main fork, that is
// the bytes from pd_lower to pd_upper, as PostgreSQL's own full-page images do
// (XLogRecordAssemble in src/backend/access/transam/xloginsert.c, REGBUF_STANDARD):
// replay of such an image leaves the same zeros. Deleted rows stay in holes after
// VACUUM, and must not live on in what is kept. It reports whether p changed.
//
// Only pages that are provably of a heap or a b-tree are touched; for the rest, the
// hole may hold data (free space and visibility maps, old GIN pages, sequences). In
// a cluster with checksums, a page whose checksum is wrong is left as it is and one
// whose checksum is right gets a new one for block, counted over the relation.
func Normalise(p []byte, block uint32, checksums bool) (changed bool) {
	lower, upper, ok := residue(p)
	if !ok || checksums && Stored(p) != Checksum(p, block) {
		return false
	}
	blot(p, lower, upper, block, checksums)
	return true
}

// NormaliseGood is [Normalise] for a page of a cluster with checksums that [Judge]
// found [Good] a moment ago: its checksum is not computed a second time.
func NormaliseGood(p []byte, block uint32) (changed bool) {
	lower, upper, ok := residue(p)
	if ok {
		blot(p, lower, upper, block, true)
	}
	return ok
}

func blot(p []byte, lower, upper int, block uint32, checksums bool) {
	clear(p[lower:upper])
	if checksums {
		binary.LittleEndian.PutUint16(p[offChecksum:], Checksum(p, block))
	}
}

const (
	version    = 0x2004 // page size and layout version, one word
	validFlags = 0x0007 // PD_VALID_FLAG_BITS
)

// residue finds a hole that may be zeroed and is not zero already. Most holes are
// empty or zero, so that is looked at before what the page is.
func residue(p []byte) (lower, upper int, ok bool) {
	if len(p) != Size {
		return 0, 0, false
	}
	lower, upper = half(p, offLower), half(p, offUpper)
	special := half(p, offSpecial)
	if half(p, offVersion) != version || half(p, offFlags)&^validFlags != 0 ||
		lower < headerSize || lower >= upper || upper > special || special > Size {
		return 0, 0, false
	}
	if IsZero(p[lower:upper]) {
		return 0, 0, false
	}
	switch special {
	case Size:
		ok = isHeap(p, lower, upper)
	case Size - btreeOpaque:
		ok = isBTree(p, lower, upper)
	}
	return lower, upper, ok
}

// isHeap asks for at least one line pointer: pages of the free space and visibility
// maps have none and look like heap pages otherwise, while VACUUM always leaves one
// in a heap page that ever held a row (PageTruncateLinePointerArray in bufpage.c).
func isHeap(p []byte, lower, upper int) bool {
	return lower > headerSize && saneItems(p, lower, upper, Size)
}

// BTPageOpaqueData and its flags (src/include/access/nbtree.h). Hash, GiST and
// SP-GiST pages have a page id over the highest cycle id in the same place.
const (
	btreeOpaque  = 16
	offNext      = Size - 12
	offLevel     = Size - 8
	offBTFlags   = Size - 4
	offCycle     = Size - 2
	maxCycle     = 0xFF7F
	btLeaf       = 1 << 0
	btRoot       = 1 << 1
	btDeleted    = 1 << 2
	btMeta       = 1 << 3
	btGarbage    = 1 << 6
	btFullXID    = 1 << 8
	btValidFlags = 1<<9 - 1
	maxLevel     = 64
)

func isBTree(p []byte, lower, upper int) bool {
	flags, level := half(p, offBTFlags), binary.LittleEndian.Uint32(p[offLevel:])
	switch {
	case half(p, offCycle) > maxCycle || flags&^btValidFlags != 0 || flags&btMeta != 0:
		return false
	case flags&btDeleted != 0 && flags&btFullXID != 0:
		// BTPageSetDeleted leaves the deleting transaction's number and no items.
		return lower == headerSize+8 && upper == Size-btreeOpaque
	case flags&btDeleted != 0:
		// As version 13 left it: items in place, and a transaction where the level was.
		return lower > headerSize && saneItems(p, lower, upper, Size-btreeOpaque)
	case level > maxLevel || (flags&btLeaf != 0) != (level == 0):
		return false
	case lower == headerSize:
		// Only the rightmost leaf may be without items; another kind of page that
		// keeps no line pointers must not be taken for one.
		return flags&^(btRoot|btGarbage) == btLeaf && binary.LittleEndian.Uint32(p[offNext:]) == 0
	}
	return saneItems(p, lower, upper, Size-btreeOpaque)
}

// saneItems says that the line pointers end at lower and that each that points to
// bytes points between upper and special (ItemIdData in src/include/storage/itemid.h).
func saneItems(p []byte, lower, upper, special int) bool {
	if (lower-headerSize)%4 != 0 {
		return false
	}
	for at := headerSize; at < lower; at += 4 {
		item := binary.LittleEndian.Uint32(p[at:])
		off, kind, length := int(item&0x7FFF), item>>15&3, int(item>>17)
		stored := kind == itemNormal || kind == itemDead && length > 0
		switch {
		case stored && (length == 0 || off < upper || off%8 != 0 || off+length > special):
			return false
		case !stored && length != 0:
			return false
		}
	}
	return true
}

const (
	itemNormal = 1
	itemDead   = 3
)

func half(p []byte, off int) int { return int(binary.LittleEndian.Uint16(p[off:])) }
