package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

var contents = [][]byte{
	[]byte("x"), rows(300, 1), rows(MaxFrame, 2), noise(MaxFrame), make([]byte, MaxFrame), rows(70_000, 3), noise(64 << 10),
}

func packOf(t testing.TB, rec []age.Recipient, raws ...[]byte) Sealed {
	t.Helper()
	c := NewCompressor(DefaultLevel)
	w, err := NewPackWriter(rec, PackTarget)
	if err != nil {
		t.Fatal(err)
	}
	for i, raw := range raws {
		if n, err := w.Add(c.Compress(raw)); n != i || err != nil {
			t.Fatalf("Add returned index %d and %v, want %d", n, err, i)
		}
	}
	size := w.Size()
	s, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	if s.SHA256 != sha256.Sum256(s.Body) {
		t.Fatal("digest of the body is wrong")
	}
	if int64(len(s.Body)) < size {
		t.Fatalf("sealed to %d bytes, Size said %d before age's overhead", len(s.Body), size)
	}
	return s
}

func TestPackGivesBackEveryFrameByRangeInOrderAndByItsOwnIndex(t *testing.T) {
	for _, classic := range []bool{true, false} {
		t.Run(fmt.Sprint("classic=", classic), func(t *testing.T) {
			ids, rec := pair(t, classic)
			s := packOf(t, rec, contents...)
			pr, err := OpenPack(bytes.NewReader(s.Body), int64(len(s.Body)), ids)
			if err != nil {
				t.Fatal(err)
			}
			index, err := pr.Index()
			if err != nil || len(index) != len(contents) {
				t.Fatalf("index: %d frames, %v", len(index), err)
			}
			for i := len(contents) - 1; i >= 0; i-- {
				if index[i] != s.Frames[i] {
					t.Errorf("index says %+v, sealing said %+v", index[i], s.Frames[i])
				}
				raw, err := pr.Frame(s.Frames[i])
				if err != nil || !bytes.Equal(raw, contents[i]) {
					t.Errorf("frame %d: %v", i, err)
				}
			}
			for _, frames := range [][]Frame{nil, s.Frames} {
				var got [][]byte
				err := DecodePack(s.Body, ids, frames, func(_ int, raw []byte) error {
					got = append(got, bytes.Clone(raw))
					return nil
				})
				if err != nil || len(got) != len(contents) || !bytes.Equal(bytes.Join(got, nil), bytes.Join(contents, nil)) {
					t.Errorf("decode: %d frames, %v", len(got), err)
				}
			}
		})
	}
}

func TestDecodePackReadsSomeFramesAndRefusesThemOutOfOrder(t *testing.T) {
	ids, rec := pair(t, true)
	s := packOf(t, rec, contents...)
	var got []byte
	some := []Frame{s.Frames[1], s.Frames[5]}
	if err := DecodePack(s.Body, ids, some, func(_ int, raw []byte) error { got = append(got, raw...); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := append(bytes.Clone(contents[1]), contents[5]...); !bytes.Equal(got, want) {
		t.Error("the frames between were not passed over")
	}
	twice := []Frame{s.Frames[5], s.Frames[1]}
	if err := DecodePack(s.Body, ids, twice, func(int, []byte) error { return nil }); !errors.Is(err, ErrDamaged) {
		t.Errorf("frames out of order: %v", err)
	}
	stop := errors.New("stop")
	if err := DecodePack(s.Body, ids, nil, func(int, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of the callback: %v", err)
	}
}

// recorder notes which bytes of the sealed pack a frame needed.
type recorder struct {
	r         io.ReaderAt
	low, high int64
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	r.low, r.high = min(r.low, off), max(r.high, off+int64(len(p)))
	return r.r.ReadAt(p, off)
}

func TestSealedRangeIsExactlyWhatAFrameNeeds(t *testing.T) {
	ids, rec := pair(t, false)
	s := packOf(t, rec, contents...)
	rr := &recorder{r: bytes.NewReader(s.Body)}
	for i, f := range s.Frames {
		pr, err := OpenPack(rr, int64(len(s.Body)), ids) // anew: age keeps the last chunk
		if err != nil {
			t.Fatal(err)
		}
		rr.low, rr.high = 1<<62, 0
		if _, err := pr.Frame(f); err != nil {
			t.Fatal(err)
		}
		off, n := pr.SealedRange(f)
		if rr.high == 0 { // all in the last chunk, which opening has read
			continue
		}
		if rr.low < off || rr.high > off+n || rr.low != off {
			t.Errorf("frame %d read [%d,%d), SealedRange says [%d,%d)", i, rr.low, rr.high, off, off+n)
		}
	}
}

func TestOneByteChangedAnywhereInAPackIsAnErrorAndGivesNoWrongByte(t *testing.T) {
	ids, rec := pair(t, true)
	raws := [][]byte{rows(2000, 1), noise(3000), rows(500, 4)}
	s := packOf(t, rec, raws...)
	for at := range s.Body {
		bad := bytes.Clone(s.Body)
		bad[at] ^= 1 << (at % 8)
		err := DecodePack(bad, ids, s.Frames, func(i int, raw []byte) error {
			if !bytes.Equal(raw, raws[i]) {
				t.Fatalf("byte %d changed: frame %d was handed out wrong", at, i)
			}
			return nil
		})
		if err == nil {
			t.Fatalf("byte %d of %d changed and nothing was noticed", at, len(s.Body))
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrIdentity) {
			t.Fatalf("byte %d: the error is neither damage nor a key: %v", at, err)
		}
	}
	for n := range s.Body {
		if DecodePack(s.Body[:n], ids, s.Frames, func(int, []byte) error { return nil }) == nil {
			t.Fatalf("cut to %d bytes and nothing was noticed", n)
		}
	}
}

func TestAFrameOfAnotherPackIsRefusedThoughItWasSealedToTheSameRecipient(t *testing.T) {
	ids, rec := pair(t, true)
	a, b := rows(5000, 1), rows(5000, 1)
	b[2500] ^= 1
	sa, sb := packOf(t, rec, a), packOf(t, rec, b)
	want := sa.Frames[0]
	want.Len = sb.Frames[0].Len // so that only the digest can tell
	err := DecodePack(sb.Body, ids, []Frame{want}, func(int, []byte) error {
		t.Error("a frame was handed out before its digest was checked")
		return nil
	})
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("swapped pack: %v", err)
	}
	pr, err := OpenPack(bytes.NewReader(sb.Body), int64(len(sb.Body)), ids)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := pr.Frame(want); raw != nil || !errors.Is(err, ErrDamaged) {
		t.Errorf("swapped pack by range: %d bytes, %v", len(raw), err)
	}
}

func TestFramesThatLieAboutTheirPlaceOrSizeAreRefused(t *testing.T) {
	ids, rec := pair(t, true)
	s := packOf(t, rec, rows(5000, 1))
	pr, err := OpenPack(bytes.NewReader(s.Body), int64(len(s.Body)), ids)
	if err != nil {
		t.Fatal(err)
	}
	good := s.Frames[0]
	for what, change := range map[string]func(*Frame){
		"negative offset": func(f *Frame) { f.Off = -1 },
		"huge offset":     func(f *Frame) { f.Off = 1<<63 - 1 },
		"huge length":     func(f *Frame) { f.Len = 1 << 40 },
		"past the end":    func(f *Frame) { f.Len = int64(len(s.Body)) },
		"no length":       func(f *Frame) { f.Len = 0 },
		"huge raw":        func(f *Frame) { f.Raw = 1 << 40 },
		"raw too short":   func(f *Frame) { f.Raw-- },
		"raw too long":    func(f *Frame) { f.Raw++ },
		"other digest":    func(f *Frame) { f.SHA256 = fmt.Sprintf("%064x", 1) },
		"no digest":       func(f *Frame) { f.SHA256 = "" },
	} {
		f := good
		change(&f)
		if raw, err := pr.Frame(f); raw != nil || !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %d bytes, %v", what, len(raw), err)
		}
		if err := DecodePack(s.Body, ids, []Frame{f}, func(int, []byte) error { t.Error(what); return nil }); err == nil {
			t.Errorf("%s: no error from DecodePack", what)
		}
	}
}

// TestADecompressionBombInAFrameIsBounded seals frames that unpack to 64 MiB: one
// that says so, one that lies about it.
func TestADecompressionBombInAFrameIsBounded(t *testing.T) {
	ids, rec := pair(t, true)
	honest := newEncoder(zstd.SpeedFastest).EncodeAll(make([]byte, 64<<20), nil)
	liar := bytes.Clone(honest)
	binary.LittleEndian.PutUint32(liar[5:], 1000) // the content size, after magic and descriptor
	for _, bomb := range [][]byte{honest, liar} {
		w, err := NewPackWriter(rec, int64(len(bomb)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Add(CompressedFrame{data: bomb, raw: 1000, sum: sha256.Sum256(bomb)}); err != nil {
			t.Fatal(err)
		}
		s, err := w.Seal()
		if err != nil {
			t.Fatal(err)
		}
		if err := DecodePack(s.Body, ids, nil, func(int, []byte) error { return nil }); !errors.Is(err, ErrDamaged) {
			t.Errorf("bomb: %v", err)
		}
	}
}

// TestAFrameWithoutItsChecksumIsRefused, since only the checksum vouches for what
// decompression gives.
func TestAFrameWithoutItsChecksumIsRefused(t *testing.T) {
	raw := rows(5000, 1)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	data := enc.EncodeAll(raw, nil)
	f := Frame{Len: int64(len(data)), Raw: len(raw), SHA256: fmt.Sprintf("%x", sha256.Sum256(data))}
	if got, err := decode(f, data, nil); got != nil || !errors.Is(err, ErrDamaged) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestTheOrdinaryAgeAndZstdOpenAPackEndToEnd(t *testing.T) {
	secret, recipient, err := NewX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rec, err := ParseRecipients([]string{recipient})
	if err != nil {
		t.Fatal(err)
	}
	file := append(rows(5<<20, 9), noise(777_777)...)
	small, err := SealFile(file, NewCompressor("better"), rec)
	if err != nil {
		t.Fatal(err)
	}
	empty, err := SealFile(nil, NewCompressor(""), rec)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := SealBlob(file, rec)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ body, want []byte }{
		"pack":       {packOf(t, rec, contents...).Body, bytes.Join(contents, nil)},
		"file":       {small.Body, file},
		"empty file": {empty.Body, nil},
		"blob":       {blob, file},
	} {
		t.Run(name, func(t *testing.T) {
			sealed := filepath.Join(t.TempDir(), "sealed.age")
			if err := os.WriteFile(sealed, c.body, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "bash", "-c", `set -o pipefail; age -d -i "$1" "$2" | zstd -d -q`, "-", key, sealed)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			if err != nil {
				t.Fatalf("age -d | zstd -d (install age and zstd): %v: %s", err, &stderr)
			}
			if !bytes.Equal(got, c.want) {
				t.Errorf("got %d bytes, want %d", len(got), len(c.want))
			}
		})
	}
}

func TestFileComesBackWholeAndNeverBeyondTheLimit(t *testing.T) {
	ids, rec := pair(t, false)
	c := NewCompressor("fastest")
	for _, n := range []int{0, 1, MaxFrame - 1, MaxFrame, MaxFrame + 1, 3*MaxFrame + 5} {
		file := rows(n, uint64(n))
		s, err := SealFile(file, c, rec)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenFile(s.Body, ids, int64(n))
		if err != nil || !bytes.Equal(got, file) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if _, err := OpenFile(s.Body, ids, int64(n)-1); n > 0 && err == nil {
			t.Errorf("%d bytes passed a limit of %d", n, n-1)
		}
	}
}

func TestAnotherIdentityIsToldFromDamage(t *testing.T) {
	_, rec := pair(t, false)
	other, _ := pair(t, false)
	s := packOf(t, rec, rows(100, 1))
	if _, err := OpenPack(bytes.NewReader(s.Body), int64(len(s.Body)), other); !errors.Is(err, ErrIdentity) || errors.Is(err, ErrDamaged) {
		t.Errorf("pack: %v", err)
	}
	blob, err := SealBlob([]byte("x"), rec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBlob(blob, other, 10); !errors.Is(err, ErrIdentity) {
		t.Errorf("blob: %v", err)
	}
}

func TestAFullPackIsNeverMovedInMemory(t *testing.T) {
	_, rec := pair(t, false)
	w, err := NewPackWriter(rec, PackTarget)
	if err != nil {
		t.Fatal(err)
	}
	room, f := w.body.Cap(), NewCompressor(DefaultLevel).Compress(noise(MaxFrame))
	for !w.Full() {
		if _, err := w.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	s, err := w.Seal()
	if err != nil || cap(s.Body) != room {
		t.Errorf("room for %d bytes grew to %d for a pack of %d (%v): its bytes were copied", room, cap(s.Body), len(s.Body), err)
	}
}
