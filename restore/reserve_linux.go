package restore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve gives f size bytes of disk, or only the size where the file system
// cannot reserve.
func reserve(f *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return f.Truncate(size)
	}
	return err
}
