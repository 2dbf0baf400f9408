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
	forks map[forkKey]*blocks
	bound int64
	used  int64
}

type forkKey struct {
	walrec.Relation
	fork Fork
}

func newMap(bound int64) *Map { return &Map{forks: map[forkKey]*blocks{}, bound: bound} }

// Changed says which blocks of one file of a relation can differ: ascending,
// counted from the file's first. all says that each can, and then list is nil.
// Blocks behind the end that the file had before need not be named. Of the free
// space map and the visibility map nothing is ever known, so all is true.
func (m *Map) Changed(spc, db, rel uint32, f Fork, segment int) (list []uint32, all bool) {
	if f != walrec.MainFork && f != walrec.InitFork || segment < 0 || segment > math.MaxUint32/SegmentBlocks {
		return nil, true
	}
	r := walrec.Relation{Tablespace: spc, Database: db}
	if m.forks[forkKey{r, walrec.MainFork}] != nil {
		return nil, true // the database's files were made or removed as a whole
	}
	r.Node = rel
	b := m.forks[forkKey{r, f}]
	if b == nil {
		return nil, false
	}
	first := uint32(segment) * SegmentBlocks
	if b.from <= first {
		return nil, true
	}
	return b.within(first, SegmentBlocks), false
}

// Bytes is about how much memory the map takes.
func (m *Map) Bytes() int64 { return m.used }

// forkCost is about what a fork takes beside its blocks.
const forkCost = 200

// add merges what is said of one fork.
func (m *Map) add(c walrec.ForkChanges) error {
	key := forkKey{c.Relation, c.Fork}
	b := m.forks[key]
	if b == nil {
		b = &blocks{from: walrec.NoBlock}
		m.forks[key] = b
		m.used += forkCost
	}
	b.from = min(b.from, c.From)
	before := b.bytes()
	ok := b.add(c.Blocks, m.bound-m.used)
	m.used += b.bytes() - before
	if !ok || m.used > m.bound {
		return fmt.Errorf("%w: more blocks changed than a map of %d bytes holds", ErrUnknown, m.bound)
	}
	return nil
}
