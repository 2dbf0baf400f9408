package walrec

import (
	"encoding/binary"
	"fmt"
)

// Fork is a fork of a relation (ForkNumber in src/include/common/relpath.h).
type Fork uint8

// The forks. The free space map and the visibility map also change without a
// record that names the block, so no list of their blocks is whole.
const (
	MainFork Fork = iota
	FSMFork
	VMFork
	InitFork
)

var forkNames = [...]string{"main", "fsm", "vm", "init"}

// String is the fork's name, as in the names of files but for "main".
func (f Fork) String() string {
	if int(f) < len(forkNames) {
		return forkNames[f]
	}
	return fmt.Sprintf("fork %d", uint8(f))
}

// ParseFork is the inverse of String.
func ParseFork(name string) (Fork, bool) {
	for i, n := range forkNames {
		if n == name {
			return Fork(i), true
		}
	}
	return 0, false
}

// Relation names the files of a relation (RelFileLocator; in 14 and 15 RelFileNode).
type Relation struct {
	Tablespace uint32 // OID; 1663 pg_default, 1664 pg_global
	Database   uint32 // OID; 0 of what all databases share
	Node       uint32 // relfilenode
}

// BlockRef is a block to which a record refers: one that it changes.
type BlockRef struct {
	Relation
	Fork  Fork
	Block uint32
	Image bool // the record holds the whole page
}

// Limits and flags of src/include/access/xlogrecord.h.
const (
	maxBlockID  = 32
	idOrigin    = 253
	idTopXid    = 252
	idDataLong  = 254
	idDataShort = 255

	blockForkMask = 0x0f
	blockHasImage = 0x10
	blockHasData  = 0x20
	blockWillInit = 0x40
	blockSameRel  = 0x80

	imageHasHole = 0x01
	// specialUpdate is XLR_SPECIAL_REL_UPDATE: relation files change in ways that
	// block references do not tell.
	specialUpdate = 0x01
)

// compressed are the flags that say that a page image is; 14 knew pglz alone and
// had another flag where later versions have "apply".
func compressed(major int) uint8 {
	if major <= 14 {
		return 0x02
	}
	return 0x04 | 0x08 | 0x10 // pglz, lz4, zstd
}

// Blocks calls visit for every block that the record refers to, in the record's
// order. They stand at the record's beginning (900 bytes at most), so they are
// there of a record of any length. What visit saw before an error counts for nothing.
func (r *Record) Blocks(visit func(BlockRef)) error {
	_, err := r.headers(visit)
	return err
}

// headers reads what stands before a record's data and says how many bytes of its
// end are its own data (DecodeXLogRecord in src/backend/access/transam/xlogreader.c).
func (r *Record) headers(visit func(BlockRef)) (own int64, err error) {
	c := cursor{b: r.Data[recordHeader:]}
	// beyond is what of the record lies behind the bytes that are here.
	beyond := int64(r.Length) - int64(len(r.Data))
	var data int64 // that the headers so far announce
	b := blockParser{squeezed: compressed(r.major)}
	for own == 0 && beyond+int64(len(c.b)) > data && !c.bad {
		if n, ok := b.plain(&c); ok {
			data += n
			if visit != nil {
				visit(b.ref)
			}
			continue
		}
		switch id := c.u8(); {
		case id <= maxBlockID:
			n, err := b.next(&c, id)
			if err != nil {
				return 0, err
			}
			data += n
			if visit != nil && !c.bad {
				visit(b.ref)
			}
		case id == idDataShort:
			own = int64(c.u8())
			data += own
		case id == idDataLong:
			own = int64(c.u32())
			data += own
		case id == idOrigin:
			c.skip(2)
		case id == idTopXid:
			c.skip(4)
		default:
			return 0, fmt.Errorf("has an unknown header, %d", id)
		}
	}
	if c.bad {
		return 0, fmt.Errorf("ends within its headers (%d bytes of %d are here)", len(r.Data), r.Length)
	}
	if whole := beyond + int64(len(c.b)); whole != data {
		return 0, fmt.Errorf("has %d bytes of data, says %d", whole, data)
	}
	return own, nil
}

// blockParser reads the block headers of one record.
type blockParser struct {
	squeezed uint8 // flags of a compressed image
	least    uint8 // identifier that may come next
	known    bool  // ref holds a relation
	ref      BlockRef
}

// plain reads, quicker than next, what most records have: a first block with data,
// without an image. It leaves all else to next.
func (p *blockParser) plain(c *cursor) (int64, bool) {
	b := c.b
	if p.known || len(b) < 20 || b[0] > maxBlockID || b[1]&^blockWillInit&^uint8(InitFork) != blockHasData {
		return 0, false
	}
	size := int64(binary.LittleEndian.Uint16(b[2:]))
	if size == 0 {
		return 0, false
	}
	p.least, p.known = b[0]+1, true
	p.ref = BlockRef{Relation: relationAt(b[4:]), Fork: Fork(b[1]) & InitFork, Block: binary.LittleEndian.Uint32(b[16:])}
	c.b = b[20:]
	return size, true
}

// next reads XLogRecordBlockHeader behind its identifier and what belongs to it,
// and returns how many bytes of data it announces.
func (p *blockParser) next(c *cursor, id uint8) (int64, error) {
	if id < p.least {
		return 0, fmt.Errorf("has block %d after block %d", id, p.least-1)
	}
	p.least = id + 1
	h := c.take(3)
	flags, size := h[0], int64(binary.LittleEndian.Uint16(h[1:]))
	if (flags&blockHasData != 0) != (size > 0) {
		return 0, fmt.Errorf("has block %d with %d bytes of data and flags %02X", id, size, flags)
	}
	p.ref.Fork, p.ref.Image = Fork(flags&blockForkMask), flags&blockHasImage != 0
	if p.ref.Fork > InitFork {
		return 0, fmt.Errorf("has block %d of an unknown fork, %d", id, p.ref.Fork)
	}
	if p.ref.Image {
		n, err := p.image(c)
		if err != nil {
			return 0, fmt.Errorf("block %d: %w", id, err)
		}
		size += n
	}
	switch {
	case flags&blockSameRel == 0:
		p.ref.Relation, p.known = c.relation(), true
	case !p.known:
		return 0, fmt.Errorf("has block %d of the same relation as none", id)
	}
	p.ref.Block = c.u32()
	return size, nil
}

// image reads XLogRecordBlockImageHeader and returns the image's length.
func (p *blockParser) image(c *cursor) (int64, error) {
	h := c.take(5)
	n, hole, info := binary.LittleEndian.Uint16(h), binary.LittleEndian.Uint16(h[2:]), h[4]
	squeezed, holed := info&p.squeezed != 0, info&imageHasHole != 0
	if squeezed && holed {
		c.skip(2) // the hole's length
	}
	if n > PageSize || !squeezed && holed != (n < PageSize) || !holed && hole != 0 {
		return 0, fmt.Errorf("an image of %d bytes with a hole at %d and flags %02X is none", n, hole, info)
	}
	return int64(n), nil
}

func (c *cursor) relation() Relation { return relationAt(c.take(12)) }

func relationAt(b []byte) Relation {
	return Relation{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])}
}

// mainData finds the record's own data, as far as it was kept.
func (r *Record) mainData() ([]byte, error) {
	own, err := r.headers(nil)
	if err != nil {
		return nil, err
	}
	return r.Data[min(int64(r.Length)-own, int64(len(r.Data))):], nil
}
