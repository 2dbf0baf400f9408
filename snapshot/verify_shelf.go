package snapshot

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// maxDrawers bounds the files of a shelf, each with its buffer.
const maxDrawers = 256

// fragment is a stretch of a file inside a frame, as a leaf tells it.
type fragment struct {
	pack     uint32 // place in the manifest
	off      int64  // of the frame in the pack's plaintext
	len, raw uint32
	sum      [32]byte
	file     uint32
	at       int64  // in the file, bytes
	n, in    uint32 // bytes, and where in the frame's raw ones
	digests  uint64 // of its blocks, folded
}

const fragmentSize = 4 + 8 + 4 + 4 + 32 + 4 + 8 + 4 + 4 + 8

func (x fragment) frame() seal.Frame {
	return seal.Frame{Off: x.off, Len: int64(x.len), Raw: int(x.raw), SHA256: hex.EncodeToString(x.sum[:])}
}

func (x fragment) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, x.pack)
	b = le.AppendUint64(b, uint64(x.off))
	b = le.AppendUint32(b, x.len)
	b = le.AppendUint32(b, x.raw)
	b = append(b, x.sum[:]...)
	b = le.AppendUint32(b, x.file)
	b = le.AppendUint64(b, uint64(x.at))
	b = le.AppendUint32(b, x.n)
	b = le.AppendUint32(b, x.in)
	return le.AppendUint64(b, x.digests)
}

func parseFragment(b []byte) fragment {
	le := binary.LittleEndian
	return fragment{
		pack: le.Uint32(b), off: int64(le.Uint64(b[4:])), len: le.Uint32(b[12:]), raw: le.Uint32(b[16:]), sum: [32]byte(b[20:52]),
		file: le.Uint32(b[52:]), at: int64(le.Uint64(b[56:])), n: le.Uint32(b[64:]), in: le.Uint32(b[68:]), digests: le.Uint64(b[72:]),
	}
}

// grouped cuts a sorted list where key changes.
func grouped(list []fragment, key func(fragment) int64) iter.Seq[[]fragment] {
	return func(yield func([]fragment) bool) {
		for len(list) > 0 {
			n := slices.IndexFunc(list, func(x fragment) bool { return key(x) != key(list[0]) })
			if n < 0 {
				n = len(list)
			}
			if !yield(list[:n:n]) {
				return
			}
			list = list[n:]
		}
	}
}

// shelf sorts fragments by pack on disk: each drawer has those of some packs, so
// that memory holds one drawer at a time. It is for one goroutine.
type shelf struct {
	packs   int
	drawers []*drawer
	line    []byte
}

type drawer struct {
	f *os.File
	w *bufio.Writer
}

func newShelf(dir string, packs int) (*shelf, error) {
	s := &shelf{packs: packs}
	for i := range min(max(packs/4, 1), maxDrawers) {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("drawer-%d", i)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.drawers = append(s.drawers, &drawer{f, bufio.NewWriterSize(f, 16<<10)})
	}
	return s, nil
}

// drawer is where the fragments of a pack lie.
func (s *shelf) drawer(pack uint32) int {
	return int(int64(pack) * int64(len(s.drawers)) / int64(s.packs))
}

func (s *shelf) put(x fragment) error {
	s.line = x.append(s.line[:0])
	_, err := s.drawers[s.drawer(x.pack)].w.Write(s.line)
	return err
}

// take returns a drawer's fragments by pack and place.
func (s *shelf) take(i int) ([]fragment, error) {
	d := s.drawers[i]
	if err := d.w.Flush(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(d.f.Name())
	if err != nil {
		return nil, err
	}
	out := make([]fragment, 0, len(b)/fragmentSize)
	for ; len(b) >= fragmentSize; b = b[fragmentSize:] {
		out = append(out, parseFragment(b))
	}
	slices.SortFunc(out, func(a, b fragment) int {
		return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.off, b.off), cmp.Compare(a.in, b.in))
	})
	return out, nil
}

func (s *shelf) close() error {
	var errs []error
	for _, d := range s.drawers {
		errs = append(errs, d.f.Close())
	}
	return errors.Join(errs...)
}
