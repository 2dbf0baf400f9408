// Package changemap answers which blocks of a relation can differ between two
// moments of a cluster: what the WAL between them changed, as the indexes of the
// archived WAL or the server's own summaries tell it.
//
// It vouches for a whole stretch or for nothing. A hole, a piece whose changes are
// not known, a timeline that is not an ancestor, or more changes than its bound
// lets it hold are errors that wrap [ErrUnknown]: then every block must be read. It
// names too much rather than too little, and never reads a file.
package changemap

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/postgres/walrec"
)

// ErrUnknown says that it is not known what changed: read everything.
var ErrUnknown = errors.New("the changes of the stretch are not wholly known")

// SegmentBlocks is RELSEG_SIZE of every common build: the blocks of one file.
const SegmentBlocks = 1 << 30 / 8192

// DefaultBound is the memory of a map by default, in bytes. Thousands of relations
// with some changes each need a few MiB, and a relation of 1 TiB that changed all over 16 MiB.
const DefaultBound = 64 << 20

// Fork is a fork of a relation.
type Fork = walrec.Fork

// Map holds the changed blocks of one stretch. It does not change once it is built,
// and may be read by many at once.
type Map struct {
	forks map[forkKey]*fork
	bound int64
	used  int64
}

type forkKey struct {
	walrec.Relation
	fork Fork
}

func newMap(bound int64) *Map { return &Map{forks: map[forkKey]*fork{}, bound: bound} }

// Changed says which blocks of one file of a relation can differ: ascending,
// counted from the file's first. all says that each can, and then blocks is nil.
// Blocks behind the end that the file had before are not all named. Of the free
// space map and the visibility map nothing is ever known, so all is true.
func (m *Map) Changed(spc, db, rel uint32, f Fork, segment int) (blocks []uint32, all bool) {
	if f != walrec.MainFork && f != walrec.InitFork || segment < 0 || segment > math.MaxUint32/SegmentBlocks {
		return nil, true
	}
	if m.forks[forkKey{walrec.Relation{Tablespace: spc, Database: db}, walrec.MainFork}] != nil {
		return nil, true // the database's files were made or removed as a whole
	}
	set := m.forks[forkKey{walrec.Relation{Tablespace: spc, Database: db, Node: rel}, f}]
	if set == nil {
		return nil, false
	}
	first := uint64(segment) * SegmentBlocks
	if uint64(set.from) <= first {
		return nil, true
	}
	return set.between(first, first+SegmentBlocks), false
}

// Bytes is about how much memory the map takes.
func (m *Map) Bytes() int64 { return m.used }

// forkCost is about what a fork takes beside its blocks.
const forkCost = 160

// add merges what is said of one fork.
func (m *Map) add(c walrec.ForkChanges) error {
	key := forkKey{c.Relation, c.Fork}
	f := m.forks[key]
	if f == nil {
		f = &fork{from: walrec.NoBlock}
		m.forks[key] = f
		m.used += forkCost
	}
	f.from = min(f.from, c.From)
	if n := len(c.Blocks); n > 0 {
		if grow := f.growth(n, c.Blocks[n-1]); m.used+grow > m.bound {
			return fmt.Errorf("%w: more changed blocks than %d bytes hold", ErrUnknown, m.bound)
		}
	}
	before := f.size()
	f.add(c.Blocks)
	m.used += f.size() - before
	if m.used > m.bound {
		return fmt.Errorf("%w: more changed relations than %d bytes hold", ErrUnknown, m.bound)
	}
	return nil
}

// fork holds blocks as a list while they are few, and else as bits, which take a
// 65,536th of the relation's size.
type fork struct {
	from uint32   // this block and all after it changed
	list []uint32 // the first sorted are in order, without doubles
	tidy int
	bits []uint64
}

// maxList is how many blocks a list may hold, without doubles.
const maxList = 2048

func (f *fork) size() int64 { return 4*int64(cap(f.list)) + 8*int64(cap(f.bits)) }

// growth bounds what n more blocks up to last can take.
func (f *fork) growth(n int, last uint32) int64 {
	if f.bits == nil && len(f.list)+n <= 2*maxList {
		return 8 * int64(n)
	}
	return max(0, 8*(int64(last)/64+1-int64(cap(f.bits))))
}

func (f *fork) add(blocks []uint32) {
	if f.bits == nil && len(f.list)+len(blocks) > 2*maxList {
		f.sort()
	}
	if f.bits == nil && len(f.list)+len(blocks) <= 2*maxList {
		f.list = append(f.list, blocks...)
		return
	}
	for _, list := range [][]uint32{f.list, blocks} {
		f.set(list)
	}
	f.list, f.tidy = nil, 0
}

// set enters ascending blocks as bits.
func (f *fork) set(blocks []uint32) {
	if len(blocks) == 0 {
		return
	}
	if n := int(blocks[len(blocks)-1]/64) + 1; n > len(f.bits) {
		bits := make([]uint64, n)
		copy(bits, f.bits)
		f.bits = bits
	}
	for _, b := range blocks {
		f.bits[b/64] |= 1 << (b % 64)
	}
}

// sort orders the list and removes doubles.
func (f *fork) sort() {
	if f.tidy < len(f.list) {
		slices.Sort(f.list)
		f.list = slices.Compact(f.list)
		f.tidy = len(f.list)
	}
}
