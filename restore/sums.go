package restore

import (
	"hash/crc32"
	"sync/atomic"
)

// A file's CRC-32C is put together from its pieces in whatever order they come:
// the remainder of a sum is the sum of the remainders, and zeros add nothing. So
// no file is read again, and four bytes a file are enough.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// polynomial is that of CRC-32C, its lowest power in the highest bit.
const polynomial = 0x82F63B78

// powers holds x^(2^k) modulo the polynomial.
var powers = func() (p [64]uint32) {
	p[0] = 1 << 30
	for k := 1; k < len(p); k++ {
		p[k] = multiply(p[k-1], p[k-1])
	}
	return p
}()

// multiply is the product of two remainders.
func multiply(a, b uint32) uint32 {
	var p uint32
	for m := uint32(1) << 31; m != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
		}
		b = b>>1 ^ polynomial&-(b&1)
	}
	return p
}

// shift is the remainder of what has remainder r, followed by n bytes of zeros.
func shift(r uint32, n int64) uint32 {
	for k := 3; n != 0; n, k = n>>1, k+1 {
		if n&1 != 0 {
			r = multiply(powers[k], r)
		}
	}
	return r
}

// addSum adds data, which lies at offset at of a file of size bytes, to sum.
func addSum(sum *atomic.Uint32, data []byte, at, size int64) {
	r := shift(^crc32.Update(^uint32(0), castagnoli, data), size-at-int64(len(data)))
	for {
		old := sum.Load()
		if sum.CompareAndSwap(old, old^r) {
			return
		}
	}
}

// finishSum is the CRC-32C of a file of size bytes whose every piece was added.
func finishSum(sum uint32, size int64) uint32 { return sum ^ shift(^uint32(0), size) ^ ^uint32(0) }
