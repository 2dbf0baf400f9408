package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
)

// PackReader reads single frames of a pack. Several goroutines may use it.
type PackReader struct {
	plain io.ReaderAt
	size  int64 // of the plaintext
	body  int64 // where age's payload begins in the sealed bytes
}

// OpenPack reads a sealed pack's header and its last chunk; r holds size bytes,
// and may fetch ranges from afar (see [PackReader.SealedRange]).
func OpenPack(r io.ReaderAt, size int64, ids []age.Identity) (*PackReader, error) {
	plain, n, err := age.DecryptReaderAt(sourceAt{r}, size, ids...)
	if err != nil {
		return nil, opening("pack", err)
	}
	chunks := max(1, (n+chunkSize-1)/chunkSize)
	return &PackReader{plain: plain, size: n, body: size - n - chunks*chunkTag}, nil
}

// age encrypts its payload in chunks, each with a tag (C2SP age, "Payload").
const chunkSize, chunkTag = 64 << 10, 16

// SealedRange says which bytes of the sealed pack hold f, whole chunks, so that
// one ranged read from a zone can serve [PackReader.Frame].
func (p *PackReader) SealedRange(f Frame) (off, n int64) {
	first, end := f.Off/chunkSize, (f.Off+f.Len+chunkSize-1)/chunkSize
	total := max(1, (p.size+chunkSize-1)/chunkSize)
	off = p.body + first*(chunkSize+chunkTag)
	if end >= total {
		return off, p.body + p.size + total*chunkTag - off
	}
	return off, (end - first) * (chunkSize + chunkTag)
}

// Frame returns the raw bytes of f after checking their digest. f must come from
// a manifest that a note vouches for, or from Index of a pack whose own digest
// was checked.
func (p *PackReader) Frame(f Frame) ([]byte, error) {
	if err := f.check(p.size); err != nil {
		return nil, err
	}
	compressed := make([]byte, f.Len)
	if _, err := io.ReadFull(io.NewSectionReader(p.plain, f.Off, f.Len), compressed); err != nil {
		return nil, opening("frame", err)
	}
	return decode(f, compressed, nil)
}

// FrameDecoder reads frames one after the other by the same memory. Its zero value
// is ready; it is for one goroutine.
type FrameDecoder struct{ compressed []byte }

// Frame is [PackReader.Frame] of p with the raw bytes in dst's memory, when that
// has room for them.
func (d *FrameDecoder) Frame(p *PackReader, f Frame, dst []byte) ([]byte, error) {
	if err := f.check(p.size); err != nil {
		return nil, err
	}
	d.compressed = grow(d.compressed, int(f.Len))
	if _, err := io.ReadFull(io.NewSectionReader(p.plain, f.Off, f.Len), d.compressed); err != nil {
		return nil, opening("frame", err)
	}
	return decode(f, d.compressed, dst)
}

// Index returns the pack's own list of its frames. It is what the sealer said,
// whoever that was.
func (p *PackReader) Index() ([]Frame, error) {
	if p.size < int64(indexSize(0)) {
		return nil, fmt.Errorf("pack index: %w: the pack has %d bytes", ErrDamaged, p.size)
	}
	footer, err := p.tail(footerSize)
	if err != nil {
		return nil, err
	}
	n, err := indexLength(footer)
	if err != nil {
		return nil, err
	}
	if int64(n) > p.size {
		return nil, fmt.Errorf("pack index: %w: longer than the pack", ErrDamaged)
	}
	index, err := p.tail(n)
	if err != nil {
		return nil, err
	}
	return ParseIndex(index, p.size-int64(n))
}

func (p *PackReader) tail(n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(p.plain, p.size-int64(n), int64(n)), b); err != nil {
		return nil, opening("pack index", err)
	}
	return b, nil
}

// DecodePack calls fn with the raw bytes of each of frames, checked, in order;
// they are valid until fn returns. frames ascend and may leave some out; nil
// means all that the pack's own index lists. The pack is read to its end, so
// that nil says that all of it is whole; fn may have been called before an error.
func DecodePack(body []byte, ids []age.Identity, frames []Frame, fn func(i int, raw []byte) error) error {
	if frames == nil {
		pr, err := OpenPack(bytes.NewReader(body), int64(len(body)), ids)
		if err != nil {
			return err
		}
		if frames, err = pr.Index(); err != nil {
			return err
		}
	}
	r, err := age.Decrypt(bytes.NewReader(body), ids...)
	if err != nil {
		return opening("pack", err)
	}
	var pos int64
	var compressed, raw []byte
	for i, f := range frames {
		if err := f.check(int64(len(body))); err != nil {
			return err
		}
		if f.Off < pos {
			return fmt.Errorf("frame %d at %d: %w: the frame before ends at %d", i, f.Off, ErrDamaged, pos)
		}
		if _, err := io.CopyN(io.Discard, r, f.Off-pos); err != nil {
			return opening("pack", err)
		}
		compressed = grow(compressed, int(f.Len))
		if _, err := io.ReadFull(r, compressed); err != nil {
			return opening("pack", err)
		}
		pos = f.Off + f.Len
		if raw, err = decode(f, compressed, raw); err != nil {
			return err
		}
		if err := fn(i, raw); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return opening("pack", err)
	}
	return nil
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		b = make([]byte, n)
	}
	return b[:n]
}

// OpenFile is the inverse of [SealFile] for files of at most limit bytes. The
// caller has checked body against a digest that a note vouches for.
func OpenFile(body []byte, ids []age.Identity, limit int64) ([]byte, error) {
	pr, err := OpenPack(bytes.NewReader(body), int64(len(body)), ids)
	if err != nil {
		return nil, err
	}
	frames, err := pr.Index()
	if err != nil {
		return nil, err
	}
	var total int64
	for _, f := range frames {
		total += int64(f.Raw)
	}
	if total > limit {
		return nil, fmt.Errorf("open file: %w: it has %d bytes, want at most %d", ErrDamaged, total, limit)
	}
	plain := make([]byte, 0, total)
	err = DecodePack(body, ids, frames, func(_ int, raw []byte) error {
		plain = append(plain, raw...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return plain, nil
}

// sourceError is an error of the caller's own reader: no word on the bytes.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

type sourceAt struct{ r io.ReaderAt }

func (s sourceAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &sourceError{err}
	}
	return n, err
}

type source struct{ r io.Reader }

func (s source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &sourceError{err}
	}
	return n, err
}

// opening tells a wrong key and an unreadable source from damage, so that the
// reader knows whether to look for another identity, to try again, or to look for
// another copy.
func opening(what string, err error) error {
	var unread *sourceError
	if errors.As(err, &unread) {
		return fmt.Errorf("open %s: %w", what, unread.error)
	}
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return fmt.Errorf("open %s: %w: give the identity of one of its recipients", what, ErrIdentity)
	}
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("open %s: %w", what, err)
	}
	return fmt.Errorf("open %s: %w: %w", what, ErrDamaged, err)
}
