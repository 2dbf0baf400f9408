package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNoRoom means that a file system has too little room for more bytes of bulk.
var ErrNoRoom = errors.New("the disk is too full")

// NoRoom says whether err is that of a full disk, or of a full quota.
func NoRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// Reserve is a file of so many allocated bytes, kept to be given up: a program whose
// disk is full can then still finish what it began, remove what it need not keep, and
// write down what happened. While it is given up little is let in; it is made again when
// there is room for it and half as much beside. It is safe for concurrent use.
type Reserve struct {
	path string
	size int64

	mu    sync.Mutex
	there bool // a file
	held  bool // of the right size
}

// NewReserve is the reserve at path, of size bytes; 0 is none, which is never held. It
// makes nothing: Tend does.
func NewReserve(path string, size int64) *Reserve {
	return &Reserve{path: path, size: size}
}

// ReserveState is how a reserve and its disk stand.
type ReserveState struct {
	Size int64
	Held bool  // whole, on disk
	Free int64 // bytes of the disk beside it, for its owner
}

// Low says that what is free is less than the reserve and as much again.
func (s ReserveState) Low() bool { return s.Free < max(s.Size, s.margin()) || s.Size > 0 && !s.Held }

// margin is what bulk must leave free for small files, logs and names.
func (s ReserveState) margin() int64 { return max(s.Size/8, 1<<20) }

// Tend gives the reserve up when the disk is nearly full, and makes it again when there
// is room: to be called often. A file that somebody else removed counts as given up, one
// of another size is made anew.
func (r *Reserve) Tend() (ReserveState, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.look()
	if err != nil {
		return s, err
	}
	switch {
	case r.there && (r.size == 0 || s.Free < s.margin()):
		err = r.giveUp()
	case r.size > 0 && !r.held && s.Free >= r.size+r.size/2+s.margin():
		err = r.make()
	default:
		return s, nil
	}
	after, lerr := r.look()
	return after, errors.Join(err, lerr)
}

// Room says whether bytes more of bulk may be written: nil, or ErrNoRoom. While the
// reserve is given up it says yes only to what is alone on its way, as long as that
// leaves room for what has to be written about it. It gives the reserve up itself.
func (r *Reserve) Room(bytes int64, alone bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.look()
	if err == nil && r.held && s.Free < bytes+s.margin() {
		if err = r.giveUp(); err == nil {
			s, err = r.look()
		}
	}
	if err != nil {
		return err
	}
	if s.Free < bytes+s.margin() || r.size > 0 && !r.held && !alone {
		return fmt.Errorf("%w: %s has %d bytes free (reserve of %d held: %t); make room there", ErrNoRoom, filepath.Dir(r.path), s.Free, r.size, r.held)
	}
	return nil
}

// look asks the disk.
func (r *Reserve) look() (ReserveState, error) {
	s := ReserveState{Size: r.size}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &st); err != nil {
		return s, fmt.Errorf("asking %s for its free room: %w", filepath.Dir(r.path), err)
	}
	info, err := os.Stat(r.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("looking at the reserve: %w", err)
	}
	r.there = err == nil
	r.held = r.size > 0 && r.there && info.Size() == r.size
	s.Held, s.Free = r.held, int64(st.Bavail)*st.Bsize
	return s, nil
}

func (r *Reserve) giveUp() error {
	if err := Remove(r.path); err != nil {
		return fmt.Errorf("giving up the reserve: %w", err)
	}
	r.there, r.held = false, false
	return nil
}

// make allocates the file under another name, so that one bears its name only whole.
func (r *Reserve) make() (err error) {
	tmp := filepath.Join(filepath.Dir(r.path), TempPrefix+filepath.Base(r.path))
	defer func() {
		if err != nil {
			err = fmt.Errorf("making the reserve of %d bytes: %w", r.size, errors.Join(err, Remove(tmp)))
		}
	}()
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(allocate(f, r.size), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, r.path)
	}
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(r.path))
}

// allocate gives f its blocks: bytes written where the file system cannot allocate, some
// that are not zero, since those may be kept as holes.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	for at := int64(0); at < size; at += int64(len(block)) {
		if _, err := f.WriteAt(block[:min(int64(len(block)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// State looks, and changes nothing.
func (r *Reserve) State() (ReserveState, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.look()
}
