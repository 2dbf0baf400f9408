package snapshot

import (
	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// checked counts the pages of a piece of f (C-21).
func (t *take) checked(f *file, v *page.Verifier, read int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v == nil {
		if f.kind == catalog.FileRelation {
			t.skipped += read / page.Size
		}
		return
	}
	r := v.Report()
	for _, b := range r.BadBlocks {
		t.roll.spoilt(f.n, int64(b%page.SegmentBlocks))
	}
	if r.Bad > 0 {
		t.doubt("%s: %d of %d pages have a wrong checksum, the first is block %d of the file", f.path, r.Bad, r.Pages, r.BadBlocks[0]%page.SegmentBlocks)
	}
	if r.Short > 0 {
		t.doubt("%s ends inside a page: it has %d bytes", f.path, f.size)
	}
	if r.Latest > t.pages.Latest {
		t.newest = f.path
	}
	r.BadBlocks = nil
	t.pages.Add(r)
}

// maxBad bounds the bad blocks that a manifest names of one file.
const maxBad = 100

// judge sums the pages up once the stop LSN is known: a page that passed because
// WAL rewrites it must not claim to be of a time that this WAL never reached.
func (t *take) judge() catalog.Pages {
	r, stop := t.pages, t.header.Facts.StopLSN
	p := catalog.Pages{
		Checked: r.Good + r.New + r.Changed + r.Bad,
		Skipped: t.skipped + r.Recent,
		Bad:     r.Bad,
	}
	if r.Latest > stop {
		p.Bad++
		t.suspect("%s: a page with a wrong checksum claims position %s, the log ended at %s", t.newest, r.Latest, stop)
	}
	return p
}
