package snapshot

import (
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// window is how much is read at a time: what fits into a core's cache, so that a
// page is fetched from memory once for all that is done to it.
const window = 256 << 10

// chunk is the raw bytes of a frame in the making and the leaves that refer to it.
// Behind its raw bytes is room for a window, so that what is kept is read in place.
type chunk struct {
	raw  []byte // at most seal.MaxFrame
	refs []frameRef
}

// frameRef is the place of the chunk's frame in a leaf.
type frameRef struct {
	leaf  *leafMaker
	frame int
}

func newChunk() *chunk { return &chunk{raw: make([]byte, 0, seal.MaxFrame+window)} }

func (c *chunk) reset() {
	c.raw = c.raw[:0]
	clear(c.refs)
	c.refs = c.refs[:0]
}

// place tells the leaves where the frame came to lie and returns those that are
// whole now.
func (c *chunk) place(at catalog.LeafFrame) (whole []*leafMaker) {
	for _, r := range c.refs {
		if r.leaf.placed(r.frame, at) {
			whole = append(whole, r.leaf)
		}
	}
	return whole
}

// cutter takes files apart into blocks, compares each with what is known of it,
// and cuts what is new into chunks. A block never lies in two of them. It belongs
// to one goroutine.
type cutter struct {
	emit   func(*chunk) (*chunk, error) // takes a full chunk, gives an empty one
	whole  func([]*leafMaker) error     // takes leaves that wait for no chunk
	took   func(n int) error            // counts and slows down
	passed func(n int)                  // counts what need not be read
	digest func(block []byte) uint64
	cur    *chunk
	leaf   *leafMaker // in the making
	frame  int        // place of cur's frame in leaf; -1: none yet
}

// piece is a stretch of a file that is read in one go: count blocks from first,
// which begins a leaf. Its bytes come from r, which is positioned at their start.
type piece struct {
	f            *file
	first, count int64
	r            io.Reader
	check        *page.Verifier // nil where there are no pages to check
	old          []*oldLeaf     // what is known of its leaves, as far as something is
	suspects     *suspects      // the blocks that can differ from those; nil: any can
	seek         func(off int64)
}

// candidates are the blocks that can differ from an old leaf; nil: any can.
func (p *piece) candidates(old *oldLeaf) *blockList {
	if old == nil || p.suspects == nil {
		return nil
	}
	if b := p.suspects.against(old); !b.all {
		return b
	}
	return nil
}

// piece brings what is new in p into chunks.
func (c *cutter) piece(p piece) error {
	end := p.first + p.count
	// A new file does not begin at the end of a frame that it does not fit into.
	if bytes := min(end*page.Size, p.f.size) - p.first*page.Size; len(p.old) == 0 && bytes > int64(seal.MaxFrame-len(c.cur.raw)) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	for at := p.first; at < end; at += catalog.LeafBlocks {
		if err := c.oneLeaf(p, at, int(min(end-at, catalog.LeafBlocks))); err != nil {
			return err
		}
	}
	return nil
}

func (c *cutter) oneLeaf(p piece, first int64, blocks int) error {
	c.leaf, c.frame = newLeafMaker(p.f, first, blocks), -1
	if n := (first - p.first) / catalog.LeafBlocks; n < int64(len(p.old)) {
		c.leaf.old = p.old[n]
	}
	want := p.candidates(c.leaf.old)
	for i := 0; i < blocks; {
		n := c.due(want, i, blocks)
		if n == 0 {
			c.leaf.carry(i, c.digest(zeros[:c.leaf.bytes(i, p.f.size)]))
			c.passed(c.leaf.bytes(i, p.f.size))
			i++
			continue
		}
		if err := c.window(p, i, n); err != nil {
			return err
		}
		i += n
	}
	if !c.leaf.close() {
		return nil
	}
	return c.whole([]*leafMaker{c.leaf})
}

// due is how many blocks from i on must be read at once: those that can have
// changed, or were never known, or must be copied afresh.
func (c *cutter) due(want *blockList, i, blocks int) (n int) {
	most := min(blocks-i, window/page.Size)
	if want == nil {
		return most
	}
	for n < most && (want.has(c.leaf.first+int64(i+n)) || !c.leaf.certain(i+n)) {
		n++
	}
	return n
}

var zeros [page.Size]byte

// window reads n blocks of the leaf, from block i on, and treats each.
func (c *cutter) window(p piece, i, n int) error {
	start := (c.leaf.first + int64(i)) * page.Size
	if p.seek != nil {
		p.seek(start)
	}
	have := int(min(int64(n)*page.Size, p.f.size-start))
	at := len(c.cur.raw)
	data := c.cur.raw[at : at+have]
	if _, err := io.ReadFull(p.r, data); err != nil {
		return fmt.Errorf("read %s at byte %d of %d: %w", p.f.path, start, p.f.size, err)
	}
	for j := range n {
		if err := c.block(p, i+j, data[j*page.Size:min((j+1)*page.Size, have)]); err != nil {
			return err
		}
	}
	return c.took(have)
}

// block judges, cleans and compares one block.
func (c *cutter) block(p piece, i int, data []byte) error {
	index := c.leaf.first + int64(i)
	verdict := page.Recent
	if p.check != nil {
		var err error
		if verdict, err = p.check.Page(data, index); err != nil {
			return fmt.Errorf("check the pages of %s: %w", p.f.path, err)
		}
	}
	if page.IsZero(data) {
		c.leaf.zero(i, c.digest(data))
		return nil
	}
	p.f.clean(data, index, verdict)
	digest := c.digest(data)
	if c.leaf.keep(i, digest, len(data)) {
		return nil
	}
	return c.store(i, digest, data)
}

// store brings a block into the chunk; data may lie behind the chunk's own bytes.
func (c *cutter) store(i int, digest uint64, data []byte) error {
	if len(c.cur.raw)+len(data) > seal.MaxFrame {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if c.frame < 0 {
		c.frame = c.leaf.open()
		c.cur.refs = append(c.cur.refs, frameRef{c.leaf, c.frame})
	}
	off := len(c.cur.raw)
	c.cur.raw = append(c.cur.raw, data...) // in place: data often stands there already
	c.leaf.add(i, digest, c.frame, off)
	return nil
}

// flush passes the chunk in the making on.
func (c *cutter) flush() (err error) {
	if len(c.cur.raw) > 0 {
		c.cur, err = c.emit(c.cur)
		c.frame = -1
	}
	return err
}
