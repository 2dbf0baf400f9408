package retention

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/lsn"
)

var walObjectRE = regexp.MustCompile(`/wal/(\d{8})/([0-9A-F]{8})/([0-9A-F]{24})(?:\.([0-9A-F]{8})-([0-9A-F]{8}))?-[0-9a-f]{32}(?:\.idx)?\.age$`)

// parseWALObject reads which bytes a segment's, slice's or index's name stands for.
func parseWALObject(name string, size int64) (File, bool) {
	m := walObjectRE.FindStringSubmatch(name)
	if m == nil {
		return File{}, false
	}
	epoch, _ := strconv.Atoi(m[1])
	timeline, start, err := lsn.ParseSegmentName(m[3], size)
	if err != nil {
		return File{}, false
	}
	from, to := start, start+lsn.LSN(size)
	if m[4] != "" {
		a, _ := strconv.ParseUint(m[4], 16, 32)
		b, _ := strconv.ParseUint(m[5], 16, 32)
		from, to = start+lsn.LSN(a), start+lsn.LSN(b)
	}
	return File{WALEntry: catalog.WALEntry{Epoch: epoch, Timeline: timeline, From: from, To: to, Name: name}}, from < to
}

var smallObjectRE = regexp.MustCompile(`/wal/(\d{8})/([0-9A-F]{8})/(?:[0-9A-F]{8}\.history|([0-9A-F]{24})\.(?:partial|[0-9A-F]{8}\.backup))-[0-9a-f]{32}\.age$`)

// parseSmallObject reads where the place of a file that is no WAL lies, as far as its
// object's name tells: anywhere on its timeline, or within its segment, ends included.
func parseSmallObject(name string, size int64) (within catalog.WALSpan, ok bool) {
	m := smallObjectRE.FindStringSubmatch(name)
	if m == nil {
		return catalog.WALSpan{}, false
	}
	epoch, _ := strconv.Atoi(m[1])
	timeline, _ := strconv.ParseUint(m[2], 16, 32)
	within = catalog.WALSpan{Epoch: epoch, Timeline: uint32(timeline), To: ^lsn.LSN(0)}
	if m[3] != "" {
		_, start, err := lsn.ParseSegmentName(m[3], size)
		if err != nil {
			return catalog.WALSpan{}, false
		}
		within.From, within.To = start, start+lsn.LSN(size)
	}
	return within, true
}

// removalOrder sorts what is to go so that half of a removal never looks like
// something that can be restored: notes vanish before what they vouch for, a
// snapshot's intent last, so that the rest of it stays recognisable (D6).
func removalOrder(names map[string]int) (out []string) {
	for name, owner := range names {
		if owner >= 0 {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b)) })
	return out
}

func rank(name string) int {
	switch {
	case strings.HasSuffix(name, "/intent.note"):
		return 3
	case strings.HasSuffix(name, ".note"):
		return 0
	case strings.HasSuffix(name, "/objects.list"), strings.HasSuffix(name, "/manifest.age"):
		return 1
	}
	return 2
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
