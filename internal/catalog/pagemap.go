package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// BlockSize is the unit of a page map: a page of PostgreSQL (BLCKSZ), and for
// every other file a piece of as many bytes.
const BlockSize = 8192

// LeafBlocks is the most blocks that one leaf describes.
const LeafBlocks = 1024

// ZeroFrame is the frame of a run of blocks that are all zero: nothing is stored.
const ZeroFrame = 0xFFFF

// Leaf says of up to [LeafBlocks] consecutive blocks of one file where each lies
// and what its digest is. It stands alone: with the names of its packs it is
// enough to fetch and to check every byte. A leaf without runs is all zeros.
type Leaf struct {
	Blocks  int
	Frames  []LeafFrame
	Runs    []Run    // ascending, without holes, from block 0 to Blocks
	Digests []uint64 // keyed, one a block; none when all blocks are zero
}

// LeafFrame is a frame that a leaf refers to.
type LeafFrame struct {
	// Pack is, encoded, a place in the map object's table of packs, and what
	// [MapSet] gives out, a place in the manifest's.
	Pack   uint32
	Off    int64    // in the pack's plaintext
	Len    int      // compressed
	Raw    int      // decompressed, 1 to 1 MiB
	SHA256 [32]byte // of the compressed frame
}

// Run is a stretch of blocks that lie end to end in one frame.
type Run struct {
	First, Count int // blocks of the leaf
	Frame        int // place in Frames, or ZeroFrame
	Off          int // in the frame's raw bytes; 0 with ZeroFrame
}

// Zero says that every block of the leaf is zero.
func (l Leaf) Zero() bool { return len(l.Runs) == 0 }

const (
	leafHead      = 6
	leafFrameSize = 4 + 8 + 4 + 4 + 32
	leafRunSize   = 2 + 2 + 2 + 4
)

// AppendLeaf encodes l (docs/format.md, "Page maps"). A leaf that no reader
// would take is an error.
func AppendLeaf(dst []byte, l Leaf) ([]byte, error) {
	if err := l.check(); err != nil {
		return dst, err
	}
	le := binary.LittleEndian
	dst = le.AppendUint16(dst, uint16(l.Blocks))
	dst = le.AppendUint16(dst, uint16(len(l.Frames)))
	dst = le.AppendUint16(dst, uint16(len(l.Runs)))
	for _, f := range l.Frames {
		dst = le.AppendUint32(dst, f.Pack)
		dst = le.AppendUint64(dst, uint64(f.Off))
		dst = le.AppendUint32(dst, uint32(f.Len))
		dst = le.AppendUint32(dst, uint32(f.Raw))
		dst = append(dst, f.SHA256[:]...)
	}
	for _, r := range l.Runs {
		dst = le.AppendUint16(dst, uint16(r.First))
		dst = le.AppendUint16(dst, uint16(r.Count))
		dst = le.AppendUint16(dst, uint16(r.Frame))
		dst = le.AppendUint32(dst, uint32(r.Off))
	}
	for _, d := range l.Digests {
		dst = le.AppendUint64(dst, d)
	}
	return dst, nil
}

// ParseLeaf reads the leaf at the start of b and returns what follows it.
func ParseLeaf(b []byte) (l Leaf, rest []byte, err error) {
	le := binary.LittleEndian
	if len(b) < leafHead {
		return Leaf{}, nil, errShortLeaf
	}
	l.Blocks = int(le.Uint16(b))
	frames, runs := int(le.Uint16(b[2:])), int(le.Uint16(b[4:]))
	digests := l.Blocks
	if runs == 0 {
		digests = 0
	}
	b = b[leafHead:]
	if len(b) < frames*leafFrameSize+runs*leafRunSize+8*digests {
		return Leaf{}, nil, errShortLeaf
	}
	l.Frames, b = parseLeafFrames(b, frames)
	l.Runs, b = parseLeafRuns(b, runs)
	if digests > 0 {
		l.Digests = make([]uint64, digests)
	}
	for i := range l.Digests {
		l.Digests[i] = le.Uint64(b[8*i:])
	}
	if err := l.check(); err != nil {
		return Leaf{}, nil, err
	}
	return l, b[8*digests:], nil
}

// leafSize is the length of the leaf at the start of b, by its head alone.
func leafSize(b []byte) (int, error) {
	if len(b) < leafHead {
		return 0, errShortLeaf
	}
	le := binary.LittleEndian
	runs, digests := int(le.Uint16(b[4:])), int(le.Uint16(b))
	if runs == 0 {
		digests = 0
	}
	n := leafHead + int(le.Uint16(b[2:]))*leafFrameSize + runs*leafRunSize + 8*digests
	if len(b) < n {
		return 0, errShortLeaf
	}
	return n, nil
}

func parseLeafFrames(b []byte, n int) ([]LeafFrame, []byte) {
	le := binary.LittleEndian
	if n == 0 {
		return nil, b
	}
	frames := make([]LeafFrame, n)
	for i := range frames {
		frames[i] = LeafFrame{
			Pack: le.Uint32(b), Off: int64(le.Uint64(b[4:])), Len: int(le.Uint32(b[12:])), Raw: int(le.Uint32(b[16:])),
			SHA256: [32]byte(b[20:52]),
		}
		b = b[leafFrameSize:]
	}
	return frames, b
}

func parseLeafRuns(b []byte, n int) ([]Run, []byte) {
	le := binary.LittleEndian
	if n == 0 {
		return nil, b
	}
	runs := make([]Run, n)
	for i := range runs {
		runs[i] = Run{First: int(le.Uint16(b)), Count: int(le.Uint16(b[2:])), Frame: int(le.Uint16(b[4:])), Off: int(le.Uint32(b[6:]))}
		b = b[leafRunSize:]
	}
	return runs, b
}

var errShortLeaf = errors.New("page map: a leaf is cut off")

// check believes nothing: frames can be frames, runs cover every block once and
// lie in their frames. A run may end inside its last block: a file's end does.
func (l Leaf) check() error {
	switch {
	case l.Blocks < 1 || l.Blocks > LeafBlocks:
		return fmt.Errorf("page map: a leaf of %d blocks", l.Blocks)
	case l.Zero() && (len(l.Frames) > 0 || len(l.Digests) > 0):
		return errors.New("page map: a leaf of zeros with frames or digests")
	case !l.Zero() && len(l.Digests) != l.Blocks:
		return fmt.Errorf("page map: %d digests of %d blocks", len(l.Digests), l.Blocks)
	case len(l.Frames) > LeafBlocks:
		return fmt.Errorf("page map: a leaf of %d frames", len(l.Frames))
	}
	for i, f := range l.Frames {
		if f.Off < 0 || f.Len < 1 || f.Len > 2*maxFrameRaw || f.Raw < 1 || f.Raw > maxFrameRaw || f.Off > 1<<40 {
			return fmt.Errorf("page map: frame %d: %d compressed bytes at %d, %d raw ones cannot be", i, f.Len, f.Off, f.Raw)
		}
	}
	next := 0
	for i, r := range l.Runs {
		if r.First != next || r.Count < 1 || r.First+r.Count > l.Blocks {
			return fmt.Errorf("page map: run %d: blocks %d+%d where %d is due, of %d", i, r.First, r.Count, next, l.Blocks)
		}
		next = r.First + r.Count
		if err := l.checkRun(r); err != nil {
			return fmt.Errorf("page map: run %d: %w", i, err)
		}
	}
	if !l.Zero() && next != l.Blocks {
		return fmt.Errorf("page map: the runs end at block %d of %d", next, l.Blocks)
	}
	return nil
}

func (l Leaf) checkRun(r Run) error {
	if r.Frame == ZeroFrame {
		if r.Off != 0 {
			return errors.New("zeros have no place")
		}
		return nil
	}
	if r.Frame < 0 || r.Frame >= len(l.Frames) {
		return fmt.Errorf("there is no frame %d", r.Frame)
	}
	// Only the last block of the last run can be short.
	most, least := r.Count*BlockSize, r.Count*BlockSize
	if r.First+r.Count == l.Blocks {
		least -= BlockSize - 1
	}
	if left := l.Frames[r.Frame].Raw - r.Off; r.Off < 0 || left < least {
		return fmt.Errorf("%d to %d bytes at %d of a frame of %d", least, most, r.Off, l.Frames[r.Frame].Raw)
	}
	return nil
}

// Bytes is how many bytes of a file of size bytes lie in r, when the leaf's first
// block is block first of the file.
func (r Run) Bytes(first, size int64) int {
	from := (first + int64(r.First)) * BlockSize
	return int(min(int64(r.Count)*BlockSize, size-from))
}
