package seal

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

func TestBlobComesBackWholeAndStreams(t *testing.T) {
	ids, rec := pair(t, false)
	for _, n := range []int{0, 1, 64 << 10, 5 << 20} {
		plain := rows(n, uint64(n))
		sealed, err := SealBlob(plain, rec)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenBlob(sealed, ids, int64(n))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if _, err := OpenBlob(sealed, ids, int64(n)-1); n > 0 && !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes passed a limit of %d: %v", n, n-1, err)
		}
		var out bytes.Buffer
		w, err := NewBlobWriter(&out, rec)
		if err != nil {
			t.Fatal(err)
		}
		for chunk := plain; len(chunk) > 0; {
			k := min(len(chunk), 10_007)
			if _, err := w.Write(chunk[:k]); err != nil {
				t.Fatal(err)
			}
			chunk = chunk[k:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := NewBlobReader(&out, ids, int64(n))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("streamed %d bytes: %v", n, err)
		}
		r.Close()
	}
}

func TestOneByteChangedAnywhereInABlobIsAnError(t *testing.T) {
	ids, rec := pair(t, true)
	sealed, err := SealBlob(rows(3000, 1), rec)
	if err != nil {
		t.Fatal(err)
	}
	for at := range sealed {
		bad := bytes.Clone(sealed)
		bad[at] ^= 1 << (at % 8)
		if _, err := OpenBlob(bad, ids, 1<<20); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrIdentity) {
			t.Fatalf("byte %d of %d changed: %v", at, len(sealed), err)
		}
	}
	for n := range sealed {
		if _, err := OpenBlob(sealed[:n], ids, 1<<20); err == nil {
			t.Fatalf("cut to %d bytes and nothing was noticed", n)
		}
	}
	if _, err := OpenBlob(append(bytes.Clone(sealed), 0), ids, 1<<20); err == nil {
		t.Error("a byte more and nothing was noticed")
	}
}

func TestABlobThatUnpacksToGigabytesStopsAtTheLimit(t *testing.T) {
	ids, rec := pair(t, true)
	var out bytes.Buffer
	w, err := NewBlobWriter(&out, rec)
	if err != nil {
		t.Fatal(err)
	}
	zeroes := make([]byte, 1<<20)
	for range 32 {
		if _, err := w.Write(zeroes); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBlob(out.Bytes(), ids, 1<<20); !errors.Is(err, ErrDamaged) {
		t.Errorf("bomb of %d sealed bytes: %v", out.Len(), err)
	}
}

// failing fails every read from the n-th byte on.
type failing struct {
	r    *bytes.Reader
	from int64
	err  error
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.r.ReadAt(p, off)
}

func (f failing) Read(p []byte) (int, error) {
	if at := f.r.Size() - int64(f.r.Len()); at+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.r.Read(p)
}

func TestASourceThatCannotBeReadIsNotCalledDamaged(t *testing.T) {
	ids, rec := pair(t, true)
	away := errors.New("zone is away")
	s := packOf(t, rec, noise(500_000))
	blob, err := SealBlob(noise(500_000), rec)
	if err != nil {
		t.Fatal(err)
	}
	for from := int64(0); from < int64(len(s.Body)); from += 20_000 {
		f := failing{bytes.NewReader(s.Body), from, away}
		if _, err := OpenPack(f, int64(len(s.Body)), ids); !errors.Is(err, away) || errors.Is(err, ErrDamaged) {
			t.Fatalf("pack from byte %d: %v", from, err)
		}
		r, err := NewBlobReader(failing{bytes.NewReader(blob), from, away}, ids, 1<<20)
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, away) || errors.Is(err, ErrDamaged) {
			t.Fatalf("blob from byte %d: %v", from, err)
		}
	}
	late := &failing{bytes.NewReader(s.Body), 1 << 40, away}
	pr, err := OpenPack(late, int64(len(s.Body)), ids)
	if err != nil {
		t.Fatal(err)
	}
	late.from = 0
	if _, err := pr.Frame(s.Frames[0]); !errors.Is(err, away) || errors.Is(err, ErrDamaged) {
		t.Errorf("frame: %v", err)
	}
}

func FuzzOpenBlob(f *testing.F) {
	ids, rec := pair(f, true)
	sealed, err := SealBlob(rows(900, 1), rec)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed, false)
	f.Add(newEncoder(zstd.SpeedFastest).EncodeAll(rows(900, 1), nil), true)
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 0, 0, 0}, true)
	f.Add([]byte("age-encryption.org/v1\n"), false)
	f.Fuzz(func(t *testing.T, b []byte, encrypt bool) {
		if encrypt {
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
		got, err := OpenBlob(b, ids, 1<<16)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrIdentity) {
			t.Fatalf("unclassified error: %v", err)
		}
		if len(got) > 1<<16 {
			t.Fatalf("%d bytes beyond the limit", len(got))
		}
	})
}
