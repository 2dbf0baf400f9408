package snapshot

import (
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// basePack marks, in a leaf that is not in a map object yet, the number of a pack
// as that of the base's manifest; the others are the snapshot's own.
const basePack = 1 << 31

// oldLeaf is a leaf of the base, or of an interrupted attempt.
type oldLeaf struct {
	leaf    catalog.Leaf    // with basePack set where it applies
	at      catalog.LeafRef // in a map of the base; Count 0: it is not there
	spooled leafPlace       // in the spool, then
	size    int64           // of the file that it describes
	// renew says for each frame that its blocks must be copied afresh.
	renew []bool
}

// place is where the leaf lies.
func (o *oldLeaf) place() leafPlace {
	if o.at.Count == 0 {
		return o.spooled
	}
	return leafPlace{off: o.at.Off, len: int32(o.at.Len), home: int32(o.at.Map) + 1}
}

// leafMaker is a leaf in the making. Its builder is one goroutine; the frames may
// be placed by others.
type leafMaker struct {
	file    *file
	first   int64 // block of the file
	old     *oldLeaf
	run     int   // of old, the one that was looked at last
	moved   []int // by frame of old, its place in the leaf plus one
	changed bool  // some block is not as in old

	mu   sync.Mutex
	leaf catalog.Leaf
	left int // frames that have no place yet, and one for the builder
}

func newLeafMaker(f *file, first int64, blocks int) *leafMaker {
	return &leafMaker{file: f, first: first, left: 1, leaf: catalog.Leaf{Blocks: blocks, Digests: make([]uint64, blocks)}}
}

// bytes is how many bytes of a file of size bytes block i of the leaf has.
func (m *leafMaker) bytes(i int, size int64) int {
	return int(min(page.Size, size-(m.first+int64(i))*page.Size))
}

// open makes room for a frame that is not placed yet.
func (m *leafMaker) open() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left++
	m.leaf.Frames = append(m.leaf.Frames, catalog.LeafFrame{})
	return len(m.leaf.Frames) - 1
}

// placed says where a frame lies; true when the leaf is whole with it.
func (m *leafMaker) placed(frame int, at catalog.LeafFrame) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leaf.Frames[frame] = at
	m.left--
	return m.left == 0
}

// close ends the building; true when no frame is waited for.
func (m *leafMaker) close() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.old == nil || m.old.leaf.Blocks != m.leaf.Blocks {
		m.changed = true
	}
	if len(m.leaf.Runs) == 1 && m.leaf.Runs[0].Frame == catalog.ZeroFrame {
		m.leaf.Runs, m.leaf.Digests = nil, nil
	}
	m.left--
	return m.left == 0
}

// zero notes a block that is all zeros.
func (m *leafMaker) zero(i int, digest uint64) {
	if old, ok := m.oldRun(i); !ok || old.Frame != catalog.ZeroFrame {
		m.changed = true
	}
	m.leaf.Digests[i] = digest
	m.append(i, catalog.ZeroFrame, 0)
}

// add notes a block that was stored at off of a frame.
func (m *leafMaker) add(i int, digest uint64, frame, off int) {
	m.changed = true
	m.leaf.Digests[i] = digest
	m.append(i, frame, off)
}

// keep refers to what the old leaf says of block i when its digest is the same,
// it has as many bytes, and it need not be copied afresh.
func (m *leafMaker) keep(i int, digest uint64, n int) bool {
	r, ok := m.oldRun(i)
	if !ok || r.Frame == catalog.ZeroFrame || m.old.renew[r.Frame] ||
		m.old.leaf.Digests[i] != digest || m.bytes(i, m.old.size) != n {
		return false
	}
	m.refer(i, r)
	return true
}

// refer takes block i over from run r of the old leaf.
func (m *leafMaker) refer(i int, r catalog.Run) {
	m.leaf.Digests[i] = m.old.leaf.Digests[i]
	if m.moved == nil {
		m.moved = make([]int, len(m.old.leaf.Frames))
	}
	if m.moved[r.Frame] == 0 {
		m.mu.Lock()
		m.leaf.Frames = append(m.leaf.Frames, m.old.leaf.Frames[r.Frame])
		m.moved[r.Frame] = len(m.leaf.Frames)
		m.mu.Unlock()
	}
	m.append(i, m.moved[r.Frame]-1, r.Off+(i-r.First)*page.Size)
}

// carry takes block i over from the old leaf, unread. digest is that of zeros.
func (m *leafMaker) carry(i int, digest uint64) {
	r, _ := m.oldRun(i)
	if r.Frame != catalog.ZeroFrame {
		m.refer(i, r)
		return
	}
	m.leaf.Digests[i] = digest
	m.append(i, catalog.ZeroFrame, 0)
}

// certain says that block i of the old leaf can be carried over when nothing
// changed it: it is there, as long as it was, and need not be copied afresh.
func (m *leafMaker) certain(i int) bool {
	r, ok := m.oldRun(i)
	return ok && m.bytes(i, m.old.size) == m.bytes(i, m.file.size) && (r.Frame == catalog.ZeroFrame || !m.old.renew[r.Frame])
}

// oldRun is the old leaf's run that holds block i; false when it has none.
func (m *leafMaker) oldRun(i int) (catalog.Run, bool) {
	if m.old == nil || i >= m.old.leaf.Blocks {
		return catalog.Run{}, false
	}
	runs := m.old.leaf.Runs
	if len(runs) == 0 {
		return catalog.Run{First: 0, Count: m.old.leaf.Blocks, Frame: catalog.ZeroFrame}, true
	}
	for runs[m.run].First > i { // somebody looked ahead
		m.run--
	}
	for runs[m.run].First+runs[m.run].Count <= i { // mostly blocks come in order
		m.run++
	}
	return runs[m.run], true
}

// append lengthens the last run by block i, or begins another.
func (m *leafMaker) append(i, frame, off int) {
	if n := len(m.leaf.Runs); n > 0 {
		last := &m.leaf.Runs[n-1]
		next := last.Off + last.Count*page.Size
		if last.Frame == frame && (frame == catalog.ZeroFrame || next == off) {
			last.Count++
			return
		}
	}
	m.leaf.Runs = append(m.leaf.Runs, catalog.Run{First: i, Count: 1, Frame: frame, Off: off})
}

// live calls fn with each pack that l refers to and the bytes of a file of size
// bytes that lie there, when the leaf begins at block first.
func live(l catalog.Leaf, first, size int64, fn func(pack uint32, bytes int64)) {
	for _, r := range l.Runs {
		if r.Frame != catalog.ZeroFrame {
			fn(l.Frames[r.Frame].Pack, int64(r.Bytes(first, size)))
		}
	}
}
