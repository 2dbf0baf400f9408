package restore

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/datadir"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
)

// likeness tells which blocks of files that are there are those of the snapshot.
type likeness struct {
	digester  *page.Digester // nil: nothing is known to be alike
	checksums bool
	buffers   sync.Pool   // of a leaf's size
	plain     atomic.Bool // files cannot be read past the page cache here
}

func newLikeness(d *page.Digester, checksums bool) *likeness {
	return &likeness{digester: d, checksums: checksums, buffers: sync.Pool{New: func() any {
		b := aligned(catalog.LeafBlocks * catalog.BlockSize)
		return &b
	}}}
}

// oldFile is one file that was there before.
type oldFile struct {
	*likeness
	e     *entry
	f     *os.File
	pages bool   // of a relation's main fork: what its holes hold does not matter
	base  uint32 // block of the relation that the file begins with
	buf   *[]byte
	disk  *os.File // past the page cache; nil until it is needed
}

func (k *likeness) of(path string, e *entry, f *os.File) *oldFile {
	o := &oldFile{likeness: k, e: e, f: f, buf: k.buffers.Get().(*[]byte)}
	if r, ok := datadir.ParseRelation(path); ok && e.kind == relation {
		o.pages, o.base = r.Fork == datadir.Main, r.Segment*page.SegmentBlocks
	}
	return o
}

func (o *oldFile) release() {
	o.buffers.Put(o.buf)
	if o.disk != nil {
		_ = o.disk.Close() // nothing was written
	}
}

// differing compares a leaf with what the file holds. What is alike stays and is
// counted into the file's sum; zeros are made where they are wanted.
func (o *oldFile) differing(file int, first int64, l catalog.Leaf) ([]record, error) {
	at := first * catalog.BlockSize
	data := (*o.buf)[:min(int64(l.Blocks)*catalog.BlockSize, o.e.size-at)]
	if err := o.read(len(data), at); err != nil {
		return nil, err
	}
	runs := l.Runs
	if l.Zero() {
		runs = []catalog.Run{{Count: l.Blocks, Frame: catalog.ZeroFrame}}
	}
	var out []record
	for _, r := range runs {
		for r.Count > 0 {
			same, n := o.stretch(data, first, l, r)
			part := r
			part.Count = n
			from, to := r.First*catalog.BlockSize, min((r.First+n)*catalog.BlockSize, len(data))
			switch {
			case same && r.Frame == catalog.ZeroFrame:
			case same:
				addSum(&o.e.sum, data[from:to], at+int64(from), o.e.size)
			case r.Frame == catalog.ZeroFrame:
				if err := punch(o.f, at+int64(from), int64(to-from)); err != nil {
					return nil, err
				}
			default:
				out = append(out, ofRun(file, first, o.e.size, l, part))
			}
			r.First, r.Count = r.First+n, r.Count-n
			if r.Frame != catalog.ZeroFrame {
				r.Off += n * catalog.BlockSize
			}
		}
	}
	return out, nil
}

// stretch says whether the first block of r is as it should be, and how many of
// r are like the first in that.
func (o *oldFile) stretch(data []byte, first int64, l catalog.Leaf, r catalog.Run) (same bool, n int) {
	for ; n < r.Count; n++ {
		i := r.First + n
		is := o.same(data[i*catalog.BlockSize:min((i+1)*catalog.BlockSize, len(data))], first+int64(i), l, r.Frame, i)
		if n == 0 {
			same = is
		} else if is != same {
			break
		}
	}
	return same, n
}

func (o *oldFile) same(block []byte, number int64, l catalog.Leaf, frame, i int) bool {
	if frame == catalog.ZeroFrame {
		return page.IsZero(block)
	}
	switch {
	case o.digester == nil:
		return false
	case o.digester.Sum(block) == l.Digests[i]:
		return true
	}
	if !o.pages || len(block) != page.Size {
		return false
	}
	var normal [page.Size]byte
	copy(normal[:], block)
	return page.Normalise(normal[:], o.base+uint32(number), o.checksums) && o.digester.Sum(normal[:]) == l.Digests[i]
}

// punch makes zeros of n bytes, without storing them where that can be had.
func punch(f *os.File, at, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		_, err = f.WriteAt(make([]byte, n), at)
	}
	return err
}
