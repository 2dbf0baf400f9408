package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// leafSpool keeps the leaves of a snapshot in the making in a local file, in the order
// in which they became whole, until they are written into map objects. A record
// says whose leaf it is, so that an attempt that was interrupted can be continued.
//
//	u32 CRC-32C of what follows | u32 its length | i64 size of the file | u32 number
//	of the leaf | u16 length of the path | path | leaf
type leafSpool struct {
	mu  sync.Mutex
	f   *os.File
	end int64
	buf []byte
}

const (
	spoolHead  = 8
	spoolEntry = 8 + 4 + 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// add writes leaves in one go and tells their files where they are.
func (s *leafSpool) add(leaves []*leafMaker) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = s.buf[:0]
	for _, m := range leaves {
		n := int(m.first / catalog.LeafBlocks)
		begin := len(s.buf)
		s.buf = append(s.buf, make([]byte, spoolHead)...)
		s.buf = binary.LittleEndian.AppendUint64(s.buf, uint64(m.file.size))
		s.buf = binary.LittleEndian.AppendUint32(s.buf, uint32(n))
		s.buf = binary.LittleEndian.AppendUint16(s.buf, uint16(len(m.file.path)))
		s.buf = append(s.buf, m.file.path...)
		at := len(s.buf)
		var err error
		if s.buf, err = catalog.AppendLeaf(s.buf, m.leaf); err != nil {
			return fmt.Errorf("%s: %w", m.file.path, err)
		}
		m.file.roll.set(m.file.n, int64(n), leafPlace{off: s.end + int64(at), len: int32(len(s.buf) - at)})
		body := s.buf[begin+spoolHead:]
		binary.LittleEndian.PutUint32(s.buf[begin:], crc32.Checksum(body, castagnoli))
		binary.LittleEndian.PutUint32(s.buf[begin+4:], uint32(len(body)))
	}
	if _, err := s.f.WriteAt(s.buf, s.end); err != nil {
		return fmt.Errorf("write page maps to the spool: %w", err)
	}
	s.end += int64(len(s.buf))
	return nil
}

// leaf reads one leaf back.
func (s *leafSpool) leaf(p leafPlace) (catalog.Leaf, error) {
	b := make([]byte, p.len)
	if _, err := s.f.ReadAt(b, p.off); err != nil {
		return catalog.Leaf{}, fmt.Errorf("read a page map from the spool: %w", err)
	}
	l, rest, err := catalog.ParseLeaf(b)
	if err == nil && len(rest) > 0 {
		err = errors.New("page map: there is more behind a leaf of the spool")
	}
	return l, err
}

// finished takes leaves that are whole: what is not as it was goes to the spool.
func (t *take) finished(leaves []*leafMaker) error {
	fresh := leaves[:0]
	for _, m := range leaves {
		if m.changed {
			fresh = append(fresh, m)
			continue
		}
		m.file.roll.set(m.file.n, m.first/catalog.LeafBlocks, m.old.place())
	}
	if len(fresh) == 0 {
		return nil
	}
	return t.making.spool.add(fresh)
}
