package page

import (
	"crypto/hmac"
	"crypto/sha256"

	"github.com/minio/highwayhash"
)

// Digester sums blocks with HighwayHash-64 under a key of its own: who does not
// hold the key can neither tell what a digest stands for nor make two blocks meet.
// A digest says "unchanged?" and never "intact": 64 bits are no proof. One
// goroutine each.
type Digester struct{ key [highwayhash.Size]byte }

// NewDigester derives the key of the digests, HMAC-SHA256(key, "page digest").
func NewDigester(key [32]byte) *Digester {
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("page digest"))
	d := new(Digester)
	mac.Sum(d.key[:0])
	return d
}

// Sum digests one block of any length, as it is stored: after [Normalise].
func (d *Digester) Sum(block []byte) uint64 { return highwayhash.Sum64(block, d.key[:]) }
