package datadir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrVanished means that a file was removed after it was listed: leave it out, WAL
// tells that it is gone (C-16).
var ErrVanished = errors.New("the file was removed since it was listed")

// Reader yields exactly the bytes that a file had when it was listed: what was
// added since is in the WAL and is not read; where the file was cut since, zeros
// stand for the rest, as the server's own sendFile does, and WAL cuts them off
// (C-16). Not safe for concurrent use but for ReadAt.
type Reader struct {
	f      *os.File
	name   string
	size   int64
	off    int64
	padded int64
	nowait bool
}

// OpenFile opens a file of a layout for one pass from its start.
func OpenFile(file File) (*Reader, error) {
	flags := unix.O_RDONLY | unix.O_CLOEXEC
	if !file.Outside {
		flags |= unix.O_NOFOLLOW
	}
	f, err := os.OpenFile(file.Source, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", file.Path, ErrVanished)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file.Path, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it was a file when it was listed and is none now")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", file.Path, err)
	}
	// Without read-ahead, what RWF_NOWAIT finds was there for the server.
	// Advice that a file system does not take costs nothing.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
	return &Reader{f: f, name: file.Path, size: file.Size, nowait: true}, nil
}

// Size is the number of bytes that Read yields in all.
func (r *Reader) Size() int64 { return r.size }

// Padded is how many zeros stood in for bytes that were cut off while reading.
func (r *Reader) Padded() int64 { return r.padded }

// MoveTo lets the next Read begin at byte off of the file.
func (r *Reader) MoveTo(off int64) { r.off = off }

// Read reads on; pass large buffers (a MiB), there is no read-ahead.
func (r *Reader) Read(p []byte) (int, error) {
	if r.off >= r.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.size-r.off)]
	n, err := r.pread(p)
	if err != nil {
		return 0, fmt.Errorf("read %s at %d: %w", r.name, r.off, err)
	}
	if n == 0 && len(p) > 0 {
		clear(p)
		n = len(p)
		r.padded += int64(n)
	}
	r.off += int64(n)
	return n, nil
}

// pread reads what the page cache holds as it is; what it does not hold is read and
// dropped again, so that a backup neither evicts what the server uses nor fills the
// cache with what it does not (C-22).
func (r *Reader) pread(p []byte) (int, error) {
	held := 0
	if r.nowait {
		n, err := unix.Preadv2(int(r.f.Fd()), [][]byte{p}, r.off, unix.RWF_NOWAIT)
		switch {
		case err == nil && n > 0:
			held = n
		case errors.Is(err, unix.EAGAIN), err == nil:
		default:
			r.nowait = false // the file system cannot tell: everything is dropped
		}
	}
	if held == len(p) {
		return held, nil
	}
	n, err := r.f.ReadAt(p[held:], r.off+int64(held))
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if n > 0 {
		_ = unix.Fadvise(int(r.f.Fd()), r.off+int64(held), int64(n), unix.FADV_DONTNEED)
	}
	return held + n, nil
}

// ReadAt reads again what Read has read, as the file is now; io.EOF where it was cut.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) { return r.f.ReadAt(p, off) }

// Reread reads one page again; it has the shape that page.NewVerifier takes. What
// was cut off reads as zeros.
func (r *Reader) Reread(page []byte, index int64) error {
	n, err := r.f.ReadAt(page, index*int64(len(page)))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(page[n:])
	return nil
}

// Close ends the pass.
func (r *Reader) Close() error { return r.f.Close() }
