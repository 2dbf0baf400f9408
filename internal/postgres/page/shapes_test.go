package page_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/minio/highwayhash"

	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// shape is a page in the making: what its header and line pointers say, and in its
// hole something that was deleted.
type shape struct {
	lower, upper, special, version, flags int
	items                                 []uint32
	opaque                                []byte // the end of the page
}

func heap() shape {
	return shape{lower: 32, upper: 8000, special: 8192, version: 0x2004, items: []uint32{item(8128, 1, 60), item(8000, 1, 100)}}
}

// leaf is a page of a b-tree with two items.
func leaf() shape {
	s := heap()
	s.special, s.items = 8176, []uint32{item(8128, 1, 40), item(8000, 3, 100)}
	s.opaque = opaque(3, 0, 1, 5)
	return s
}

func item(off, kind, length uint32) uint32 { return off | kind<<15 | length<<17 }

func opaque(next, level uint32, flags, cycle uint16) []byte {
	out := binary.LittleEndian.AppendUint32(make([]byte, 4), next)
	out = binary.LittleEndian.AppendUint32(out, level)
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(out, flags), cycle)
}

func (s shape) page(block uint32) []byte {
	p := make([]byte, page.Size)
	for at := s.lower; at < s.upper; at++ {
		p[at] = 0xDD
	}
	p[4] = 7 // an LSN
	for at, v := range map[int]int{10: s.flags, 12: s.lower, 14: s.upper, 16: s.special, 18: s.version} {
		binary.LittleEndian.PutUint16(p[at:], uint16(v))
	}
	for n, i := range s.items {
		binary.LittleEndian.PutUint32(p[24+4*n:], i)
	}
	copy(p[page.Size-len(s.opaque):], s.opaque)
	binary.LittleEndian.PutUint16(p[8:], page.Checksum(p, block))
	return p
}

func with(s shape, change func(*shape)) shape {
	change(&s)
	return s
}

func TestTheHoleOfAStandardPageIsZeroed(t *testing.T) {
	for name, s := range map[string]shape{
		"heap":                        heap(),
		"heap, unused and redirected": with(heap(), func(s *shape) { s.items = []uint32{item(0, 0, 0), item(2, 2, 0)} }),
		"heap, dead":                  with(heap(), func(s *shape) { s.items[0] = item(0, 3, 0) }),
		"heap, all flags":             with(heap(), func(s *shape) { s.flags = 7 }),
		"leaf":                        leaf(),
		"inner":                       with(leaf(), func(s *shape) { s.opaque = opaque(9, 1, 0, 0) }),
		"root":                        with(leaf(), func(s *shape) { s.opaque = opaque(0, 2, 2, 0) }),
		"half dead leaf":              with(leaf(), func(s *shape) { s.opaque = opaque(9, 0, 1|16, 0) }),
		"empty rightmost leaf":        with(leaf(), func(s *shape) { s.lower, s.upper, s.items, s.opaque = 24, 8176, nil, opaque(0, 0, 1|2, 0) }),
		"deleted": with(leaf(), func(s *shape) {
			s.lower, s.upper, s.items, s.opaque = 32, 8176, []uint32{77, 1}, opaque(9, 0, 1|4|256, 0)
		}),
		"deleted by 13, level an xid": with(leaf(), func(s *shape) { s.opaque = opaque(9, 123456, 1|4, 0) }),
	} {
		p, want := s.page(70), s.page(70)
		clear(want[s.lower:s.upper])
		binary.LittleEndian.PutUint16(want[8:], page.Checksum(want, 70))
		if !page.Normalise(p, 70, true) || !bytes.Equal(p, want) {
			t.Errorf("%s: not as it should be", name)
		}
		unsummed := s.page(70)
		unsummed[8]++
		clear(want[s.lower:s.upper])
		copy(want[8:10], unsummed[8:10])
		if !page.Normalise(unsummed, 70, false) || !bytes.Equal(unsummed, want) {
			t.Errorf("%s in a cluster without checksums: not as it should be", name)
		}
	}
}

// What may hold data between pd_lower and pd_upper, and what is damaged, is left alone.
func TestNothingElseIsTouched(t *testing.T) {
	for name, s := range map[string]shape{
		"free space or visibility map":  with(heap(), func(s *shape) { s.lower, s.upper, s.items = 24, 8192, nil }),
		"sequence, BRIN, GIN, SP-GiST":  with(heap(), func(s *shape) { s.special = 8184 }),
		"hash":                          with(leaf(), func(s *shape) { s.opaque = opaque(3, 0, 1, 0xFF80) }),
		"GiST":                          with(leaf(), func(s *shape) { s.opaque = opaque(3, 0, 1, 0xFF81) }),
		"b-tree meta page":              with(leaf(), func(s *shape) { s.opaque = opaque(0, 0, 8, 0) }),
		"flags no b-tree has":           with(leaf(), func(s *shape) { s.opaque = opaque(3, 0, 1|512, 0) }),
		"leaf above the ground":         with(leaf(), func(s *shape) { s.opaque = opaque(3, 1, 1, 0) }),
		"inner page on the ground":      with(leaf(), func(s *shape) { s.opaque = opaque(3, 0, 0, 0) }),
		"a tree of a thousand levels":   with(leaf(), func(s *shape) { s.opaque = opaque(3, 1000, 0, 0) }),
		"empty leaf with a neighbour":   with(leaf(), func(s *shape) { s.lower, s.upper, s.items, s.opaque = 24, 8176, nil, opaque(0xFFFFFFFF, 0, 1, 0) }),
		"deleted with items":            with(leaf(), func(s *shape) { s.opaque = opaque(9, 0, 1|4|256, 0) }),
		"a layout of another version":   with(heap(), func(s *shape) { s.version = 0x2005 }),
		"pages of another size":         with(heap(), func(s *shape) { s.version = 0x4004 }),
		"flags of no version":           with(heap(), func(s *shape) { s.flags = 8 }),
		"half a line pointer":           with(heap(), func(s *shape) { s.lower = 34 }),
		"a row that begins in the hole": with(heap(), func(s *shape) { s.items[1] = item(7992, 1, 100) }),
		"a row beyond the end":          with(heap(), func(s *shape) { s.items[0] = item(8136, 1, 60) }),
		"a row out of line":             with(heap(), func(s *shape) { s.items[1] = item(8004, 1, 60) }),
		"a row of no length":            with(heap(), func(s *shape) { s.items[1] = item(8000, 1, 0) }),
		"unused with a length":          with(heap(), func(s *shape) { s.items[1] = item(8000, 0, 8) }),
		"an item over the special area": with(leaf(), func(s *shape) { s.items[0] = item(8128, 1, 64) }),
		"lower above upper":             with(heap(), func(s *shape) { s.lower, s.upper = 8000, 7000 }),
		"no header":                     with(heap(), func(s *shape) { s.lower = 20 }),
		"upper above special":           with(heap(), func(s *shape) { s.special = 7992 }),
		"special outside":               with(heap(), func(s *shape) { s.special = 9000 }),
	} {
		p := s.page(70)
		want := bytes.Clone(p)
		if page.Normalise(p, 70, true) || page.Normalise(p, 70, false) || page.NormaliseGood(p, 70) || !bytes.Equal(p, want) {
			t.Errorf("%s was changed", name)
		}
	}
	torn := heap().page(70)
	if page.Normalise(torn, 71, true) {
		t.Error("a page with a wrong checksum was changed")
	}
	if page.Normalise(torn[:100], 70, false) || page.Normalise(nil, 0, false) || page.Normalise(make([]byte, page.Size), 0, true) {
		t.Error("what is no page, or a new one, was changed")
	}
}

func FuzzNormalise(f *testing.F) {
	for _, s := range []shape{heap(), leaf(), {}} {
		f.Add(s.page(3)[:64], s.page(3)[8100:], uint32(3), true)
	}
	f.Fuzz(func(t *testing.T, head, tail []byte, block uint32, checksums bool) {
		p := bytes.Repeat([]byte{0xDD}, page.Size)
		copy(p, head)
		copy(p[page.Size-min(page.Size, len(tail)):], tail)
		binary.LittleEndian.PutUint16(p[8:], page.Checksum(p, block))
		was, before := bytes.Clone(p), page.Judge(p, block, 1<<63)
		changed := page.Normalise(p, block, checksums)
		if changed == bytes.Equal(p, was) {
			t.Fatal("it says other than it did")
		}
		if checksums && page.Judge(p, block, 1<<63) != before {
			t.Fatal("the verdict changed")
		}
		lower, upper := half(p, 12), half(p, 14)
		if changed && (!bytes.Equal(p[10:lower], was[10:lower]) || !bytes.Equal(p[upper:], was[upper:]) || !page.IsZero(p[lower:upper])) {
			t.Fatal("something beside the hole changed")
		}
		if page.Normalise(p, block, checksums) {
			t.Fatal("changed twice")
		}
	})
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 63, 64, 65, 72, 200, page.Size} {
		b := make([]byte, n)
		if !page.IsZero(b) {
			t.Errorf("%d zeros are not zero", n)
		}
		for i := range b {
			b[i] = 1
			if page.IsZero(b) {
				t.Errorf("byte %d of %d is overlooked", i, n)
			}
			b[i] = 0
		}
	}
}

// Digests are HighwayHash-64 under HMAC-SHA256(digest key, "page digest").
func TestDigestsDependOnKeyAndBytes(t *testing.T) {
	p := heap().page(0)
	a, b := page.NewDigester([32]byte{1}), page.NewDigester([32]byte{2})
	if a.Sum(p) != page.NewDigester([32]byte{1}).Sum(bytes.Clone(p)) {
		t.Error("the same bytes under the same key differ")
	}
	sum := a.Sum(p)
	mac := hmac.New(sha256.New, append([]byte{1}, make([]byte, 31)...))
	mac.Write([]byte("page digest"))
	if want := highwayhash.Sum64(p, mac.Sum(nil)); sum != want {
		t.Errorf("%x, want %x", sum, want)
	}
	if sum == b.Sum(p) || sum == a.Sum(p[:8000]) {
		t.Error("another key or length has the same digest")
	}
	for _, at := range []int{0, 4095, page.Size - 1} {
		p[at] ^= 1
		if a.Sum(p) == sum {
			t.Errorf("a change at %d is not seen", at)
		}
		p[at] ^= 1
	}
	if n := testing.AllocsPerRun(10, func() { a.Sum(p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDigest(b *testing.B) {
	p, d := heap().page(0), page.NewDigester([32]byte{1})
	b.SetBytes(page.Size)
	for b.Loop() {
		d.Sum(p)
	}
}

func BenchmarkNormaliseZeroHole(b *testing.B) {
	p := heap().page(0)
	page.Normalise(p, 0, true)
	b.SetBytes(page.Size)
	for b.Loop() {
		page.NormaliseGood(p, 0)
	}
}
