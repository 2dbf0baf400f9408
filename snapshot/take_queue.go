package snapshot

import (
	"cmp"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// stretchBlocks is the most blocks of one file that a worker takes at once (64
// MiB), so that all share a large file. Stretches begin with a leaf.
const stretchBlocks = 8 * catalog.LeafBlocks

// bundleFiles is the most small files that a worker takes at once.
const bundleFiles = 64

// stretch is a piece of work: a part of a file.
type stretch struct {
	d            datadir.File
	f            *file
	first, count int64
}

// bundle is what a worker takes at once: one stretch, or small files that lie
// beside each other.
type bundle []stretch

// queue cuts files into bundles: the largest stretches first, so that no worker is
// left alone with one at the end, and small files by path, so that like lies with
// like. pg_control is not among them.
func queue(files []datadir.File, newFile func(datadir.File) *file) (large []bundle) {
	var small []bundle
	var cur bundle
	var size int64
	slices.SortFunc(files, func(a, b datadir.File) int { return cmp.Compare(a.Path, b.Path) })
	for _, d := range files {
		if d.Kind == datadir.Control {
			continue
		}
		f := newFile(d)
		if d.Size >= seal.MaxFrame {
			large = append(large, stretches(d, f)...)
			continue
		}
		if len(cur) == bundleFiles || len(cur) > 0 && size+d.Size > seal.MaxFrame {
			small, cur, size = append(small, cur), nil, 0
		}
		cur = append(cur, stretch{d, f, 0, f.blocks()})
		size += d.Size
	}
	if len(cur) > 0 {
		small = append(small, cur)
	}
	slices.SortStableFunc(large, func(a, b bundle) int { return cmp.Compare(b[0].count, a[0].count) })
	return append(large, small...)
}

func stretches(d datadir.File, f *file) (out []bundle) {
	for first := int64(0); first < f.blocks(); first += stretchBlocks {
		out = append(out, bundle{{d, f, first, min(stretchBlocks, f.blocks()-first)}})
	}
	return out
}
