package page

import "encoding/binary"

const (
	lanes = 32
	prime = 16777619
)

// seeds are checksumBaseOffsets of src/include/storage/checksum_impl.h.
var seeds = [lanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// Checksum is pg_checksum_page of src/include/storage/checksum_impl.h over one
// page of [Size] bytes; block is counted over the whole relation, so that segment
// n of a relation begins at n*[SegmentBlocks]. The checksum stored in the page is
// taken as zero. It panics on a slice of another length.
func Checksum(page []byte, block uint32) uint16 {
	p := (*[Size]byte)(page)
	if len(page) != Size {
		panic("page: Checksum of more than a page")
	}
	sums := seeds
	// It is the lower half of the third word: this takes it out again.
	sums[2] ^= uint32(binary.LittleEndian.Uint16(p[offChecksum:]))
	mix(&sums, p)
	var all uint32
	for _, s := range sums {
		all ^= s
	}
	return uint16((all^block)%65535 + 1)
}

// mixScalar takes all words of the page into the sums, word n into lane n%32, four
// lanes at a time: as many as stay in registers.
func mixScalar(sums *[lanes]uint32, p *[Size]byte) {
	for first := 0; first < lanes; first += 4 {
		s := (*[4]uint32)(sums[first:])
		a, b, c, d := s[0], s[1], s[2], s[3]
		for at := 4 * first; at <= Size-16; at += 4 * lanes {
			w := p[at : at+16 : at+16]
			a ^= binary.LittleEndian.Uint32(w)
			b ^= binary.LittleEndian.Uint32(w[4:])
			c ^= binary.LittleEndian.Uint32(w[8:])
			d ^= binary.LittleEndian.Uint32(w[12:])
			a = a*prime ^ a>>17
			b = b*prime ^ b>>17
			c = c*prime ^ c>>17
			d = d*prime ^ d>>17
		}
		s[0], s[1], s[2], s[3] = finish(a), finish(b), finish(c), finish(d)
	}
}

// finish mixes in two rounds of zeros, so that the last words reach every bit.
func finish(s uint32) uint32 {
	s = s*prime ^ s>>17
	return s*prime ^ s>>17
}
