package page

import (
	"math/rand/v2"
	"testing"
)

// C-19: the sum by vector instructions is the plain one.
func TestBothWaysOfMixingAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var p [Size]byte
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		fast, plain := seeds, seeds
		mix(&fast, &p)
		mixScalar(&plain, &p)
		if fast != plain {
			t.Fatalf("%x, want %x", fast, plain)
		}
	}
}

func BenchmarkMixScalar(b *testing.B) {
	var p [Size]byte
	b.SetBytes(Size)
	for b.Loop() {
		sums := seeds
		mixScalar(&sums, &p)
	}
}
