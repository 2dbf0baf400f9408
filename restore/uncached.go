package restore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// aligned is memory of n bytes that begins where O_DIRECT wants it to.
func aligned(n int) []byte {
	b := make([]byte, n+directBlock)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (directBlock - 1)
	return b[skip : skip+n : skip+n]
}

// read fills the first n bytes of the buffer from at on: past the page cache, unless
// most of them are in it. A directory that is compared is read once, and finding and
// filling a page of memory for each of its blocks costs more than comparing them.
func (o *oldFile) read(n int, at int64) error {
	buf := *o.buf
	if o.cold(n, at) {
		if o.direct(buf[:(n+directBlock-1)/directBlock*directBlock], at) >= n {
			return nil
		}
	}
	if got, err := o.f.ReadAt(buf[:n], at); got < n {
		return fmt.Errorf("reading %d bytes at %d: %w", n, at, err)
	}
	return nil
}

// cold says that less than half of what is to be read lies in the page cache. Linux
// tells since 6.5.
func (o *oldFile) cold(n int, at int64) bool {
	if n < directLeast || at%directBlock != 0 || o.plain.Load() {
		return false
	}
	var there unix.Cachestat_t
	if err := unix.Cachestat(uint(o.f.Fd()), &unix.CachestatRange{Off: uint64(at), Len: uint64(n)}, &there, 0); err != nil {
		o.plain.Store(true)
		return false
	}
	return there.Cache*uint64(os.Getpagesize())*2 < uint64(n)
}

// direct reads from the disk, and says how much came: nothing where that cannot be, for
// whatever reason. The other way of reading tells what is wrong with a file.
func (o *oldFile) direct(buf []byte, at int64) int {
	var got int
	var err error
	if o.disk == nil {
		o.disk, err = os.OpenFile(o.f.Name(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECT, 0)
	}
	if err == nil {
		got, err = o.disk.ReadAt(buf, at)
	}
	if err != nil && !errors.Is(err, io.EOF) { // the file may end within the last block
		o.plain.Store(true)
		return 0
	}
	return got
}
