package durable

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrHeld means that another holder has the lock.
var ErrHeld = errors.New("lock is held")

// Lock is an advisory lock on a file, flock(2): it ends with its process.
type Lock struct{ f *os.File }

// Acquire takes the lock of path without waiting, and creates path (0600) where
// it is missing: ErrHeld, with the holder's process id where it is known. The
// file stays when the lock is released: removing it would let two hold it.
func Acquire(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := flock(f); err != nil {
		holder := make([]byte, 20)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		return nil, fmt.Errorf("lock %s (process %s): %w", path, strings.TrimSpace(string(holder[:n])), err)
	}
	// For whoever meets the lock later; nothing depends on it.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return &Lock{f: f}, nil
}

// Release gives the lock back.
func (l *Lock) Release() error { return l.f.Close() }

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrHeld
		}
		return err
	}
}
