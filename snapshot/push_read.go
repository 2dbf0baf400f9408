package snapshot

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// sent is what is remembered of a file that was sent ahead.
type sent struct {
	mac   string
	stamp stamp
}

// stamp tells by a file's attributes that it is the one that was read, byte for
// byte: the kernel changes ctime with each write. The zero stamp tells nothing.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime time.Time
}

// settled is how long a file must have been left alone for its ctime to change
// with the next write: several ticks of the kernel's clock.
const settled = time.Second

// stampOf is the stamp of a file that is about to be read.
func stampOf(st os.FileInfo, now time.Time) stamp {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}
	}
	s := stamp{sys.Dev, sys.Ino, st.Size(), st.ModTime(), time.Unix(sys.Ctim.Unix())}
	if now.Sub(s.ctime) < settled {
		return stamp{}
	}
	return s
}

// of says whether path is the file, unchanged.
func (s stamp) of(path string) bool {
	if s == (stamp{}) {
		return false
	}
	st, err := os.Lstat(path)
	return err == nil && stampOf(st, time.Now()) == s
}

// readPushed reads a file whose name says how large it may be; stamp is zero if
// it changed a moment ago. Give the bytes back to pool.
func readPushed(path, name string, segSize int64, pool *buffers) ([]byte, stamp, error) {
	kind, err := kindOfFile(name)
	if err != nil {
		return nil, stamp{}, err
	}
	limit := int64(maxSmallFile)
	if kind == segmentFile || kind == partialFile {
		limit = segSize
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, stamp{}, fmt.Errorf("reading what PostgreSQL archives: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, stamp{}, fmt.Errorf("reading what PostgreSQL archives: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, stamp{}, fmt.Errorf("%s: %w: %s of %d bytes, want a file of at most %d", name, ErrNotWAL, st.Mode().Type(), st.Size(), limit)
	}
	before := stampOf(st, time.Now())
	data := pool.take(st.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, stamp{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return data, before, nil
}

// buffers keeps a few segments' worth of memory for the next ones.
type buffers struct {
	size int64
	free chan []byte
}

func newBuffers(size int64, n int) *buffers { return &buffers{size, make(chan []byte, n)} }

func (b *buffers) take(n int64) []byte {
	if n == b.size {
		select {
		case buf := <-b.free:
			return buf
		default:
		}
	}
	return make([]byte, n)
}

func (b *buffers) give(buf []byte) {
	if int64(len(buf)) != b.size {
		return
	}
	select {
	case b.free <- buf:
	default:
	}
}
