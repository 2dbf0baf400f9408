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

// bundle is what a worker takes at once: count blocks of one large file from first
// on, or all of small files that lie beside each other.
type bundle struct {
	files        []int32 // places in the roll
	first, count int64   // 0: all blocks
}

// queue cuts files into bundles: the largest stretches first, so that no worker is
// left alone with one at the end, and small files by path, so that like lies with
// like. order are the files by path; pg_control is not taken from it.
func queue(files *datadir.Files, order []int32) (large []bundle) {
	var small []bundle
	rest := order[:0] // small ones
	begin, sum := 0, int64(0)
	for _, n := range order {
		size := files.Size(int(n))
		switch {
		case files.Kind(int(n)) == datadir.Control:
			continue
		case size >= seal.MaxFrame:
			large = append(large, stretches(n, size)...)
			continue
		case len(rest)-begin == bundleFiles || len(rest) > begin && sum+size > seal.MaxFrame:
			small = append(small, bundle{files: rest[begin:]})
			begin, sum = len(rest), 0
		}
		rest = append(rest, n)
		sum += size
	}
	if len(rest) > begin {
		small = append(small, bundle{files: rest[begin:]})
	}
	slices.SortStableFunc(large, func(a, b bundle) int { return cmp.Compare(b.count, a.count) })
	return append(large, small...)
}

func stretches(n int32, size int64) (out []bundle) {
	blocks := (size + catalog.BlockSize - 1) / catalog.BlockSize
	for first := int64(0); first < blocks; first += stretchBlocks {
		out = append(out, bundle{[]int32{n}, first, min(stretchBlocks, blocks-first)})
	}
	return out
}
