package changemap

import (
	"math/bits"
	"slices"
)

// blocks are those of one fork: a list while they are few, and then bits, which
// take a 65,536th of the relation's size.
type blocks struct {
	from   uint32 // this block and all after it changed
	list   []uint32
	sorted int // so many of the list are in order, without doubles
	bits   []uint64
}

// maxList is how many blocks a list holds, doubles included.
const maxList = 4096

func (b *blocks) bytes() int64 { return 4*int64(cap(b.list)) + 8*int64(cap(b.bits)) }

// add enters ascending blocks; false when that would take more than room bytes.
func (b *blocks) add(more []uint32, room int64) bool {
	if len(more) == 0 {
		return true
	}
	if b.bits == nil && len(b.list)+len(more) > maxList {
		b.tidy()
	}
	if b.bits == nil && len(b.list)+len(more) <= maxList {
		b.list = append(b.list, more...)
		return true
	}
	b.tidy()
	words := int(more[len(more)-1]/64) + 1
	if n := len(b.list); n > 0 {
		words = max(words, int(b.list[n-1]/64)+1)
	}
	if lack := words - len(b.bits); lack > 0 {
		if int64(lack)*8 > room {
			return false
		}
		b.bits = append(b.bits, make([]uint64, lack)...)
	}
	for _, list := range [][]uint32{b.list, more} {
		for _, n := range list {
			b.bits[n/64] |= 1 << (n % 64)
		}
	}
	b.list, b.sorted = nil, 0
	return true
}

// tidy sorts the list, when it must, and removes doubles.
func (b *blocks) tidy() {
	if b.sorted == len(b.list) {
		return
	}
	slices.Sort(b.list)
	b.list = slices.Compact(b.list)
	b.sorted = len(b.list)
}

// within lists the changed ones of n blocks from first on, counted from first. The
// list must be tidy.
func (b *blocks) within(first, n uint32) (out []uint32) {
	end := min(b.from-first, n) // from lies behind first
	at, _ := slices.BinarySearch(b.list, first)
	for _, block := range b.list[at:] {
		if block-first >= end {
			break
		}
		out = append(out, block-first)
	}
	for w := int(first / 64); w < len(b.bits) && w < int(first/64+(end+63)/64); w++ {
		for word := b.bits[w]; word != 0; word &= word - 1 {
			if block := uint32(w*64+bits.TrailingZeros64(word)) - first; block < end {
				out = append(out, block)
			}
		}
	}
	for block := end; block < n; block++ {
		out = append(out, block)
	}
	return out
}
