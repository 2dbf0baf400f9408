package walrec

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// NoBlock is no block's number (InvalidBlockNumber).
const NoBlock = math.MaxUint32

// Changes names the blocks that the records change which begin in [From, To). What
// lies beside the stretch may be named as well. The free space map and the
// visibility map are left out: they change without a record that says so.
type Changes struct {
	From lsn.LSN `json:"from"`
	To   lsn.LSN `json:"to"`
	// Blocks is a row of unsigned varints, for each fork in ascending order: the
	// tablespace, the database and the relation, each less that of the fork before
	// (modulo 2^32); twice the fork's number, plus one when a limit follows; the
	// limit; the number of blocks; each block less the block before and less one.
	Blocks []byte `json:"blocks"`
}

// ForkChanges are the changes of one fork.
type ForkChanges struct {
	Relation // with Node 0 all relations of the database in the tablespace
	Fork     Fork
	// From is the first of the blocks that are all other than before: the file was
	// made, cut off or removed there. [NoBlock] means none.
	From   uint32
	Blocks []uint32 // ascending, all below From
}

// NewChanges encodes what forks, in ascending order, changed.
func NewChanges(from, to lsn.LSN, forks []ForkChanges) (Changes, error) {
	c := Changes{From: from, To: to, Blocks: []byte{}}
	var before Relation
	for _, f := range forks {
		c.Blocks = f.append(c.Blocks, before)
		before = f.Relation
	}
	return c, c.Each(func(ForkChanges) error { return nil })
}

// append adds the fork behind one of the relation before.
func (f ForkChanges) append(dst []byte, before Relation) []byte {
	dst = binary.AppendUvarint(dst, uint64(f.Tablespace-before.Tablespace))
	dst = binary.AppendUvarint(dst, uint64(f.Database-before.Database))
	dst = binary.AppendUvarint(dst, uint64(f.Node-before.Node))
	if f.From == NoBlock {
		dst = binary.AppendUvarint(dst, uint64(f.Fork)<<1)
	} else {
		dst = binary.AppendUvarint(dst, uint64(f.Fork)<<1|1)
		dst = binary.AppendUvarint(dst, uint64(f.From))
	}
	dst = binary.AppendUvarint(dst, uint64(len(f.Blocks)))
	next := uint32(0)
	for _, b := range f.Blocks {
		dst = binary.AppendUvarint(dst, uint64(b-next))
		next = b + 1
	}
	return dst
}

// Each calls visit for every fork in ascending order; its blocks are valid until
// visit returns.
func (c Changes) Each(visit func(ForkChanges) error) error {
	d := varints{b: c.Blocks}
	var f ForkChanges
	for len(d.b) > 0 {
		f.Tablespace += d.next()
		f.Database += d.next()
		f.Node += d.next()
		kind := d.next()
		f.Fork, f.From, f.Blocks = Fork(kind>>1), NoBlock, f.Blocks[:0]
		if kind > uint32(InitFork)<<1|1 {
			d.bad = true
		}
		if kind&1 != 0 {
			f.From = d.next()
		}
		f.Blocks = d.blocks(f.Blocks, f.From)
		if d.bad {
			return fmt.Errorf("changed blocks of WAL from %s to %s: what is said of relation %d/%d/%d is damaged", c.From, c.To, f.Tablespace, f.Database, f.Node)
		}
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

// varints reads a row of them; after a fault it gives zeros and is bad.
type varints struct {
	b   []byte
	bad bool
}

func (d *varints) next() uint32 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > math.MaxUint32 || d.bad {
		d.b, d.bad = nil, true
		return 0
	}
	d.b = d.b[n:]
	return uint32(v)
}

// blocks reads a counted list of blocks below end into dst.
func (d *varints) blocks(dst []uint32, end uint32) []uint32 {
	next := uint64(0)
	for n := d.next(); n > 0 && !d.bad; n-- {
		b := next + uint64(d.next())
		d.bad = d.bad || b >= uint64(end)
		dst = append(dst, uint32(b))
		next = b + 1
	}
	return dst
}
