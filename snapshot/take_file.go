package snapshot

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// file is a file on its way into the manifest.
type file struct {
	path    string
	mode    uint32
	mtime   time.Time
	kind    string
	outside bool
	size    int64
	segment uint32 // which gigabyte of a relation
	main    bool   // a relation's main fork: its pages may have holes
	sums    int    // pg_control's data_checksum_version when the backup began

	base   *catalog.ManifestFile // what the base holds under the path; nil: nothing
	leaves []leafPlace           // by number; each worker fills its own
	refs   []catalog.LeafRef
	bad    []int64 // blocks of this file, the first hundred
	gone   atomic.Bool
}

// leafPlace is where a leaf lies before it is in a map object.
type leafPlace struct {
	off  int64
	len  int32
	base int32 // the map of the base that holds it, plus one; 0: the spool
}

// newFile is a file of the manifest, of the size that it had when it was listed.
func (t *take) newFile(d datadir.File) *file {
	f := &file{
		path: d.Path, mode: uint32(d.Mode.Perm()), mtime: d.ModTime.UTC(), outside: d.Outside, size: d.Size,
		sums: t.header.Facts.ChecksumsStart, base: t.base.file(d.Path),
	}
	switch d.Kind {
	case datadir.Relation:
		f.kind, f.segment, f.main = catalog.FileRelation, d.Name.Segment, d.Name.Fork == datadir.Main
	case datadir.Control:
		f.kind = catalog.FileControl
	default:
		f.kind = catalog.FileOther
	}
	f.leaves = make([]leafPlace, (f.blocks()+catalog.LeafBlocks-1)/catalog.LeafBlocks)
	return f
}

// same says that all leaves are those of the base.
func (f *file) same() bool {
	if f.base.Size != f.size {
		return false
	}
	return !slices.ContainsFunc(f.leaves, func(p leafPlace) bool { return p.base == 0 })
}

func (f *file) blocks() int64 { return (f.size + page.Size - 1) / page.Size }

// verifier checks the file's pages where the cluster has checksums (C-20: in no
// other state); nil where there is nothing to check. reread may be nil.
func (f *file) verifier(start lsn.LSN, reread page.Reread) *page.Verifier {
	if f.kind != catalog.FileRelation || f.sums != 1 {
		return nil
	}
	return page.NewVerifier(start, f.segment, reread)
}

// clean zeroes what nobody's rows lie in (DESIGN, "Keeping and forgetting"). While
// checksums are being switched pages are left as they are.
func (f *file) clean(data []byte, index int64, verdict page.Verdict) {
	if !f.main || len(data) != page.Size {
		return
	}
	block := f.segment*page.SegmentBlocks + uint32(index)
	switch {
	case f.sums == 1 && verdict == page.Good:
		page.NormaliseGood(data, block)
	case f.sums <= 1:
		page.Normalise(data, block, f.sums == 1)
	}
}

func (f *file) entry() catalog.ManifestFile {
	return catalog.ManifestFile{
		Path: f.path, Size: f.size, Mode: f.mode, MTime: f.mtime, Kind: f.kind,
		Leaves: f.refs, Outside: f.outside, Bad: f.bad,
	}
}
