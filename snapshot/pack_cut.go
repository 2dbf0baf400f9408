package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-dr/holdfast/internal/catalog"
	"github.com/holdfast-dr/holdfast/internal/postgres/page"
	"github.com/holdfast-dr/holdfast/internal/seal"
)

// file is a file on its way into the manifest.
type file struct {
	path    string
	mode    uint32
	mtime   time.Time
	kind    string
	outside bool
	// verify checks its pages as they pass; nil where there are none to check.
	verify *page.Verifier

	size    int64
	sum     string
	extents []*catalog.Extent
	bad     []int64 // blocks of this file
}

func (f *file) entry() catalog.ManifestFile {
	e := catalog.ManifestFile{
		Path: f.path, Size: f.size, Mode: f.mode, MTime: f.mtime, Kind: f.kind,
		SHA256: f.sum, Outside: f.outside, Bad: f.bad,
	}
	for _, x := range f.extents {
		e.Extents = append(e.Extents, *x)
	}
	return e
}

// cutter cuts files into chunks. A relation's page never lies in two of them,
// and what fits into one chunk is never split: small files share.
type cutter struct {
	emit func(*chunk) (*chunk, error) // takes a full chunk, gives an empty one
	cur  *chunk
	took func(n int) error // counts and slows down
}

// file reads the size bytes of r as f.
func (c *cutter) file(f *file, r io.Reader, size int64) error {
	if size > int64(c.free()) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	sum := sha256.New()
	for f.size < size {
		n := c.share(f, size-f.size)
		if n == 0 {
			if err := c.flush(); err != nil {
				return err
			}
			continue
		}
		start := len(c.cur.raw)
		piece := c.cur.raw[start : start+n]
		if _, err := io.ReadFull(r, piece); err != nil {
			return fmt.Errorf("read %s at byte %d of %d: %w", f.path, f.size, size, err)
		}
		if f.verify != nil {
			if err := f.verify.Check(piece); err != nil {
				return fmt.Errorf("check the pages of %s: %w", f.path, err)
			}
		}
		sum.Write(piece)
		c.append(f, start, n)
		if err := c.took(n); err != nil {
			return err
		}
	}
	f.sum = hex.EncodeToString(sum.Sum(nil))
	return nil
}

func (c *cutter) free() int { return seal.MaxFrame - len(c.cur.raw) }

// share is how many bytes of f go into the current chunk.
func (c *cutter) share(f *file, left int64) int {
	n := int(min(left, int64(c.free())))
	if f.kind == catalog.FileRelation && int64(n) < left {
		n -= n % page.Size
	}
	return n
}

func (c *cutter) append(f *file, off, n int) {
	c.cur.raw = c.cur.raw[:off+n]
	e := &catalog.Extent{Off: off, Len: n}
	c.cur.extents = append(c.cur.extents, e)
	f.extents = append(f.extents, e)
	f.size += int64(n)
}

// flush passes the chunk in the making on.
func (c *cutter) flush() (err error) {
	if len(c.cur.raw) > 0 {
		c.cur, err = c.emit(c.cur)
	}
	return err
}
