package snapshot

import (
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// file is a file on its way into the manifest, while somebody works at it.
type file struct {
	roll    *roll
	n       int // its place in the roll
	path    string
	kind    string
	size    int64
	segment uint32                // which gigabyte of a relation
	main    bool                  // a relation's main fork: its pages may have holes
	sums    int                   // pg_control's data_checksum_version when the backup began
	base    *catalog.ManifestFile // what the base holds under the path; nil: nothing
}

// newFile is a file of the manifest that is not in the roll yet.
func (t *take) newFile(d datadir.File) *file {
	return t.file(t.roll.add(d, t.base.find(d.Path)))
}

// file is the file at a place of the roll, of the size that it had when it was listed.
func (t *take) file(n int) *file {
	d, base := t.roll.at(n)
	f := &file{
		roll: &t.roll, n: n, path: d.Path, kind: kindOf(d.Kind), size: d.Size, sums: t.header.Facts.ChecksumsStart,
		segment: d.Name.Segment, main: d.Name.Fork == datadir.Main,
	}
	if base >= 0 {
		f.base = t.base.file(base)
	}
	return f
}

// kindOf is a kind's name in a manifest.
func kindOf(k datadir.Kind) string {
	switch k {
	case datadir.Relation:
		return catalog.FileRelation
	case datadir.Control:
		return catalog.FileControl
	}
	return catalog.FileOther
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
