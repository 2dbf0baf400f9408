package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/internal/seal"
)

// Files are written by others than those who unpack, so that no processor waits
// for a disk. Large pieces go past the page cache: most of what is restored is not
// read again soon, whoever else lives on the host keeps their cache, no memory is
// found and filled first, and little is left to be made durable at the end.
const (
	directBlock = 4 << 10  // what memory, offsets and lengths are multiples of, for O_DIRECT
	directLeast = 64 << 10 // below it a write of its own costs more than the copy
)

// opened is what one frame holds, and where it belongs.
type opened struct {
	list []record
	raw  []byte
}

// writers are the goroutines that write, and the memory they share with those
// who unpack.
type writers struct {
	t     *tree
	work  chan opened
	free  chan []byte
	all   [][]byte
	plain atomic.Bool // O_DIRECT is not to be had here
}

// newWriters has memory for n frames.
func newWriters(t *tree, n int) (*writers, error) {
	w := &writers{t: t, work: make(chan opened), free: make(chan []byte, n)}
	for range n {
		// Mapped, not allocated: so it begins with a page.
		b, err := unix.Mmap(-1, 0, seal.MaxFrame, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("memory for %d frames: %w", n, err), w.close())
		}
		w.all = append(w.all, b)
		w.free <- b
	}
	return w, nil
}

// close gives the memory back; nobody may use it any more.
func (w *writers) close() (err error) {
	for _, b := range w.all {
		err = errors.Join(err, unix.Munmap(b))
	}
	return err
}

// memory waits for that of one frame.
func (w *writers) memory(ctx context.Context) ([]byte, error) {
	select {
	case b := <-w.free:
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// put hands a piece over: its memory is the writers' then.
func (w *writers) put(ctx context.Context, p opened) error {
	select {
	case w.work <- p:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run writes what is put until work is closed.
func (w *writers) run(wrote func(bytes int64)) (err error) {
	out := &output{writers: w, file: -1}
	defer func() { err = errors.Join(err, out.close()) }()
	for p := range w.work {
		sum := int64(0)
		for _, x := range p.list {
			if err := out.write(x, p.raw[x.from:x.from+x.n]); err != nil {
				return fmt.Errorf("writing %s: %w", w.t.path(int(x.file)), err)
			}
			sum += int64(x.n)
		}
		w.free <- p.raw[:cap(p.raw)]
		wrote(sum)
	}
	return nil
}

// output keeps the file it wrote last open: pieces of a file come together.
type output struct {
	*writers
	file  int
	path  string
	f     *os.File // buffered; nil until it is needed
	disk  *os.File // past the page cache, likewise
	dirty bool
}

func (o *output) write(x record, data []byte) error {
	i := int(x.file)
	e := &o.t.files[i]
	if e.kind == held {
		o.t.hold(i, x.at, data)
		return nil
	}
	if o.file != i {
		if err := o.close(); err != nil {
			return err
		}
		path, err := o.t.place(o.t.path(i))
		if err != nil {
			return err
		}
		o.file, o.path = i, path
	}
	addSum(&e.sum, data, x.at, e.size)
	n, err := o.direct(data, x)
	if err != nil || n == len(data) {
		return err
	}
	if o.f == nil {
		if o.f, err = os.OpenFile(o.path, os.O_WRONLY|unix.O_NOFOLLOW, 0); err != nil {
			return err
		}
	}
	o.dirty = true
	_, err = o.f.WriteAt(data[n:], x.at+int64(n))
	return err
}

// direct writes as much of data as can go past the page cache, and says how much
// that was. What a file system refuses is written the other way from then on.
func (o *output) direct(data []byte, x record) (int, error) {
	n := len(data) / directBlock * directBlock
	if n < directLeast || x.from%directBlock != 0 || x.at%directBlock != 0 || o.plain.Load() {
		return 0, nil
	}
	var err error
	if o.disk == nil {
		o.disk, err = os.OpenFile(o.path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_DIRECT, 0)
	}
	if err == nil {
		_, err = o.disk.WriteAt(data[:n], x.at)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		o.plain.Store(true)
		return 0, nil
	}
	return n, err
}

// close begins to send what is buffered to the disk, so that little is left to do
// when all is made durable at the end.
func (o *output) close() (err error) {
	for _, f := range []*os.File{o.f, o.disk} {
		if f == nil {
			continue
		}
		if f == o.f && o.dirty {
			_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) // advice
		}
		err = errors.Join(err, f.Close())
	}
	o.f, o.disk, o.dirty, o.file = nil, nil, false, -1
	return err
}
