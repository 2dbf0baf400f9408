package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"strings"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// maxManifest bounds a manifest, opened.
const maxManifest = 8 << 30

// layout is what a manifest says, with some hundred bytes for each file.
type layout struct {
	header  catalog.ManifestHeader
	packs   []catalog.ManifestPack
	maps    []catalog.ManifestMap
	files   []entry
	paths   []byte // of all files, end to end, in order
	leaves  []catalog.LeafRef
	control int // place of pg_control in files
}

// entry is one file of a layout.
type entry struct {
	size    int64
	mtime   int64  // seconds since 1970
	pathEnd uint32 // in paths; the path begins where the file's before ends
	leafEnd uint32 // in leaves
	sum     atomic.Uint32
	mode    uint16
	kind    kind
}

type kind uint8

const (
	plain    kind = iota
	relation      // pages, whose holes do not matter
	held          // kept in memory: pg_control and what lies outside
)

func (l *layout) path(i int) string {
	from := uint32(0)
	if i > 0 {
		from = l.files[i-1].pathEnd
	}
	return string(l.paths[from:l.files[i].pathEnd])
}

func (l *layout) leavesOf(i int) []catalog.LeafRef {
	from := uint32(0)
	if i > 0 {
		from = l.files[i-1].leafEnd
	}
	return l.leaves[from:l.files[i].leafEnd]
}

// find is the place of a path, which files are sorted by.
func (l *layout) find(path string) (int, bool) {
	return sort.Find(len(l.files), func(i int) int {
		from := uint32(0)
		if i > 0 {
			from = l.files[i-1].pathEnd
		}
		return strings.Compare(path, string(l.paths[from:l.files[i].pathEnd]))
	})
}

// readManifest fetches, opens and reads the manifest of a snapshot, line by line.
func readManifest(ctx context.Context, r Repo, s catalog.Snapshot) (*layout, error) {
	sealed, err := r.Reader.Get(ctx, s.Manifest.Name, s.Manifest.Size, s.Manifest.SHA256)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of snapshot %s: %w", s.ID, err)
	}
	opened, err := seal.NewBlobReader(bytes.NewReader(sealed), r.identities(), maxManifest)
	if err != nil {
		return nil, fmt.Errorf("opening the manifest of snapshot %s: %w", s.ID, err)
	}
	defer opened.Close()
	l, err := newLayout(opened)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of snapshot %s: %w", s.ID, err)
	}
	if l.header.Snapshot != s.ID || l.header.Cluster != s.Cluster {
		return nil, fmt.Errorf("the manifest of snapshot %s of %s says that it is of %s of %s", s.ID, s.Cluster, l.header.Snapshot, l.header.Cluster)
	}
	return l, nil
}

func newLayout(r io.Reader) (*layout, error) {
	in, err := catalog.NewManifestReader(r)
	if err != nil {
		return nil, err
	}
	l := &layout{header: in.Header, control: -1}
	for {
		e, err := in.Next()
		switch {
		case errors.Is(err, io.EOF) && l.control < 0:
			return nil, fmt.Errorf("it names no %s: the snapshot cannot be started", controlFile)
		case errors.Is(err, io.EOF):
			return l, nil
		case err != nil:
			return nil, err
		case e.Pack != nil:
			l.packs = append(l.packs, *e.Pack)
		case e.Map != nil:
			l.maps = append(l.maps, *e.Map)
		default:
			if err := l.add(*e.File); err != nil {
				return nil, err
			}
		}
	}
}

// maxHeld bounds a file that is kept in memory.
const maxHeld = 16 << 20

func (l *layout) add(f catalog.ManifestFile) error {
	if len(l.paths)+len(f.Path) > math.MaxUint32 || len(l.leaves)+len(f.Leaves) > math.MaxUint32 {
		return errors.New("it has more files than this program can hold")
	}
	kind := plain
	switch {
	case f.Path == controlFile || f.Outside:
		kind = held
		if f.Size > maxHeld {
			return fmt.Errorf("%s is of %d bytes: too large for what it is", f.Path, f.Size)
		}
	case f.Kind == catalog.FileRelation:
		kind = relation
	}
	if f.Path == controlFile {
		l.control = len(l.files)
	}
	l.paths = append(l.paths, f.Path...)
	l.leaves = append(l.leaves, f.Leaves...)
	l.files = append(l.files, entry{})
	e := &l.files[len(l.files)-1]
	e.size, e.mtime, e.mode, e.kind = f.Size, f.MTime.Unix(), uint16(f.Mode), kind
	e.pathEnd, e.leafEnd = uint32(len(l.paths)), uint32(len(l.leaves))
	return nil
}
