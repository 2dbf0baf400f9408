package seal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"filippo.io/age"
)

// pair is a fresh identity with its recipient.
func pair(t testing.TB, classic bool) ([]age.Identity, []age.Recipient) {
	t.Helper()
	makeKey := NewIdentity
	if classic {
		makeKey = NewX25519Identity
	}
	secret, recipient, err := makeKey()
	if err != nil {
		t.Fatal(err)
	}
	ids, err := ParseIdentities([]byte("# a comment\n\n" + secret + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	rec, err := ParseRecipients([]string{recipient})
	if err != nil {
		t.Fatal(err)
	}
	return ids, rec
}

// rows are n bytes that compress about as table data does: words and numbers.
func rows(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%d|%016x|%s|2026-%02d-%02d|%.2f\n", r.IntN(1e6), r.Uint64(),
			[]string{"pending", "paid", "refunded"}[r.IntN(3)], 1+r.IntN(12), 1+r.IntN(28), r.Float64()*1000)
	}
	return b.Bytes()[:n]
}

// noise are n bytes that do not compress.
func noise(n int) []byte {
	r := rand.NewChaCha8([32]byte{7})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}
