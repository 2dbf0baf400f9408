package seal

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"filippo.io/age"
)

func FuzzParseIndex(f *testing.F) {
	c := NewCompressor("")
	first, second := c.Compress(rows(900, 1)), c.Compress(noise(50))
	good := appendIndex(nil, []entry{first.entry(), second.entry()})
	start := int64(first.Len() + second.Len())
	f.Add(good, start)
	f.Add(good[:len(good)-1], start)
	f.Add(good, start+1)
	f.Add(appendIndex(nil, nil), int64(0))
	f.Add([]byte(indexFooter), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, start int64) {
		got, err := ParseIndex(b, start)
		if err != nil {
			return
		}
		var off int64
		for _, fr := range got {
			if fr.Off != off || fr.check(start) != nil {
				t.Fatalf("accepted %+v", fr)
			}
			off += fr.Len
		}
		if off != start || len(b) != indexSize(len(got)) {
			t.Fatal("accepted an index that does not fill its pack")
		}
	})
}

// FuzzDecodePack gives both what a stranger can make: bytes that are no age file,
// and a plaintext sealed to the public recipient.
func FuzzDecodePack(f *testing.F) {
	ids, rec := pair(f, true)
	s := packOf(f, rec, rows(900, 1), noise(100))
	plain, err := age.Decrypt(bytes.NewReader(s.Body), ids...)
	if err != nil {
		f.Fatal(err)
	}
	inner, err := io.ReadAll(plain)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(inner, true)
	f.Add(s.Body, false)
	f.Add(inner[:len(inner)-3], true)
	f.Add(appendIndex(nil, nil), true)
	f.Add([]byte("age-encryption.org/v1\n-> X25519 a\n"), false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			var out bytes.Buffer
			w, err := age.Encrypt(&out, rec...)
			if err != nil {
				t.Fatal(err)
			}
			if err := finish(w, b); err != nil {
				t.Fatal(err)
			}
			b = out.Bytes()
		}
		frames := 0
		err := DecodePack(b, ids, nil, func(_ int, raw []byte) error {
			frames++
			if len(raw) == 0 || len(raw) > MaxFrame {
				t.Fatalf("frame of %d bytes", len(raw))
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrIdentity) {
			t.Fatalf("unclassified error: %v", err)
		}
		_, _ = OpenFile(b, ids, 1<<20)
	})
}
