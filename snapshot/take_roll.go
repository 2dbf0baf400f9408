package snapshot

import (
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
)

// roll is all that is kept of every file of a snapshot in the making, some hundred
// bytes each: there may be millions.
type roll struct {
	mu     sync.Mutex
	files  *datadir.Files
	base   []int32     // by file: its place among the base's; -1: it has none
	first  []uint32    // by file: its first leaf
	leaves []leafPlace // of all files
	gone   map[int]bool
	bad    map[int][]int64 // blocks of a file, the first hundred
}

// leafPlace is where a leaf lies.
type leafPlace struct {
	off int64
	len int32
	// home is the map of the base that holds it, plus one; 0: the spool; below, the
	// snapshot's own map -home-1.
	home int32
}

// add puts a file at the end; base is its place among the base's files, or -1.
func (r *roll) add(d datadir.File, base int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.files == nil {
		r.files = &datadir.Files{}
	}
	r.files.Add(d)
	return r.expect(d.Size, base)
}

// adopt makes a whole list the roll; find gives a path's place among the base's files.
func (r *roll) adopt(files *datadir.Files, find func(path string) int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files = files
	r.base, r.first = make([]int32, 0, files.Len()+1), make([]uint32, 0, files.Len()+1)
	r.leaves = make([]leafPlace, 0, files.Len()+1)
	for d := range files.All() {
		r.expect(d.Size, find(d.Path))
	}
}

// expect makes room for the leaves of the next file.
func (r *roll) expect(size int64, base int) int {
	r.base, r.first = append(r.base, int32(base)), append(r.first, uint32(len(r.leaves)))
	n := (size + catalog.LeafBlocks*catalog.BlockSize - 1) / (catalog.LeafBlocks * catalog.BlockSize)
	r.leaves = append(r.leaves, make([]leafPlace, n)...)
	return len(r.first) - 1
}

// at is file n and its place among the base's.
func (r *roll) at(n int) (datadir.File, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.files.At(n), int(r.base[n])
}

// set says where a leaf of file n lies.
func (r *roll) set(n int, leaf int64, p leafPlace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaves[int64(r.first[n])+leaf] = p
}

// of are the leaves of file n, once all files are copied.
func (r *roll) of(n int) []leafPlace {
	end := len(r.leaves)
	if n+1 < len(r.first) {
		end = int(r.first[n+1])
	}
	return r.leaves[r.first[n]:end]
}

// vanish leaves a file out; it stays in the list.
func (r *roll) vanish(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone == nil {
		r.gone = map[int]bool{}
	}
	r.gone[n] = true
}

// spoilt notes a block of file n whose checksum failed, counted from its start.
func (r *roll) spoilt(n int, block int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bad == nil {
		r.bad = map[int][]int64{}
	}
	if len(r.bad[n]) < maxBad {
		r.bad[n] = append(r.bad[n], block)
	}
}

// kept are the places of the files that are in the snapshot, by path.
func (r *roll) kept() []int32 {
	return slices.DeleteFunc(r.files.ByPath(), func(n int32) bool { return r.gone[int(n)] })
}

// control is pg_control's place; -1: it is not there. It is one of the last.
func (r *roll) control() int {
	n := r.files.Len() - 1
	for n >= 0 && r.files.Kind(n) != datadir.Control {
		n--
	}
	return n
}

// sum is how many files are in the snapshot, and their bytes.
func (r *roll) sum() (count, bytes int64) {
	for n := range r.files.Len() {
		if !r.gone[n] {
			count++
			bytes += r.files.Size(n)
		}
	}
	return count, bytes
}

// entry is file n as it stands in the manifest; number gives the maps of the base
// that are still in use their numbers.
func (r *roll) entry(n int, number map[int32]int) catalog.ManifestFile {
	d := r.files.At(n)
	f := catalog.ManifestFile{
		Path: d.Path, Size: d.Size, Mode: uint32(d.Mode), MTime: d.ModTime.UTC(), Kind: kindOf(d.Kind), Outside: d.Outside, Bad: r.bad[n],
	}
	slices.Sort(f.Bad) // by several workers
	for _, p := range r.of(n) {
		ref := catalog.LeafRef{Map: int(-p.home) - 1, Off: p.off, Len: int64(p.len), Count: 1}
		if p.home > 0 {
			ref.Map = number[p.home]
		}
		f.Leaves = appendRef(f.Leaves, ref)
	}
	return f
}

// appendRef lengthens the last reference where the next leaf follows it.
func appendRef(refs []catalog.LeafRef, r catalog.LeafRef) []catalog.LeafRef {
	if n := len(refs); n > 0 {
		if last := &refs[n-1]; last.Map == r.Map && last.Off+last.Len == r.Off {
			last.Len += r.Len
			last.Count++
			return refs
		}
	}
	return append(refs, r)
}
