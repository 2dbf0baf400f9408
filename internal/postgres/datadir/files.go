package datadir

import (
	"bytes"
	"cmp"
	"io/fs"
	"iter"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// Files is a list of files that takes some fifty bytes for each, whatever their
// paths: a directory is kept once, and names lie end to end. A cluster may have
// millions of files. The zero value is an empty list; reading needs no lock.
type Files struct {
	entries []entry
	names   []byte
	dirs    []place
	places  map[place]uint32 // in dirs
}

// entry is a [File] of which the relation's name is left out: its path tells it.
type entry struct {
	size, modTime int64
	name          int64 // where it begins in names
	dir, length   uint32
	mode          uint16
	kind          uint8
	outside       bool
}

// place is a directory: what it is called, and where it is read ("" where it is not).
type place struct{ path, source string }

var kinds = []Kind{Other, Relation, Control}

// Add appends a file. Its modification time must be one that Unix can tell.
func (l *Files) Add(f File) {
	dir, name := path.Split(f.Path)
	at := place{dir, strings.TrimSuffix(f.Source, name)}
	n, ok := l.places[at]
	if !ok {
		if l.places == nil {
			l.places = map[place]uint32{}
		}
		n = uint32(len(l.dirs))
		l.places[at] = n
		l.dirs = append(l.dirs, at)
	}
	l.entries = append(l.entries, entry{
		size: f.Size, modTime: f.ModTime.UnixNano(), name: int64(len(l.names)), dir: n, length: uint32(min(len(name), math.MaxUint32)),
		mode: uint16(f.Mode.Perm()), kind: uint8(max(0, slices.Index(kinds, f.Kind))), outside: f.Outside,
	})
	l.names = append(l.names, name...)
}

// Len is the number of files.
func (l *Files) Len() int { return len(l.entries) }

// Size is the size of file i.
func (l *Files) Size(i int) int64 { return l.entries[i].size }

// Kind is the kind of file i.
func (l *Files) Kind(i int) Kind { return kinds[l.entries[i].kind] }

// At is file i.
func (l *Files) At(i int) File {
	e := &l.entries[i]
	dir, name := l.dirs[e.dir], string(l.names[e.name:e.name+int64(e.length)])
	f := File{
		Path: dir.path + name, Size: e.size, Mode: fs.FileMode(e.mode), ModTime: time.Unix(0, e.modTime),
		Kind: kinds[e.kind], Outside: e.outside,
	}
	if dir.source != "" {
		f.Source = dir.source + name
	}
	if f.Kind == Relation {
		f.Name, _ = ParseRelation(f.Path)
	}
	return f
}

// All yields the files in order.
func (l *Files) All() iter.Seq[File] {
	return func(yield func(File) bool) {
		for i := range l.entries {
			if !yield(l.At(i)) {
				return
			}
		}
	}
}

// ByPath is the places of all files, in the order of their paths.
func (l *Files) ByPath() []int32 {
	order := make([]int32, len(l.entries))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return l.compare(&l.entries[a], &l.entries[b]) })
	return order
}

// Find looks for a path in a list that is in the order of paths.
func (l *Files) Find(path string) (int, bool) {
	var buf []byte
	return slices.BinarySearchFunc(l.entries, []byte(path), func(e entry, want []byte) int {
		buf = l.path(buf[:0], &e)
		return bytes.Compare(buf, want)
	})
}

func (l *Files) path(dst []byte, e *entry) []byte {
	dst = append(dst, l.dirs[e.dir].path...)
	return append(dst, l.names[e.name:e.name+int64(e.length)]...)
}

func (l *Files) compare(a, b *entry) int {
	var bufA, bufB [128]byte // on the stack; longer paths are not
	return bytes.Compare(l.path(bufA[:0], a), l.path(bufB[:0], b))
}

// sort brings the list into the order of a layout.
func (l *Files) sort() {
	slices.SortFunc(l.entries, func(a, b entry) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), l.compare(&a, &b)) })
}

func rank(e entry) int {
	switch {
	case e.outside:
		return 2
	case kinds[e.kind] == Control:
		return 1
	}
	return 0
}
