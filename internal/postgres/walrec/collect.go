package walrec

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

// maxChanges bounds what is held of one piece, to some MiB: half of it is more
// than a segment of 16 MiB can name in records of one block each.
const maxChanges = 1 << 20

// collector gathers what the records of a piece of WAL change.
type collector struct {
	from    lsn.LSN // where the first record begins of which all is seen
	forks   map[forkKey]*forkSet
	recent  [64]*forkSet
	held    int   // forks and blocks, at most [maxChanges] with doubles, half without
	unknown error // why it cannot be said what changed
	visit   func(BlockRef)
	limit   func(limit)
}

var errTooMany = errors.New("more blocks change than an index may name")

type forkKey struct {
	Relation
	fork Fork
}

// forkSet is a list of blocks with doubles, of which the first sorted are in order.
type forkSet struct {
	forkKey
	from   uint32
	blocks []uint32
	sorted int
}

func newCollector(from lsn.LSN) *collector {
	c := &collector{from: from, forks: map[forkKey]*forkSet{}}
	c.visit, c.limit = c.addBlock, c.addLimit
	return c
}

// add enters a record. After the first that cannot be understood all is unknown.
func (c *collector) add(r *Record) {
	if c.unknown != nil {
		return
	}
	err := c.record(r)
	if err == nil && c.held > maxChanges {
		err = c.shrink()
	}
	if err != nil {
		c.fail(fmt.Errorf("WAL record at %s (resource manager %d, info %02X): %w", r.Start, r.Rmgr, r.Info, err))
	}
}

func (c *collector) record(r *Record) error {
	if err := r.Blocks(c.visit); err != nil {
		return err
	}
	return r.limits(c.limit)
}

func (c *collector) fail(err error) {
	*c = collector{from: c.from, unknown: err}
}

func (c *collector) addBlock(b BlockRef) {
	if b.Fork == FSMFork || b.Fork == VMFork {
		return
	}
	f := c.fork(b.Relation, b.Fork)
	if n := len(f.blocks); b.Block >= f.from || n > 0 && f.blocks[n-1] == b.Block {
		return
	}
	f.blocks = append(f.blocks, b.Block)
	c.held++
	if len(f.blocks) >= 2*f.sorted+1024 {
		c.tidy(f)
	}
}

func (c *collector) addLimit(l limit) {
	if l.Fork == FSMFork || l.Fork == VMFork {
		return
	}
	f := c.fork(l.Relation, l.Fork)
	if l.Block >= f.from {
		return
	}
	f.from = l.Block
	c.tidy(f)
}

// fork finds a fork's set. A few relations take most of the WAL, so those are
// looked up without hashing.
func (c *collector) fork(rel Relation, fork Fork) *forkSet {
	place := &c.recent[(rel.Node^uint32(fork)<<4)%uint32(len(c.recent))]
	if f := *place; f != nil && f.Relation == rel && f.fork == fork {
		return f
	}
	key := forkKey{rel, fork}
	f := c.forks[key]
	if f == nil {
		f = &forkSet{forkKey: key, from: NoBlock}
		c.forks[key] = f
		c.held++
	}
	*place = f
	return f
}

// tidy sorts a fork's blocks and removes doubles and what the limit covers.
func (c *collector) tidy(f *forkSet) {
	c.held -= len(f.blocks)
	slices.Sort(f.blocks)
	f.blocks = slices.Compact(f.blocks)
	f.sorted, _ = slices.BinarySearch(f.blocks, f.from)
	f.blocks = f.blocks[:f.sorted]
	c.held += f.sorted
}

// shrink removes all doubles; what is too much even then is an error.
func (c *collector) shrink() error {
	for _, f := range c.forks {
		c.tidy(f)
	}
	if c.held > maxChanges/2 {
		return errTooMany
	}
	return nil
}

// finish says what r's records changed, or why that is unknown.
func (c *collector) finish(r *Reader) (*Changes, error) {
	to := r.s.Pos
	switch {
	case r.s.Mode == afterTail:
		to = r.s.PrevEnd // other bytes may come where zeros are
	case r.s.Got > 0 && !c.pending(r):
		to = r.s.RecStart
	}
	if c.unknown != nil {
		return nil, c.unknown
	}
	forks := make([]ForkChanges, 0, len(c.forks))
	for _, f := range c.forks {
		c.tidy(f)
		forks = append(forks, ForkChanges{f.Relation, f.fork, f.from, f.blocks})
	}
	slices.SortFunc(forks, func(a, b ForkChanges) int {
		return cmp.Or(cmp.Compare(a.Tablespace, b.Tablespace), cmp.Compare(a.Database, b.Database), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Fork, b.Fork))
	})
	out, err := NewChanges(c.from, max(c.from, to), forks)
	return &out, err
}

// pending enters the record that the piece's end cuts and says whether all of its
// references are there: then whoever reads on need not know how it began.
func (c *collector) pending(r *Reader) bool {
	if len(r.s.Record) < recordHeader || c.unknown != nil {
		return false
	}
	b := r.s.Record
	rec := Record{Start: r.s.RecStart, Length: r.length(), Data: b, Info: b[16], Rmgr: b[17], major: r.cfg.Major}
	return c.record(&rec) == nil
}
