package restore

import (
	"bufio"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/internal/catalog"
)

// record says that n bytes of a frame belong into a file.
type record struct {
	frame catalog.LeafFrame
	file  uint32 // place in the layout
	from  uint32 // in the frame's raw bytes
	n     uint32
	at    int64 // in the file
	// digests are those of its blocks, folded ([page.Fold]).
	digests uint64
}

const recordSize = 4 + 8 + 4 + 4 + 32 + 4 + 4 + 4 + 8 + 8

func (r record) order(o record) int {
	return cmp.Or(cmp.Compare(r.frame.Pack, o.frame.Pack), cmp.Compare(r.frame.Off, o.frame.Off), cmp.Compare(r.file, o.file), cmp.Compare(r.at, o.at))
}

func (r record) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, r.frame.Pack)
	b = le.AppendUint64(b, uint64(r.frame.Off))
	b = le.AppendUint32(b, uint32(r.frame.Len))
	b = le.AppendUint32(b, uint32(r.frame.Raw))
	b = append(b, r.frame.SHA256[:]...)
	b = le.AppendUint32(b, r.file)
	b = le.AppendUint32(b, r.from)
	b = le.AppendUint32(b, r.n)
	b = le.AppendUint64(b, uint64(r.at))
	return le.AppendUint64(b, r.digests)
}

func parseRecord(b []byte) record {
	le := binary.LittleEndian
	return record{
		frame: catalog.LeafFrame{
			Pack: le.Uint32(b), Off: int64(le.Uint64(b[4:])), Len: int(le.Uint32(b[12:])), Raw: int(le.Uint32(b[16:])), SHA256: [32]byte(b[20:52]),
		},
		file: le.Uint32(b[52:]), from: le.Uint32(b[56:]), n: le.Uint32(b[60:]), at: int64(le.Uint64(b[64:])), digests: le.Uint64(b[72:]),
	}
}

// records are sorted by pack and place. What memory does not hold is spilled to a
// scratch file, a sorted run after the other. Several goroutines may add.
type records struct {
	file  *os.File
	limit int // records in memory

	mu    sync.Mutex
	mem   []record
	ends  []int64 // of the runs in file
	total int64   // bytes that the records bring
}

// inMemory is some 12 MB: enough for a cluster of 100 GB whose files lie whole.
const inMemory = 1 << 17

func newRecords(path string, limit int) (*records, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a scratch file: %w", err)
	}
	return &records{file: f, limit: limit}, nil
}

func (rs *records) add(more ...record) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, r := range more {
		rs.mem = append(rs.mem, r)
		rs.total += int64(r.n)
		if len(rs.mem) >= rs.limit {
			if err := rs.spill(); err != nil {
				return fmt.Errorf("writing the scratch file %s: %w", rs.file.Name(), err)
			}
		}
	}
	return nil
}

func (rs *records) spill() error {
	slices.SortFunc(rs.mem, record.order)
	var begin int64
	if len(rs.ends) > 0 {
		begin = rs.ends[len(rs.ends)-1]
	}
	w := bufio.NewWriterSize(io.NewOffsetWriter(rs.file, begin), 1<<20)
	buf := make([]byte, 0, recordSize)
	for _, r := range rs.mem {
		buf = r.append(buf[:0])
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	rs.ends = append(rs.ends, begin+int64(len(rs.mem))*recordSize)
	rs.mem = rs.mem[:0]
	return w.Flush()
}

// byPack calls fn with all records of one pack after the other, sorted; fn may
// keep them.
func (rs *records) byPack(fn func(list []record) error) error {
	slices.SortFunc(rs.mem, record.order)
	m := &merge{}
	begin := int64(0)
	buffer := int(max(16<<10, min(1<<20, 32<<20/int64(len(rs.ends)+1))))
	for _, end := range rs.ends {
		m.push(&run{r: bufio.NewReaderSize(io.NewSectionReader(rs.file, begin, end-begin), buffer)})
		begin = end
	}
	m.push(&run{mem: rs.mem})
	var list []record
	for {
		r, ok := m.next()
		if len(list) > 0 && (!ok || r.frame.Pack != list[0].frame.Pack) {
			if err := fn(list); err != nil {
				return err
			}
			list = nil
		}
		if !ok {
			return m.err
		}
		list = append(list, r)
	}
}

func (rs *records) close() error { return errors.Join(rs.file.Close(), os.Remove(rs.file.Name())) }

// run gives sorted records, from memory or from the scratch file.
type run struct {
	r    io.Reader
	mem  []record
	head record
}

func (u *run) advance() (bool, error) {
	if u.r == nil {
		if len(u.mem) == 0 {
			return false, nil
		}
		u.head, u.mem = u.mem[0], u.mem[1:]
		return true, nil
	}
	var b [recordSize]byte
	if _, err := io.ReadFull(u.r, b[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		return false, err
	}
	u.head = parseRecord(b[:])
	return true, nil
}

// merge gives the records of all runs in order.
type merge struct {
	runs []*run
	err  error
}

func (m *merge) push(u *run) {
	ok, err := u.advance()
	m.err = errors.Join(m.err, err)
	if ok {
		heap.Push(m, u)
	}
}

func (m *merge) next() (record, bool) {
	if len(m.runs) == 0 || m.err != nil {
		return record{}, false
	}
	u := m.runs[0]
	r := u.head
	ok, err := u.advance()
	if err != nil {
		m.err = fmt.Errorf("reading the scratch file: %w", err)
	}
	if ok {
		heap.Fix(m, 0)
	} else {
		heap.Pop(m)
	}
	return r, true
}

// Len, Less, Swap, Push and Pop make merge a heap.
func (m *merge) Len() int           { return len(m.runs) }
func (m *merge) Less(i, j int) bool { return m.runs[i].head.order(m.runs[j].head) < 0 }
func (m *merge) Swap(i, j int)      { m.runs[i], m.runs[j] = m.runs[j], m.runs[i] }
func (m *merge) Push(x any)         { m.runs = append(m.runs, x.(*run)) }
func (m *merge) Pop() any {
	last := m.runs[len(m.runs)-1]
	m.runs = m.runs[:len(m.runs)-1]
	return last
}

// frames gives each frame of one pack's sorted records with its records.
func frames(list []record, fn func(same []record) error) error {
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].frame.Off == list[0].frame.Off {
			n++
		}
		if err := fn(list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}
