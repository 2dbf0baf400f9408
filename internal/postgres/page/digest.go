package page

import (
	"crypto/hmac"
	"crypto/sha256"
	"math/bits"
	"slices"

	"github.com/minio/highwayhash"
)

// Digester sums blocks with HighwayHash-64 under a key of its own: who does not
// hold the key can neither tell what a digest stands for nor make two blocks meet.
// A digest says "unchanged?" and never "intact": 64 bits are no proof. Safe
// for concurrent use.
type Digester struct{ key [highwayhash.Size]byte }

// NewDigester derives the key of the digests, HMAC-SHA256(key, "page digest").
func NewDigester(key [32]byte) *Digester {
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("page digest"))
	d := new(Digester)
	mac.Sum(d.key[:0])
	return d
}

// Fold makes one number of the digests of consecutive blocks.
func Fold(digests []uint64) (sum uint64) {
	for _, d := range digests {
		sum = fold(sum, d)
	}
	return sum
}

func fold(sum, digest uint64) uint64 { return bits.RotateLeft64(sum, 1) ^ digest }

// SumAll is [Fold] of the digests of data's blocks, the last of which may be short.
func (d *Digester) SumAll(data []byte) (sum uint64) {
	for block := range slices.Chunk(data, Size) {
		sum = fold(sum, d.Sum(block))
	}
	return sum
}

// Sum digests one block of any length, as it is stored: after [Normalise].
func (d *Digester) Sum(block []byte) uint64 { return highwayhash.Sum64(block, d.key[:]) }
